"""Whole runs of a tiny recipe: in this process, or by a launcher in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from infra.cli import run_main
from infra.storage import Storage
from training.__main__ import main
from training.checkpoint import CHECKPOINTS, Checkpoint, latest
from training.watch import read_metrics

ROOT = Path(__file__).resolve().parents[2]
BATCH, STEPS = 12, 12
MODEL = {
    "name": "clip",
    "arch": {
        "embed_dim": 16,
        "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
}


def recipe(folder: Path, data: Path, **more: Any) -> Path:
    """A recipe file of a run in `folder`."""
    values = {
        "model": MODEL,
        "data": {"datasets": [{"path": str(data)}], "batch": BATCH, "lanes": BATCH, "workers": 0, "window": 5},
        "optim": {"lr": 3e-3, "warmup_steps": 2, "clip_norm": 1.0},
        "samples": STEPS * BATCH,
        "out": str(folder / "run"),
        "checkpoints": {"every": 3},
        "log_every": 1,
        **more,
    }
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


def train(path: Path, *words: str) -> int:
    """The command, in this process."""
    return run_main(main, "training", ["train", str(path), *words])


def start(path: Path, launcher: Sequence[str] = ("-m",), *words: str) -> subprocess.Popen[str]:
    """The command, in processes of its own."""
    command = [sys.executable, *launcher, "training", "train", str(path), *words]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=quiet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ends(process: subprocess.Popen[str], code: int = 0) -> str:
    """What it said. Asserts its exit code."""
    said, _ = process.communicate(timeout=240)
    assert process.returncode == code, said
    return said


def weights(folder: Path) -> dict[str, Tensor]:
    """Of the run's newest checkpoint, which must be its last step's."""
    checkpoint = Checkpoint.open(latest(Storage(f"{folder}/run/{CHECKPOINTS}")) or "")
    assert checkpoint.facts.step == STEPS
    return checkpoint.weights()


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(folder / "run")]


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(line["step"] >= step for line in read_metrics(folder / "run")):
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate()[0])
