"""Where a step's jobs run: this process, or Ray. Both run the same Step; ray is imported here and in ray_train.py."""

from __future__ import annotations

import importlib.util
import os
import socket
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from infra.errors import UsageError
from infra.jobs import Failure, Job, Resources, Running, Step, perform
from infra.ledger import Counts
from infra.log import configure, get_logger

log = get_logger("executors")

CHECKOUT = Path(__file__).resolve().parent.parent
OBJECT_STORE_BYTES = 200 << 20  # jobs and counts travel, images do not
CONNECT_TIMEOUT_S = 10.0


class LocalExecutor:
    """Runs jobs in this process, one after the other: pdb works, and a step may use threads of its own."""

    @contextmanager
    def open(self, step: Step, num_jobs: int) -> Iterator[Running]:
        """Set the step up here, if there is anything to do."""
        if num_jobs:
            step.setup()
        try:
            yield _LocalRunning(step)
        finally:
            if num_jobs:
                step.teardown()

    def close(self) -> None:
        """Nothing is kept."""


class _LocalRunning:
    def __init__(self, step: Step) -> None:
        self._step = step
        self._jobs: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def take(self) -> tuple[Job, Counts | Failure]:
        job = self._jobs.popleft()
        try:
            return job, perform(self._step, job)
        except UsageError:
            raise  # the user's to mend; another try cannot help
        except Exception as error:  # noqa: BLE001 - whatever a shard raises, the run goes on and says so
            return job, Failure(f"{type(error).__name__}: {error}", traceback.format_exc())

    @property
    def num_open(self) -> int:
        return len(self._jobs)

    @property
    def is_full(self) -> bool:
        return bool(self._jobs)


