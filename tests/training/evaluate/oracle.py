"""An encoder whose answers are known, and folders in CLIP_benchmark's form."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

DIM = 64
Parts = Mapping[str, bytes]  # ending → bytes


class Oracle:
    """Pictures of one grey level g are the axis g // 4; a text is the axis of the number that it ends in."""

    ops = "decode|squash(8)|normalize(half)"
    dim = DIM

    def images(self, images):
        levels = ((images.mean(dim=(1, 2, 3)) * 0.5 + 0.5) * 255).round().long()
        return torch.eye(DIM)[levels // 4]

    def texts(self, texts):
        return torch.stack([torch.eye(DIM)[int(text.rstrip(".").rpartition(" ")[2])] for text in texts])

    def identity(self):
        return {"arch": "oracle"}


class Mute(Oracle):
    """Says the same of everything."""

    def images(self, images):
        return torch.eye(DIM)[torch.zeros(len(images), dtype=torch.long)]

    def texts(self, texts):
        return torch.eye(DIM)[torch.zeros(len(texts), dtype=torch.long)]


class Broken(Oracle):
    """Says what is no number."""

    def images(self, images):
        return super().images(images) * torch.nan


def grey(number: int, side: int = 8) -> bytes:
    """The picture that an oracle takes for axis `number`."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), 4 * number + 2, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tars(folder: Path, tars: Sequence[Sequence[Parts]]) -> None:
    """0.tar, 1.tar … and nshards.txt; samples numbered through."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for at, samples in enumerate(tars):
        with tarfile.open(folder / f"{at}.tar", "w") as tar:
            for parts in samples:
                for ending, data in parts.items():
                    info = tarfile.TarInfo(f"s{number:07d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                number += 1
    (folder / "nshards.txt").write_text(str(len(tars)))


def labelled(number: int, label: int) -> Parts:
    """A picture of `number`, said to be of class `label`."""
    return {"png": grey(number), "cls": str(label).encode()}


def captioned(number: int, *captions: str) -> Parts:
    """A picture of `number` with captions."""
    return {"jpg": grey(number), "txt": "\n".join(captions).encode()}
