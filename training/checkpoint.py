"""Checkpoints: fp32 weights and moments by name, so that any number of ranks at any ZeRO stage goes on from them.

    step-0000001000/weights-00000-of-00002.1f3a….safetensors     parameters and buffers, dealt to ranks by size
                    optimizer-00000-of-00002.1f3a….safetensors   NAME/exp_avg, NAME/exp_avg_sq, NAME/average
                    own-00000-of-00002.1f3a….safetensors         what one rank has: NAME/error, NAME/q (power_sgd.py)
                    checkpoint.json                              facts, and all files' sizes and digests: comes last

Nothing is pickled. training/saver.py writes them.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import Field, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from infra.errors import PairmillError
from infra.log import get_logger
from infra.metric_names import is_lower_better
from infra.recipe import Config
from infra.storage import Storage
from training.ranks import Ranks

FACTS = "checkpoint.json"
OWN = "own"  # kind of a file that is read only by the rank that wrote it
CHECKPOINTS = "checkpoints"  # folder of them, below a run's
STEP = re.compile(r"step-\d{10}/")
BESIDE = ("exp_avg", "exp_avg_sq", "average")  # a trained weight
ALONE = Ranks()
log = get_logger("checkpoint")


class CheckpointError(PairmillError):
    """A checkpoint cannot be written, or is not one that can be read."""


class Trained(Protocol):
    """What is saved and restored (training/engine.py). All ranks call each method together."""

    ranks: Ranks
    device: torch.device

    def sizes(self) -> dict[str, int]:
        """Every tensor's name and how many numbers it has, in the same order on all ranks."""

    def read(self, name: str) -> dict[str, Tensor]:
        """The tensor whole: weight, exp_avg, exp_avg_sq, and average where one is kept."""

    def write(self, name: str, states: Mapping[str, Tensor]) -> None:
        """Puts back what was read."""

    def own(self) -> dict[str, Tensor]:
        """What this rank alone holds, by name, copied to memory."""

    def write_own(self, states: Mapping[str, Tensor]) -> None:
        """As `own` gave it on this rank of as many; nothing, where there were more or fewer."""

    def counters(self) -> dict[str, Any]:
        """Numbers beside them, ready for JSON."""

    def finish(self, counters: Mapping[str, Any]) -> None:
        """Ends the writing."""


class File(Config):
    """A file of a checkpoint; its name has no folder."""

    name: str = Field(pattern=r"^[\w.-]+\.safetensors$", description="name inside the checkpoint's folder")
    size: int = Field(description="bytes")
    digest: str = Field(description="blake2b-128 as hex")


