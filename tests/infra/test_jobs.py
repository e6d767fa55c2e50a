"""THE loop, with toy steps: what is done is skipped, what fails is tried again and then put aside, kills cost nothing.

Run as a script, this file is the driver that the tests kill.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from infra import jobs
from infra.dataset import Dataset
from infra.errors import FingerprintError, StepError
from infra.executors import LocalExecutor, RayExecutor
from infra.jobs import Executor, Job, Outcome, Resources, Step, require, run_jobs
from infra.ledger import ConservationError, Counts

ROOT = Path(__file__).resolve().parents[2]


class Toy(Step):
    """Job n writes n lines; every third row falls as `third`. Tries are counted in files, since workers may die."""

    name = "toy"
    resources = Resources()

    def __init__(self, dataset: Dataset, num_jobs: int = 4, *, word: str = "toy", version: int = 1, holds: bool = False,
                 derived: bool = False, fail: Mapping[str, int] | None = None, die: Mapping[str, int] | None = None,
                 sleep_s: float = 0.0, lose: str = "", broken_setup: bool = False) -> None:  # fmt: skip
        self.dataset = dataset
        self.num_jobs = num_jobs
        self.word, self.version = word, version
        self.holds, self.derived = holds, derived
        self.fail, self.die = dict(fail or {}), dict(die or {})
        self.sleep_s, self.lose, self.broken_setup = sleep_s, lose, broken_setup
        self.tries = Path(f"{dataset.storage.url}.tries")
        self.held = 0

    def settings(self) -> Mapping[str, Any]:
        return {"word": self.word}

    def inputs(self, job: Job) -> Any:
        return {"version": self.version, **job.payload}

    def plan(self) -> Sequence[Job]:
        return [Job(f"{number:05d}", {"rows": number}) for number in range(self.num_jobs)]

    def setup(self) -> None:
        if self.broken_setup:
            raise ValueError("the model is not there")
        self.held += 1

    def teardown(self) -> None:
        self.held -= 1

    def run(self, job: Job) -> Outcome:
        assert self.held == 1
        number_of_try = self.note_try(job.id)
        if number_of_try <= self.die.get(job.id, 0):
            os._exit(1)
        rows = job.payload["rows"]
        with self.dataset.storage.commit(f"out/{job.id}.txt") as draft, draft.path.open("w") as file:
            for row in range(rows):
                file.write(f"{self.word} {row} of {job.id}\n")
                file.flush()
                time.sleep(self.sleep_s)
            if number_of_try <= self.fail.get(job.id, 0):
                raise RuntimeError(f"try {number_of_try} fails")
        num_third = len(range(2, rows, 3))
        lost = 1 if job.id == self.lose else 0
        counts = Counts(rows, rows - num_third - lost, {"third": num_third} if num_third else {})
        return Outcome(counts, (draft.result(),))

    def note_try(self, job: str) -> int:
        self.tries.mkdir(parents=True, exist_ok=True)
        with (self.tries / job).open("a") as file:
            file.write(".")
        return (self.tries / job).stat().st_size

    def num_tries(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in sorted(self.tries.iterdir())} if self.tries.exists() else {}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path / "data")


@pytest.fixture
def local() -> LocalExecutor:
    return LocalExecutor()


@pytest.fixture
def cluster(ray_here: RayExecutor) -> Iterator[RayExecutor]:
    """Ray, whose workers get the toys of this file by value."""
    from ray import cloudpickle

    module = sys.modules[Toy.__module__]
    cloudpickle.register_pickle_by_value(module)
    yield ray_here
    cloudpickle.unregister_pickle_by_value(module)


def contents(dataset: Dataset) -> dict[str, bytes]:
    """All files; of done-marks all but the clock."""
    marks = {step: {job: (mark.fingerprint, mark.counts, mark.files) for job, mark in dataset.ledger.done(step).items()}
             for step in dataset.ledger.steps()}  # fmt: skip
    names = [name for name in dataset.storage.sizes() if not name.startswith("ledger/done/")]
    return {**dataset.storage.read_many(names), "marks": repr(marks).encode()}


def undisturbed(folder: Path, num_jobs: int) -> dict[str, bytes]:
    other = Dataset(folder / "undisturbed")
    run_jobs(Toy(other, num_jobs), LocalExecutor())
    return contents(other)


def test_a_run_does_every_job_and_its_counts_conserve(dataset: Dataset, local: Executor) -> None:
    result = run_jobs(Toy(dataset), local)
    assert result.counts == Counts(6, 5, {"third": 1})
    assert (result.num_jobs, result.num_run, result.quarantined) == (4, 4, {})
    assert dataset.storage.read("out/00002.txt") == b"toy 0 of 00002\ntoy 1 of 00002\n"
    assert list(dataset.ledger.done("toy")) == ["00000", "00001", "00002", "00003"]


def test_rerunning_a_finished_step_runs_and_writes_nothing(dataset: Dataset, local: Executor) -> None:
    first = run_jobs(Toy(dataset), local)
    root = Path(dataset.storage.url)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    again = run_jobs(Toy(dataset, broken_setup=True), local)
    assert again.num_run == 0
    assert again.counts == first.counts
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before


def test_a_job_that_fails_is_tried_again(dataset: Dataset, local: Executor, tmp_path: Path) -> None:
    step = Toy(dataset, fail={"00001": 2})
    result = run_jobs(step, local, attempts=3)
    assert result.quarantined == {}
    assert result.counts == Counts(6, 5, {"third": 1})
    assert step.num_tries() == {"00000": 1, "00001": 3, "00002": 1, "00003": 1}
    assert contents(dataset) == undisturbed(tmp_path, 4)


def test_a_job_that_goes_on_failing_is_quarantined_and_the_others_are_done(dataset: Dataset, local: Executor) -> None:
    step = Toy(dataset, fail={"00001": 99})
    result = run_jobs(step, local, attempts=2)
    assert result.quarantined == {"00001": "RuntimeError: try 2 fails"}
    assert result.counts == Counts(5, 4, {"third": 1})
    assert list(dataset.ledger.done("toy")) == ["00000", "00002", "00003"]
    told = dataset.ledger.quarantined("toy")["00001"]
    assert told["attempts"] == 2
    assert "Traceback" in told["error"]
    assert not dataset.storage.exists("out/00001.txt")
    assert require(result, 0.25) is result
    with pytest.raises(StepError, match="00001: RuntimeError: try 2 fails"):
        require(result, 0.2)


def test_a_rerun_tries_the_quarantined_again(dataset: Dataset, local: Executor, tmp_path: Path) -> None:
    run_jobs(Toy(dataset, fail={"00001": 99}), local, attempts=1)
    step = Toy(dataset)
    result = run_jobs(step, local)
    assert result.num_run == 1
    assert result.quarantined == {}
    assert dataset.ledger.quarantined("toy") == {}
    assert contents(dataset) == undisturbed(tmp_path, 4)


def test_other_settings_are_refused_before_anything_runs(dataset: Dataset, local: Executor) -> None:
    run_jobs(Toy(dataset), local)
    before = contents(dataset)
    step = Toy(dataset, 9, word="other")
    tries = step.num_tries()
    with pytest.raises(FingerprintError, match=r"word: 'toy' then, 'other' now"):
        run_jobs(step, local)
    assert step.num_tries() == tries
    assert contents(dataset) == before


def test_other_settings_are_refused_after_an_unfinished_run_too(dataset: Dataset, local: Executor) -> None:
    run_jobs(Toy(dataset), local, limit=1)
    with pytest.raises(FingerprintError, match="never mixed"):
        run_jobs(Toy(dataset, word="other"), local)


def test_another_input_is_refused(dataset: Dataset, local: Executor) -> None:
    run_jobs(Toy(dataset), local)
    with pytest.raises(FingerprintError, match="another input"):
        run_jobs(Toy(dataset, version=2), local)


def test_more_jobs_of_the_same_settings_are_added(dataset: Dataset, local: Executor, tmp_path: Path) -> None:
    run_jobs(Toy(dataset, 2), local)
    result = run_jobs(Toy(dataset, 4), local)
    assert result.num_run == 2
    assert contents(dataset) == undisturbed(tmp_path, 4)


def test_a_derived_step_is_done_anew_where_its_input_has_changed(dataset: Dataset, local: Executor) -> None:
    run_jobs(Toy(dataset, derived=True), local)
    again = run_jobs(Toy(dataset, derived=True), local)
    assert again.num_run == 0
    grown = run_jobs(Toy(dataset, derived=True, version=2), local)
    assert grown.num_run == 4
    assert grown.counts == again.counts


def test_a_limit_takes_so_many_of_the_unfinished_jobs(dataset: Dataset, local: Executor, tmp_path: Path) -> None:
    for done in (2, 4):
        result = run_jobs(Toy(dataset, 5), local, limit=2)
        assert result.num_run == 2
        assert len(dataset.ledger.done("toy")) == done
    assert run_jobs(Toy(dataset, 5), local, limit=2).num_run == 1
    assert contents(dataset) == undisturbed(tmp_path, 5)


def test_a_step_without_jobs_sets_nothing_up(dataset: Dataset, local: Executor) -> None:
    result = run_jobs(Toy(dataset, 0, broken_setup=True), local)
    assert (result.num_jobs, result.quarantined_share) == (0, 0.0)


def test_what_is_held_is_let_go_at_the_end(dataset: Dataset, local: Executor) -> None:
    step = Toy(dataset, fail={"00001": 9})
    run_jobs(step, local, attempts=1)
    assert step.held == 0


def test_a_job_that_loses_a_row_is_not_marked_done(dataset: Dataset, local: Executor) -> None:
    result = run_jobs(Toy(dataset, lose="00002"), local, attempts=1)
    assert list(result.quarantined) == ["00002"]
    assert ConservationError.__name__ in result.quarantined["00002"]
    assert "00002" not in dataset.ledger.done("toy")


@pytest.mark.ray
@pytest.mark.parametrize("holds", [False, True], ids=["tasks", "actors"])
def test_ray_writes_the_same_files_as_a_local_run(
    dataset: Dataset, cluster: RayExecutor, tmp_path: Path, holds: bool
) -> None:
    step = Toy(dataset, 8, holds=holds, fail={"00003": 1})
    result = run_jobs(step, cluster, attempts=2)
    assert result.quarantined == {}
    assert contents(dataset) == undisturbed(tmp_path, 8)
    assert step.num_tries() == {f"{number:05d}": 2 if number == 3 else 1 for number in range(8)}


@pytest.mark.ray
@pytest.mark.parametrize("holds", [False, True], ids=["tasks", "actors"])
def test_a_worker_that_dies_is_no_fault_of_its_shard(
    dataset: Dataset, cluster: RayExecutor, tmp_path: Path, holds: bool
) -> None:
    # Two deaths, with only one try allowed.
    result = run_jobs(Toy(dataset, 5, holds=holds, die={"00001": 2}), cluster, attempts=1)
    assert result.quarantined == {}
    assert contents(dataset) == undisturbed(tmp_path, 5)


@pytest.mark.ray
@pytest.mark.parametrize("holds", [False, True], ids=["tasks", "actors"])
def test_a_shard_that_kills_every_worker_is_given_up(
    dataset: Dataset, cluster: RayExecutor, monkeypatch: pytest.MonkeyPatch, holds: bool
) -> None:
    monkeypatch.setattr(jobs, "EXTRA_DEATHS", 1)
    step = Toy(dataset, 5, holds=holds, die={"00001": 99})
    result = run_jobs(step, cluster, attempts=1)
    assert list(result.quarantined) == ["00001"]
    assert step.num_tries()["00001"] == 2
    assert len(dataset.ledger.done("toy")) == 4


@pytest.mark.ray
def test_a_worker_that_cannot_be_set_up_says_why_and_counts_as_a_try(dataset: Dataset, cluster: RayExecutor) -> None:
    result = run_jobs(Toy(dataset, 2, holds=True, broken_setup=True), cluster, attempts=2)
    assert len(result.quarantined) == 2
    assert all("ValueError: the model is not there" in summary for summary in result.quarantined.values())
    assert {values["attempts"] for values in dataset.ledger.quarantined("toy").values()} == {2}


def start_driver(folder: str, kind: str, **environment: str) -> subprocess.Popen[bytes]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen([sys.executable, __file__, folder, kind], env=variables, stderr=subprocess.DEVNULL)


def kill_in_mid_run(driver: subprocess.Popen[bytes], step: Toy, num_tries: int, chance: random.Random) -> None:
    """Wait for so many tries more than now, a moment longer, and kill -9."""
    wanted = sum(step.num_tries().values()) + num_tries
    end = time.monotonic() + 60
    while sum(step.num_tries().values()) < wanted and driver.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.05))
    driver.kill()
    driver.wait()


def test_a_driver_killed_at_any_moment_goes_on_to_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    chance, step = random.Random(1), Toy(dataset, 12)
    for _ in range(5):
        kill_in_mid_run(start_driver(dataset.storage.url, "local"), step, chance.randint(1, 3), chance)
    num_done = len(dataset.ledger.done("toy"))
    assert 0 < num_done < 12, "the kills came too early or too late to show anything"
    result = run_jobs(step, LocalExecutor())
    assert result.num_run == 12 - num_done
    assert contents(dataset) == undisturbed(tmp_path, 12)


@pytest.mark.ray
def test_a_driver_on_ray_killed_in_mid_run_goes_on_to_the_same_bytes(
    dataset: Dataset, cluster: RayExecutor, tmp_path: Path
) -> None:
    from ray import get_runtime_context

    chance, step = random.Random(2), Toy(dataset, 12)
    driver = start_driver(dataset.storage.url, "ray", RAY_ADDRESS=get_runtime_context().gcs_address)
    kill_in_mid_run(driver, step, 4, chance)
    assert len(dataset.ledger.done("toy")) < 12
    result = run_jobs(step, cluster)
    assert result.num_run > 0
    assert contents(dataset) == undisturbed(tmp_path, 12)


if __name__ == "__main__":
    _, url, kind = sys.argv
    executor: Executor = LocalExecutor() if kind == "local" else RayExecutor()
    run_jobs(Toy(Dataset(url), 12, sleep_s=0.01), executor)
