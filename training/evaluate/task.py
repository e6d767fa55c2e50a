"""What every task of evaluation takes and gives."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from infra.errors import PairmillError
from training.data.copies import Copies
from training.data.source import DatasetSettings
from training.evaluate.confidence import Share
from training.evaluate.embed import Encoder, Images, embed_images, embed_texts
from training.evaluate.retrieval import Right
from training.evaluate.samples import Sample, samples_of
from training.evaluate.settings import EvaluationSettings

GIB = 1 << 30


class EvaluationError(PairmillError):
    """What the encoder says is no number."""


class Trial:
    """An encoder before the data of its settings: what the tasks share. Raises as `samples_of` does."""

    def __init__(self, encoder: Encoder, settings: EvaluationSettings, *, labelled: bool) -> None:
        self.encoder, self.settings = encoder, settings
        source = DatasetSettings.parse(
            {"path": settings.data, "selection": settings.selection, "captions": settings.captions,
             "index": settings.index},
            "evaluate",
        )  # fmt: skip
        self.samples = samples_of(source, settings.split, labelled=labelled)
        folder = settings.copies or os.path.join(tempfile.gettempdir(), f"pairmill-copies-{os.getuid()}")
        self._copies = Copies(folder, int(settings.copies_gib * GIB))

    def embed_images(self, samples: Iterable[Sample]) -> Images:
        """Their images. Raises EvaluationError where the encoder's numbers are not finite."""
        threads = self.settings.threads or os.cpu_count() or 1
        found = embed_images(
            self.encoder, samples, self.samples.storage, self._copies, batch=self.settings.batch, threads=threads
        )  # fmt: skip
        return Images(found.samples, _finite(found.emb, "images"), found.unreadable, found.digest)

    def embed_texts(self, texts: Iterable[str]) -> Tensor:
        """(T, E). Raises EvaluationError where the encoder's numbers are not finite."""
        return _finite(embed_texts(self.encoder, texts, self.settings.batch), "texts")

    def encoded(self, sample: Sample) -> bytes | str:
        """The image's bytes, or a word for why there are none."""
        return self._copies.read(self.samples.storage, sample.tar, sample.offset, sample.size)


@dataclass(frozen=True)
class Result:
    """metrics and counts by name; details: further facts of the task, JSON-ready. text_emb: (T, E) of right.texts."""

    trial: Trial
    metrics: Mapping[str, Share]
    counts: Mapping[str, Any]
    details: Mapping[str, Any]
    images: Images
    text_emb: Tensor
    right: Right


def _finite(emb: Tensor, what: str) -> Tensor:
    # A comparison with what is no number is false, and false means found: such an encoder would be perfect.
    if broken := int((~emb.isfinite()).any(dim=1).sum()):
        raise EvaluationError(
            f"the encoder's embeddings of {broken:,} of {len(emb):,} {what} are not finite; its weights are broken, or "
            "its dtype is too narrow"
        )
    return emb
