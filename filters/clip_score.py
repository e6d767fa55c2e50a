"""CLIP score: does the caption fit the image? Cosine in [-1, 1]; higher fits better.

Any model of open_clip's, or one that was trained here. An image is encoded once for all of its captions, and a text
once for all images of a batch.
"""

# Shapes: N images of a batch, T distinct texts of it, R rows of its table, E embedding

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from filters.base import Batch, Scorer, column
from infra.ahead import begun_ahead
from infra.errors import UsageError
from infra.jobs import Resources
from infra.memory import keep_freed
from infra.recipe import Config, tuning
from infra.storage import Storage
from training.models.encoder import Encoder
from training.models.load import load_encoder
from training.preprocess import Ops, UnreadableImage

AHEAD = 1  # batches that are decoded while a GPU is at another
MAX_CHARACTERS = 10_000  # of a text that are tokenised. No context is so long, and the web has texts of megabytes
NONE = -1  # for a row: there is no image, or no text
MODEL_WANTED = (
    "clip_score: which model? Give --set clip_score.model=ViT-B-32 --set clip_score.pretrained=TAG_OR_PATH, "
    "or --set clip_score.model=RUN for one that was trained here"
)
SCORE = column(
    "clip_score", pa.float32(), "Cosine of image and caption as a CLIP sees them, -1 to 1; higher fits better."
)


class ClipScoreSettings(Config):
    """Which model to ask, and with what."""

    # The digest of the weights enters the fingerprint, not where they lie: see identity().
    model: str | None = tuning(
        None,
        "An architecture of open_clip's list, such as ViT-B-32, a .json file in its form, or a run or checkpoint of "
        "ours: path or url.",
    )
    pretrained: str | None = tuning(
        None, "Its weights: a tag of open_clip's, a path or url. A checkpoint of ours brings its own."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="What the model computes in.")
    embeddings: bool = Field(False, description="Write image_embedding and text_embedding, too: float16, unit length.")
    device: str = tuning("auto", "cpu, cuda, cuda:1 …; auto: cuda where a worker has one.")
    batch: int = tuning(64, "Images, or texts, that the model sees at once.", ge=1, le=4096)
    threads: int = tuning(
        1, "CPUs of a worker on Ray: they decode while a GPU runs the model, or take turns at both.", ge=1
    )
    num_gpus: float = tuning(0.0, "GPUs of a worker that Ray is asked for; 0.5 puts two workers on one.", ge=0)


@dataclass(frozen=True)
class Decoding:
    """A batch whose images are being decoded: N of its pairs have one."""

    batch: Batch
    places: Sequence[int]  # in the batch, of each of those pairs
    images: Tensor  # (N, 3, size, size) float32
    is_read: Sequence[Future[bool]]  # of each


