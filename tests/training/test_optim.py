"""Which parameters decay, what is frozen, and the learning rate at every step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from infra.errors import RecipeError
from training.optim import LossScale, OptimSettings, freeze, parameter_groups


def module() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 2), nn.LayerNorm(4), nn.Linear(4, 2))


def test_gains_and_biases_do_not_decay() -> None:
    decayed, others = parameter_groups(module(), 0.2)
    assert [one.ndim for one in decayed["params"]] == [4, 2]
    assert all(one.ndim == 1 for one in others["params"])
    assert (decayed["weight_decay"], others["weight_decay"], len(others["params"])) == (0.2, 0.0, 4)


def test_what_is_frozen_is_in_no_group_and_a_pattern_without_a_match_is_refused() -> None:
    model = module()
    freeze(model, [r"0\..*", r"1\.bias"])
    assert [len(group["params"]) for group in parameter_groups(model, 0.1)] == [1, 2]
    with pytest.raises(RecipeError, match="matches no parameter"):
        freeze(model, ["conv"])
    freeze(model, [".*"])
    with pytest.raises(RecipeError, match="every one is frozen"):
        parameter_groups(model, 0.1)


def test_the_rate_rises_in_a_line_and_falls_to_its_least() -> None:
    settings = OptimSettings(lr=1.0, warmup_steps=10, min_lr=0.1)
    assert [settings.rate(step, 110) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert settings.rate(60, 110) == pytest.approx(0.55)  # half of the way down
    assert settings.rate(110, 110) == pytest.approx(0.1)
    linear = OptimSettings(lr=1.0, warmup_steps=0, schedule="linear")
    assert [linear.rate(step, 4) for step in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert OptimSettings(lr=1.0, warmup_steps=0, schedule="constant").rate(10**9, 4) == 1.0
    early = OptimSettings(lr=1.0, warmup_steps=10, min_lr=0.1, fall_steps=110)
    assert [early.rate(step, 1000) for step in (10, 60, 110, 999)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_the_rate_is_halved_where_it_is_said_and_what_is_to_come_has_not_been():
    settings = OptimSettings(lr=1.0, warmup_steps=0, schedule="constant", halve_at=(3, 5))
    assert [settings.rate(step, 9) for step in (0, 2, 3, 4, 5, 8)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    for wrong in ({"halve_at": (-1,)}, {"halve_at": (5, 3)}, {"halve_at": (3, 3)}, {"fall_steps": 9},
                  {"fall_steps": 9, "schedule": "constant"}):  # fmt: skip
        with pytest.raises(RecipeError, match=next(iter(wrong))):
            OptimSettings.parse({"warmup_steps": 9, **wrong}, "recipe.yaml")
    assert [settings.until(step).halve_at for step in (0, 3, 4, 6)] == [None, None, (3,), (3, 5)]


@given(st.sampled_from(["cosine", "constant", "linear"]), st.integers(0, 50), st.integers(1, 100), st.integers(0, 200))
def test_the_rate_never_leaves_its_bounds(schedule: str, warmup: int, total: int, step: int) -> None:
    settings = OptimSettings(lr=1.0, min_lr=0.01, warmup_steps=warmup, schedule=schedule)
    assert 0 < settings.rate(step, total) <= 1.0


def test_a_loss_scale_halves_at_once_and_doubles_after_calm() -> None:
    scale = LossScale(scale=8.0, patience=2)
    assert scale.after(True) == LossScale(4.0, 0, 2)
    assert scale.after(False).after(False) == LossScale(16.0, 0, 2)
    assert scale.after(False).after(True).after(False) == LossScale(4.0, 1, 2)
    assert LossScale(1.0).after(True).scale == 1.0
