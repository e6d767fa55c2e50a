"""A run in a few figures, its best evaluations, and what its recipe has that another's has not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from infra.metric_names import is_lower_better
from infra.page import words
from training.report.kinds import EVALUATION, kind_of
from training.report.runs import Run

Figure = tuple[str, str]  # a value, and a smaller remark


@dataclass(frozen=True, slots=True)
class Best:
    """The best value of a metric in a run: the first of equals. low, high: nan where there is no interval."""

    value: float
    low: float
    high: float
    step: float


def headline(run: Run) -> dict[str, Figure]:
    """What the figure is → figure, for what the run has measured."""
    figures = {}
    if (loss := run.series.get("loss")) is not None and len(loss.finite):
        last, least = loss.values[-1], int(np.nanargmin(np.where(np.isfinite(loss.values), loss.values, np.nan)))
        text = f"{last:.4g}" if np.isfinite(last) else "not finite"
        figures["last loss"] = (text, f"least {loss.values[least]:.4g} at step {loss.steps[least]:,.0f}")
    figures["steps"] = (words.count_text(run.num_steps), "")
    share = _share_done(run)
    figures["samples seen"] = (
        words.count_text(run.num_samples), "" if share is None else f"{words.share_text(share)} of the recipe's"
    )  # fmt: skip
    if (rate := _measured(run, "samples_per_s")) is not None:
        peak = _measured(run, "of_peak")
        median = float(np.median(rate))
        remark = "median" if peak is None else f"median; {words.share_text(float(np.median(peak)))} of peak"
        figures["samples/s"] = (f"{median:,.0f}" if median >= 10 else f"{median:.2g}", remark)
    if (waited := _measured(run, "data_wait")) is not None:
        figures["waiting for data"] = (words.share_text(float(np.mean(waited))), "of the time, mean")
    if took_s := _took_s(run):
        figures["of training"] = (words.duration_text(took_s), "by the measured rates")
    return figures


def best(run: Run) -> dict[str, Best]:
    """The best of each evaluation metric that has a finite value."""
    found = {}
    for name, series in run.series.items():
        if kind_of(name).section == EVALUATION and len(series.finite):
            sign = 1.0 if is_lower_better(name) else -1.0
            at = int(np.argmin(np.where(np.isfinite(series.values), sign * series.values, np.inf)))
            found[name] = Best(*(float(each[at]) for each in (series.values, series.low, series.high, series.steps)))
    return found


def state(runs: Sequence[Run]) -> Figure | None:
    """How the runs stand: a kind (good, open, bad) and a few words; None where nobody can tell."""
    if not any(run.series for run in runs):
        return "open", "nothing here yet"
    fallen = [run for run in runs if "loss" in run.series and not np.isfinite(run.series["loss"].values[-1])]
    shares = {run.name: share for run in runs if (share := _share_done(run)) is not None}
    unfinished = {name: share for name, share in shares.items() if share < 1}
    if fallen:
        return "bad", _named("the last loss is not finite", [run.name for run in fallen], runs)
    if unfinished:
        least = words.share_text(min(unfinished.values()))
        return "open", _named(f"unfinished: {least} of the samples seen", list(unfinished), runs)
    return ("good", "finished") if len(shares) == len(runs) else None


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Settings that are not the same in all recipes, and their values in the order of the runs."""
    recipes = [_flat(_recipe_of(run)) for run in runs]
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    values = {name: [recipe.get(name, "–") for recipe in recipes] for name in names}
    return {name: told for name, told in values.items() if len(set(told)) > 1}


def _measured(run: Run, name: str) -> np.ndarray | None:
    series = run.series.get(name)
    return series.finite if series is not None and len(series.finite) else None


def _took_s(run: Run) -> float:
    """Seconds in steps: the samples of each line over their rate."""
    series = run.series.get("samples_per_s")
    if series is None:
        return 0.0
    took_s = np.diff(series.samples, prepend=0.0) / np.where(series.values > 0, series.values, np.nan)
    return float(took_s[np.isfinite(took_s)].sum())


def _share_done(run: Run) -> float | None:
    asked = _recipe_of(run).get("samples")
    return min(1.0, run.num_samples / asked) if isinstance(asked, int) and asked > 0 else None


def _recipe_of(run: Run) -> Mapping[str, Any]:
    try:
        values = yaml.safe_load(run.recipe or "")
    except (yaml.YAMLError, ValueError):  # the page shows its text all the same
        return {}
    return values if isinstance(values, dict) else {}


def _flat(values: Mapping[Any, Any], before: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = str(value)
    return found


def _named(sentence: str, names: Sequence[str], runs: Sequence[Run]) -> str:
    return sentence if len(runs) == 1 else f"{', '.join(names)}: {sentence}"
