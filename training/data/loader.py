"""The loader: datasets in the global order, as endless batches of one rank. Its whole state is a number of samples."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import queue
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Generator, Iterator, Mapping
from multiprocessing import forkserver
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch.utils.data import DataLoader

from infra.errors import DatasetError, FingerprintError, RecipeError
from infra.recipe import Config, fingerprint, tuning
from training.data.copies import Copies
from training.data.order import Order
from training.data.reading import Broken, Reader, Sample
from training.data.source import DatasetSettings, Source, Unit, View
from training.preprocess import set_up_worker
from training.ranks import Ranks
from training.spec import Batch, Tokenizer

LANES = 48  # divides among 1, 2, 3, 4, 6, 8, 12, 16, 24 and 48 ranks
HELD_VIEW_BYTES = 1 << 29
PLANNED_AHEAD = 16  # micro-batches
MAX_WORKERS = 8
LOOK_EVERY_S = 5.0  # for workers that died, while none gives a batch
GIB = 1 << 30


class DataSettings(Config):
    """What is trained on, and in which order."""

    datasets: tuple[DatasetSettings, ...] = Field(description="Datasets whose samples are mixed.", min_length=1)
    batch: int = Field(description="Samples of a step, over all ranks and micro-batches.", gt=0)
    unit: Unit = Field("image", description="What an epoch has once: an image with one of its captions, or a caption.")
    lanes: int | None = Field(None, gt=0, description="Parts of an epoch; as many ranks can share it, or any divisor. "
                              f"Unset: the greatest divisor of both the batch and {LANES}.")  # fmt: skip
    window: int = Field(8192, gt=0, description="Samples of a lane that are shuffled together.")
    replacement: bool = Field(False, description="Draw shards with replacement, by the datasets' weights.")
    workers: int | None = tuning(None, "Processes that decode for each rank. Unset: a core each, at most "
                                 f"{MAX_WORKERS}; 0: decode in the trainer itself.", ge=0)  # fmt: skip
    prefetch: int = tuning(4, "Micro-batches that each worker has ready.", gt=0)
    copies: str | None = tuning(None, "Folder for copies of remote tars. Unset: the temporary folder.")
    copies_gib: float = tuning(32.0, "Bound of that folder; 0 asks for every image by itself.", ge=0)
    timeout_s: float = tuning(600.0, "Longest wait for a batch, before a worker is thought hung.", gt=0)


class Loader:
    """Batches of one rank.

    A step's samples are the same whatever the number of ranks, micro-batches and workers, and a run that starts at
    sample n goes on as if it had never ended. Raises RecipeError for numbers that do not divide.
    """

    def __init__(
        self, settings: DataSettings, ops: str, tokenizer: Tokenizer | None, seed: int, *, ranks: Ranks,
        num_micro: int = 1, codes: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        """codes: image tokens that the model reads of each sample, and their kinds; None: it looks at pictures."""
        self.settings = settings
        self.num_micro = num_micro
        self.broken: Counter[str] = Counter()
        self._seed = seed
        self._sources = [Source(each, settings.unit) for each in settings.datasets]
        self._made = _made(self._sources, codes)
        self.order = _order(settings, self._sources, seed)
        lanes = self.order.lanes
        for what, divisor, dividend in (
            ("data.batch", lanes, settings.batch), ("lanes", ranks.num, lanes),
            ("data.batch", ranks.num * num_micro, settings.batch),
        ):  # fmt: skip
            if dividend % divisor:
                raise RecipeError(
                    f"{what}={dividend} does not divide among {divisor} (ranks {ranks.num}, micro-batches {num_micro}, "
                    f"lanes {lanes}); change data.batch, data.lanes or the number of ranks"
                )
        each = lanes // ranks.num
        self._lanes = range(ranks.rank * each, (ranks.rank + 1) * each)
        self._views: OrderedDict[int, View] = OrderedDict()
        self._owner = np.repeat(np.arange(len(self._sources)), [len(source.shards) for source in self._sources])
        self._names = [name for source in self._sources for name in source.shards]
        folder = settings.copies or os.path.join(tempfile.gettempdir(), f"pairmill-copies-{os.getuid()}")
        storages = [source.dataset.storage for source in self._sources]
        copies = Copies(folder, int(settings.copies_gib * GIB))
        self._reader = Reader(storages, ops, tokenizer, seed, copies, codes[0] if codes else 0)

    @property
    def _num_workers(self) -> int:
        told = self.settings.workers
        return min(MAX_WORKERS, len(os.sched_getaffinity(0))) if told is None else told

    @property
    def num_units(self) -> int:
        """Units of an epoch: images, or captions."""
        return self.order.num_units

    @property
    def token_maker(self) -> str | None:
        """The digest of the dVAE that made the image tokens, where such are read."""
        return None if self._made is None else self._made.get("weights")

    def state(self, num_samples: int) -> dict[str, Any]:
        """What a checkpoint keeps: samples seen, a word for the order that they were seen in, whose tokens they had."""
        return {"samples": num_samples, "order": self._word(), "tokens": self.token_maker}

    def resume(self, state: Mapping[str, Any]) -> int:
        """Samples seen, of a kept state. Raises FingerprintError where it is of another order."""
        if state["order"] != self._word():
            raise FingerprintError(
                "the checkpoint has seen other data, or in another order (datasets, selection, seed, lanes, window); "
                "resume with the recipe that it was made with, or start anew from its weights"
            )
        return int(state["samples"])

    def warm_up(self) -> None:
        """Begin to import what the workers need, while the caller builds a model: seconds, in a process of its own."""
        if self._num_workers:
            # Forked from a clean process: the trainer has threads, and perhaps a GPU.
            multiprocessing.get_context("forkserver").set_forkserver_preload([Reader.__module__])
            forkserver.ensure_running()

    def batches(self, start: int = 0) -> Generator[Batch]:
        """This rank's micro-batches from sample `start` on, without end. Closing the iterator ends its workers."""
        workers = self._num_workers
        several: dict[str, Any] = {}
        if workers:
            self.warm_up()
            several = {"multiprocessing_context": "forkserver", "prefetch_factor": self.settings.prefetch,
                       "timeout": LOOK_EVERY_S, "worker_init_fn": _set_up}  # fmt: skip
        planned = _ahead(self.plan(start), PLANNED_AHEAD)
        loader: DataLoader[Any] = DataLoader(
            self._reader, batch_sampler=planned, collate_fn=_as_it_is, num_workers=workers,  # type: ignore[arg-type]
            pin_memory=torch.cuda.is_available(), **several,
        )  # fmt: skip
        try:
            for batch, broken in _patient(iter(loader), self.settings.timeout_s):
                self._count(broken)
                yield batch
        finally:
            planned.close()

    def plan(self, start: int) -> Iterator[list[Sample]]:
        """The samples of each micro-batch, from sample `start` on."""
        batch = self.settings.batch
        if start % batch:
            raise RecipeError(
                f"sample {start} is not the start of a step of {batch} samples; keep data.batch as it was"
            )
        while True:
            units = self.order.batch(start, batch, self._lanes)
            rows = zip(units.shards.tolist(), units.rows.tolist(), units.epochs.tolist(), strict=True)
            samples = [self._sample(*row) for row in rows]
            size = len(samples) // self.num_micro
            yield from (samples[at : at + size] for at in range(0, len(samples), size))
            start += batch

    def _sample(self, shard: int, row: int, epoch: int) -> Sample:
        view = self._view(shard)
        uid = view.uids[row].as_py()
        first, end = int(view.first[row]), int(view.first[row + 1])
        drawn = first if end - first == 1 else first + _draw(self._seed, epoch, uid) % (end - first)
        place = int(self._owner[shard]), self._names[shard], int(view.offsets[row]), int(view.sizes[row])
        codes = view.codes[row].as_py() if view.codes is not None else None
        return Sample(uid, *place, view.texts[drawn].as_py(), epoch, codes)

    def _view(self, shard: int) -> View:
        """The shard's units: held while there is room, the least recently used go first."""
        if shard in self._views:
            self._views.move_to_end(shard)
            return self._views[shard]
        view = self._sources[self._owner[shard]].view(self._names[shard])
        self._views[shard] = view
        # Each lane stands in one or two shards: fewer would be read again and again.
        least = 2 * len(self._lanes)
        while len(self._views) > least and sum(held.num_bytes for held in self._views.values()) > HELD_VIEW_BYTES:
            self._views.popitem(last=False)
        return view

    def _count(self, broken: list[Broken]) -> None:
        self.broken.update(reason for _, reason in broken)

    def _word(self) -> str:
        named = self.settings.model_dump(include={"batch", "unit", "window", "replacement"})
        weights = [source.weight for source in self.settings.datasets]
        sources = [source.identity() for source in self._sources]
        return fingerprint(named, self.order.lanes, self._seed, weights, sources)


