"""Pictures to image tokens, once: a dVAE over every shard, on Ray or here, resumable like a score."""

# Shapes: B images, I tokens of each

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from infra.dataset import Dataset
from infra.errors import UsageError
from infra.jobs import (
    Executor,
    Job,
    Outcome,
    Resources,
    RunOptions,
    Step,
    StepResult,
    refuse_changed_settings,
    require,
    run_jobs,
)
from infra.ledger import Counts
from infra.progress import Progress
from infra.rows import Rows
from infra.sample import UID_BYTES, Pair
from training.data.tokens import check_name, write_codes
from training.encode_settings import EncodeSettings
from training.evaluate.embed import batched
from training.preprocess import Ops, UnreadableImage

MEND = "Give another --name, or the model of the first run"


class EncodeStep(Step):
    """tokens/NAME/SHARD.parquet of each shard: a row an image, null where it could not be read."""

    derived = True  # shards that were downloaded since, or changed, are encoded anew
    holds = True

    def __init__(self, dataset: Dataset, checkpoint: str, name: str, settings: EncodeSettings) -> None:
        """Raises UsageError where the checkpoint is no dVAE, or no images are stored."""
        self.dataset, self.rows, self.table = dataset, Rows(dataset), check_name(name)
        if self.rows.kind != "stored":
            raise UsageError(f"{dataset.storage.url}: no images are stored there yet; there is nothing to encode")
        self.name = f"tokens_{name}"
        self.resources = Resources(cpus=settings.threads, gpus=settings.num_gpus)
        self._checkpoint, self._settings = checkpoint, settings

    @cached_property
    def _made(self) -> Mapping[str, Any]:
        # Loaded for this and let go: workers get the digest, not the weights.
        return self._load("cpu").identity()

    def settings(self) -> Mapping[str, Any]:
        """The model's digest, what is done to an image, and what it computes in."""
        return {**self._made, "dtype": self._settings.dtype}

    def inputs(self, job: Job) -> Any:
        """The digest of the shard's rows and images."""
        return job.payload["rows"]

    def plan(self) -> Sequence[Job]:
        """A job for each shard."""
        return [Job(shard, {"rows": self.rows.digest(shard)}) for shard in self.rows.shards]

    def setup(self) -> None:
        """Load the model. Raises UsageError where it is not the one that the run began with."""
        device = self._settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = self._load(device)
        if self._model.identity() != self._made:
            raise UsageError(f"{self.name}: another model than where the run began; give every worker the same")
        self._ops = Ops.parse(self._model.ops)

    def run(self, job: Job) -> Outcome:
        """Encode one shard. Rows in = rows out: what cannot be read has a row without tokens, and is counted."""
        uids: list[bytes] = []
        codes: list[Tensor | None] = []
        with ThreadPoolExecutor(self._settings.threads, "decode", torch.set_num_threads, (1,)) as pool:
            for pairs in batched(self.rows.pairs(job.id, images=True), self._settings.batch):
                decoded = [*pool.map(self._decode, pairs)]
                read = [image for image in decoded if image is not None]
                made = iter(self._model.encode(torch.stack(read)) if read else ())
                uids += [pair.uid for pair in pairs]
                codes += [None if image is None else next(made) for image in decoded]
        known = pa.array(uids, pa.binary(UID_BYTES))
        file = write_codes(self.dataset.storage, self.table, job.id, known, codes, self.settings())
        missing = Counter({"no_tokens": sum(one is None for one in codes)})
        return Outcome(Counts(len(codes), len(codes), extra=+missing), (file,))

    def _load(self, device: str) -> Any:
        from training.models.token_maker import load_token_maker

        return load_token_maker(self._checkpoint, device, self._settings.dtype)

    def _decode(self, pair: Pair) -> Tensor | None:
        if pair.image is None:
            return None
        try:
            return self._ops(pair.image, np.random.default_rng(0))  # what is done for evaluation draws nothing
        except UnreadableImage:
            return None


def encode(
    step: EncodeStep, executor: Executor, options: RunOptions | None = None, progress: Progress | None = None
) -> StepResult:
    """Encode a dataset; what is done is skipped. Raises FingerprintError where the table is another model's."""
    options = options or RunOptions()
    refuse_changed_settings(step, MEND)
    step.dataset.ledger.keep_only(step.name, [job.id for job in step.plan()])
    result = run_jobs(step, executor, limit=options.limit, attempts=options.attempts, progress=progress)
    return require(result, options.max_quarantined)
