"""A line of operations is read, or refused with a mend; any bytes become a finite tensor, or UnreadableImage."""

from __future__ import annotations

import contextlib
import pickle
import struct
import threading
import zlib

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.errors import UsageError
from tests.servers.commands import SHARED
from tests.training.pictures import picture, rng, stored
from training.preprocess import OPS, Ops, UnreadableImage
from training.preprocess.decode import Encoded

CHANGES = "flip|color_jitter(.4, .4, .4, .1)|randaugment(2, 9)|grayscale(.2)"
TRAINING = f"decode|random_resized_crop(32, 0.5)|{CHANGES}|normalize(clip)"
EVALUATION = "decode|resize(36)|center_crop(32)|normalize(clip)"
CALLS = {  # each operation as it may be written
    "decode": "decode(max_pixels=1_000_000)",
    "random_resized_crop": "random_resized_crop(32, 0.9, max_ratio=1.5)",
    "resize": "resize(40)",
    "squash": " squash( size = 32 ) ",
    "center_crop": "center_crop(32)",
    "flip": "flip(0.3)",
    "randaugment": "randaugment(2, 5)",
    "color_jitter": "color_jitter(.4, .4, hue=.1)",
    "grayscale": "grayscale",
    "normalize": "normalize(by=half)",
}


def line_with(name: str) -> str:
    """A line in which the operation stands where it belongs."""
    framing = {"squash": CALLS["squash"], "random_resized_crop": CALLS["random_resized_crop"]}
    change = CALLS[name] if name in ("flip", "randaugment", "color_jitter", "grayscale") else "flip"
    middle = framing.get(name, f"{CALLS['resize']}|{CALLS['center_crop']}")
    return f"{CALLS['decode']}|{middle}|{change}|{CALLS['normalize']}"


