"""Saving: states are copied to memory at once, and written by a thread while the training goes on.

Each save has a word of its own in its files' names, so nothing of an earlier save is written over: until its
checkpoint.json replaces the former, that one stays whole. A rank tells that its files are there by a receipt, a small
file; rank 0 waits for all of them, then publishes. So the threads of ranks never need a collective among them.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from infra.storage import Committed, Storage
from training.checkpoint import FACTS, OWN, CheckpointError, Facts, File, Keep, Trained, base, folder_of, prune
from training.ranks import Ranks

PATIENCE_S = 1800.0  # rank 0 waits so long for the others' files
LOOK_S = 0.05, 2.0  # first and longest pause between two looks


class Saver:
    """Writes checkpoints into one folder beside the training. One save at a time; `wait` before the process ends."""

    def __init__(self, storage: Storage, ranks: Ranks, keep: Keep | None = None) -> None:
        self._storage, self._ranks, self._keep = storage, ranks, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        if ranks.rank == 0:
            storage.sweep()  # temporary files of a killed save

    def save(self, engine: Trained, facts: Facts) -> None:
        """Copies this rank's share of the states to its memory and returns; a thread writes them.

        All ranks together. Raises CheckpointError on all of them where the save before has failed on one.
        """
        self._join()
        failed = self._ranks.mean(torch.tensor(float(self._error is not None), device=engine.device))
        if failed:
            raise CheckpointError(f"{self._storage.url}: the checkpoint before was not written: {self._why()}")
        word = _agreed_word(self._ranks, engine.device)
        mine = _dealt(engine.sizes(), self._ranks)
        weights: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        for name in engine.sizes():
            states = engine.read(name)  # all ranks take part, one keeps it
            if name in mine:
                states = {key: value.cpu().contiguous() for key, value in states.items()}
                weights[name] = states.pop("weight")
                moments |= {f"{name}/{key}": value for key, value in states.items()}
        tensors = {"weights": weights, "optimizer": moments, OWN: engine.own()}
        facts = facts.model_copy(update={"engine": engine.counters()})
        writing = _Writing(self._storage, self._ranks, word, facts, self._keep)
        # Not a daemon: a process that ends by itself ends its checkpoint first.
        self._thread = threading.Thread(target=self._run, args=(writing, tensors), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until this rank's part is written, and on rank 0 all of it. Raises CheckpointError where that has failed."""
        self._join()
        if self._error is not None:
            raise CheckpointError(f"{self._storage.url}: no checkpoint was written: {self._why()}") from self._error

    def _run(self, writing: _Writing, tensors: Mapping[str, dict[str, Tensor]]) -> None:
        try:
            writing.write(tensors)
        except BaseException as error:  # noqa: BLE001 — a thread's error is told by the next save or wait
            self._error = error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _why(self) -> str:
        return f"{type(self._error).__name__}: {self._error}" if self._error else "another rank has the reason"


@dataclass(frozen=True)
class _Writing:
    """One save."""

    storage: Storage
    ranks: Ranks
    word: str
    facts: Facts
    keep: Keep | None

    def write(self, tensors: Mapping[str, dict[str, Tensor]]) -> None:
        """tensors: by kind of file, then by name."""
        files = [self._tensors(kind, named) for kind, named in tensors.items()]
        told = [{"name": base(file.name), "size": file.size, "digest": file.digest} for file in files if file]
        self.storage.commit_bytes(self._receipt(self.ranks.rank), json.dumps(told).encode())
        if self.ranks.rank == 0:
            self._publish()

    def _tensors(self, kind: str, tensors: dict[str, Tensor]) -> Committed | None:
        if not tensors:
            return None
        name = f"{self._folder}/{kind}-{self.ranks.rank:05d}-of-{self.ranks.num:05d}.{self.word}.safetensors"
        with self.storage.commit(name) as draft:
            save_file(tensors, draft.path)
        return draft.result()

    def _publish(self) -> None:
        receipts = [self._receipt(rank) for rank in range(self.ranks.num)]
        deadline, pause = time.monotonic() + PATIENCE_S, LOOK_S[0]
        while missing := [name for name in receipts if not self.storage.exists(name)]:
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"{', '.join(missing)}: not there after {PATIENCE_S:.0f} s; are those ranks dead?"
                )
            time.sleep(pause)
            pause = min(2 * pause, LOOK_S[1])
        files = [File(**told) for name in receipts for told in json.loads(self.storage.read(name))]
        facts = self.facts.model_copy(update={"files": files})
        self.storage.commit_bytes(f"{self._folder}/{FACTS}", facts.model_dump_json(indent=1).encode())
        belongs = {FACTS, *(file.name for file in files)}
        for name in self.storage.list(self._folder):
            if base(name) not in belongs:  # receipts, and what a killed save has left
                self.storage.remove(name)
        if self.keep:
            prune(self.storage, self.keep)

    @property
    def _folder(self) -> str:
        return folder_of(self.facts.step)

    def _receipt(self, rank: int) -> str:
        return f"{self._folder}/written-{rank:05d}-of-{self.ranks.num:05d}.{self.word}.json"


def _dealt(sizes: Mapping[str, int], ranks: Ranks) -> set[str]:
    """This rank's share of the names: the largest first, each to the rank that has least."""
    loads = [0] * ranks.num
    mine = set()
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = loads.index(min(loads))
        loads[rank] += sizes[name]
        if rank == ranks.rank:
            mine.add(name)
    return mine


def _agreed_word(ranks: Ranks, device: torch.device) -> str:
    """Eight hex digits, drawn by rank 0."""
    drawn = torch.tensor(secrets.randbits(32), device=device)
    if ranks.num > 1:
        dist.broadcast(drawn, 0)
    return f"{int(drawn):08x}"
