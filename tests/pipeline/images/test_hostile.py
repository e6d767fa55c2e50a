"""Whatever the bytes: an image or a reason, soon, in silence, from any thread."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.images import REASONS, Converted, ImageConfig, ImageError, convert

# Pillow's warnings are silenced for the process; pytest puts its own filters in their place.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

CONFIG = ImageConfig(image_size=24, max_pixels=1_000_000, keep_exif=True)
QUIET = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def _file(mode: str, format_name: str, **options: object) -> bytes:
    noise = np.random.default_rng(7).integers(0, 256, (40, 56, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(out, format_name, **options)
    return out.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    return exif


FILES = {
    "jpeg": _file("RGB", "JPEG", exif=_exif()),
    "progressive jpeg": _file("RGB", "JPEG", progressive=True),
    "grey jpeg": _file("L", "JPEG"),
    "cmyk jpeg": _file("CMYK", "JPEG"),
    "png": _file("RGB", "PNG", exif=_exif()),
    "alpha png": _file("RGBA", "PNG"),
    "palette png": _file("P", "PNG", transparency=3),
    "deep png": _file("I;16", "PNG"),
    "webp": _file("RGB", "WEBP", exif=_exif()),
    "lossless webp": _file("RGBA", "WEBP", lossless=True),
    "gif": _file("P", "GIF"),
    "bmp": _file("RGB", "BMP"),
    "avif": _file("RGB", "AVIF"),
    "tiff": _file("RGB", "TIFF"),
    "deflated tiff": _file("RGB", "TIFF", compression="tiff_adobe_deflate"),
    "jpeg tiff": _file("RGB", "TIFF", compression="jpeg"),
    "fax tiff": _file("1", "TIFF", compression="group4"),
    "ico": _file("RGBA", "ICO", sizes=[(32, 32), (16, 16)]),
    "bmp ico": _file("RGBA", "ICO", sizes=[(32, 32)], bitmap_format="bmp"),
    "jp2": _file("RGB", "JPEG2000"),
    "j2k": _file("L", "JPEG2000", no_jp2=True),
}


def converted_or_reason(data: bytes) -> Converted | str:
    try:
        return convert(data, CONFIG)
    except ImageError as error:
        return error.reason


def assert_image_or_reason(data: bytes) -> None:
    result = converted_or_reason(data)
    if isinstance(result, str):
        assert result in REASONS
        assert result != "encode_error"
        return
    with Image.open(io.BytesIO(result.data)) as stored:
        stored.load()
        assert stored.size == (result.width, result.height)
        assert max(stored.size) <= 24
        assert result.original_width * result.original_height <= CONFIG.max_pixels


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_what_they_are_meant_to_be(name):
    assert convert(FILES[name], CONFIG).width > 0


@QUIET
@given(st.binary(max_size=300))
def test_any_bytes_are_an_image_or_a_reason(data):
    assert_image_or_reason(data)


@QUIET
@given(st.sampled_from(sorted(FILES)), st.binary(max_size=200), st.integers(4, 40))
def test_garbage_behind_a_signature_is_a_reason(name, garbage, kept):
    assert_image_or_reason(FILES[name][:kept] + garbage)


@pytest.mark.parametrize("name", FILES)
@settings(QUIET, max_examples=40)
@given(data=st.data())
def test_mutated_images_are_an_image_or_a_reason(name, data):
    mutated = bytearray(FILES[name])
    # Headers lie at the front: half of the changes go there.
    places = st.one_of(st.integers(0, min(400, len(mutated) - 1)), st.integers(0, len(mutated) - 1))
    for place in data.draw(st.lists(places, max_size=12), label="places"):
        mutated[place] = data.draw(st.one_of(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]), st.integers(0, 255)))
    cut = data.draw(st.one_of(st.just(len(mutated)), st.integers(0, len(mutated))), label="cut")
    again = data.draw(st.integers(0, len(mutated)), label="again")
    assert_image_or_reason(bytes(mutated[:cut]) + bytes(mutated[again:cut]))


def test_threads_do_not_disturb_each_other():
    work = list(FILES.values()) * 6
    alone = [convert(data, CONFIG) for data in work]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda data: convert(data, CONFIG), work)) == alone