def with_exif(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return stored(image, "JPEG", exif=exif)


WHOLE = {
    "JPEG": stored(picture(60, 44), "JPEG"),
    "progressive": stored(picture(60, 44), "JPEG", progressive=True),
    "turned": with_exif(picture(60, 44)),
    "CMYK": stored(picture(60, 44).convert("CMYK"), "JPEG"),
    "grey JPEG": stored(picture(60, 44).convert("L"), "JPEG"),
    "PNG": stored(picture(60, 44), "PNG"),
    "16-bit": stored(Image.fromarray(np.arange(60 * 44, dtype=np.uint16).reshape(44, 60) * 24), "PNG"),
    "alpha": stored(picture(60, 44).convert("RGBA"), "PNG"),
    "palette": stored(picture(60, 44).quantize(16), "PNG", transparency=3),
    "WEBP": stored(picture(60, 44), "WEBP"),
    "GIF": stored(picture(60, 44), "GIF"),
    "BMP": stored(picture(60, 44), "BMP"),
}


def reason_of(ops: Ops, data: bytes) -> str:
    with pytest.raises(UnreadableImage) as caught:
        ops(data, rng())
    return caught.value.reason


@pytest.mark.parametrize("name", OPS)
def test_every_operation_is_read_and_runs(name):
    ops = Ops.parse(line_with(name))
    assert ops(WHOLE["JPEG"], rng()).shape == (3, 32, 32)


@pytest.mark.parametrize("line", [TRAINING, EVALUATION])
@pytest.mark.parametrize("name", WHOLE)
def test_every_kind_of_image_becomes_a_square_of_normal_numbers(name, line):
    tensor = Ops.parse(line)(WHOLE[name], rng())
    assert (tensor.shape, tensor.dtype) == ((3, 32, 32), torch.float32)
    assert tensor.isfinite().all()
    assert tensor.min() >= -1.8  # black, as CLIP normalises it
    assert tensor.max() <= 2.2  # white


@pytest.mark.parametrize(
    ("line", "mend"),
    [
        ("decode|squahs(32)|normalize(clip)", "did you mean squash?"),
        ("decode|squash|normalize(clip)", "squash takes size (side of the square, pixels)"),
        ("decode|squash(3, 4)|normalize(clip)", "squash takes size"),
        ("decode|squash(3, size=4)|normalize(clip)", "squash takes size"),
        ("decode|squash(sise=3)|normalize(clip)", "squash takes size"),
        ("decode|squash(32)|flip(q=.5)|normalize(clip)", "unknown key q"),
        ("decode|squash(wide)|normalize(clip)", "size='wide'"),
        ("decode|squash(0)|normalize(clip)", "greater than 0"),
        ("decode|squash(32)|flip(2)|normalize(clip)", "less than or equal to 1"),
        ("decode|random_resized_crop(32, .9, .5)|normalize(clip)", "must not exceed"),
        ("decode|random_resized_crop(32, max_ratio=inf)|normalize(clip)", "max_ratio"),
        ("decode|squash(32)|normalize(open)", "'clip', 'imagenet', 'half' or 'unit'"),
        ("decode|squash(32)|normalize", "clip, imagenet, half or unit"),
        ("decode|resize(32)|normalize(clip)", "resize(…)|center_crop(…)"),
        ("decode|resize(32)|center_crop(40)|normalize(clip)", "too small"),
        ("decode|flip|squash(32)|normalize(clip)", "the order is"),
        ("decode|squash(32)|squash(32)|normalize(clip)", "the order is"),
        ("squash(32)|normalize(clip)", "the order is"),
        ("decode|squash(32)", "the order is"),
        ("decode|squash(32|normalize(clip)", "no operation"),
        ("decode|os:system(1)|normalize(clip)", "no operation"),
        ("", "no operation"),
    ],
)
def test_a_wrong_line_is_refused_with_its_mend(line, mend):
    with pytest.raises(UsageError) as caught:
        Ops.parse(line)
    assert mend in str(caught.value)


@given(st.text(st.sampled_from("decode|resize(32,=.) flip_normalizclp"), max_size=60))
def test_any_text_is_a_line_or_a_usage_error(text):
    with contextlib.suppress(UsageError):
        Ops.parse(text)


def test_the_same_bytes_and_chance_give_the_same_bits_also_elsewhere():
    ops = Ops.parse(TRAINING)
    first = [ops(data, rng(seed)) for seed in range(4) for data in WHOLE.values()]
    copy = pickle.loads(pickle.dumps(ops))
    again: list[torch.Tensor] = []

    def other() -> None:
        torch.set_num_threads(2)
        again.extend(copy(data, rng(seed)) for seed in range(4) for data in WHOLE.values())

    threads = torch.get_num_threads()
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))


def test_chance_changes_the_crop_and_only_chance():
    ops = Ops.parse("decode|random_resized_crop(32, 0.2, 0.5)|normalize(clip)")
    assert not torch.equal(ops(WHOLE["JPEG"], rng(0)), ops(WHOLE["JPEG"], rng(1)))
    assert torch.equal(Ops.parse(EVALUATION)(WHOLE["JPEG"], rng(0)), Ops.parse(EVALUATION)(WHOLE["JPEG"], rng(1)))


def test_a_row_of_a_batch_is_written_and_no_other():
    ops = Ops.parse(TRAINING)
    batch = torch.full((3, 3, 32, 32), 7.0)
    ops.into(WHOLE["JPEG"], rng(), batch[1])
    assert torch.equal(batch[1], ops(WHOLE["JPEG"], rng()))
    assert (batch[[0, 2]] == 7).all()


def test_an_unreadable_image_leaves_its_row_alone():
    row = torch.full((3, 32, 32), 7.0)
    with pytest.raises(UnreadableImage):
        Ops.parse(EVALUATION).into(WHOLE["JPEG"][:-300], rng(), row)
    assert (row == 7).all()


