"""Memory of a rank: what each ZeRO stage, with and without offloading, keeps of a CLIP; held, and at its peak.

    python -m benchmarks.zero_memory [--arch ViT-S-16] [--image-size 112] [--batch 8] [--ranks 2]

Each setting trains three steps on gloo ranks of this machine. Of every rank: GiB that live tensors hold between steps
(storages, each once), as the dry run reckons them, and how far the process grew beyond what it was before the engine
was made, at its peak: activations, buckets and gathered weights are in that. On a CPU what is offloaded lies in the
same memory as all else, so those rows show what offloading costs, not what it would spare a GPU. Of the ranks the
largest figure counts. Losses are shown, since all settings do the same work.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.train_clip import made
from training.engine import Engine
from training.engine_settings import EngineSettings
from training.models.clip_spec import SPEC
from training.optim import OptimSettings
from training.plan import memory_gib
from training.ranks import Ranks
from training.rendezvous import joined
from training.spec import Batch, Outputs

SETTINGS: dict[str, dict[str, Any]] = {
    "ZeRO 0": {"zero": 0},
    "ZeRO 1": {"zero": 1},
    "ZeRO 2": {"zero": 2},
    "ZeRO 3": {"zero": 3},
    "ZeRO 2, moments offloaded": {"zero": 2, "offload_optimizer": "cpu"},
    "ZeRO 3, all offloaded": {"zero": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"},
}
STEPS = 3
GIB = 2**30


def held_gib() -> float:
    """Of all tensors that live in this process, views and shared storages once."""
    gc.collect()
    storages = {}
    for each in gc.get_objects():
        if isinstance(each, Tensor) and each.device.type == "cpu":
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values()) / GIB


def resident_gib() -> float:
    """Of this process, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / GIB


def measure(options: argparse.Namespace, ranks: Ranks) -> dict[str, float]:
    """One setting, on this rank of several."""
    settings = SPEC.Settings.parse({"arch": options.arch, "image_size": options.image_size}, "model")
    batches = made(options.batch, options.image_size, SPEC.tokenizer(settings)(["a"]).shape[1], STEPS)
    terms = SPEC.losses(settings)
    before, tensors_before = resident_gib(), held_gib()
    torch.manual_seed(0)
    engine = Engine(
        SPEC.build(settings), OptimSettings.parse({"warmup_steps": 0}, "optim"),
        EngineSettings.parse(SETTINGS[options.setting], "engine"), total_steps=100, micro_batch=options.batch,
        num_micro=1, ranks=ranks,
    )  # fmt: skip

    def losses(outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        return {name: term.weight(0) * term.loss(outputs, batch, ranks) for name, term in terms.items()}

    for number, batch in enumerate(batches):
        began = time.perf_counter()
        result = engine.step(batch, losses, number, accumulate=SPEC.accumulate)
    return {
        "held": held_gib() - tensors_before,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB - before,
        "s": time.perf_counter() - began,
        "loss": sum(result.terms.values()),
        "numbers": float(engine.num_parameters),
    }


def on_ranks(options: argparse.Namespace, words: list[str]) -> dict[str, float]:
    """The largest of each figure over ranks, each a process of its own."""
    with TemporaryDirectory(prefix="pairmill-zero-memory-") as folder:
        env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}"]
        own = ["-m", "benchmarks.zero_memory", *words, "--out", folder]
        done = subprocess.run([*command, *own], env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(own)} failed:\n{done.stderr[-4000:]}")
        found = [json.loads(file.read_text()) for file in Path(folder).iterdir()]
    return {name: max(one[name] for one in found) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="ViT-S-16")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=8, help="of a rank")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--setting", choices=SETTINGS, help=argparse.SUPPRESS)  # these two: what a rank is told
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.setting:
        with joined(os.environ) as ranks:
            (options.out / f"{ranks.rank}.json").write_text(json.dumps(measure(options, ranks)))
        return
    words = [f"--arch={options.arch}", f"--image-size={options.image_size}", f"--batch={options.batch}"]
    print(f"{'GiB of a rank':<28}{'reckoned':>10}{'held':>8}{'peak':>8}{'s a step':>10}{'loss':>10}")
    for name, settings in SETTINGS.items():
        found = on_ranks(options, [*words, f"--setting={name}"])
        reckoned = memory_gib(int(found["numbers"]), settings["zero"], options.ranks)
        sizes = f"{reckoned:>10.2f}{found['held']:>8.2f}{found['peak']:>8.2f}"
        print(f"{name:<28}{sizes}{found['s']:>10.1f}{found['loss']:>10.5f}", flush=True)


if __name__ == "__main__":
    main()
