"""Job, Step, run_jobs(): THE loop. Every step goes through it: skip done, run, retry, quarantine, count."""

from __future__ import annotations

import json
import socket
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from infra.dataset import Dataset
from infra.errors import FingerprintError, StepError
from infra.ledger import Counts, DoneMark
from infra.log import get_logger, one_line
from infra.progress import Progress
from infra.recipe import fingerprint
from infra.storage import Committed

log = get_logger("jobs")

EXTRA_DEATHS = 5  # a lost machine is rarely the shard's fault, but a shard that kills every worker is given up


@dataclass(frozen=True, slots=True)
class Job:
    """One unit of a step, usually a shard. `payload` is JSON-ready and small: it travels to the worker."""

    id: str
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resources:
    """What one worker of a step needs; asked for here, never probed on the driver."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How far and how patiently a command runs; none of it changes a byte of the output."""

    limit: int | None = None  # jobs of this run
    attempts: int = 3  # tries of a failing job before it is quarantined
    max_quarantined: float = 0.0  # fraction of a step's jobs that may be given up


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `Step.run` hands back: fates of the job's rows, and the files it published."""

    counts: Counts
    files: tuple[Committed, ...] = ()


class Step(ABC):
    """A unit of work that maps over shards or reduces over all. Picklable before `setup`."""

    name: str
    dataset: Dataset
    resources: Resources = Resources()
    holds: bool = False  # connections or a model are kept between jobs: Ray gives it actors instead of tasks
    derived: bool = False  # made wholly from other steps' files: done anew where these have grown, instead of refused

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """JSON-ready settings that change the output; they enter every job's fingerprint."""

    @abstractmethod
    def inputs(self, job: Job) -> Any:
        """JSON-ready names or digests of what the job reads; they enter its fingerprint."""

    @abstractmethod
    def plan(self) -> Sequence[Job]:
        """All jobs of the step, in a fixed order."""

    @abstractmethod
    def run(self, job: Job) -> Outcome:
        """Do one job and publish its files. Idempotent; may be killed at any instruction."""

    def setup(self) -> None:  # noqa: B027 - most steps hold nothing
        """Make what is held; once a worker, before its first job."""

    def teardown(self) -> None:  # noqa: B027
        """Release what is held."""

    @property
    def parts(self) -> Sequence[Step]:
        """The steps that a job of this one finishes: itself, unless it is a Pass."""
        return (self,)

    def run_parts(self, job: Job, parts: Sequence[Step]) -> Iterable[tuple[Step, Outcome]]:
        """Do one job for those `parts` of the step that lack it."""
        return [(self, self.run(job))]