@pytest.mark.parametrize("name", ["JPEG", "progressive", "PNG", "WEBP", "BMP"])
def test_a_cut_image_is_truncated_or_broken(name):
    assert reason_of(Ops.parse(EVALUATION), WHOLE[name][: len(WHOLE[name]) // 2]) in ("truncated", "broken")


def test_reasons_tell_what_the_bytes_are():
    ops = Ops.parse(EVALUATION)
    assert reason_of(ops, b"") == reason_of(ops, b"<html>no</html>") == "not_an_image"
    assert reason_of(ops, WHOLE["JPEG"][:-100]) == "truncated"
    assert pickle.loads(pickle.dumps(UnreadableImage("broken", "why"))).reason == "broken"


def bomb_png(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds no pixel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def bomb_jpeg(width: int, height: int) -> bytes:
    """A JPEG whose frame declares another size than it has."""
    at = WHOLE["JPEG"].index(b"\xff\xc0") + 5
    return WHOLE["JPEG"][:at] + struct.pack(">HH", height, width) + WHOLE["JPEG"][at + 4 :]


@pytest.mark.parametrize("bomb", [bomb_png, bomb_jpeg])
def test_what_claims_too_many_pixels_is_refused_by_its_header(bomb):
    # Decoding would find no pixels in it, and so another reason.
    assert reason_of(Ops.parse(EVALUATION), bomb(60_000, 60_000)) == "too_large"
    assert reason_of(Ops.parse(EVALUATION), bomb(100, 100)) in ("truncated", "broken")
    small = Ops.parse(f"decode(9_999)|{EVALUATION.partition('|')[2]}")
    assert reason_of(small, bomb(100, 100)) == "too_large"
    assert reason_of(small, bomb(99, 101)) in ("truncated", "broken")


def test_a_side_too_long_is_refused():
    assert reason_of(Ops.parse(EVALUATION), bomb_png(1, 70_000)) == "too_large"


def test_absurdly_many_scans_are_refused():
    data = WHOLE["progressive"]
    last = data.rindex(b"\xff\xda")
    scan, end = data[last:-2], data[-2:]
    assert reason_of(Ops.parse(EVALUATION), data[:last] + scan * 100 + end) == "broken"


def test_a_strip_one_pixel_wide_is_shown():
    for size in ((1, 20_000), (20_000, 1)):
        strip = stored(Image.new("RGB", size, "red"), "PNG")
        for line in (TRAINING, EVALUATION, "decode|squash(32)|normalize(half)"):
            assert Ops.parse(line)(strip, rng()).shape == (3, 32, 32)


def test_what_the_fast_decoder_finds_odd_is_for_pillow_to_judge():
    # A stray byte between segments; the last segment before the scan is the tables'.
    data = WHOLE["JPEG"]
    at = data.index(b"\xff\xc4")
    odd = data[:at] + b"\0" + data[at:]
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg(odd)
    assert torch.equal(Ops.parse(EVALUATION)(odd, rng()), Ops.parse(EVALUATION)(data, rng()))


def test_an_image_of_another_size_than_its_header_says_is_broken():
    encoded = Encoded(4, 3, lambda spare: (np.zeros((3, 5, 3), np.uint8), 1))
    with pytest.raises(UnreadableImage, match="size"):
        encoded.pixels(1)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(list(WHOLE.values()))))
    for _ in range(draw(st.integers(0, 6))):
        # Headers are hit as often as what follows them.
        at = draw(st.integers(0, min(700, len(data) - 1)) | st.integers(0, len(data) - 1))
        data[at] = draw(st.integers(0, 255))
    stop = draw(st.none() | st.integers(0, len(data)))
    return bytes(data[:stop]) + draw(st.binary(max_size=8))


@given(mutated(), st.sampled_from([TRAINING, EVALUATION]), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore")  # Pillow's, which pytest shows although decode.py silences them
def test_mutated_images_give_a_tensor_or_are_unreadable(data, line, seed):
    ops = Ops.parse(line.replace("decode", "decode(1_000_000)"))
    with contextlib.suppress(UnreadableImage):
        assert ops(data, rng(seed)).isfinite().all()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared test material is not here")
@pytest.mark.filterwarnings("ignore")
def test_the_malformed_images_give_a_tensor_or_are_unreadable():
    ops, reasons = Ops.parse(EVALUATION), []
    for path in sorted((SHARED / "bad").iterdir()):
        try:
            assert ops(path.read_bytes(), rng()).isfinite().all()
        except UnreadableImage as error:
            reasons.append(error.reason)
    assert set(reasons) == {"not_an_image", "truncated", "broken", "too_large"}