class Facts(Config):
    """All that a checkpoint knows beside tensors."""

    step: int = Field(ge=0, description="updates asked for, skipped ones too")
    samples: int = Field(0, description="rows seen by all ranks")
    model: dict[str, Any] = Field({}, description="name and settings, from which the module is built")
    loader: dict[str, Any] = Field({}, description="the loader's state")
    recipe: dict[str, Any] = Field({}, description="the recipe as resolved")
    metrics: dict[str, float] = Field({}, description="what the last evaluation found, by name")
    engine: dict[str, Any] = Field({}, description="the engine's counters; filled in by the saver")
    files: list[File] = Field([], description="filled in by the saver")

    @field_validator("metrics", mode="before")
    @classmethod
    def _finite(cls, metrics: dict[str, float]) -> dict[str, float]:
        """What is no number is left out: JSON has no word for it, and it is never best."""
        return {name: value for name, value in metrics.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest, and the best by a metric."""

    last: int = 3
    best: str | None = None  # a name in metrics


class Checkpoint:
    """A whole checkpoint, opened for reading."""

    def __init__(self, storage: Storage, facts: Facts) -> None:
        self._storage, self.facts = storage, facts
        self.url = storage.url

    @classmethod
    def open(cls, url: str) -> Checkpoint:
        """The checkpoint in a folder (step-…). Raises CheckpointError where it is none, or not whole."""
        storage = Storage(url)
        sizes = storage.sizes() if storage.exists() else {}
        if FACTS not in sizes:
            pickles = [name for name in sizes if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))]
            hint = (
                f" {pickles[0]} may be a pickle, which could run any code: convert it to safetensors."
                if pickles
                else ""
            )
            raise CheckpointError(f"{url}: no {FACTS} in it, so no checkpoint, or one that was never finished.{hint}")
        try:
            facts = Facts.model_validate_json(storage.read(FACTS))
        except ValueError as error:
            raise CheckpointError(f"{url}/{FACTS}: cannot be read: {error}") from None
        for file in facts.files:
            if sizes.get(file.name) != file.size:
                raise CheckpointError(
                    f"{url}/{file.name}: {sizes.get(file.name, 0)} bytes, not {file.size}; take another checkpoint"
                )
        return cls(storage, facts)

    def weights(self) -> dict[str, Tensor]:
        """Every parameter, its average where one was kept, and buffer by name, in memory; trained ones in fp32.

        Digests are compared first.
        """
        self.check()
        with self._opened() as (weights, beside):
            averages = {name: f"{name}/average" for name in weights if f"{name}/average" in beside}
            return {
                name: beside[averages[name]].get_tensor(averages[name]) if name in averages else place.get_tensor(name)
                for name, place in weights.items()
            }

    def restore(self, engine: Trained) -> None:
        """Weights, moments and counters into an engine of any stage and number of ranks; all ranks together.

        Raises CheckpointError on all ranks where a file is corrupt, or the module's names or sizes are others.
        """
        ranks, problem = engine.ranks, ""
        try:
            self.check(ranks)
            self._compare(engine.sizes())
        except CheckpointError as error:
            problem = str(error)
        if ranks.mean(torch.tensor(float(bool(problem)), device=engine.device)):
            raise CheckpointError(problem or f"{self._storage.url}: not restored: another rank has the reason")
        with self._opened() as (weights, beside):
            for name in engine.sizes():
                keys = [key for key in BESIDE if f"{name}/{key}" in beside]
                states = {key: beside[f"{name}/{key}"].get_tensor(f"{name}/{key}") for key in keys}
                engine.write(name, {"weight": weights[name].get_tensor(name), **states})
        engine.write_own(self._own(ranks))
        engine.finish(self.facts.engine)

    def check(self, ranks: Ranks = ALONE) -> None:
        """Compares the digests of this rank's share of the files. Raises CheckpointError where one differs."""
        for file in self.facts.files[ranks.rank :: ranks.num]:
            if self._storage.digest(file.name) != file.digest:
                raise CheckpointError(f"{self._storage.url}/{file.name}: corrupt: other bytes than were written")

    def _own(self, ranks: Ranks) -> dict[str, Tensor]:
        """What this rank wrote alone, if there were as many."""
        names = [file.name for file in self.facts.files if _kind(file) == OWN]
        for name in names:
            if name.startswith(f"{OWN}-{ranks.rank:05d}-of-{ranks.num:05d}."):
                with self._local(name) as path:
                    return load_file(path)
        if names and ranks.rank == 0:
            log.warning(
                "checkpoint=%s what PowerSGD had not sent yet is dropped: it is of %d ranks, here are %d",
                self.url, len(names), ranks.num,
            )  # fmt: skip
        return {}

    def _compare(self, sizes: Mapping[str, int]) -> None:
        with self._opened() as (weights, _):
            mine = {name: math.prod(place.get_slice(name).get_shape()) for name, place in weights.items()}
        if mine != sizes:
            name = min(one for one in mine.keys() | sizes.keys() if mine.get(one) != sizes.get(one))
            here, there = mine.get(name, "no"), sizes.get(name, "no")
            raise CheckpointError(
                f"{self._storage.url}: {name} has {here} numbers here, {there} in the module; "
                "is this a checkpoint of another model?"
            )

    @contextmanager
    def _opened(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Names of weights, and of what lies beside them, to the open file of each: fetched here, read when asked."""
        kinds: dict[str, dict[str, Any]] = {"weights": {}, "optimizer": {}}
        with ExitStack() as stack:
            for file in self.facts.files:
                if _kind(file) == OWN:
                    continue
                path = stack.enter_context(self._local(file.name))
                try:
                    opened = stack.enter_context(safe_open(path, "pt"))
                except SafetensorError as error:
                    raise CheckpointError(f"{self._storage.url}/{file.name}: not safetensors: {error}") from None
                kinds[_kind(file)] |= dict.fromkeys(opened.keys(), opened)
            yield kinds["weights"], kinds["optimizer"]

    @contextmanager
    def _local(self, name: str) -> Iterator[Path]:
        if self._storage.is_local:
            yield Path(self._storage.path(name))
            return
        with tempfile.TemporaryDirectory(prefix="pairmill-") as folder:
            self._storage.filesystem.get_file(self._storage.path(name), f"{folder}/{name}")
            yield Path(folder, name)


def latest(storage: Storage) -> str | None:
    """Where the newest whole checkpoint of a training lies; None where there is none."""
    newest = next(_whole(storage), None)
    return newest.url if newest else None


def checkpoint_of(place: str) -> str | None:
    """A checkpoint's url: the one given, or the newest of a run's folder. None where there is none."""
    return place if Storage(place).exists(FACTS) else latest(Storage(f"{place.rstrip('/')}/{CHECKPOINTS}"))


def prune(storage: Storage, keep: Keep) -> None:
    """Removes whole checkpoints that need not stay, and what killed saves have left; no save may be under way."""
    whole = list(_whole(storage))
    stays = {checkpoint.facts.step for checkpoint in whole[: keep.last]}
    if keep.best is not None:
        sign = -1 if is_lower_better(keep.best) else 1
        judged = [one.facts for one in whole if keep.best in one.facts.metrics]
        # Of equals the newest.
        stays |= (
            {max(judged, key=lambda facts: (sign * facts.metrics[keep.best or ""], facts.step)).step}
            if judged
            else set()
        )
    for checkpoint in whole:
        if checkpoint.facts.step not in stays:
            storage.remove(f"{folder_of(checkpoint.facts.step)}/{FACTS}")  # first, so that it is never half one
    held = storage.sizes()
    folders = {name.partition("/")[0] for name in held if STEP.match(name)}
    for folder in folders:
        if f"{folder}/{FACTS}" not in held and whole and folder < folder_of(whole[0].facts.step):
            storage.remove_folder(folder)


def folder_of(step: int) -> str:
    """A checkpoint's folder below that of its training."""
    return f"step-{step:010d}"


def _whole(storage: Storage) -> Iterator[Checkpoint]:
    """Newest first."""
    names = sorted((name for name in storage.sizes() if STEP.match(name) and base(name) == FACTS), reverse=True)
    for name in names:
        with suppress(CheckpointError):
            yield Checkpoint.open(storage.file_url(name.partition("/")[0]))


def _kind(file: File) -> str:
    return file.name.partition("-")[0]


def base(name: str) -> str:
    """A file's name without its folder."""
    return name.rpartition("/")[2]
