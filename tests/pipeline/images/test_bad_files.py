"""120 malformed and odd files of others: each is a right image or exactly one reason, silently, in little memory."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.images import ImageConfig, ImageError, prepare

# Pillow's warnings are silenced for the process; pytest puts its own filters in their place.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data"
AS_IS = ImageConfig(resize_mode="no")

# Where we differ from what Pillow makes of a file, and why.
NOT_READ_HERE = {
    ".fli": "unsupported_format",  # no browser shows these five; each decoder is attack surface
    ".psd": "unsupported_format",
    ".sgi": "unsupported_format",
    ".dds": "unsupported_format",
    ".pcx": "unsupported_format",
    ".heif": "unsupported_format",  # Pillow has no HEVC either, but we can say that it is an image
    ".tga": "not_image",  # has no signature: any bytes could be one
}
DIFFERENCES = {
    "ossfuzz-4836216264589312.pcx": "not_image",  # its header is broken where the signature would be
    "seek_too_large.tif": "unsupported_format",  # BigTIFF: files beyond 4 GB
}


def bad_files() -> Iterator[dict[str, str]]:
    table = DATA / "bad.tsv"
    if not table.exists():
        return iter(())
    return csv.DictReader(io.StringIO(table.read_text(encoding="utf-8")), delimiter="\t")


BAD = {Path(row["file"]).name: row for row in bad_files()}
needs_bad_files = pytest.mark.skipif(not BAD, reason="../shared/data/bad is not on this machine")


def expected(row: dict[str, str]) -> str:
    """ "accepted" or a reason, from what Pillow made of the file and the differences above."""
    name, pillow = Path(row["file"]).name, row["pillow_13.0.0_result"]
    if name in DIFFERENCES:
        return DIFFERENCES[name]
    if Path(name).suffix in NOT_READ_HERE:
        return NOT_READ_HERE[Path(name).suffix]
    # Warnings are harmless, and an error in a later frame is none of ours: we keep the first.
    if pillow in ("ok", "ok_warn:UserWarning") or pillow.startswith("frame_error"):
        return "accepted"
    return "too_many_pixels" if pillow == "open_error:DecompressionBombError" else "decode_error"


def pillow_pixels(path: Path) -> np.ndarray:
    """What Pillow alone makes of the first frame: upright, on white, 8-bit."""
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter("ignore")
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "I":  # 16bit.s.tif: signed, of which Pillow's convert would clip all above 255
            grey = np.asarray(upright).clip(0) / 32767 * 255
            return np.repeat(grey[..., None], 3, axis=-1)
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            rgba = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return np.asarray(upright.convert("RGB"))


@needs_bad_files
def test_the_list_is_whole():
    assert len(BAD) == 120
    assert set(DIFFERENCES) <= set(BAD)


@needs_bad_files
@pytest.mark.parametrize("name", BAD)
def test_each_is_a_right_image_or_the_expected_reason(name):
    row = BAD[name]
    path = DATA / row["file"]
    if expected(row) != "accepted":
        with pytest.raises(ImageError, match=expected(row)):
            prepare(path.read_bytes(), AS_IS)
        return
    prepared = prepare(path.read_bytes(), AS_IS)
    want = pillow_pixels(path)
    assert prepared.pixels.shape == want.shape
    assert (prepared.original_height, prepared.original_width) == want.shape[:2]
    np.testing.assert_allclose(prepared.pixels, want, atol=1)  # rounding; two builds of libjpeg


CONVERT_ALL = """
import sys
from pathlib import Path
from tests.servers.memory import peak_mib
from pipeline.images import ImageConfig, ImageError, convert
done = 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    for config in (ImageConfig(), ImageConfig(resize_mode="no", keep_exif=True)):
        try:
            convert(path.read_bytes(), config)
        except ImageError:
            pass
    done += 1
print(done, round(peak_mib()))
"""


@needs_bad_files
def test_all_of_them_are_silent_and_small():
    run = subprocess.run(
        [sys.executable, "-W", "default", "-c", CONVERT_ALL, str(DATA / "bad")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    done, peak_mib = map(int, run.stdout.split())
    assert run.stderr == ""
    assert done == 120
    assert peak_mib < 1024