def _made(sources: list[Source], codes: tuple[int, int] | None) -> Mapping[str, Any] | None:
    """By what the image tokens of all sources were made. Raises RecipeError where they are not what the model reads."""
    first = sources[0].made
    if any(source.made != first for source in sources):
        raise RecipeError("data.datasets: give each dataset tokens of the same dVAE, or none of them any")
    if codes is None and first is not None:
        raise RecipeError("data.datasets has tokens, but this model looks at pictures; leave tokens (or model.vae) out")
    if codes is not None:
        if first is None:
            raise RecipeError(
                "this model reads image tokens: python -m training encode writes them, data.datasets.0.tokens names "
                "them; or let model.vae make them of the pictures"
            )
        if (found := (first["num"], first["kinds"])) != codes:
            raise RecipeError(
                f"data.datasets: tables have {found[0]} tokens of {found[1]} kinds, the model reads {codes[0]} of "
                f"{codes[1]}; set model.grid={math.isqrt(found[0])} and model.codes={found[1]}, or give the right table"
            )
    return first


def _order(settings: DataSettings, sources: list[Source], seed: int) -> Order:
    lanes = settings.lanes or math.gcd(settings.batch, LANES)
    weights = [each.weight for each in settings.datasets]
    if any(weights) and not settings.replacement:
        raise RecipeError("data.datasets has weights, which need draws with replacement; say data.replacement: true")
    shares = None
    if settings.replacement:
        shares = np.repeat([weight or 1.0 for weight in weights], [len(source.shards) for source in sources])
    return Order(np.concatenate([source.sizes for source in sources]), seed, lanes, settings.window, shares)


