"""What is optimised, and how fast: parameter groups, the learning rate and the loss scale as functions of the step."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from infra.errors import RecipeError
from infra.recipe import Config


class AverageSettings(Config):
    """A moving average of the weights, beside them: what is evaluated, and what whoever loads a checkpoint gets.

    It begins as the weights of the beginning.
    """

    decay: float = Field(gt=0, lt=1, description="share of the average that stays at each change")
    every: int = Field(1, gt=0, description="steps from one change to the next")

    def left(self, total_steps: int) -> float:
        """Share of the average at a run's end that is still what it began as."""
        return self.decay ** (total_steps // self.every)


class OptimSettings(Config):
    """AdamW, its schedule, the bound on gradients, and the average of weights."""

    lr: float = Field(5e-4, gt=0, description="highest learning rate, reached when warm-up ends")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW's decay rates of both moments")
    eps: float = Field(1e-6, gt=0, description="AdamW's term against division by zero")
    weight_decay: float = Field(0.2, ge=0, description="decoupled decay of weights; gains, biases and scales have none")
    warmup_steps: int = Field(2000, ge=0, description="steps over which the rate rises in a line from nothing")
    schedule: Literal["cosine", "constant", "linear"] = Field("cosine", description="how the rate falls after warm-up")
    min_lr: float = Field(0.0, ge=0, description="rate when it has fallen, before halvings")
    fall_steps: int | None = Field(None, gt=0, description="steps after which it has fallen; not set: the last")
    halve_at: tuple[int, ...] | None = Field(
        None, description="steps, all that were and are to be, from which the rate is half of what it was before"
    )
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the whole gradient; not set: unbounded")
    average: AverageSettings | None = Field(None, description="decay, and every so many steps; not set: none")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        steps = self.halve_at or ()
        if any(step < 0 for step in steps) or list(steps) != sorted(set(steps)):
            raise ValueError(f"halve_at={list(steps)}: give each step once, in order")
        if self.fall_steps is not None and self.schedule == "constant":
            raise ValueError("fall_steps: a constant rate does not fall; take schedule: cosine or linear")
        if self.fall_steps is not None and self.fall_steps <= self.warmup_steps:
            raise ValueError(
                f"fall_steps={self.fall_steps}: warm-up has {self.warmup_steps} steps; give more than that"
            )
        return self

    def rate(self, step: int, total_steps: int) -> float:
        """Learning rate of the update that follows `step` updates. A pure function: no state needs to be saved."""
        return self._smooth_rate(step, total_steps) / 2 ** sum(at <= step for at in self.halve_at or ())

    def until(self, step: int) -> OptimSettings:
        """What has had to do with the updates before `step`: without the halvings to come."""
        return self.model_copy(update={"halve_at": tuple(at for at in self.halve_at or () if at < step) or None})

    def _smooth_rate(self, step: int, total_steps: int) -> float:
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        fallen = self.fall_steps or total_steps
        part = min(1.0, (step - self.warmup_steps) / max(1, fallen - self.warmup_steps))
        left = 0.5 * (1 + math.cos(math.pi * part)) if self.schedule == "cosine" else 1 - part
        return self.min_lr + (self.lr - self.min_lr) * left


def freeze(module: nn.Module, patterns: Sequence[str]) -> None:
    """Parameters whose whole name a regex matches are not trained. Raises RecipeError where one matches none."""
    names = dict(module.named_parameters())
    for pattern in patterns:
        found = [name for name in names if re.fullmatch(pattern, name)]
        if not found:
            raise RecipeError(f"frozen: {pattern!r} matches no parameter; names begin {', '.join([*names][:5])}")
        for name in found:
            names[name].requires_grad_(False)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters in two groups: matrices and kernels decay; what has fewer than two dimensions does not."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise RecipeError("no parameter is trained: every one is frozen")
    groups = [
        {"params": [one for one in trained if one.ndim >= 2], "weight_decay": weight_decay},
        {"params": [one for one in trained if one.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@dataclass(frozen=True)
class LossScale:
    """What a loss is multiplied by so that fp16 gradients do not vanish: halved when they overflow, doubled after calm.

    Source: Mixed Precision Training, arXiv 1710.03740, section 3.2.
    """

    scale: float = 2.0**16
    num_calm: int = 0  # steps since it last changed
    patience: int = 2000

    def after(self, is_skipped: bool) -> LossScale:
        """The scale of the next step."""
        if is_skipped:
            return replace(self, scale=max(1.0, self.scale / 2), num_calm=0)
        if self.num_calm + 1 < self.patience:
            return replace(self, num_calm=self.num_calm + 1)
        return replace(self, scale=self.scale * 2, num_calm=0)


def num_numbers(tensors: Iterable[Tensor]) -> int:
    """How many numbers are in them, wherever ZeRO keeps their parts."""
    return sum(int(getattr(one, "ds_numel", one.numel())) for one in tensors)
