"""One work on several ranks of a Ray cluster: Ray Train starts them and lets them meet as torch's process group."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from infra.errors import PairmillError, UsageError
from infra.executors import RayExecutor
from infra.log import configure, get_logger, one_line
from infra.preemption import Preemption

log = get_logger("ray_train")

T = TypeVar("T")
MAX_UNPLACED = 30  # times a minute in which a cluster that grows may find room for all ranks


@dataclass(frozen=True)
class Ranks:
    """How many, what each holds of a machine, and how often they may die."""

    num: int
    cpus: int = 1
    gpus: float = 0.0
    max_failures: int = 3


def run_ranks(work: Callable[[Preemption], T], ranks: Ranks, executor: RayExecutor) -> T:
    """Run a work on all ranks at once, torch.distributed initialised. Returns what rank 0's returned.

    work: importable on the workers; there it is told, on rank 0, when this process is asked to leave. Where a rank
    dies, all are started anew, so the work goes on from what it has kept. Relative paths mean this process's folder.
    Raises the work's own PairmillError, which another try cannot mend; UsageError where a Ray of our own has no room.
    """
    ray = executor.connect()
    _refuse_what_never_fits(ray, ranks, executor)
    os.environ |= {"RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # a lost node is noticed
    train, torch_train = import_module("ray.train"), import_module("ray.train.torch")

    desk = ray.remote(_Desk).options(num_cpus=0).remote()
    told = {"work": work, "desk": desk, "folder": os.getcwd()}
    resources = {"CPU": ranks.cpus, **({"GPU": ranks.gpus} if ranks.gpus else {})}

    def ask() -> None:  # a thread of its own: a signal may come in the middle of a call to Ray
        threading.Thread(target=desk.ask_to_leave.remote).start()

    with tempfile.TemporaryDirectory() as folder, Preemption().watched(ask):
        trainer = torch_train.TorchTrainer(
            _rank,
            train_loop_config=told,
            torch_config=torch_train.TorchConfig(backend="cpu:gloo,cuda:nccl" if ranks.gpus else "gloo"),
            scaling_config=train.ScalingConfig(
                num_workers=ranks.num, use_gpu=ranks.gpus > 0, resources_per_worker=resources
            ),
            run_config=train.RunConfig(
                storage_path=folder,  # for checkpoints of Ray's own, which nobody makes
                failure_config=train.FailureConfig(controller_failure_limit=MAX_UNPLACED),
                logging_config=train.LoggingConfig(log_level="CRITICAL"),  # each rank's error, which is raised here
            ),
        )
        # Ray Train's own count of failures would try again what only the user can mend.
        for left in reversed(range(ranks.max_failures + 1)):
            try:
                result: T = trainer.fit().return_value
                return result
            except train.WorkerGroupError as error:
                refusal = ray.get(desk.refusal.remote())
                if refusal is not None:
                    raise refusal from None
                if not left:
                    raise
                log.warning("ranks died, all start anew: tries_left=%d error=%s", left, one_line(str(error)))
    raise AssertionError


class _Desk:
    """Where ranks and their driver leave word for each other."""

    def __init__(self) -> None:
        self._leave = asyncio.Event()
        self._refusal: PairmillError | None = None

    async def ask_to_leave(self) -> None:
        self._leave.set()

    async def asked_to_leave(self) -> None:
        """Returns when that is so."""
        await self._leave.wait()

    async def refuse(self, error: PairmillError) -> None:
        self._refusal = self._refusal or error

    async def refusal(self) -> PairmillError | None:
        return self._refusal


def _rank(told: dict[str, Any]) -> Any:
    import ray
    from ray.train import get_context

    configure()
    with suppress(FileNotFoundError):  # a cluster elsewhere, where only urls mean the same
        os.chdir(told["folder"])
    desk, preemption = told["desk"], Preemption()

    def wait() -> None:
        with suppress(ray.exceptions.RayError):
            ray.get(desk.asked_to_leave.remote())
            preemption.is_asked = True

    if get_context().get_world_rank() == 0:
        threading.Thread(target=wait, daemon=True).start()
    try:
        return told["work"](preemption)
    except PairmillError as error:
        ray.get(desk.refuse.remote(error))
        raise


def _refuse_what_never_fits(ray: Any, ranks: Ranks, executor: RayExecutor) -> None:
    """A cluster may grow, a Ray on this machine does not."""
    there = ray.cluster_resources()
    wanted = {"CPU": ranks.num * ranks.cpus, "GPU": ranks.num * ranks.gpus}
    short = {name: amount for name, amount in wanted.items() if amount > there.get(name, 0)}
    if short and executor.is_here:
        raise UsageError(
            f"{ranks.num} ranks want {short} together, and this machine has "
            f"{ {name: there.get(name, 0) for name in short} }; ask for fewer, or give --ray the address of a cluster"
        )
