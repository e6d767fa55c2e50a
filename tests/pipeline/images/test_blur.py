"""Boxes are blurred beyond recognition, the rest is left alone, and a box that is none drops the image."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.images import ImageConfig, ImageError, prepare
from pipeline.images.blur import blur_boxes

AS_IS = ImageConfig(resize_mode="no")


def checkers(width: int, height: int, side: int = 4) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.repeat(((x // side + y // side) % 2 * 255)[..., None], 3, axis=-1).astype(np.uint8)


def test_inside_a_box_nothing_is_left_and_far_outside_all_of_it():
    pixels = checkers(200, 100)
    blurred = blur_boxes(pixels, [(0.25, 0.2, 0.5, 0.8)])
    assert np.ptp(blurred[20:80, 50:100].astype(int)) < 30
    np.testing.assert_array_equal(blurred[:, 160:], pixels[:, 160:])
    np.testing.assert_array_equal(pixels, checkers(200, 100))  # the caller's array is the caller's


def test_boxes_follow_the_upright_image_through_resizing(encoded):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: its left is the upright image's top
    data = encoded(checkers(400, 200, side=16), "JPEG", exif=exif, quality=95)
    prepared = prepare(data, ImageConfig(image_size=200), boxes=[(0, 0, 1, 0.4)])
    assert prepared.pixels.shape == (200, 100, 3)
    assert np.ptp(prepared.pixels[:75].astype(int)) < 60
    assert np.ptp(prepared.pixels[130:].astype(int)) > 200


def test_no_boxes_change_nothing(scene, encoded):
    data = encoded(scene(60, 40), "PNG")
    np.testing.assert_array_equal(prepare(data, AS_IS, boxes=[]).pixels, prepare(data, AS_IS).pixels)


INTERVALS = st.tuples(st.floats(-1, 2), st.floats(-1, 2)).map(sorted)


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.lists(st.tuples(INTERVALS, INTERVALS), max_size=5))
def test_any_relative_box_is_blurred_without_a_fuss(width, height, boxes):
    boxes = [(x[0], y[0], x[1], y[1]) for x, y in boxes]
    assert blur_boxes(checkers(width, height), boxes).shape == (height, width, 3)


@pytest.mark.parametrize(
    "box",
    [(0.1, 0.1, 0.2), (1, 2, 3, 4, 5), (0.5, 0.1, 0.4, 0.2), (10, 20, 110, 120), (float("nan"), 0, 1, 1), None, "abcd"],
)
def test_what_is_no_relative_box_drops_the_image(scene, encoded, box):
    with pytest.raises(ImageError, match="bad_boxes"):
        prepare(encoded(scene(60, 40), "PNG"), AS_IS, boxes=[box])


def test_a_large_box_costs_little():
    pixels = checkers(3000, 2000)
    started = time.process_time()
    blurred = blur_boxes(pixels, [(0, 0, 1, 1)])
    assert time.process_time() - started < 3  # a direct Gaussian of this width takes minutes
    assert np.ptp(blurred[500:1500, 500:2500].astype(int)) < 30
