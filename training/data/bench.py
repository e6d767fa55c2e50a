"""The loader alone: how many samples a second it gives, and what each costs."""

from __future__ import annotations

import time
from contextlib import closing
from itertools import islice
from typing import Any

from training.data.loader import DataSettings, Loader
from training.ranks import Ranks
from training.recipe import TrainRecipe


def bench(recipe: TrainRecipe, num_steps: int) -> dict[str, Any]:
    """Read some steps of a recipe's data as one rank: the rate with its workers, and the cost where there are none.

    Of CPU time every thread of this process is counted: planning, reading, decoding, tokenising.
    """
    alone = recipe.data.model_copy(update={"workers": 0})
    num_samples, wall_s, _, masked = _read(recipe, recipe.data, num_steps)
    num_alone, _, cpu_s, _ = _read(recipe, alone, num_steps)
    return {
        "samples": num_samples, "wall_s": wall_s, "samples_per_s": num_samples / wall_s,
        "cpu_ms": 1e3 * cpu_s / num_alone, "masked": masked,
    }  # fmt: skip


def _read(recipe: TrainRecipe, data: DataSettings, num_steps: int) -> tuple[int, float, float, int]:
    """Samples, seconds by the clock, seconds of CPU in this process, masked rows."""
    spec, settings = recipe.spec, recipe.model_settings()
    num_micro = recipe.num_micro(1)
    ops = recipe.ops or spec.ops(settings)[0]
    loader = Loader(
        data,
        ops,
        spec.tokenizer_of(settings),
        recipe.seed,
        ranks=Ranks(),
        num_micro=num_micro,
        codes=spec.codes(settings),
    )
    with closing(loader.batches()) as batches:
        next(batches)  # workers have started, first tables are read
        began, cpu = time.monotonic(), time.process_time()
        num_samples = sum(len(batch) for batch in islice(batches, num_steps * num_micro))
        return num_samples, time.monotonic() - began, time.process_time() - cpu, sum(loader.broken.values())
