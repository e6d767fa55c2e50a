"""Which part of a picture is seen, and how large: chosen from its width and height, before a pixel is decoded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from infra.recipe import Config
from training.preprocess.decode import Pixels

# Shapes: H, W picture; all pairs are (width, height), all boxes (left, top, width, height)

# A longer picture is cut to this around its middle before it is resized by its shorter side: a center crop shows no
# more of it, and a strip one pixel wide would become millions of pixels long.
_LONGEST_RATIO = 4


@dataclass(frozen=True, slots=True)
class View:
    """A box of the picture, resized; then, where a side is given, the middle square of that."""

    box: tuple[int, int, int, int]
    size: tuple[int, int]
    middle: int | None = None

    @property
    def spare(self) -> float:
        """How many source pixels there are to a wanted one, on the side that has fewer."""
        return min(self.box[2] / self.size[0], self.box[3] / self.size[1])


class RandomResizedCrop(Config):
    """A part of random area and shape, resized to a square.

    Source: Inception, arXiv 1409.4842, section 6; torchvision's RandomResizedCrop has the same distribution.
    """

    size: int = Field(gt=0, le=4096, description="side of the square, pixels")
    min_scale: float = Field(0.08, gt=0, le=1, description="least share of the picture's area")
    max_scale: float = Field(1.0, gt=0, le=1, description="largest share of the picture's area")
    min_ratio: float = Field(3 / 4, ge=0.01, le=100, description="least width over height")
    max_ratio: float = Field(4 / 3, ge=0.01, le=100, description="largest width over height")

    @model_validator(mode="after")
    def _in_order(self) -> RandomResizedCrop:
        if self.min_scale > self.max_scale or self.min_ratio > self.max_ratio:
            raise ValueError("min_scale and min_ratio must not exceed max_scale and max_ratio")
        return self

    def view(self, width: int, height: int, rng: np.random.Generator) -> View:
        """Draw the box for a picture of this size."""
        for _ in range(10):
            area = width * height * rng.uniform(self.min_scale, self.max_scale)
            ratio = math.exp(rng.uniform(math.log(self.min_ratio), math.log(self.max_ratio)))
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
                return View((left, top, wide, high), (self.size, self.size))
        # No such part in a picture so long: the largest of an allowed shape, from the middle.
        wide = min(width, max(1, round(height * self.max_ratio)))
        high = min(height, max(1, round(width / self.min_ratio)))
        return View(_middle((width, height), (wide, high)), (self.size, self.size))


class Resize(Config):
    """The whole picture, its shorter side at a length; the ratio is kept."""

    size: int = Field(gt=0, le=4096, description="length of the shorter side, pixels")

    def view(self, width: int, height: int, rng: np.random.Generator) -> View:
        """The box is the whole picture, unless that is very long."""
        longest = _LONGEST_RATIO * min(width, height)
        # Cut evenly, so that the middle stays where it is.
        box = _middle((width, height), (width - _even(width - longest), height - _even(height - longest)))
        shorter = min(box[2:])
        return View(box, (self.size * box[2] // shorter, self.size * box[3] // shorter))


class Squash(Config):
    """The whole picture, its ratio given up."""

    size: int = Field(gt=0, le=4096, description="side of the square, pixels")

    def view(self, width: int, height: int, rng: np.random.Generator) -> View:
        """The box is the whole picture."""
        return View((0, 0, width, height), (self.size, self.size))


class CenterCrop(Config):
    """The middle square of what was resized."""

    size: int = Field(gt=0, le=4096, description="side of the square, pixels")

    def cut(self, view: View) -> View:
        """The same view, less its margins."""
        return replace(view, middle=self.size)


def show(view: View, pixels: Pixels, fraction: int) -> Pixels:
    """(H, W, 3), a picture decoded at 1 / fraction of its size → the view of it.

    By bicubic antialiased sampling, on the box alone: Pillow's to a hundredth of a grey level on photos, at a quarter
    of its price. At a fraction the box is moved to whole decoded pixels, and keeps its exact size.
    """
    left, wide = _decoded(view.box[0], view.box[2], fraction, pixels.shape[1])
    top, high = _decoded(view.box[1], view.box[3], fraction, pixels.shape[0])
    part = pixels[top : top + math.ceil(high), left : left + math.ceil(wide)]
    shown = _resized(part, (wide, high), view.size)
    if view.middle is None:
        return shown
    # As torchvision's CenterCrop rounds.
    margins = [round((length - view.middle) / 2) for length in view.size]
    return shown[margins[1] : margins[1] + view.middle, margins[0] : margins[0] + view.middle]


def _decoded(start: int, length: int, fraction: int, num_pixels: int) -> tuple[int, float]:
    """(start, length) of a side of the box in decoded pixels."""
    extent = length / fraction
    return min(round(start / fraction), num_pixels - math.ceil(extent)), extent


def _resized(pixels: Pixels, extent: tuple[float, float], size: tuple[int, int]) -> Pixels:
    """extent: how much of `pixels` is picture. Of 4100 columns at 1/8, half of the 513th is not."""
    if extent == size:
        return pixels
    # In this form torch knows that the channels lie innermost: its fastest kernel, and they lie so in what it returns.
    planes = torch.from_numpy(np.ascontiguousarray(pixels))[None].permute(0, 3, 1, 2)  # (1, 3, H, W)
    if extent == pixels.shape[1::-1]:
        resized = F.interpolate(planes, size[::-1], mode="bicubic", antialias=True)
    else:  # given factors instead of a size, torch maps by them exactly and rounds the size down: hence the last digit
        factors = [wanted / length * (1 + 1e-9) for wanted, length in zip(size, extent, strict=True)]
        resized = F.interpolate(planes, scale_factor=factors[::-1], mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1)[0].numpy()


def _middle(outer: tuple[int, int], inner: tuple[int, int]) -> tuple[int, int, int, int]:
    return (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2, *inner


def _even(length: int) -> int:
    """The nearest even number below, 0 for what is negative."""
    return max(0, length) // 2 * 2