class Pass(Step):
    """Steps over the same jobs, done in one reading of the data; each keeps its own plan, settings and marks.

    A subclass gives `run_parts`. All parts plan the same jobs.
    """

    def __init__(self, name: str, parts: Sequence[Step]) -> None:
        self.name = name
        self._parts = tuple(parts)
        self.dataset = self._parts[0].dataset
        self.holds = any(part.holds for part in self._parts)
        needs = [part.resources for part in self._parts]
        self.resources = Resources(
            max(need.cpus for need in needs),
            max(need.gpus for need in needs),
            max((need.memory_bytes or 0 for need in needs), default=0) or None,
        )

    @property
    def parts(self) -> Sequence[Step]:
        """The steps that share the pass."""
        return self._parts

    def settings(self) -> Mapping[str, Any]:
        """Each part has its own."""
        return {part.name: part.settings() for part in self._parts}

    def inputs(self, job: Job) -> Any:
        """Each part has its own."""
        return {part.name: part.inputs(job) for part in self._parts}

    def plan(self) -> Sequence[Job]:
        """The jobs that all parts share."""
        return self._parts[0].plan()

    def run(self, job: Job) -> Outcome:
        """A pass has no outcome of its own."""
        raise NotImplementedError

    def setup(self) -> None:
        """Set every part up."""
        for part in self._parts:
            part.setup()

    def teardown(self) -> None:
        """Release what the parts hold."""
        for part in self._parts:
            part.teardown()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job did not finish: in one line, and in full. `worker_died`: its process or machine is gone."""

    summary: str
    error: str
    worker_died: bool = False


class Running(Protocol):
    """A step at work. The loop keeps a bounded number of jobs open; nothing is submitted all at once."""

    def submit(self, job: Job) -> None:
        """Hand a job over."""

    def take(self) -> tuple[Job, Counts | Failure]:
        """Wait for any job to end."""

    @property
    def num_open(self) -> int:
        """Jobs submitted and not yet taken."""

    @property
    def is_full(self) -> bool:
        """Are enough jobs open to keep every worker busy?"""


class Executor(Protocol):
    """Where jobs run: opens steps, several of them one after the other."""

    def open(self, step: Step, num_jobs: int) -> AbstractContextManager[Running]:
        """The step at work, for as long as the block lasts."""

    def close(self) -> None:
        """Let go of workers and connections."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of a step: counts of all its finished jobs, and the jobs given up with their errors."""

    step: str
    counts: Counts
    num_jobs: int
    num_run: int
    quarantined: Mapping[str, str]
    took_s: float

    @property
    def quarantined_share(self) -> float:
        """Fraction of the jobs that were given up."""
        return len(self.quarantined) / self.num_jobs if self.num_jobs else 0.0


def job_fingerprint(step: Step, job: Job) -> str:
    """Names what a job's output depends on: step, settings and input; not machines, memory or retries."""
    return fingerprint(step.name, job.id, step.settings(), step.inputs(job))


def perform(step: Step, job: Job) -> Counts:
    """Run one job where we stand, check that its rows conserve, and mark it done. Workers call this."""
    started = time.time()
    ledger = step.dataset.ledger
    parts = step.parts
    if len(parts) > 1:  # another run, or another try, may have done some of them
        parts = [part for part in parts if not ledger.is_done(part.name, job.id, job_fingerprint(part, job))]
    counts = Counts()
    for part, outcome in step.run_parts(job, parts):
        outcome.counts.check(f"{part.name} {job.id}")
        took_s = time.time() - started
        clock = {"started": round(started, 3), "took_s": round(took_s, 3), "host": socket.gethostname()}
        mark = DoneMark(part.name, job.id, job_fingerprint(part, job), outcome.counts, outcome.files, clock)
        ledger.mark_done(mark)
        rows_in, rows_out = mark.counts.rows_in, mark.counts.rows_out
        log.info("step=%s job=%s in=%d out=%d took_s=%.1f", part.name, job.id, rows_in, rows_out, took_s)
        counts += outcome.counts
    return counts


def run_jobs(
    step: Step, executor: Executor, *, limit: int | None = None, attempts: int = 3, progress: Progress | None = None
) -> StepResult:
    """Run a step's unfinished jobs. A failing job is tried `attempts` times, then quarantined; the run goes on.

    Counts are those of all parts together. Raises FingerprintError, before anything runs, where the dataset holds
    results of other settings or input.
    """
    started = time.monotonic()
    progress = progress or Progress.quiet()
    ledger = step.dataset.ledger
    step.dataset.storage.sweep()
    jobs = list(step.plan())
    done = {part.name: _done(part, jobs) for part in step.parts}
    for part in step.parts:
        _write_plan(part, jobs)

    counts = sum((marks[job.id].counts for marks in done.values() for job in jobs if job.id in marks), Counts())
    lacking = {job.id: [name for name, marks in done.items() if job.id not in marks] for job in jobs}
    waiting = [job for job in jobs if lacking[job.id]][:limit]
    num_done = sum(not names for names in lacking.values())
    progress.start(step.name, num_jobs=num_done + len(waiting), num_done=num_done, counts=counts)
    quarantined: dict[str, str] = {}
    tries, deaths = Counter[str](), Counter[str]()
    num_run = 0
    queue = iter(waiting)
    with executor.open(step, len(waiting)) as running:
        for job in queue:
            running.submit(job)
            if running.is_full:
                break
        while running.num_open:
            job, result = running.take()
            num_run += 1
            if isinstance(result, Counts):
                counts += result
                progress.advance(result)
            else:
                summary = one_line(result.summary)
                (deaths if result.worker_died else tries)[job.id] += 1
                if tries[job.id] < attempts and deaths[job.id] < attempts + EXTRA_DEATHS:
                    log.warning("step=%s job=%s try=%d error=%s", step.name, job.id, tries[job.id], summary)
                    running.submit(job)
                    continue
                for name in lacking[job.id]:
                    ledger.quarantine(name, job.id, result.error, tries[job.id] + deaths[job.id])
                quarantined[job.id] = summary
                progress.quarantine(job.id, summary)
            following = next(queue, None)
            if following is not None:
                running.submit(following)
    step.dataset.storage.sweep()
    progress.finish()
    counts.check(step.name)
    return StepResult(step.name, counts, len(jobs), num_run, quarantined, time.monotonic() - started)


