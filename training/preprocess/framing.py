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
                left, top = rng.integers(0, (width - wide, height - high), endpoint=True).tolist()
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


def show(view: View, width: int, height: int, pixels: Pixels) -> Pixels:
    """(H, W, 3) of a picture that is width × height, perhaps decoded at a fraction → the view of it.

    By bicubic antialiased sampling, on the box alone: Pillow's to one grey level, five times as fast. At a fraction the
    box is rounded to decoded pixels.
    """
    left, top, wide, high = view.box
    x, y = pixels.shape[1] / width, pixels.shape[0] / height
    part = pixels[round(top * y) : round((top + high) * y), round(left * x) : round((left + wide) * x)]
    shown = _resized(part, view.size)
    if view.middle is None:
        return shown
    # As torchvision's CenterCrop rounds.
    margins = [round((length - view.middle) / 2) for length in view.size]
    return shown[margins[1] : margins[1] + view.middle, margins[0] : margins[0] + view.middle]


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if pixels.shape[1::-1] == size:
        return pixels
    # In this form torch knows that the channels lie innermost: its fastest kernel, and they lie so in what it returns.
    planes = torch.from_numpy(np.ascontiguousarray(pixels))[None].permute(0, 3, 1, 2)  # (1, 3, H, W)
    resized = F.interpolate(planes, size[::-1], mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1)[0].numpy()


def _middle(outer: tuple[int, int], inner: tuple[int, int]) -> tuple[int, int, int, int]:
    return (outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2, *inner


def _even(length: int) -> int:
    """The nearest even number below, 0 for what is negative."""
    return max(0, length) // 2 * 2
