"""A line of operations, as a recipe writes it, and what runs it: "decode|resize(224)|center_crop(224)|normalize(clip)".

Always: decode, one operation that frames the picture, any that change its pixels, normalize. Framing is
random_resized_crop, squash, or resize and then center_crop.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from itertools import takewhile

import cv2
import numpy as np
import torch
from torch import Tensor

from infra.errors import UsageError
from infra.recipe import Config
from training.preprocess.colour import ColorJitter, Flip, Grayscale
from training.preprocess.decode import Decode
from training.preprocess.framing import CenterCrop, RandomResizedCrop, Resize, Squash, show
from training.preprocess.normalize import Normalize
from training.preprocess.randaugment import RandAugment

Change = Flip | Grayscale | ColorJitter | RandAugment

OPS: dict[str, type[Config]] = {
    "decode": Decode,
    "random_resized_crop": RandomResizedCrop,
    "resize": Resize,
    "squash": Squash,
    "center_crop": CenterCrop,
    "flip": Flip,
    "randaugment": RandAugment,
    "color_jitter": ColorJitter,
    "grayscale": Grayscale,
    "normalize": Normalize,
}

_ORDER = (
    "the order is decode|FRAMING|CHANGES|normalize(…); FRAMING is random_resized_crop(…), squash(…) or "
    "resize(…)|center_crop(…), CHANGES are any of flip, randaugment, color_jitter and grayscale"
)
_CALL = re.compile(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*")


@dataclass(frozen=True)
class Ops:
    """Encoded bytes to what a model sees, (3, size, size) float32. Chance comes in by the generator alone."""

    decode: Decode
    framing: RandomResizedCrop | Squash | Resize
    crop: CenterCrop | None
    changes: tuple[Change, ...]
    normalize: Normalize

    @classmethod
    def parse(cls, text: str) -> Ops:
        """Read a line of operations. Raises UsageError that says what is wrong, and what would be right."""
        framing: RandomResizedCrop | Squash | Resize
        crop: CenterCrop | None = None
        match [_parse_op(op) for op in text.split("|")]:
            case [Decode() as decode, Resize() as framing, CenterCrop() as crop, *rest, Normalize() as normalize]:
                if crop.size > framing.size:
                    raise UsageError(f"{text}: resize({framing.size}) is too small for center_crop({crop.size})")
            case [Decode() as decode, (RandomResizedCrop() | Squash()) as framing, *rest, Normalize() as normalize]:
                pass
            case _:
                raise UsageError(f"{text}: {_ORDER}")
        changes = tuple(op for op in rest if isinstance(op, Change))
        if len(changes) < len(rest):
            raise UsageError(f"{text}: {_ORDER}")
        return cls(decode, framing, crop, changes, normalize)

    @property
    def size(self) -> int:
        """Side of the square that comes out, in pixels."""
        return (self.crop or self.framing).size

    def __call__(self, data: bytes, rng: np.random.Generator) -> Tensor:
        """One encoded image → (3, size, size) float32. Raises UnreadableImage, and no other error, whatever the bytes.

        The same bytes and the same state of the generator give the same tensor to the last bit.
        """
        out = torch.empty(3, self.size, self.size)
        self.into(data, rng, out)
        return out

    def into(self, data: bytes, rng: np.random.Generator, out: Tensor) -> None:
        """The same, written to out, (3, size, size) float32: a row of a batch. An unreadable image leaves it alone."""
        encoded = self.decode.open(data)
        view = self.framing.view(encoded.width, encoded.height, rng)
        if self.crop:
            view = self.crop.cut(view)
        pixels = show(view, *encoded.pixels(view.spare))
        for change in self.changes:
            pixels = change(pixels, rng)
        self.normalize.into(pixels, out)


def set_up_worker() -> None:
    """One thread for each process that prepares images: with more, workers of a loader wait for each other."""
    cv2.setNumThreads(0)  # which is cv2's word for none beside the caller's
    torch.set_num_threads(1)


def _parse_op(text: str) -> Config:
    """One operation. Raises UsageError."""
    found = _CALL.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no operation; write name or name(1, key=2), and | between operations")
    name, arguments = found[1], found[2]
    if name not in OPS:
        close = difflib.get_close_matches(name, OPS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(OPS)}"
        raise UsageError(f"no operation named {name}; {hint}")
    return OPS[name].parse(_arguments(name, arguments or "", text.strip()), text.strip())


def _arguments(name: str, text: str, where: str) -> dict[str, str]:
    """Values by the operation's names for them: first those by place, then those by name. Raises UsageError."""
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    fields = OPS[name].model_fields
    by_place = list(takewhile(lambda word: "=" not in word, words))
    by_name = [word.partition("=") for word in words[len(by_place) :]]
    values = dict(zip(fields, by_place, strict=False)) | {key.strip(): value.strip() for key, _, value in by_name}
    required = {field for field, info in fields.items() if info.is_required()}
    if len(values) < len(words) or not required <= values.keys():
        takes = [
            f"{field if info.is_required() else f'{field}={info.default:g}'} ({info.description})"
            for field, info in fields.items()
        ]
        raise UsageError(f"{where}: {name} takes {', '.join(takes)}")
    return values
