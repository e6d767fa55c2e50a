"""Sizes are img2dataset's, and pixels are the area average's."""

from __future__ import annotations

import io
import os
from typing import get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.images import exact_area
from pipeline.images import ImageConfig, ImageError, convert, prepare
from pipeline.images.config import ResizeMode
from pipeline.images.resize import frame, plan, resample

MODES = get_args(ResizeMode)
SIDES = st.integers(1, 500)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(1, 300), st.sampled_from(MODES), st.booleans())
@example(333, 500, 256, "center_crop", True)
def test_sizes_are_those_of_img2dataset(width, height, image_size, mode, only_if_bigger):
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    resizer_module = pytest.importorskip("img2dataset.resizer")
    out = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(out, "PNG")
    resizer = resizer_module.Resizer(image_size, mode, only_if_bigger)
    _, *theirs, failure = resizer(io.BytesIO(out.getvalue()))
    assert failure is None
    ours = convert(out.getvalue(), ImageConfig(image_size=image_size, resize_mode=mode, only_if_bigger=only_if_bigger))
    assert [ours.width, ours.height, ours.original_width, ours.original_height] == theirs


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 2000), st.sampled_from(MODES), st.booleans())
def test_a_plan_turns_with_the_image(width, height, image_size, mode, only_if_bigger):
    config = ImageConfig(image_size=image_size, resize_mode=mode, only_if_bigger=only_if_bigger)
    upright, lying = plan(width, height, config), plan(height, width, config)
    assert (upright.resized, upright.framed) == (lying.resized[::-1], lying.framed[::-1])
    if only_if_bigger:
        assert upright.resized[0] <= width
        assert upright.resized[1] <= height


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.02, 1))
def test_shrinking_keeps_flat_colour_and_shape(width, height, scale):
    size = max(1, round(width * scale)), max(1, round(height * scale))
    result = resample(np.full((height, width, 3), (1, 128, 254), np.uint8), size)
    assert result.shape == (size[1], size[0], 3)
    assert (result == (1, 128, 254)).all()


@pytest.mark.parametrize("width", [65, 87, 125, 127, 128, 129, 175, 256, 275, 401, 511, 525, 800, 1025, 1250, 1550])
@pytest.mark.parametrize("format_name", ["JPEG", "PNG"])
def test_shrinking_is_close_to_the_exact_area_average(scene, encoded, width, format_name):
    # Every reduced scale of the JPEG decoder, sizes that it divides and sizes that it does not.
    data = encoded(scene(width, width * 3 // 4), format_name, **({"quality": 95} if format_name == "JPEG" else {}))
    pixels = prepare(data, ImageConfig(image_size=64)).pixels
    full = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    error = np.abs(pixels - exact_area(full, pixels.shape[1::-1])).mean()
    assert error <= 2, error


def test_whole_factors_are_exact_means(scene):
    pixels = scene(120, 90)
    for factor in (2, 3, 5):
        small = (120 // factor, 90 // factor)
        if factor % 2 == 0:  # odd factors go by way of a multiple that is not the source
            np.testing.assert_allclose(resample(pixels, small), exact_area(pixels, small), atol=1)  # rounding
        assert np.abs(resample(pixels, small) - exact_area(pixels, small)).mean() < 1


def test_a_line_of_pixels_survives_every_mode(encoded):
    for width, height in ((20000, 1), (1, 20000)):
        data = encoded(Image.new("RGB", (width, height), "teal"), "PNG")
        for mode in MODES:
            prepared = prepare(data, ImageConfig(image_size=16, resize_mode=mode))
            assert prepared.pixels.min() >= 0
            if mode in ("keep_ratio_largest", "border"):
                assert max(prepared.pixels.shape) == 16


def test_enlarging_a_line_asks_for_no_more_than_max_pixels(encoded):
    data = encoded(Image.new("RGB", (20000, 1), "teal"), "PNG")
    config = ImageConfig(image_size=512, resize_mode="keep_ratio", only_if_bigger=False)
    with pytest.raises(ImageError, match="too_many_pixels"):
        convert(data, config)


def test_the_crop_is_the_middle_and_the_border_is_white(scene):
    pixels = scene(50, 30)
    np.testing.assert_array_equal(frame(pixels, (30, 30)), pixels[:, 10:40])
    bordered = frame(pixels, (50, 50))
    np.testing.assert_array_equal(bordered[10:40], pixels)
    assert bordered[:10].min() == bordered[40:].min() == 255
