"""CapFilt's two models: one writes a caption for an image, the other says whether a text matches it.

They are two scorers, as the paper keeps them two models: `caption` writes a table of captions, `itm` a score for every
caption, the web's and the written ones alike; rules decide (filters/recipes/capfilt.yaml).
Source: BLIP, arXiv 2201.12086, section 3.3; any checkpoint of ours, or a published one, does either.
"""

# Shapes: N images of a batch, R captions to judge

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from filters.base import Batch, column
from filters.model import ModelScorer, ModelSettings, anywhere, readable
from infra.errors import UsageError
from infra.recipe import Config, tuning
from training.generate import GenerationSettings
from training.models.load import load_captioner, load_matcher

UNREADABLE, NO_WORDS = "unreadable_image", "no_words"  # why a caption that was asked for is not there
CHECKPOINT = "A run or checkpoint of ours, or a published BLIP: a folder, a file, or its name on the Hugging Face hub."
VOCAB = "Words of a published BLIP, where its folder has no vocab.txt: a .txt file, or a name on the hub."


class CaptionSettings(ModelSettings, GenerationSettings):
    """Which captioner, and how it writes. Unset, as the paper's: nucleus sampling, one caption an image."""

    # The digest of the weights enters the fingerprint, not where they lie: see ModelScorer.identity.
    checkpoint: str | None = tuning(None, CHECKPOINT)
    vocab: str | None = tuning(None, VOCAB)
    prompt: str | None = Field(None, description="What captions begin with. Unset: the checkpoint's, or a picture of.")
    method: Literal["greedy", "beam", "sample"] = Field("sample", description="How the next token is chosen.")
    # The paper names nucleus sampling alone; the penalty is the released code's.
    repetition_penalty: float = Field(1.1, gt=0, description="Above 1, tokens that a caption has are less likely.")


class ItmSettings(ModelSettings):
    """Which filter to ask."""

    checkpoint: str | None = tuning(None, CHECKPOINT)
    vocab: str | None = tuning(None, VOCAB)
    batch: int = tuning(64, "Images that the model sees at once, and four times as many pairs of them with texts.",
                        ge=1, le=4096)  # fmt: skip


class Captions(ModelScorer):
    """Captions for each image that can be read, by chance that hangs on (uid, seed, n) alone.

    So an image gets the same captions from any worker, in any batch or shard, but for what rounding of the model's own
    arithmetic may turn.
    """

    name = "caption"
    table = "blip"
    per = "image"
    writes = "captions"
    Settings = CaptionSettings
    columns = pa.schema(
        [
            column("text", pa.string(), "A caption that a model has written."),
            column("score", pa.float32(), "Nats that the model gives it (beam: by its length); higher is surer."),
            column("num_tokens", pa.int16(), "Tokens of it behind the prompt, the end among them."),
        ]
    )

    def __init__(self, settings: Config | None = None) -> None:
        super().__init__(settings)
        assert isinstance(self.settings, CaptionSettings)
        self._given = self.settings
        self.num = self._given.num
        self._checkpoint = _wanted("caption", self._given.checkpoint)

    def load(self, device: str) -> Any:
        """The captioner."""
        given = self._given
        model = load_captioner(self._checkpoint, device, given.dtype, prompt=given.prompt, vocab=anywhere(given.vocab))
        model.check(given)
        return model

    def answer(self, batch: Batch, images: Tensor, row_of_pair: Mapping[int, int]) -> pa.Table:
        """The columns, and before them `pair`, the place of the image in the batch, `n`, and `fate`: null, or a reason.

        `num` rows for each pair, whatever became of them.
        """
        given, size = self._given, self._given.batch
        uids = [batch.pairs[at].uid for at in row_of_pair]
        written = [
            captions
            for start in range(0, len(uids), size)
            for captions in self.model.write(images[start : start + size], uids[start : start + size], given)
        ]
        rows: list[dict[str, Any]] = []
        for at in range(len(batch.pairs)):
            for n in range(self.num):
                one = written[row_of_pair[at]][n] if at in row_of_pair else None
                fate = UNREADABLE if one is None else None if one.text.strip() else NO_WORDS
                told = {"text": one.text, "score": one.score, "num_tokens": one.num_tokens} if one else {}
                rows.append({"pair": at, "n": n, "fate": fate, **told})
        keys = pa.schema([("pair", pa.int32()), ("n", pa.int32()), ("fate", pa.string())])
        return pa.Table.from_pylist(rows, schema=pa.schema([*keys, *self.columns]))


class Itm(ModelScorer):
    """itm: null where the image cannot be read or the caption has no words.

    An image is encoded once, and its keys and values serve all of its captions.
    """

    name = "itm"
    per = "caption"
    Settings = ItmSettings
    columns = pa.schema(
        [column("itm", pa.float32(), "Probability that image and text match, 0 to 1, as a BLIP judges them.")]
    )

    def __init__(self, settings: Config | None = None) -> None:
        super().__init__(settings)
        assert isinstance(self.settings, ItmSettings)
        self._given = self.settings
        self._checkpoint = _wanted("itm", self._given.checkpoint)

    def load(self, device: str) -> Any:
        """The filter."""
        return load_matcher(self._checkpoint, device, self._given.dtype, vocab=anywhere(self._given.vocab))

    def answer(self, batch: Batch, images: Tensor, row_of_pair: Mapping[int, int]) -> pa.Table:
        """A row for each caption."""
        size = self._given.batch
        texts = [readable(text) for text in batch.texts]
        pairs = [at for at, pair in enumerate(batch.pairs) for _ in pair.captions]  # as batch.captions has them
        rows = np.array([row_of_pair.get(at, -1) for at in pairs], np.int64)  # (R,)
        known = (rows >= 0) & np.array([bool(text) for text in texts], bool)
        found = np.zeros(len(texts), np.float32)
        for start in range(0, len(images), size):
            here = np.flatnonzero(known & (rows >= start) & (rows < start + size))
            if len(here):
                seen = self.model.look(images[start : start + size])
                tokens = self.model.tokens([texts[at] for at in here])
                which = torch.from_numpy(rows[here] - start)
                found[here] = self.model.match(seen, which, tokens, 4 * size).sigmoid().numpy()
        return pa.Table.from_arrays([pa.array(found, mask=~known)], schema=self.columns)


def _wanted(name: str, checkpoint: str | None) -> str:
    if checkpoint is None:
        raise UsageError(f"{name}: which model? Give --set {name}.checkpoint=RUN, or a published BLIP's folder or name")
    found = anywhere(checkpoint)
    assert found is not None
    return found
