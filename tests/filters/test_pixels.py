"""Decoding: what people see, of any bytes that a foreign shard may hold; None, without a word, for what is no image."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from filters.pixels import decode, grey
from tests.servers.commands import CHECKOUT, SHARED


def picture(width: int = 48, height: int = 32) -> np.ndarray:
    """Soft blobs of colour."""
    coarse = np.random.default_rng(7).integers(0, 256, (4, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def stored(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds no pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


WHOLE = {
    "JPEG": stored(picture(), "JPEG"),
    "progressive": stored(picture(), "JPEG", progressive=True),
    "PNG": stored(picture(), "PNG"),
    "WEBP": stored(picture(), "WEBP"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_pixels_are_those_of_pillow(name):
    assert np.array_equal(decode(WHOLE[name]), np.asarray(Image.open(io.BytesIO(WHOLE[name])).convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_exif_turned_is_turned_back(kind, orientation):
    lying = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation → the transposition that undoes its mending
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = Image.fromarray(picture())
    as_taken = upright.transpose(lying[orientation]) if orientation in lying else upright
    seen = decode(stored(as_taken, kind, exif=exif, **({} if kind == "PNG" else {"quality": 95})))
    assert seen.shape == (32, 48, 3)
    assert np.abs(seen.astype(int) - picture()).mean() < 4  # what the two lossy formats lose


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # which pytest shows although the module silences it
def test_broken_exif_costs_no_image():
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\0" * 40):
        assert decode(stored(picture(), "JPEG", exif=exif)).shape == (32, 48, 3)


def test_what_is_transparent_is_white():
    rgba = np.dstack([picture(), np.zeros((32, 48), np.uint8)])
    rgba[:, 24:, 3] = 255
    palette = Image.fromarray(picture()).quantize(16)
    for image in (Image.fromarray(rgba), Image.fromarray(rgba).convert("LA")):
        pixels = decode(stored(image, "PNG"))
        assert (pixels[:, :24] == 255).all()
        assert pixels[:, 24:].std() > 10
    assert (decode(stored(palette, "PNG", transparency=bytes(16))) == 255).all()


def test_grey_sixteen_bits_and_cmyk_look_as_they_should():
    levels = np.arange(256, dtype=np.uint16).repeat(4).reshape(32, 32) * 257
    assert np.array_equal(decode(stored(Image.fromarray(levels), "PNG"))[..., 1], levels // 257)
    assert np.array_equal(decode(stored(picture()[..., 0], "PNG"))[..., 2], picture()[..., 0])
    assert decode(stored(picture()[..., 0], "JPEG")).shape == (32, 48, 3)
    cmyk = decode(stored(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - picture()).mean() < 4


def test_of_several_frames_the_first_is_seen():
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    for kind in ("PNG", "WEBP"):
        data = stored(
            first, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert decode(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", WHOLE)
def test_half_a_file_is_none(name):
    assert decode(WHOLE[name][: len(WHOLE[name]) // 2]) is None


def test_other_formats_and_text_are_none():
    for kind in ("GIF", "BMP", "TIFF", "PPM"):
        assert decode(stored(picture(), kind)) is None
    for data in (b"", b"\xff\xd8", b"<html>", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"):
        assert decode(data) is None


def test_a_size_above_the_cap_is_refused_before_a_pixel_is_made():
    frame = WHOLE["JPEG"].index(b"\xff\xc0")
    jpeg = bytearray(WHOLE["JPEG"])
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    code = "import sys; from filters.pixels import decode; from tests.servers.memory import peak_mib;"
    code += "data = sys.stdin.buffer.read(); before = peak_mib(); assert decode(data) is None;"
    code += "print(peak_mib() - before)"
    for data in (png(30_000, 30_000), png(100_000, 1_001), bytes(jpeg)):
        ran = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, cwd=CHECKOUT, check=True)
        assert float(ran.stdout) < 50  # MiB; decoded they would take gigabytes
        assert ran.stderr == b""


def test_an_absurd_number_of_scans_is_refused():
    data = WHOLE["progressive"]
    scan = data.rindex(b"\xff\xda")
    assert decode(data[:-2] + data[scan:-2] * 100 + data[-2:]) is None


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(WHOLE)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8), st.binary()
)
def test_no_bytes_raise(name, changes, tail):
    data = bytearray(WHOLE[name])
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    for hostile in (bytes(data), bytes(data) + tail, tail, bytes(data[:16]) + tail):
        pixels = decode(hostile)
        assert pixels is None or (pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8)


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not on this machine")
def test_malformed_files_are_none_or_an_image_and_nothing_is_said():
    code = "import sys; from pathlib import Path; from filters.pixels import decode;"
    code += "found = [decode(path.read_bytes()) for path in Path(sys.argv[1]).iterdir()];"
    code += "print(sum(pixels is None for pixels in found), len(found))"
    command = [sys.executable, "-c", code, str(SHARED / "bad")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=True)
    num_none, num = map(int, ran.stdout.split())
    assert 0 < num_none < num
    assert ran.stderr == ""


def test_grey_is_that_of_pillow():
    for pixels in (picture(), picture(1, 1), np.random.default_rng(1).integers(0, 256, (300, 700, 3), np.uint8)):
        assert np.array_equal(grey(pixels), np.asarray(Image.fromarray(pixels).convert("L")))
    assert np.array_equal(grey(picture()[..., 0]), picture()[..., 0])
