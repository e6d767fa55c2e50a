"""CLIP score: does the caption fit the image? Cosine in [-1, 1]; higher fits better.

Any model of open_clip's, or one that was trained here. An image is encoded once for all of its captions, and a text
once for all images of a batch.
"""

# Shapes: N images of a batch, T distinct texts of it, R rows of its table, E embedding

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from filters.base import Batch, column
from filters.model import ModelScorer, ModelSettings, anywhere, readable
from infra.errors import UsageError
from infra.recipe import Config, tuning
from training.models.encoder import fit
from training.models.load import load_encoder

NONE = -1  # for a row: there is no image, or no text
MODEL_WANTED = (
    "clip_score: which model? Give --set clip_score.model=ViT-B-32 --set clip_score.pretrained=TAG_OR_PATH, "
    "or --set clip_score.model=RUN for one that was trained here"
)
SCORE = column(
    "clip_score", pa.float32(), "Cosine of image and caption as a CLIP sees them, -1 to 1; higher fits better."
)


class ClipScoreSettings(ModelSettings):
    """Which model to ask, and with what."""

    # The digest of the weights enters the fingerprint, not where they lie: see ModelScorer.identity.
    model: str | None = tuning(
        None,
        "An architecture of open_clip's list, such as ViT-B-32, a .json file in its form, or a run or checkpoint of "
        "ours: path or url.",
    )
    pretrained: str | None = tuning(
        None, "Its weights: a tag of open_clip's, a path or url. A checkpoint of ours brings its own."
    )
    embeddings: bool = Field(False, description="Write image_embedding and text_embedding, too: float16, unit length.")


class ClipScore(ModelScorer):
    """clip_score: null where the image cannot be decoded or the caption is white space alone.

    The size of a batch, its other rows and the device change a score by no more than the rounding of the model's
    arithmetic: 1e-6 in float32.
    """

    name = "clip_score"
    per = "caption"
    Settings = ClipScoreSettings
    columns = pa.schema([SCORE])

    def __init__(self, settings: Config | None = None) -> None:
        super().__init__(settings)
        assert isinstance(self.settings, ClipScoreSettings)
        self._given = self.settings
        if self._given.model is None:
            raise UsageError(MODEL_WANTED)
        self._model, self._pretrained = anywhere(self._given.model), anywhere(self._given.pretrained)

    def load(self, device: str) -> Any:
        """The encoder of images and texts."""
        assert self._model is not None
        return load_encoder(self._model, self._pretrained, device, self._given.dtype)

    def setup(self) -> None:
        """Load the model; with embeddings the columns' widths are known then."""
        super().setup()
        if self._given.embeddings:
            kind = pa.list_(pa.float16(), self.model.dim)
            what = "as the CLIP sees it, unit length; null where"
            self.columns = pa.schema(
                [
                    SCORE,
                    column("image_embedding", kind, f"The image {what} it cannot be decoded."),
                    column("text_embedding", kind, f"The caption {what} it is white space alone."),
                ]
            )

    def answer(self, batch: Batch, images: Tensor, row_of_pair: Mapping[int, int]) -> pa.Table:
        """A row for each caption."""
        texts = [readable(text) for text in batch.texts]
        distinct = [text for text in dict.fromkeys(texts) if text]
        image_emb = self._embed(self.model.images, images)  # (N, E)
        text_emb = self._embed(self.model.texts, distinct)  # (T, E)

        row_of_text = {text: row for row, text in enumerate(distinct)}
        pairs = [at for at, pair in enumerate(batch.pairs) for _ in pair.captions]  # as batch.captions has them
        rows = np.array([row_of_pair.get(at, NONE) for at in pairs], np.int64)  # (R,)
        captions = np.array([row_of_text.get(text, NONE) for text in texts], np.int64)  # (R,)

        known = (rows != NONE) & (captions != NONE)
        cosines = np.zeros(len(texts), np.float32)
        cosines[known] = fit(image_emb[rows[known]], text_emb[captions[known]]).numpy()
        arrays: list[pa.Array] = [pa.array(cosines, mask=~known)]
        if self._given.embeddings:
            arrays += [_lists(image_emb, rows), _lists(text_emb, captions)]
        return pa.Table.from_arrays(arrays, schema=self.columns)

    def _embed(self, encode: Callable[[Any], Tensor], inputs: Tensor | Sequence[str]) -> Tensor:
        """(…, E) float32, on the CPU, of any number of images or texts."""
        size = self._given.batch
        parts = [encode(inputs[start : start + size]) for start in range(0, len(inputs), size)]
        return torch.cat(parts).cpu() if parts else torch.empty(0, self.model.dim)


def _lists(emb: Tensor, rows: npt.NDArray[np.int64]) -> pa.Array:
    """A list of E float16 for each of `rows`; null for NONE."""
    known = rows != NONE
    values = np.zeros((len(rows), emb.shape[1]), np.float16)
    values[known] = emb.numpy()[rows[known]]
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), emb.shape[1], mask=pa.array(~known))
