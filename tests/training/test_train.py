"""The job's laws: a run that was stopped, killed, or moved to other ranks ends as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infra.cli import run_main
from infra.errors import FingerprintError, RecipeError
from infra.storage import Storage
from tests.training.runs import (
    BATCH,
    MODEL,
    ROOT,
    STEPS,
    assert_same,
    ends,
    losses,
    recipe,
    start,
    train,
    wait_for_step,
    weights,
)
from tests.training.shards import make_shards
from training.__main__ import main
from training.checkpoint import CHECKPOINTS, Checkpoint, latest
from training.recipe import TrainRecipe
from training.watch import METRICS, read_metrics


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_shards(folder, [20, 17])
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train(recipe(folder, data)) == 0
    return folder


@pytest.mark.slow
def test_training_lowers_the_loss_and_logs_every_step_once(undisturbed: Path) -> None:
    told = losses(undisturbed)
    assert [step for step, _ in told] == list(range(1, STEPS + 1))
    assert told[-1][1] < told[0][1] - 0.1
    line = read_metrics(undisturbed / "run")[-1]
    assert line["samples"] == STEPS * BATCH
    assert {"lr", "grad_norm", "samples_per_s", "data_wait", "loss/softmax", "of_peak"} <= line.keys()
    assert list((undisturbed / "run" / "tensorboard").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_run_that_is_left_and_taken_up_again_ends_with_the_same_bits(undisturbed, data, tmp_path, stop) -> None:
    path = recipe(tmp_path, data)
    assert train(path, "--limit", str(stop)) == 75
    assert train(path) == 0
    assert_same(weights(tmp_path), weights(undisturbed))
    assert losses(tmp_path) == losses(undisturbed)
    assert train(path) == 0  # finished: nothing is done again
    assert losses(tmp_path) == losses(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_queues_signal_saves_and_exits_75(undisturbed, data, tmp_path, number) -> None:
    path = recipe(tmp_path, data)
    process = start(path)
    wait_for_step(process, tmp_path, 2)
    process.send_signal(number)
    ends(process, 75)
    assert latest(Storage(f"{tmp_path}/run/{CHECKPOINTS}"))
    ends(start(path))
    assert_same(weights(tmp_path), weights(undisturbed))


@pytest.mark.slow
def test_runs_killed_at_any_moment_end_with_the_same_bits(undisturbed, data, tmp_path) -> None:
    """Among them in the middle of saving: a checkpoint is written after every step."""
    path = recipe(tmp_path, data, checkpoints={"every": 1})
    for steps in (1, 4, 9):
        process = start(path)
        wait_for_step(process, tmp_path, steps)
        process.kill()
        process.wait()
    ends(start(path))
    assert_same(weights(tmp_path), weights(undisturbed))
    assert losses(tmp_path) == losses(undisturbed)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


@pytest.mark.slow
def test_two_ranks_train_as_one_does_and_one_goes_on_from_two(undisturbed, data, tmp_path) -> None:
    path = recipe(tmp_path, data)
    ends(start(path, TORCHRUN, "--limit", "7"), 1)  # torchrun says 1 for any failure, 75 among them
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 8))
    assert train(path) == 0
    told, wanted = losses(tmp_path), losses(undisturbed)
    assert [step for step, _ in told] == [step for step, _ in wanted]
    for (_, found), (_, want) in zip(told, wanted, strict=True):
        assert found == pytest.approx(want, rel=1e-4)  # sums over ranks in another order, twelve AdamW steps


@pytest.mark.slow
def test_deepspeeds_own_launcher_starts_two_ranks(undisturbed, data, tmp_path) -> None:
    launcher = Path(sys.executable).parent / "deepspeed"
    path = recipe(tmp_path, data, engine={"zero": 3})
    command = [str(launcher), "--no_local_rank", "--num_gpus", "2", "--master_port", "29611", "--module"]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    process = subprocess.Popen(
        [*command, "training", "train", str(path)], cwd=ROOT, env=quiet, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    said = ends(process)
    assert "2 ranks" in said
    for (_, found), (_, want) in zip(losses(tmp_path), losses(undisturbed), strict=True):
        assert found == pytest.approx(want, rel=1e-4)  # sums over ranks in another order, twelve AdamW steps


@pytest.mark.slow
def test_micro_batches_change_no_loss(undisturbed, data, tmp_path) -> None:
    assert train(recipe(tmp_path, data, micro_batch=4)) == 0
    for (_, found), (_, want) in zip(losses(tmp_path), losses(undisturbed), strict=True):
        assert found == pytest.approx(want, rel=1e-4)  # sums in another order, twelve AdamW steps


@pytest.mark.slow
def test_workers_change_no_bit(undisturbed, data, tmp_path) -> None:
    path = recipe(tmp_path, data)
    assert train(path, "--set", "data.workers=2") == 0
    assert_same(weights(tmp_path), weights(undisturbed))


def test_loss_that_is_not_finite_stops_the_run_with_its_uids_written_down(data, tmp_path, capfd) -> None:
    path = recipe(tmp_path, data, optim={"lr": 1e30, "warmup_steps": 0}, max_skipped=3, samples=100 * BATCH)
    assert train(path) == 1
    assert "3 steps in a row" in capfd.readouterr().err
    told = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert len(told) == 3
    assert all(len(line["uids"]) == BATCH for line in told)


@pytest.mark.slow
def test_another_recipe_is_refused_and_what_does_not_divide_too(undisturbed, data, tmp_path) -> None:
    path = recipe(tmp_path, data)
    assert train(path, "--limit", "1") == 75
    other = recipe(tmp_path, data, seed=5)
    with pytest.raises(FingerprintError, match="another recipe"):
        main.main(["train", str(other)], standalone_mode=False)
    with pytest.raises(RecipeError, match="divide"):
        main.main(["train", str(recipe(tmp_path, data, micro_batch=5))], standalone_mode=False)


@pytest.mark.slow
def test_halvings_to_come_may_be_set_when_a_run_goes_on_and_those_that_were_may_not_change(data, tmp_path) -> None:
    told = {"lr": 1e-3, "warmup_steps": 0, "schedule": "constant"}

    def halved(*steps: int) -> Path:
        return recipe(tmp_path, data, optim={**told, "halve_at": steps})

    assert train(recipe(tmp_path, data, optim=told), "--limit", "4") == 75
    assert train(halved(4), "--limit", "4") == 75
    for others in ((), (5,), (4, 6)):
        with pytest.raises(FingerprintError, match=r"another recipe .*halve_at is \[4\]"):
            main.main(["train", str(halved(*others))], standalone_mode=False)
    earlier = f"{tmp_path}/run/{CHECKPOINTS}/step-0000000006"
    with pytest.raises(FingerprintError, match="step-0000000008: this recipe would not have made it"):
        main.main(["train", str(halved(4, 7)), "--resume", earlier], standalone_mode=False)
    assert train(halved(4, 10)) == 0
    rates = [line["lr"] for line in read_metrics(tmp_path / "run")]
    assert rates == pytest.approx([1e-3] * 4 + [5e-4] * 6 + [2.5e-4] * 2)


@pytest.mark.parametrize("path", sorted(ROOT.glob("training/recipes/*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_one(path: Path) -> None:
    assert TrainRecipe.load(path).num_micro(1)


def test_a_dry_run_says_what_a_run_would_be_and_writes_nothing(data, tmp_path, capfd) -> None:
    assert train(recipe(tmp_path, data), "--dry-run") == 0
    said = capfd.readouterr().out
    assert "steps: 12 of 12 samples" in said
    assert "ZeRO 3:" in said
    assert "tiny twin" in said
    assert not (tmp_path / "run").exists()


def test_lines_of_a_killed_run_are_taken_back(tmp_path) -> None:
    from training.watch import Watch

    (tmp_path / METRICS).write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    Watch(tmp_path, 5, 1).close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1}]


@pytest.mark.slow
def test_a_run_evaluates_as_it_goes_keeps_its_best_and_is_evaluated_alike_afterwards(data, tmp_path, capfd) -> None:
    retrieval = {"task": "retrieval", "data": str(data), "every": 4, "queries": 2}
    best = "retrieval/image_to_text_r5"
    optim = {"lr": 3e-3, "warmup_steps": 2, "average": {"decay": 0.5}}  # averages are evaluated, then and afterwards
    checkpoints = {"every": 4, "keep_last": 1, "best": best}
    path = recipe(tmp_path, data, evaluate=[retrieval], checkpoints=checkpoints, optim=optim)
    assert train(path) == 0
    told = {line["step"]: line[best] for line in read_metrics(tmp_path / "run") if best in line}
    assert list(told) == [4, 8, 12]
    kept = {name.partition("/")[0] for name in Storage(f"{tmp_path}/run/{CHECKPOINTS}").sizes()}
    newest = Checkpoint.open(latest(Storage(f"{tmp_path}/run/{CHECKPOINTS}")) or "").facts
    assert newest.metrics[best] == told[12]
    top = max(told, key=lambda step: (told[step], step))
    assert kept == {f"step-{step:010d}" for step in (top, 12)}
    words = ["evaluate", str(tmp_path / "run"), "--task", "retrieval", "--data", str(data), "--json"]
    capfd.readouterr()
    assert run_main(main, "training", words) == 0
    assert json.loads(capfd.readouterr().out)["metrics"]["image_to_text_r5"]["value"] == told[12]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "image_to_text_r5" in page


@pytest.mark.slow
def test_what_is_exported_loads_in_open_clip_with_the_same_weights(undisturbed, tmp_path) -> None:
    import open_clip

    words = ["export", str(undisturbed / "run"), "--to", "open_clip", "--out", str(tmp_path / "out")]
    assert run_main(main, "training", words) == 0
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    ours = weights(undisturbed)
    for name, tensor in model.state_dict().items():
        if f"clip.{name}" in ours:
            assert torch.equal(tensor, ours[f"clip.{name}"]), name


def test_the_loader_alone_is_measured(data, tmp_path, capfd) -> None:
    assert run_main(main, "training", ["bench-data", str(recipe(tmp_path, data)), "--batches", "3", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["samples"] == 3 * BATCH
    assert told["masked"] == 0
    assert told["cpu_ms"] > 0


@pytest.mark.slow
def test_an_average_that_cannot_be_right_is_refused_and_one_of_too_short_a_run_is_told(data, tmp_path, capfd) -> None:
    resnet = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 4, "image_size": 32}
    arch = {**MODEL["arch"], "vision_cfg": resnet}
    optim = {"average": {"decay": 0.9, "every": 3}}
    assert train(recipe(tmp_path, data, model={"name": "clip", "arch": arch}, optim=optim)) == 2
    assert "optim.average: BatchNorm" in capfd.readouterr().err
    assert train(recipe(tmp_path, data, optim=optim), "--limit", "1") == 75
    assert "at the end 66% of it will still be the first weights" in capfd.readouterr().err
