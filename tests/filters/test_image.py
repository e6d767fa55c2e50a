"""Image scores: what they say of blank, blurred and noisy pictures, whatever size and format these are stored in."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from filters.base import Batch, description
from filters.image import Image
from infra.sample import Pair


def stored(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def scores(*images: bytes | None) -> list[dict[str, float]]:
    pairs = [Pair(number.to_bytes(16, "big"), "", "", (), image) for number, image in enumerate(images)]
    table = Image().score(Batch(pairs))
    assert table.schema.equals(Image.columns)
    return table.to_pylist()


def scene(width: int = 512, height: int = 384) -> np.ndarray:
    """Blobs and edges, the same at any size but for what a small one cannot hold."""
    coarse = np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8)
    large = cv2.resize(coarse, (1024, 768), interpolation=cv2.INTER_CUBIC)
    cv2.putText(large, "Pairmill", (60, 450), cv2.FONT_HERSHEY_SIMPLEX, 6, (255, 255, 255), 30)
    return cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)


def test_size_and_aspect_are_those_of_the_stored_image():
    (row,) = scores(stored(scene(300, 200)))
    assert (row["width"], row["height"], row["aspect"]) == (300, 200, 1.5)
    (row,) = scores(stored(scene(30, 120)))
    assert (row["width"], row["height"], row["aspect"]) == (30, 120, 4)


@pytest.mark.parametrize("level", [0, 1, 127, 255])
@pytest.mark.parametrize("size", [(1, 1), (20, 300), (512, 512)])
def test_a_solid_image_is_uniform_without_entropy_or_edges(level, size):
    for kind in ("PNG", "JPEG"):
        (row,) = scores(stored(np.full((*size, 3), level, np.uint8), kind))
        assert (row["entropy"], row["sharpness"], row["uniform"]) == (0, 0, 1)


def test_the_noise_of_compression_leaves_a_blank_image_uniform():
    noisy = 200 + np.random.default_rng(0).normal(0, 2.5, (300, 400, 3))
    (row,) = scores(stored(noisy.astype(np.uint8), "JPEG", quality=50))
    assert row["uniform"] > 0.98


def test_all_greys_equally_often_have_eight_bits():
    levels = np.arange(256, dtype=np.uint8).repeat(64).reshape(128, 128)
    (row,) = scores(stored(np.dstack([levels] * 3)))
    assert row["entropy"] == 8
    assert row["uniform"] == pytest.approx(17 / 256)
    halves = np.repeat(np.array([[0, 255]], np.uint8), 64, axis=1).repeat(128, axis=0)
    (row,) = scores(stored(np.dstack([halves] * 3)))
    assert (row["entropy"], row["uniform"]) == (1, 0.5)


def test_sharpness_falls_with_every_blur():
    images = [stored(cv2.GaussianBlur(scene(), (0, 0), sigma)) for sigma in (0.1, 1, 2, 4, 8, 16)]
    found = [row["sharpness"] for row in scores(*images)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0] / 20


@pytest.mark.parametrize("side", [256, 300, 348, 400, 700, 1000])
def test_scores_hardly_depend_on_the_stored_size(side):
    whole, other = scores(stored(scene()), stored(scene(side, side * 3 // 4)))
    assert other["entropy"] == pytest.approx(whole["entropy"], abs=0.15)
    assert other["uniform"] == pytest.approx(whole["uniform"], abs=0.02)
    # A reduction in another ratio keeps another share of the finest detail.
    assert other["sharpness"] == pytest.approx(whole["sharpness"], rel=0.3)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_scores_hardly_depend_on_the_stored_format(kind):
    whole, other = scores(stored(scene()), stored(scene(), kind, quality=85))
    assert other["entropy"] == pytest.approx(whole["entropy"], abs=0.15)
    assert other["uniform"] == pytest.approx(whole["uniform"], abs=0.02)
    assert other["sharpness"] == pytest.approx(whole["sharpness"], rel=0.1)


def test_what_cannot_be_decoded_is_null_and_moves_no_other_row():
    whole, empty, broken, again = scores(stored(scene()), None, b"\xff\xd8\xff nothing", stored(scene()))
    assert set(empty.values()) == set(broken.values()) == {None}
    assert whole == again


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 255), st.integers(0, 255))
def test_scores_lie_in_their_ranges_at_any_size(width, height, low, high):
    pixels = np.random.default_rng(width).integers(min(low, high), max(low, high) + 1, (height, width, 3), np.uint8)
    (row,) = scores(stored(pixels))
    assert row["aspect"] >= 1
    assert 0 <= row["entropy"] <= 8
    assert 0 <= row["uniform"] <= 1
    assert row["sharpness"] >= 0


def test_every_column_is_told_of():
    assert all(description(field) for field in Image.columns)
    assert {field.type for field in Image.columns} == {pa.int32(), pa.float32()}
