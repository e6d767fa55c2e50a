"""What a line of operations shows of a picture: Pillow's and open_clip's pixels, each to a stated tolerance."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.torchvision_here import make_importable
from tests.servers.commands import SHARED
from tests.training.pictures import apart, picture, rng, stored
from training.preprocess import Ops
from training.preprocess.decode import Decode
from training.preprocess.framing import RandomResizedCrop, Resize, View, show

STD = {
    "clip": (0.26862954, 0.26130258, 0.27577711),
    "imagenet": (0.229, 0.224, 0.225),
    "half": (0.5, 0.5, 0.5),
}
MEAN = {
    "clip": (0.48145466, 0.4578275, 0.40821073),
    "imagenet": (0.485, 0.456, 0.406),
    "half": (0.5, 0.5, 0.5),
}


def levels(ops: Ops, data: bytes, seed: int = 0) -> np.ndarray:
    """(H, W, 3) grey levels again: of normalize(half), level = 127.5 x + 127.5."""
    return (ops(data, rng(seed)) * 127.5 + 127.5).permute(1, 2, 0).numpy()


def pillow_evaluation(image: Image.Image, size: int) -> Image.Image:
    """The shorter side at size, bicubic; the middle of that: torchvision's Resize and CenterCrop."""
    width, height = image.size
    shorter = min(width, height)
    image = image.resize((size * width // shorter, size * height // shorter), Image.Resampling.BICUBIC)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


@pytest.mark.parametrize("name", STD)
def test_levels_are_normalised_by_mean_and_deviation(name):
    pixels = np.asarray(picture(32, 32))
    got = Ops.parse(f"decode|squash(32)|normalize({name})")(stored(picture(32, 32), "PNG"), rng())
    mean, std = (torch.tensor(table[name])[:, None, None] for table in (MEAN, STD))
    torch.testing.assert_close(
        got, (torch.tensor(pixels).permute(2, 0, 1) / 255 - mean) / std, atol=2e-6, rtol=0
    )  # fp32


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (97, 65), (40, 40), (132, 33)])
@pytest.mark.parametrize("side", [32, 48, 100])
def test_evaluation_is_that_of_pillow(size, side):
    data = stored(picture(*size), "PNG")
    ops = Ops.parse(f"decode|resize({side})|center_crop({side})|normalize(half)")
    mean, most = apart(levels(ops, data), pillow_evaluation(picture(*size), side))
    assert mean < 0.05  # weights of another width in fixed point: now and then a level
    assert most < 4.01  # such weights add up where a bright and a dark grain meet


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared test material is not here")
def test_evaluation_of_photos_is_that_of_open_clip():
    make_importable()
    from open_clip.transform import image_transform

    paths = sorted((SHARED / "photos").glob("*.jpg"))[::40]
    for side, allowed in ((224, 0.01), (100, 0.9), (58, 1.6), (28, 2.0)):  # the sides decoded at 1, 1/2, 1/4, 1/8
        theirs = image_transform(side, is_train=False)
        ours = Ops.parse(f"decode|resize({side})|center_crop({side})|normalize(clip)")
        std = 255 * torch.tensor(STD["clip"])[:, None, None]
        differences = [
            float(((ours(data, rng()) - theirs(Image.open(io.BytesIO(data)))) * std).abs().mean())
            for data in (path.read_bytes() for path in paths)
        ]
        assert np.mean(differences) < allowed


def test_a_picture_of_the_right_size_is_bit_for_bit_that_of_pillow():
    for kind in ("JPEG", "PNG", "WEBP"):
        data = stored(picture(64, 64), kind)
        got = levels(Ops.parse("decode|squash(64)|normalize(half)"), data)
        assert np.array_equal(got.round(), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_the_crop_that_the_header_chose_is_cut_from_the_decoded_picture():
    data = stored(picture(120, 90), "JPEG")
    decoded = Image.open(io.BytesIO(data))
    crop = RandomResizedCrop(size=48, min_scale=0.3)
    for seed in range(20):
        left, top, wide, high = crop.view(*decoded.size, rng(seed)).box
        wanted = decoded.resize((48, 48), Image.Resampling.BICUBIC, (left, top, left + wide, top + high))
        got = levels(Ops.parse("decode|random_resized_crop(48, 0.3)|normalize(half)"), data, seed)
        assert apart(got, wanted)[0] < 0.1  # fixed-point weights, as above


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(96, 64), (93, 61)])
def test_what_exif_turned_is_turned_back_also_when_decoded_smaller(orientation, size):
    lying = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation → the transposition that undoes its mending
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture(*size, grain=0)
    as_taken = upright.transpose(lying[orientation]) if orientation in lying else upright
    data = stored(as_taken, "JPEG", exif=exif, quality=95, subsampling=0)
    for side in (60, 16):
        ops = Ops.parse(f"decode|resize({side})|center_crop({side})|normalize(half)")
        assert apart(levels(ops, data), pillow_evaluation(upright, side))[0] < 2  # what JPEG loses