def require(result: StepResult, max_quarantined: float | None) -> StepResult:
    """Raise StepError where more than the allowed fraction of a step's jobs was given up; None: it can spare none."""
    if result.quarantined_share > (max_quarantined or 0.0):
        job, summary = next(iter(result.quarantined.items()))
        mend = "run the same command again to try them again"
        raise StepError(
            f"{result.step}: {len(result.quarantined)} of {result.num_jobs} jobs quarantined, first {job}: {summary}; "
            + (mend if max_quarantined is None else f"{mend}, or allow a fraction with --max-quarantined")
        )
    return result


def _done(step: Step, jobs: Sequence[Job]) -> Mapping[str, DoneMark]:
    """What need not be done again. Raises FingerprintError where something was done with other settings or input."""
    done = step.dataset.ledger.done(step.name)
    if step.derived:
        done = {job.id: done[job.id] for job in jobs if job.id in done and _is_current(step, job, done[job.id])}
    _refuse_other_settings(step, jobs, done)
    return done


def _is_current(step: Step, job: Job, mark: DoneMark) -> bool:
    return mark.fingerprint == job_fingerprint(step, job)


def _refuse_other_settings(step: Step, jobs: Sequence[Job], done: Mapping[str, DoneMark]) -> None:
    for job in jobs:
        mark = done.get(job.id)
        if mark is None or _is_current(step, job, mark):
            continue
        changed = _changed_settings(step)
        what = f"other settings ({changed})" if changed else f"another input (job {job.id})"
        raise FingerprintError(
            f"{step.dataset.storage.url}: {step.name} was done here with {what}; results are never mixed. "
            "Give another --out, or the settings and input of the first run"
        )


def refuse_changed_settings(step: Step, mend: str) -> None:
    """Raise FingerprintError where a derived step, which is done anew for other input, was done with other settings."""
    ledger = step.dataset.ledger
    if ledger.plan(step.name) is None or not ledger.done(step.name):
        return
    if changed := _changed_settings(step):
        raise FingerprintError(
            f"{step.dataset.storage.url}: {step.name} was done here with other settings ({changed}). {mend}"
        )


def _changed_settings(step: Step) -> str:
    before = (step.dataset.ledger.plan(step.name) or {}).get("settings", {})
    after = _as_json(step.settings())
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name}: {before.get(name)!r} then, {after.get(name)!r} now" for name in sorted(names))


def _write_plan(step: Step, jobs: Sequence[Job]) -> None:
    ids = [job.id for job in jobs]
    plan = step.dataset.ledger.plan(step.name)
    settings = _as_json(step.settings())
    if plan is None or plan["jobs"] != ids or plan.get("settings") != settings:
        step.dataset.ledger.write_plan(step.name, fingerprint(settings), ids, settings=settings)


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    # As the plan's file gives it back: a tuple is a list there.
    return dict(json.loads(json.dumps(settings)))