class ClipScore(Scorer):
    """clip_score: null where the image cannot be decoded or the caption is white space alone.

    The size of a batch, its other rows and the device change a score by no more than the rounding of the model's
    arithmetic: 1e-6 in float32.
    """

    name = "clip_score"
    per = "caption"
    needs_image = True
    holds = True
    Settings = ClipScoreSettings
    columns = pa.schema([SCORE])
    _encoder: Encoder
    _ops: Ops

    def __init__(self, settings: Config | None = None) -> None:
        super().__init__(settings)
        assert isinstance(self.settings, ClipScoreSettings)
        self._given = self.settings
        if self._given.model is None:
            raise UsageError(MODEL_WANTED)
        self._model, self._pretrained = _anywhere(self._given.model), _anywhere(self._given.pretrained)
        self.at_once = self._given.batch
        self.resources = Resources(cpus=self._given.threads, gpus=self._given.num_gpus)

    def identity(self) -> Mapping[str, Any]:
        """Architecture, digest of the weights, image operations. Raises UsageError where they do not fit together."""
        return self._identity

    @cached_property
    def _identity(self) -> Mapping[str, Any]:
        # The model is loaded for this and let go: what it lacks is said before anything is scored, and workers get
        # the digest, not the weights.
        return self._load("cpu").identity()

    def setup(self) -> None:
        """Load the model. Raises UsageError where it is not the one that the run began with."""
        device = self._given.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._encoder = self._load(device)
        if self._encoder.identity() != self._identity:
            raise UsageError(f"{self._model}: another model than where the run began; give every worker the same")
        self._ops = Ops.parse(self._encoder.ops)
        self._is_pinned = device.startswith("cuda")
        self._threads, self._ahead, self._model_threads = self._given.threads, AHEAD, torch.get_num_threads()
        if not self._is_pinned:
            self._threads, self._ahead = self._model_threads, 0
            keep_freed()
        if self._given.embeddings:
            kind = pa.list_(pa.float16(), self._encoder.dim)
            what = "as the CLIP sees it, unit length; null where"
            self.columns = pa.schema(
                [
                    SCORE,
                    column("image_embedding", kind, f"The image {what} it cannot be decoded."),
                    column("text_embedding", kind, f"The caption {what} it is white space alone."),
                ]
            )

    def _load(self, device: str) -> Encoder:
        assert self._model is not None
        return load_encoder(self._model, self._pretrained, device, self._given.dtype)

    def score(self, batch: Batch) -> pa.Table:
        """A row for each caption."""
        return next(self.score_all(iter([batch])))

    def score_all(self, batches: Iterator[Batch]) -> Iterator[pa.Table]:
        """The same of each batch. While a GPU is at one, threads decode the next.

        On a CPU they take turns with the model, on the same cores: beside it, one would hold up all of the model's.
        Each decodes alone: with helpers of their own, there would be more threads than cores, and OpenMP would let the
        model's sleep between any two operations.
        """
        with ThreadPoolExecutor(self._threads, "decode", torch.set_num_threads, (1,)) as pool:
            for decoding in begun_ahead((self._begin(batch, pool) for batch in batches), self._ahead):
                yield self._finish(decoding)

    def _begin(self, batch: Batch, pool: ThreadPoolExecutor) -> Decoding:
        encoded = {at: pair.image for at, pair in enumerate(batch.pairs) if pair.image is not None}
        images = torch.empty(len(encoded), 3, self._ops.size, self._ops.size, pin_memory=self._is_pinned)
        is_read = [pool.submit(self._decode, data, out) for data, out in zip(encoded.values(), images, strict=True)]
        return Decoding(batch, list(encoded), images, is_read)

    def _decode(self, data: bytes, out: Tensor) -> bool:
        """Bytes → out, (3, size, size). Is there a picture in them?"""
        try:
            self._ops.into(data, np.random.default_rng(0), out)  # what is done for evaluation draws nothing
        except UnreadableImage:
            return False
        return True

    def _finish(self, decoding: Decoding) -> pa.Table:
        batch = decoding.batch
        is_read = [future.result() for future in decoding.is_read]
        torch.set_num_threads(self._model_threads)  # a decoding thread's setting holds for the process, too
        texts = [readable(text) for text in batch.texts]
        distinct = [text for text in dict.fromkeys(texts) if text]
        image_emb = self._embed(self._encoder.images, decoding.images)  # (N, E); of those not read, nobody asks
        text_emb = self._embed(self._encoder.texts, distinct)  # (T, E)

        row_of_pair = {at: row for row, at in enumerate(decoding.places) if is_read[row]}
        row_of_text = {text: row for row, text in enumerate(distinct)}
        pairs = [at for at, pair in enumerate(batch.pairs) for _ in pair.captions]  # as batch.captions has them
        images = np.array([row_of_pair.get(at, NONE) for at in pairs], np.int64)  # (R,)
        captions = np.array([row_of_text.get(text, NONE) for text in texts], np.int64)  # (R,)

        known = (images != NONE) & (captions != NONE)
        cosines = np.zeros(len(texts), np.float32)
        fits = (image_emb[images[known]] * text_emb[captions[known]]).sum(-1)
        cosines[known] = fits.clamp(-1, 1).numpy()  # rounding may lead out of it
        arrays: list[pa.Array] = [pa.array(cosines, mask=~known)]
        if self._given.embeddings:
            arrays += [_lists(image_emb, images), _lists(text_emb, captions)]
        return pa.Table.from_arrays(arrays, schema=self.columns)

    def _embed(self, encode: Callable[[Any], Tensor], inputs: Tensor | Sequence[str]) -> Tensor:
        """(…, E) float32, on the CPU, of any number of images or texts."""
        size = self._given.batch
        parts = [encode(inputs[start : start + size]) for start in range(0, len(inputs), size)]
        return torch.cat(parts).cpu() if parts else torch.empty(0, self._encoder.dim)


def readable(text: str) -> str:
    """What is tokenised of a caption; "" where it has no words."""
    return "" if text.isspace() else text[:MAX_CHARACTERS]


def _lists(emb: Tensor, rows: npt.NDArray[np.int64]) -> pa.Array:
    """A list of E float16 for each of `rows`; null for NONE."""
    known = rows != NONE
    values = np.zeros((len(rows), emb.shape[1]), np.float16)
    values[known] = emb.numpy()[rows[known]]
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), emb.shape[1], mask=pa.array(~known))


def _anywhere(place: str | None) -> str | None:
    """The same place for a worker that stands in another folder; names of architectures and tags are none."""
    is_place = place is not None and ("/" in place or "." in place) and Storage(place).exists()
    return Storage(place).url if place is not None and is_place else place