@given(st.integers(40, 140), st.integers(40, 140), st.integers(2, 9), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_fraction_of_any_size_shows_the_same_part(width, height, side, seed):
    # A slope of one level a pixel tells where each pixel came from.
    across = np.broadcast_to(np.arange(width)[None, :, None] + 50, (height, width, 3)).astype(np.uint8)
    encoded = Decode().open(stored(Image.fromarray(across), "JPEG", quality=100))
    view = RandomResizedCrop(size=side, min_scale=0.9).view(width, height, rng(seed))
    pixels, fraction = encoded.pixels(view.spare)
    shown = show(view, pixels, fraction)[:, 1:-1].astype(float)  # the outermost also see padding
    wanted = 50 - 0.5 + view.box[0] + (np.arange(side)[None, 1:-1, None] + 0.5) * view.box[2] / side
    assert shown.shape == (side, side - 2, 3)
    # The box moves by half a decoded pixel at most; rounding, and what JPEG loses.
    assert np.abs(shown - wanted).max(initial=0) <= fraction / 2 + 3


def test_a_fraction_is_used_where_enough_pixels_are_left():
    encoded = Decode().open(stored(picture(480, 480), "JPEG"))
    fractions = {side: encoded.pixels(480 / side)[1] for side in (480, 240, 161, 160, 80, 40, 10)}
    assert fractions == {480: 1, 240: 1, 161: 1, 160: 2, 80: 4, 40: 8, 10: 8}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode):
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 32, 16))
    got = levels(Ops.parse("decode|squash(32)|normalize(half)"), stored(image.convert(mode), "PNG"))
    if mode == "P":
        data = stored(image.convert("RGB").quantize(2), "PNG", transparency=0)
        got = levels(Ops.parse("decode|squash(32)|normalize(half)"), data)
        assert (got.round() == 255).all(axis=-1).mean() == 0.5
    else:
        assert (got[20:].round() == 255).all()
        assert (got[:12].round() < 255).any(axis=-1).all()


def test_sixteen_bits_of_grey_are_scaled():
    grey = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    got = levels(Ops.parse("decode|squash(32)|normalize(half)"), stored(Image.fromarray(grey), "PNG"))
    assert apart(got, np.repeat(grey[..., None] / 257, 3, axis=2))[1] <= 0.51  # rounded


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_a_drawn_box_lies_in_the_picture_and_has_an_allowed_area_and_shape(width, height, seed):
    crop = RandomResizedCrop(size=8, min_scale=0.2, max_scale=0.6, min_ratio=0.5, max_ratio=2)
    left, top, wide, high = crop.view(width, height, rng(seed)).box
    assert 0 <= left <= left + wide <= width
    assert 0 <= top <= top + high <= height
    assert wide >= 1
    assert high >= 1
    # Sides are rounded: each lies half a pixel from what was drawn.
    assert (wide - 0.5) / (high + 0.5) <= 2
    assert (wide + 0.5) / max(high - 0.5, 0.1) >= 0.5
    if 0.4 <= width / height <= 2.5:  # else the largest allowed shape may stand in for what was drawn
        assert (wide - 0.5) * (high - 0.5) <= 0.6 * width * height
        assert (wide + 0.5) * (high + 0.5) >= 0.2 * width * height


def test_boxes_are_spread_evenly():
    crop = RandomResizedCrop(size=8, min_scale=0.1, max_scale=0.5)
    chance = rng()
    boxes = np.array([crop.view(1000, 1000, chance).box for _ in range(2000)], float)
    areas, ratios = boxes[:, 2] * boxes[:, 3] / 1e6, np.log(boxes[:, 2] / boxes[:, 3])
    assert areas.mean() == pytest.approx(0.3, abs=0.012)  # four standard deviations
    assert ratios.mean() == pytest.approx(0, abs=0.015)
    assert ratios.std() == pytest.approx(np.log(16 / 9) / np.sqrt(12), rel=0.05)
    places = boxes[:, :2] / (1000 - boxes[:, 2:])
    assert places.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.026)


def test_a_box_reaches_every_edge():
    crop = RandomResizedCrop(size=8, min_scale=0.5, max_scale=0.5, min_ratio=1, max_ratio=1)
    boxes = {crop.view(7, 7, rng(seed)).box for seed in range(200)}
    assert boxes == {(left, top, 5, 5) for left, top in itertools.product(range(3), repeat=2)}


def test_a_very_long_picture_is_resized_from_its_middle():
    assert Resize(size=32).view(10, 1000, rng()) == View((0, 480, 10, 40), (32, 128))
    assert Resize(size=32).view(1001, 10, rng()).box == (480, 0, 41, 10)
    assert Resize(size=32).view(40, 10, rng()).box == (0, 0, 40, 10)


def test_resized_pixels_lie_as_decoded_ones_do():
    # Channels innermost: cv2 would otherwise copy them for every change.
    for box, fraction in (((3, 5, 80, 50), 1), ((0, 0, 96, 64), 1), ((4, 4, 81, 51), 2)):
        pixels = np.array(picture(96 // fraction, 64 // fraction))
        assert show(View(box, (24, 24)), pixels, fraction).flags.c_contiguous


def test_a_view_has_its_size_at_every_fraction():
    pixels = np.zeros((50, 49, 3), np.uint8)
    assert show(View((0, 0, 98, 99), (1, 1)), pixels, 2).shape == (1, 1, 3)  # 49 * (1 / 49) < 1
    for width in range(6, 24):
        pixels = np.zeros((4, -(-width // 2), 3), np.uint8)
        for wide in range(6, width + 1):
            for left in range(width - wide + 1):
                assert show(View((left, 0, wide, 8), (2, 2)), pixels, 2).shape == (2, 2, 3)
