"""Training job: open_clip's own training main against ours, from shards to logged steps, samples a second.

    pip install --target WDS --no-deps webdataset==0.2.86
    python -m benchmarks.train_job --webdataset WDS [--photos ../shared/data/photos] [--work /tmp/pairmill-loader]

Both are started as a person starts them: `python -m open_clip_train.main` (behind infra/torchvision_here.py, and with
the older webdataset that it needs) and `python -m training train`, on the CPU, one process with the same torch threads.
Same model and sizes in fp32, same shards (those of benchmarks.loader), same augmentation and tokeniser, same AdamW,
warm-up and bound on gradients; each logs every step and writes TensorBoard and a checkpoint at its end. Every logged
loss bears the time at which it was written, after its step: samples a second are those from the end of step `--warm`
to the end of the last one, by the same clock on both sides, so what start-up takes does not count; whole runs are told
beside it. open_clip's epoch ends with the run, so its last batches lie ready: that is to its favour.
Rounds are interleaved; the ratio is that of the medians. Both draw their own weights and order, so losses are not the
same, but both begin near ln(batch). Each side has one worker process unless told otherwise: `--workers` is ours,
`--their-workers` open_clip's; try 0 to 2 on each and give each its best.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.loader import SAMPLES, SHARDS, make

LR, WEIGHT_DECAY, WARMUP_STEPS, CLIP_NORM = 5e-4, 0.2, 100, 1.0
BETAS, EPS = (0.9, 0.98), 1e-6
THEIR_MAIN = (
    "import runpy; from infra.torchvision_here import make_importable; make_importable(); "
    "runpy.run_module('open_clip_train.main', run_name='__main__', alter_sys=True)"
)


@dataclass(frozen=True)
class Measured:
    """One run: samples a second in its steady state, seconds in all, and the loss of each step."""

    samples_per_s: float
    wall_s: float
    losses: tuple[float, ...]


def ours(options: argparse.Namespace, out: Path) -> list[str]:
    """Command of our job; it writes below `out`."""
    recipe = {
        "model": {"name": "clip", "arch": options.arch, "image_size": options.image_size},
        "data": {"datasets": [{"path": str(options.work)}], "batch": options.batch, "workers": options.workers},
        "optim": {
            "lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY, "warmup_steps": WARMUP_STEPS,
            "schedule": "constant", "clip_norm": CLIP_NORM,
        },
        "engine": {"precision": "fp32"},
        "ops": f"decode|random_resized_crop({options.image_size},0.9,1)|normalize(clip)",
        "samples": options.steps * options.batch,
        "log_every": 1,
        "out": str(out),
    }  # fmt: skip
    file = out.with_suffix(".yaml")
    file.write_text(json.dumps(recipe))  # which is YAML
    return [sys.executable, "-m", "training", "train", str(file)]


def theirs(options: argparse.Namespace, out: Path) -> list[str]:
    """Command of open_clip's. Its transform for training is the same crop and normalisation unless told otherwise."""
    words = {
        "model": options.arch, "force-image-size": options.image_size, "precision": "fp32", "device": "cpu",
        "train-data": f"{options.work}/{{00000..{SHARDS - 1:05d}}}.tar", "dataset-type": "webdataset",
        "train-num-samples": options.steps * options.batch, "epochs": 1, "batch-size": options.batch,
        "workers": options.their_workers, "opt": "adamw", "lr": LR, "beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS,
        "wd": WEIGHT_DECAY, "warmup": WARMUP_STEPS, "lr-scheduler": "const", "grad-clip-norm": CLIP_NORM,
        "log-every-n-steps": 1, "report-to": "tensorboard", "logs": out.parent, "name": out.name,
    }  # fmt: skip
    return [sys.executable, "-c", THEIR_MAIN, *(f"--{name}={value}" for name, value in words.items())]


SIDES = {"open_clip": (theirs, "train/loss"), "ours": (ours, "loss")}


def measure(side: str, options: argparse.Namespace) -> Measured:
    """A run of one side, in a process of its own."""
    command_of, tag = SIDES[side]
    threads = str(options.threads)
    env = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}
    env["PYTHONPATH"] = os.pathsep.join([*([options.webdataset] if side == "open_clip" else []), "."])
    with tempfile.TemporaryDirectory(prefix="pairmill-train-job-") as folder:
        out, log = Path(folder, "run"), Path(folder, "said")
        command = command_of(options, out)
        began = time.monotonic()
        with log.open("wb") as said:
            done = subprocess.run(command, env=env, stdout=said, stderr=subprocess.STDOUT, check=False)
        wall_s = time.monotonic() - began
        if done.returncode:
            sys.exit(f"{side} failed:\n{log.read_text(errors='replace')[-4000:]}")
        ends, losses = logged(out / "tensorboard", tag)
    num = len(ends) - options.warm
    return Measured(num * options.batch / (ends[-1] - ends[options.warm - 1]), wall_s, tuple(losses))


def logged(folder: Path, tag: str) -> tuple[list[float], list[float]]:
    """When each step's loss was written, in seconds, and the loss."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    found = sorted(events.Scalars(tag), key=lambda one: one.step)
    return [one.wall_time for one in found], [one.value for one in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--webdataset", required=True, help="a folder with the webdataset that open_clip's main needs")
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/photos"), help="a folder of JPEG photos")
    parser.add_argument("--work", type=Path, default=Path("/tmp/pairmill-loader"), help="where shards are made, once")
    parser.add_argument("--arch", default="ViT-S-16", help="a name of open_clip's model list")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=11, help="steps of a run")
    parser.add_argument("--warm", type=int, default=3, help="of them, first ones that do not count")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="ours: processes that decode")
    parser.add_argument("--their-workers", type=int, default=1, help="open_clip's: processes that decode")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="torch's, on each side")
    options = parser.parse_args()
    if not 0 < options.warm < options.steps or options.steps * options.batch > SHARDS * SAMPLES:
        sys.exit(f"--warm lies above 0 and below --steps, and steps times batch are at most {SHARDS * SAMPLES:,}")
    if not (options.work / "selections/few/summary.json").exists():
        make(options.work, options.photos)
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    first, last = "loss at step 1", f"at step {options.steps}"
    print(f"{'job':<12}{'samples/s':>10}{'s a step':>10}{'s in all':>10}{first:>16}{last:>12}", flush=True)
    for _ in range(options.rounds):
        for side in SIDES:
            run = measure(side, options)
            found[side].append(run.samples_per_s)
            told = f"{run.samples_per_s:>10.2f}{options.batch / run.samples_per_s:>10.3f}{run.wall_s:>10.1f}"
            print(f"{side:<12}{told}{run.losses[0]:>16.3f}{run.losses[-1]:>12.3f}", flush=True)
    medians = {side: statistics.median(values) for side, values in found.items()}
    print(f"ln(batch): {math.log(options.batch):.3f}")
    print(f"ours against open_clip's: {medians['ours'] / medians['open_clip']:.3f}x the samples a second")


if __name__ == "__main__":
    main()