class RayExecutor:
    """Runs jobs on a Ray cluster: tasks for plain work, actors for steps that hold something.

    address: of a running cluster, or None: the one this process belongs to, else a new one on this machine.
    is_heard: what workers write appears here.
    """

    def __init__(self, address: str | None = None, num_cpus: int | None = None, *, is_heard: bool = False) -> None:
        self._address = address
        self._num_cpus = num_cpus
        self._is_heard = is_heard or bool(os.environ.get("PAIRMILL_LOG"))
        self._is_ours = False  # connected by us, and ours to leave

    @property
    def is_here(self) -> bool:
        """Is it a Ray of this machine alone, which does not grow?"""
        return self._address is None and "RAY_ADDRESS" not in os.environ

    def connect(self) -> Any:
        """The module ray, connected. Raises UsageError where no Ray answers."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        if ray.is_initialized():
            return ray
        options: dict[str, Any] = {"logging_level": "error", "log_to_driver": self._is_heard}
        if self._is_heard:
            options["logging_config"] = ray.LoggingConfig(log_level="ERROR")  # of Ray's own words only errors
        if self.is_here:
            options |= {
                "num_cpus": self._num_cpus,
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
            }
        else:
            options |= {"address": self._address}
        if self._address is not None and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
            # A job that `ray job submit --working-dir` started has shipped the tree already.
            options["runtime_env"] = {"working_dir": str(CHECKOUT), "env_vars": _passed_environment()}
        where = self._address or os.environ.get("RAY_ADDRESS", "")
        try:
            _knock(where)  # Ray itself would ask for minutes
            ray.init(**options)
        except OSError as error:
            raise UsageError(
                f"no Ray answers at {where}: {error}. Start one with `ray start --head`, or use --local"
            ) from None
        self._is_ours = True
        return ray

    @contextmanager
    def open(self, step: Step, num_jobs: int) -> Iterator[Running]:
        """Connect on first use; a step with nothing to do starts no Ray."""
        if not num_jobs:
            yield _LocalRunning(step)
            return
        ray = self.connect()
        running = _RayRunning(ray, step, num_jobs)
        try:
            yield running
        finally:
            running.close()

    def close(self) -> None:
        """Leave the cluster; one that we started stops."""
        if self._is_ours:
            import ray

            ray.shutdown()
            self._is_ours = False

    def describe(self, imports: Sequence[str] = (), timeout_s: float = 60.0) -> dict[str, Any]:
        """Connect, and ask every node where it imports these modules from.

        Returns version, cpus, gpus and nodes: a mapping of host name to {module: file, None where it is missing}.
        Raises UsageError where no Ray answers.
        """
        ray = self.connect()
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        alive = [node for node in ray.nodes() if node["Alive"]]
        ask = ray.remote(_where_modules_lie)
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in alive]
        asked = [ask.options(num_cpus=0, scheduling_strategy=place).remote(imports) for place in places]
        try:
            answers = ray.get(asked, timeout=timeout_s)
        except ray.exceptions.RayError as error:
            raise UsageError(f"a node of the cluster runs no task: {_first_line(error)}; see `ray status`") from None
        total = ray.cluster_resources()
        return {
            "version": ray.__version__,
            "cpus": total.get("CPU", 0.0),
            "gpus": total.get("GPU", 0.0),
            "nodes": {f"{node['NodeManagerHostname']} {node['NodeID'][:8]}": files
                      for node, files in zip(alive, answers, strict=True)},
        }  # fmt: skip


class _RayRunning:
    """Jobs on Ray. Every job is one task, on a free slot or on an actor; a death makes the job a Failure."""

    def __init__(self, ray: Any, step: Step, num_jobs: int) -> None:
        self._ray = ray
        self._step = step
        self._stored = ray.put(step)
        self._options = _ray_options(step.resources)
        self._num_jobs = num_jobs
        self._open: dict[Any, tuple[Job, Any]] = {}  # task → its job, and its actor where the step holds something
        self._waiting: deque[Job] = deque()
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}  # a worker's word that it has started → the worker
        self._num_actors = 0
        self._counted_at = -60.0
        self._slots = 1
        self._task = ray.remote(_perform_with_setup).options(max_retries=0, **self._options)
        self._actor = ray.remote(_Worker).options(max_restarts=0, **self._options)

    @property
    def num_slots(self) -> int:
        """Workers that fit the cluster now; asked again now and then, since clusters grow and shrink."""
        if time.monotonic() - self._counted_at > 10.0:
            self._counted_at = time.monotonic()
            total = self._ray.cluster_resources()
            fits = [total.get("CPU", 1.0) / max(self._step.resources.cpus, 0.01)]
            if self._step.resources.gpus:
                fits.append(total.get("GPU", 0.0) / self._step.resources.gpus)
            self._slots = max(1, int(min(fits)))
        return self._slots

    @property
    def num_open(self) -> int:
        return len(self._open) + len(self._waiting)

    @property
    def is_full(self) -> bool:
        # Two jobs a worker: the next one is there when one ends.
        return self.num_open >= min(2 * self.num_slots, self._num_jobs)

    def submit(self, job: Job) -> None:
        if self._step.holds:
            self._waiting.append(job)
            self._dispatch()
        else:
            self._open[self._task.remote(self._stored, job)] = (job, None)

    def _dispatch(self) -> None:
        while self._waiting and self._idle:
            actor = self._idle.pop()
            job = self._waiting.popleft()
            self._open[actor.perform.remote(job)] = (job, actor)
        # A worker gets its first job when it has started: one that finds no room, since a machine was lost, would
        # keep the job for good.
        while len(self._starting) < len(self._waiting) and self._num_actors < min(self.num_slots, self._num_jobs):
            actor = self._actor.remote(self._stored)
            self._starting[actor.has_started.remote()] = actor
            self._num_actors += 1

    def take(self) -> tuple[Job, Counts | Failure]:
        while True:
            (ref,), _ = self._ray.wait([*self._open, *self._starting], num_returns=1)
            if ref in self._open:
                return self._take_result(ref)
            failed = self._take_started(ref)
            if failed is not None:
                return failed

    def _take_started(self, ref: Any) -> tuple[Job, Failure] | None:
        """A worker is ready, or could not start: then a job that waits has failed one try."""
        actor = self._starting.pop(ref)
        failure = None
        try:
            self._ray.get(ref)
            self._idle.append(actor)
        except self._ray.exceptions.RayError as error:
            failure = self._lose(actor, error)
        self._dispatch()
        return (self._waiting.popleft(), failure) if failure is not None and self._waiting else None

    def _take_result(self, ref: Any) -> tuple[Job, Counts | Failure]:
        job, actor = self._open.pop(ref)
        errors = self._ray.exceptions
        try:
            result: Counts | Failure = self._ray.get(ref)
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, UsageError):
                raise cause from None
            result = Failure(f"{type(cause).__name__}: {cause}", str(error))
        except errors.RayError as error:
            result = self._lose(actor, error)
            actor = None
        if actor is not None:
            self._idle.append(actor)
        self._dispatch()
        return job, result

    def _lose(self, actor: Any, error: Exception) -> Failure:
        """Give a dead worker up and say what it died of."""
        if actor is not None:
            self._num_actors -= 1
            with suppress(Exception):
                self._ray.kill(actor)
        if getattr(error, "actor_init_failed", False):
            # `setup` raised: no machine's fault, and no better the next time.
            return Failure(str(error).strip().splitlines()[-1], str(error))
        return Failure(f"{type(error).__name__}: {_first_line(error)}", str(error), worker_died=True)

    def close(self) -> None:
        for ref in list(self._open):
            with suppress(Exception):
                self._ray.cancel(ref, force=not self._step.holds)
        for actor in [
            *self._idle,
            *self._starting.values(),
            *(actor for _, actor in self._open.values() if actor is not None),
        ]:
            with suppress(Exception):
                self._ray.kill(actor)


class _Worker:
    """The actor: sets the step up once, then performs jobs one after the other."""

    def __init__(self, step: Step) -> None:
        configure()
        self._step = step
        step.setup()

    def has_started(self) -> bool:
        return True

    def perform(self, job: Job) -> Counts:
        return perform(self._step, job)


def _perform_with_setup(step: Step, job: Job) -> Counts:
    configure()
    step.setup()
    try:
        return perform(step, job)
    finally:
        step.teardown()


def _where_modules_lie(names: Sequence[str]) -> dict[str, str | None]:
    found = {name: importlib.util.find_spec(name) for name in names}
    return {name: spec.origin if spec is not None else None for name, spec in found.items()}


def _knock(address: str) -> None:
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


def _ray_options(resources: Resources) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    if resources.memory_bytes:
        options["memory"] = resources.memory_bytes
    return options


def _passed_environment() -> dict[str, str]:
    # Where the object store is; keys stay on the nodes, in their own environment or role.
    return {name: os.environ[name] for name in ("AWS_ENDPOINT_URL", "PAIRMILL_LOG") if name in os.environ}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else ""
