"""The job on a Ray cluster: every worker that Ray Train starts is one of its ranks."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from infra import ray_train
from infra.executors import RayExecutor
from infra.preemption import Preemption
from training.recipe import TrainRecipe

if TYPE_CHECKING:
    from training.train import Done


def train_on_ray(
    recipe: TrainRecipe, ranks: ray_train.Ranks, address: str | None, resume: str = "auto", limit: int | None = None
) -> Done:
    """As `training.train.train` on that many ranks. Where one dies, all go on from the newest checkpoint.

    address: of a running cluster; None: the one that this process belongs to, else a Ray of this machine.
    Raises PairmillError for what a person can mend.
    """
    recipe.num_micro(ranks.num)  # told now, not when machines have been found
    executor = RayExecutor(address, is_heard=True)
    try:
        return ray_train.run_ranks(partial(_rank, recipe, resume, limit), ranks, executor)
    finally:
        executor.close()


def _rank(recipe: TrainRecipe, resume: str, limit: int | None, preemption: Preemption) -> Done:
    from training.rendezvous import joined
    from training.train import train

    with joined(os.environ) as ranks:
        return train(recipe, ranks, resume, limit, preemption)
