"""Changes of light, colour and place are those of Pillow, each to a stated tolerance; chance picks them evenly."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tests.training.pictures import apart, picture, rng
from training.preprocess.colour import ColorJitter, Flip, Grayscale, brightness, contrast, hue, saturation
from training.preprocess.randaugment import CHANGES, RandAugment, autocontrast, equalize, move, rotate, sharpness

GREY = (128, 128, 128)


def in_pillow(name: str, image: Image.Image, amount: float) -> Image.Image:
    """The definitions: Pillow's own, and AutoAugment's affine ones."""
    affine = {
        "shear_x": (1, amount, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, amount, 1, 0),
        "shift_x": (1, 0, amount * 20, 0, 1, 0),
        "shift_y": (1, 0, 0, 0, 1, amount * 20),
    }
    if name in affine:
        return image.transform(
            image.size, Image.Transform.AFFINE, affine[name], Image.Resampling.BILINEAR, fillcolor=GREY
        )
    if name == "rotate":
        return image.rotate(amount * 60, Image.Resampling.BILINEAR, fillcolor=GREY)
    enhance = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhance:
        return enhance[name](image).enhance(amount)
    return {"autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize}[name](image)


def ours(name: str, pixels: np.ndarray, amount: float) -> np.ndarray:
    moves = {
        "shear_x": ((1, amount, 0), (0, 1, 0)),
        "shear_y": ((1, 0, 0), (amount, 1, 0)),
        "shift_x": ((1, 0, amount * 20), (0, 1, 0)),
        "shift_y": ((1, 0, 0), (0, 1, amount * 20)),
    }
    if name in moves:
        return move(pixels, *moves[name])
    if name == "rotate":
        return rotate(pixels, amount * 60)
    factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "sharpness": sharpness}
    if name in factors:
        return factors[name](pixels, amount)
    return {"autocontrast": autocontrast, "equalize": equalize}[name](pixels)


def dull() -> Image.Image:
    return picture().point(lambda level: level // 3 + 40)


def flat() -> Image.Image:
    return Image.new("RGB", (96, 64), (9, 200, 77))


@pytest.mark.parametrize("image", [picture(), flat(), dull()])
@pytest.mark.parametrize(
    ("name", "amounts", "allowed"),
    [
        ("brightness", (0.1, 0.7, 1.0, 1.9), 0),
        ("contrast", (0.1, 0.7, 1.0, 1.9), 1),  # the mean of the greys, where cv2 and Pillow round them differently
        ("saturation", (0.1, 0.7, 1.0, 1.9), 2),  # Pillow rounds the grey, then drops a fraction; we round once
        ("sharpness", (0.1, 0.7, 1.0, 1.9), 1),  # Pillow drops the fraction, cv2 rounds
        ("autocontrast", (0,), 0),
        ("equalize", (0,), 0),
    ],
)
def test_changes_of_light_are_those_of_pillow(name, amounts, allowed, image):
    for amount in amounts:
        assert apart(ours(name, np.asarray(image), amount), in_pillow(name, image, amount))[1] <= allowed


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "shift_x", "shift_y", "rotate"])
@pytest.mark.parametrize("amount", [-0.3, -0.1, 0.15, 0.3])
def test_moves_are_those_of_pillow(name, amount):
    image = picture(grain=0)
    got, wanted = ours(name, np.asarray(image), amount), np.asarray(in_pillow(name, image, amount))
    shown = np.asarray(in_pillow(name, Image.new("RGB", image.size, "white"), amount))[..., 0]
    inside, outside = eroded(shown == 255), eroded(shown == 128)
    assert inside.mean() > 0.4
    assert apart(got[inside], wanted[inside])[1] <= 3  # cv2 interpolates at 1/32 of a pixel
    assert (got[outside] == 128).all()


def eroded(mask: np.ndarray) -> np.ndarray:
    """Less a rim of two pixels: where the picture ends, cv2 blends into the grey and Pillow does not."""
    whole = np.pad(mask, 2)
    return np.lib.stride_tricks.sliding_window_view(whole, (5, 5)).all(axis=(2, 3))


def test_hue_goes_round_a_circle():
    pixels = np.asarray(picture(grain=0))
    assert apart(hue(pixels, 0.0), pixels)[1] <= 8  # 256 steps of hue, there and back
    assert np.array_equal(hue(pixels, 0.25), hue(pixels, -0.75))
    red = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    assert apart(hue(red, 1 / 3), np.full((4, 4, 3), (0, 255, 0)))[1] <= 6
    values = np.asarray(picture(grain=0).convert("HSV")).astype(int)
    wanted = np.asarray(Image.fromarray(((values + np.array([64, 0, 0])) % 256).astype(np.uint8), "HSV").convert("RGB"))
    assert apart(hue(pixels, 0.25), wanted)[0] < 2  # torchvision's definition, by Pillow's HSV, which truncates


def test_grayscale_is_that_of_pillow():
    got = Grayscale()(np.asarray(picture()), rng())
    assert apart(got, picture().convert("L").convert("RGB"))[1] <= 1  # another fixed point


def test_flip_mirrors_half_of_the_time():
    pixels = np.asarray(picture())
    chance = rng()
    mirrored = [bool(np.array_equal(Flip()(pixels, chance), pixels[:, ::-1])) for _ in range(400)]
    assert 0.4 < np.mean(mirrored) < 0.6  # four standard deviations
    assert np.array_equal(Flip(p=1)(Flip(p=1)(pixels, chance), chance), pixels)


def test_jitter_of_nothing_changes_nothing():
    pixels = np.asarray(picture())
    assert np.array_equal(ColorJitter()(pixels, rng()), pixels)
    assert np.array_equal(ColorJitter(brightness=1, hue=0.5, p=0)(pixels, rng()), pixels)
    assert not np.array_equal(ColorJitter(brightness=0.5)(pixels, rng()), pixels)


def test_randaugment_at_magnitude_5_leaves_brightness_and_sharpness_alone():
    pixels = np.asarray(dull())
    unchanged = [np.array_equal(change(pixels, 0.5, 1.0), pixels) for change in CHANGES]
    assert unchanged == [True, False, False, True, True, False, False, False, False, False]


def test_randaugment_draws_every_change_and_leaves_out_half():
    pixels, chance = np.asarray(dull()), rng()
    seen = {RandAugment(n=1, m=9)(pixels, chance).tobytes() for _ in range(400)}
    assert len(seen) == 5 + 5 * 2  # the five that move pixels do so in two senses
    same = [np.array_equal(RandAugment(n=1, m=9)(pixels, chance), pixels) for _ in range(400)]
    assert 0.45 < np.mean(same) < 0.65  # half, and half of the tenth that is identity
    assert np.array_equal(RandAugment(n=0, m=9)(pixels, chance), pixels)
