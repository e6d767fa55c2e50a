"""Slurm's batch files and Ray Train start the same job: its ranks meet, and a run that loses some ends as any other."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from infra.errors import RecipeError
from infra.executors import RayExecutor
from infra.preemption import Preemption
from infra.ray_train import Ranks, run_ranks
from infra.storage import Storage
from tests.training.runs import BATCH, ROOT, losses, recipe, train
from tests.training.shards import make_shards
from training.checkpoint import CHECKPOINTS, latest
from training.rendezvous import Place

SCRIPTS = sorted((ROOT / "infra/cluster/slurm").iterdir())

# What srun does with a job step of two tasks on one node, as far as a task can see.
TWO_TASKS = """
while [[ $1 == --* ]]; do shift; done
for rank in 0 1; do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 SLURM_STEP_ID=0 SLURM_STEP_NODELIST=localhost "$@" &
  tasks[rank]=$!
done
worst=0
for task in "${tasks[@]}"; do code=0; wait "$task" || code=$?; worst=$((code > worst ? code : worst)); done
exit "$worst"
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_shards(folder, [20, 17])
    return folder


def submit(script: Path, folder: Path, srun: str, *words: str) -> tuple[int, str, str]:
    """Run a batch file as a job's first node does. Returns its exit code, what it said, and what scontrol was told."""
    folder.mkdir(exist_ok=True)
    for name, body in {"srun": srun, "scontrol": f'echo "$@" >> {folder}/scontrol.txt'}.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_CPUS_PER_TASK": "1", "SLURM_SUBMIT_DIR": str(ROOT)}
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    # A run of this process has left its place in the environment.
    clean = {name: value for name, value in os.environ.items() if name not in Place(0, 0, 1, "", 0).variables()}
    ended = subprocess.run(
        ["bash", script, *words], env={**clean, **job, "PATH": path}, timeout=240, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    told = folder / "scontrol.txt"
    return ended.returncode, ended.stdout, told.read_text() if told.exists() else ""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_batch_file_says_how_it_is_used_asks_to_be_told_in_time_and_names_only_what_exists(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", script], check=True)
    assert f"sbatch --nodes 4 infra/cluster/slurm/{script.name} RECIPE" in text
    assert {"#SBATCH --signal=USR1@300", "#SBATCH --requeue"} <= set(text.splitlines())
    for named in re.findall(r"(?:infra|training|docs)/[\w./-]+\.\w+", text):
        assert (ROOT / named).exists(), named


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize(("code", "is_queued"), [(0, False), (1, False), (75, True), (137, False)])
def test_a_job_is_queued_anew_only_where_it_was_asked_to_leave(script, code, is_queued, tmp_path) -> None:
    ended, _, told = submit(
        script, tmp_path, f'echo "$@" > {tmp_path}/srun.txt; exit {code}', "a.yaml", "--set", "a=b c"
    )
    assert ended == code
    assert told == (f"requeue {os.getpid()}\n" if is_queued else "")
    assert (tmp_path / "srun.txt").read_text().endswith("python -m training train a.yaml --set a=b c\n")


@pytest.mark.slow
def test_two_tasks_of_slurm_train_as_one_rank_does(data, tmp_path) -> None:
    assert train(recipe(tmp_path / "alone", data)) == 0
    code, said, told = submit(SCRIPTS[0], tmp_path / "bin", TWO_TASKS, str(recipe(tmp_path / "two", data)))
    assert code == 0, said
    assert "2 ranks" in said
    assert not told
    assert_same_losses(tmp_path / "two", tmp_path / "alone")


STEPS = 28


@pytest.mark.ray
@pytest.mark.slow
def test_ranks_on_ray_that_die_and_are_asked_to_leave_train_as_one_undisturbed_rank_does(
    data: Path, tmp_path: Path, ray_here: RayExecutor
) -> None:
    assert train(recipe(tmp_path / "alone", data, samples=STEPS * BATCH)) == 0
    path = recipe(tmp_path / "ray", data, samples=STEPS * BATCH, checkpoints={"every": 1})
    killed: list[int] = []
    is_over = threading.Event()

    def disturb() -> None:
        wait_for(tmp_path / "ray", 3)
        rank = next(child for child in psutil.Process().children(True) if "RayTrainWorker" in child.name())
        killed.append(rank.pid)
        rank.kill()
        wait_for(tmp_path / "ray", len(losses(tmp_path / "ray")) + 5)
        if not is_over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=disturb, daemon=True)
    thread.start()
    code = train(path, "--ray", "--ranks", "2")
    is_over.set()
    assert code == 75
    thread.join()
    assert killed
    assert latest(Storage(f"{tmp_path}/ray/run/{CHECKPOINTS}"))
    assert 8 <= len(losses(tmp_path / "ray")) < STEPS
    assert train(path) == 0  # on one rank, without Ray
    assert_same_losses(tmp_path / "ray", tmp_path / "alone")


@pytest.mark.ray
@pytest.mark.slow
def test_what_only_a_person_can_mend_is_not_tried_again(tmp_path: Path, ray_here: RayExecutor) -> None:
    def work(preemption: Preemption) -> None:
        with (tmp_path / "tries").open("a") as file:
            file.write(".")
        raise RecipeError("mend me")

    with pytest.raises(RecipeError, match="mend me"):
        run_ranks(work, Ranks(1), ray_here)
    assert (tmp_path / "tries").read_text() == "."


@pytest.mark.ray
def test_ranks_that_find_no_room_on_this_machine_are_refused(data, tmp_path, ray_here, capfd) -> None:
    assert train(recipe(tmp_path, data), "--ray", "--ranks", "3") == 2
    assert "3 ranks want {'CPU': 3} together" in capfd.readouterr().err


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused_before_a_ray_is_started(data, tmp_path, capfd) -> None:
    assert train(recipe(tmp_path, data), "--ray", "--ranks", "5") == 2
    assert "does not divide among 5 ranks" in capfd.readouterr().err


def wait_for(folder: Path, step: int) -> None:
    """Until the run in the folder has logged this step."""
    while max((step for step, _ in losses(folder)), default=0) < step:
        time.sleep(0.01)


def assert_same_losses(found: Path, wanted: Path) -> None:
    told, want = losses(found), losses(wanted)
    assert [step for step, _ in told] == [step for step, _ in want]
    assert dict(told) == pytest.approx(dict(want), rel=1e-4)  # sums over ranks in another order, AdamW's steps
