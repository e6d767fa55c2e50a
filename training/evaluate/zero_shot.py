"""Zero-shot classification: of the classes' names, put into sentences, which is nearest to the image?

Source: CLIP, arXiv 2103.00020, section 3.1.4: sentences of one class are averaged as embeddings of unit length.
"""

# Shapes: N images, C classes, S templates, E embedding

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from infra.errors import DatasetError, UsageError
from infra.storage import Storage
from training.evaluate.confidence import Share, mean_of_classes, share_of_hits
from training.evaluate.retrieval import CHUNK, TIE
from training.evaluate.samples import CLASSES, TEMPLATES, read_lines
from training.models.clip_prompts import PROMPTS

SLOTS = ("{}", "{c}")  # where a template has the class's name
PLAIN = "a photo of a {}."  # where nobody gives templates; the paper's default


@dataclass(frozen=True)
class Prompts:
    """Names of C classes, and S templates with a slot."""

    classes: Sequence[str]
    templates: Sequence[str]

    def sentences(self, name: str) -> list[str]:
        """S sentences of one class. Braces in its name are left alone."""
        return [template.replace("{c}", "{}").replace("{}", name) for template in self.templates]


def read_prompts(root: Storage, classes: str | None, templates: str | None) -> Prompts:
    """Classes and templates from files, a line each, or by a name of `training.models.clip_prompts`; unset: the root's.

    Raises UsageError for missing files and templates without a slot.
    """
    names = _lines(classes) if classes else read_lines(root, CLASSES)
    if len(names) < 2:
        raise UsageError(
            f"{classes or root.url}: zero_shot needs two classes or more; give --classes FILE, a line each"
        )
    sentences = (_lines(templates) if templates else read_lines(root, TEMPLATES)) or [PLAIN]
    for sentence in sentences:
        if not any(slot in sentence for slot in SLOTS):
            raise UsageError(f"{templates or TEMPLATES}: template {sentence!r} has no {{}} where the class's name goes")
    return Prompts(names, sentences)


def classifier(embed: Callable[[Sequence[str]], Tensor], prompts: Prompts) -> Tensor:
    """(C, E), unit length: of each class the mean of its sentences. embed: texts → (S, E), unit length."""
    means = [F.normalize(embed(prompts.sentences(name)), dim=-1).mean(0) for name in prompts.classes]
    return F.normalize(torch.stack(means), dim=-1)


@dataclass(frozen=True)
class Accuracy:
    """metrics by name; of each class the images and the hits, (C,)."""

    metrics: dict[str, Share]
    num_images: Tensor
    hits: Tensor

    def by_class(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """JSON-ready, in the order of the classes; recall is null where a class has no image."""
        rows = zip(names, self.num_images.tolist(), self.hits.tolist(), strict=True)
        return [
            {"class": name, "images": num, "hits": hits, "recall": hits / num if num else None}
            for name, num, hits in rows
        ]  # fmt: skip


def accuracy(image_emb: Tensor, labels: Tensor, class_emb: Tensor, chunk: int = CHUNK) -> Accuracy:
    """image_emb: (N, E), class_emb: (C, E), unit length; labels: (N,) int64. top1, top5 and mean_class_recall.

    Of classes that are equally near the first counts as the nearer one, as argmax has it. Memory: chunk × C.
    Raises DatasetError for labels beyond the classes, and where there is no image.
    """
    num_classes = len(class_emb)
    if not len(labels):
        raise DatasetError("no image with a class could be read; zero_shot needs .cls members beside the images")
    if (most := int(labels.max())) >= num_classes:
        raise DatasetError(
            f"an image is of class {most}, but there are {num_classes}, from 0; give the list of its data"
        )
    numbers = torch.arange(num_classes, device=image_emb.device)
    parts = []
    for at in range(0, len(labels), chunk):
        near = image_emb[at : at + chunk] @ class_emb.T  # (≤ chunk, C)
        label = labels[at : at + chunk, None].to(near.device)
        right = near.gather(1, label)
        nearer = (near > right + TIE) | ((near >= right - TIE) & (numbers < label))
        parts.append(nearer.sum(1).cpu())
    rank = torch.cat(parts)
    once = torch.ones_like(rank)
    num_images = torch.bincount(labels, minlength=num_classes)
    hits = torch.bincount(labels[rank == 0], minlength=num_classes)
    shares = {
        "top1": share_of_hits(rank < 1, once),
        "top5": share_of_hits(rank < 5, once),
        "mean_class_recall": mean_of_classes(hits, num_images),
    }
    return Accuracy({name: share for name, share in shares.items() if share is not None}, num_images, hits)


def _lines(name: str) -> list[str]:
    if name in PROMPTS:
        return list(PROMPTS[name]())
    lines = read_lines(*Storage.of_file(name))
    if not lines:
        raise UsageError(f"{name}: no such file, or an empty one; by name there are {', '.join(PROMPTS)}")
    return lines
