"""What every task of evaluation takes and gives."""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from infra.errors import PairmillError
from training.data.copies import Copies
from training.data.source import DatasetSettings
from training.evaluate.confidence import Share
from training.evaluate.embed import Images, Pictures, embed_images, embed_texts
from training.evaluate.retrieval import Right
from training.evaluate.samples import Sample, samples_of
from training.evaluate.settings import EvaluationSettings

GIB = 1 << 30


class EvaluationError(PairmillError):
    """What the encoder says is no number."""


class Trial:
    """A model before the data of its settings: what the tasks share. Raises as `samples_of` does."""

    def __init__(self, model: Any, settings: EvaluationSettings, *, labelled: bool) -> None:
        self.model, self.settings = model, settings
        source = DatasetSettings.parse(
            {"path": settings.data, "selection": settings.selection, "captions": settings.captions,
             "index": settings.index},
            "evaluate",
        )  # fmt: skip
        self.samples = samples_of(source, settings.split, labelled=labelled)
        folder = settings.copies or os.path.join(tempfile.gettempdir(), f"pairmill-copies-{os.getuid()}")
        self._copies = Copies(folder, int(settings.copies_gib * GIB))

    def pictures(self, ops: str, samples: Iterable[Sample]) -> Pictures:
        """Their images, as a model sees them."""
        threads = self.settings.threads or os.cpu_count() or 1
        return Pictures(
            ops, samples, self.samples.storage, self._copies, batch=self.settings.batch, threads=threads
        )  # fmt: skip

    def embed_images(self, samples: Iterable[Sample]) -> Images:
        """Their images. Raises EvaluationError where the encoder's numbers are not finite."""
        found = embed_images(self.model, self.pictures(self.model.ops, samples))
        return Images(found.samples, finite(found.emb, "images"), found.unreadable, found.digest)

    def embed_texts(self, texts: Iterable[str]) -> Tensor:
        """(T, E). Raises EvaluationError where the encoder's numbers are not finite."""
        return finite(embed_texts(self.model, texts, self.settings.batch), "texts")

    def encoded(self, sample: Sample) -> bytes | str:
        """The image's bytes, or a word for why there are none."""
        return self._copies.read(self.samples.storage, sample.tar, sample.offset, sample.size)


@dataclass(frozen=True)
class Found:
    """What was compared with what: emb of images and text_emb (T, E) of right.texts, for the sheet."""

    trial: Trial
    images: Images
    text_emb: Tensor
    right: Right


@dataclass(frozen=True)
class Result:
    """metrics and counts by name; details: further facts of the task, JSON-ready; digest: of the data.

    sheet: draws a page of so many queries, chosen by that chance. files: by name, JSON-ready; pictures: by name,
    encoded; both are written beside the results.
    """

    trial: Trial
    metrics: Mapping[str, Share]
    counts: Mapping[str, Any]
    details: Mapping[str, Any]
    digest: str
    sheet: Callable[[Result, int, random.Random], str]
    files: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)


def counts_of(num_tried: int, unreadable: Mapping[str, int], without: Counter[str]) -> dict[str, object]:
    """samples = images + unreadable, by reason + those that lack what the task needs."""
    num_lost = sum(unreadable.values())
    return {
        "samples": num_tried + without.total(),
        "images": num_tried - num_lost,
        "unreadable": dict(unreadable),
        **without,
    }


def only(samples: Iterable[Sample], without: Counter[str], what: str) -> Iterator[Sample]:
    """The samples that have a class, or a caption; the others are counted."""
    for sample in samples:
        if sample.captions if what == "caption" else sample.label is not None:
            yield sample
        else:
            without[f"without_{what}"] += 1


def finite(emb: Tensor, what: str) -> Tensor:
    """The embeddings as they are. Raises EvaluationError where one is no number."""
    # A comparison with what is no number is false, and false means found: such an encoder would be perfect.
    if broken := int((~emb.isfinite()).any(dim=1).sum()):
        raise EvaluationError(
            f"the encoder's embeddings of {broken:,} of {len(emb):,} {what} are not finite; its weights are broken, or "
            "its dtype is too narrow"
        )
    return emb
