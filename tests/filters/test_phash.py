"""The hash survives what the web does to pictures, tells pictures apart, and is ImageHash's."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from filters.phash import (
    coarse_hashes,
    fine_hashes,
    hamming,
    miniature,
    perceptual_hash,
    perceptual_hash_of_bytes,
)

PHOTOS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "photos"


def picture(seed: int, width: int = 240, height: int = 180) -> np.ndarray:
    """Soft blobs of colour, as photos have them at a distance."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def stored(pixels: np.ndarray, format_name: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format_name, **options)
    return out.getvalue()


def variants(pixels: np.ndarray) -> list[np.ndarray]:
    """Smaller, larger, squeezed, recompressed, darker."""
    image = Image.fromarray(pixels)
    height, width = pixels.shape[:2]
    small = np.asarray(image.resize((width // 2, height // 2)))
    large = np.asarray(image.resize((width * 2, height * 2)))
    squeezed = np.asarray(image.resize((100, 100)))
    rough = np.asarray(Image.open(io.BytesIO(stored(pixels, quality=30))))
    return [small, large, squeezed, rough, (pixels * 0.85).astype(np.uint8)]


def test_a_hash_is_64_bits_and_the_same_every_time():
    first = perceptual_hash(picture(1))
    assert first == perceptual_hash(picture(1).copy())
    assert isinstance(first, int)
    assert 0 <= first < 2**64


def test_flat_and_tiny_pictures_have_a_hash():
    for pixels in (np.zeros((1, 1, 3), np.uint8), np.full((50, 2), 255, np.uint8), np.zeros((300, 300), np.uint8)):
        assert 0 <= perceptual_hash(pixels) < 2**64


def test_grey_and_its_three_channels_agree():
    grey = picture(2)[..., 0]
    assert perceptual_hash(grey) == perceptual_hash(np.repeat(grey[..., None], 3, axis=-1))


def test_resizing_and_recompressing_change_few_bits():
    for seed in range(20):
        original = perceptual_hash(picture(seed))
        assert all(hamming(original, perceptual_hash(other)) <= 8 for other in variants(picture(seed)))


def test_other_pictures_are_far():
    hashes = [perceptual_hash(picture(seed)) for seed in range(60)]
    apart = hamming(np.array(hashes, np.uint64)[:, None], np.array(hashes, np.uint64)[None])
    assert apart[~np.eye(60, dtype=bool)].min() > 10


def test_bytes_and_pixels_agree():
    for format_name in ("JPEG", "PNG", "WEBP"):
        data = stored(picture(3), format_name)
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert perceptual_hash_of_bytes(data) == perceptual_hash(pixels)
    with pytest.raises(OSError, match="identify"):
        perceptual_hash_of_bytes(b"GIF89a")


def test_hamming_counts_bits_elementwise():
    assert hamming(0, 2**64 - 1) == 64
    assert hamming([1, 2**63], [0, 2**63]).tolist() == [1, 0]
    assert hamming([[0], [3]], [0, 1, 2]).tolist() == [[0, 1, 1], [2, 1, 1]]


def test_the_definition_is_that_of_imagehash():
    # Its phash() in four lines: https://github.com/JohannesBuchner/imagehash
    fftpack = pytest.importorskip("scipy.fftpack")
    for seed in range(30):
        small = np.asarray(Image.fromarray(picture(seed)).convert("L").resize((32, 32), Image.Resampling.LANCZOS))
        low = fftpack.dct(fftpack.dct(small, axis=0), axis=1)[:8, :8]
        bits = "".join("1" if above else "0" for above in (low > np.median(low)).ravel())
        assert perceptual_hash(picture(seed)) == int(bits, 2)


@pytest.mark.skipif(not PHOTOS.exists(), reason="../shared/data/photos is not on this machine")
def test_photos_stay_near_themselves_and_far_from_others():
    photos = [np.asarray(Image.open(path)) for path in sorted(PHOTOS.glob("*.jpg"))[::25]]
    originals = [perceptual_hash(photo) for photo in photos]
    near = [
        hamming(mine, perceptual_hash(v))
        for mine, photo in zip(originals, photos, strict=True)
        for v in variants(photo)
    ]
    assert max(near) <= 8
    apart = hamming(np.array(originals, np.uint64)[:, None], np.array(originals, np.uint64)[None])
    others = apart[np.triu_indices(len(photos), 1)]
    # Shelf photos of one product, taken a second apart, may be near; most pairs must not be.
    assert np.mean(others <= 10) < 0.01


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1200), st.integers(1, 1200), st.booleans())
def test_the_miniature_is_that_of_pillow(width, height, is_stark):
    levels = np.random.default_rng(width).integers(0, 256, (height, width), np.uint8)
    levels = np.where(levels > 127, 255, 0).astype(np.uint8) if is_stark else levels
    # One way at a time: from version 13 on, Pillow squeezes tall pictures down before it squeezes them across.
    across = Image.fromarray(levels).resize((32, height), Image.Resampling.LANCZOS)
    assert np.array_equal(miniature(levels), np.asarray(across.resize((32, 32), Image.Resampling.LANCZOS)))


def test_hashes_of_many_are_those_of_each():
    miniatures = np.stack([miniature(picture(seed)[..., 0]) for seed in range(40)])
    for hashes in (coarse_hashes, fine_hashes):
        assert hashes(miniatures).tolist() == [int(hashes(one[None])[0]) for one in miniatures]
        assert hashes(miniatures[:0]).tolist() == []


@pytest.mark.skipif(not PHOTOS.exists(), reason="../shared/data/photos is not on this machine")
def test_photos_have_the_hash_of_imagehash():
    fftpack = pytest.importorskip("scipy.fftpack")
    for path in sorted(PHOTOS.glob("*.jpg"))[::20]:
        grey = Image.open(path).convert("L")
        small = np.asarray(
            grey.resize((32, grey.height), Image.Resampling.LANCZOS).resize((32, 32), Image.Resampling.LANCZOS)
        )
        low = fftpack.dct(fftpack.dct(small, axis=0), axis=1)[:8, :8]
        bits = "".join("1" if above else "0" for above in (low > np.median(low)).ravel())
        assert perceptual_hash_of_bytes(path.read_bytes()) == int(bits, 2)