def _set_up(worker: int) -> None:
    threading.Thread(target=_end_with_trainer, daemon=True, name="end-with-trainer").start()
    set_up_worker()


def _end_with_trainer() -> None:
    """A killed trainer ends nobody; torch watches a worker's parent, which is the fork server, not the trainer."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os._exit(1)


def _draw(seed: int, epoch: int, uid: bytes) -> int:
    """Which caption of an image is read in an epoch: a number to be taken modulo how many there are."""
    key = seed.to_bytes(8, "little", signed=True)
    return int.from_bytes(hashlib.blake2b(uid + epoch.to_bytes(8, "little"), digest_size=8, key=key).digest(), "little")


def _patient(made: Iterator[Any], timeout_s: float) -> Iterator[Any]:
    """What a loader makes, waited for up to timeout_s each. A worker that has died is told soon, as torch does."""
    waited_s = 0.0
    while True:
        try:
            item = next(made)
        except StopIteration:
            return
        except RuntimeError as error:
            # A dead worker is looked for only when a wait has ended: those of a fork server send no signal.
            waited_s += LOOK_EVERY_S
            if "timed out" not in str(error):
                raise
            if waited_s >= timeout_s:
                raise DatasetError(
                    f"no batch came for {timeout_s:.0f} s: does the storage answer? Raise data.timeout_s if it is slow"
                ) from None
            continue
        waited_s = 0.0
        yield item


def _as_it_is(made: Any) -> Any:
    return made


def _ahead(items: Iterator[list[Sample]], depth: int) -> Generator[list[Sample]]:
    """The items, made by a thread up to `depth` ahead: tables are read while the model works."""
    ready: queue.Queue[Any] = queue.Queue(depth)
    is_closed = threading.Event()

    def make() -> None:
        try:
            for item in items:
                while not is_closed.is_set():
                    try:
                        ready.put((item, None), timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if is_closed.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - raised again where the items are wanted
            ready.put((None, error))

    threading.Thread(target=make, daemon=True, name="planned-batches").start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            yield item
    finally:
        is_closed.set()
