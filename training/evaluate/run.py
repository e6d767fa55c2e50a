"""One evaluation: a task, its result as JSON with every interval, and the picture sheet. Twice the same bytes."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from typing import Any

from infra.log import get_logger
from infra.storage import Storage
from training.evaluate import TASKS
from training.evaluate.distances import DISTANCES
from training.evaluate.settings import EvaluationSettings
from training.evaluate.task import Result

log = get_logger("evaluate")

RESULTS = "results.json"
SHEET = "sheet.html"


def evaluate(model: Any, settings: EvaluationSettings, out: str | None = None) -> dict[str, Any]:
    """Run a task. Returns what `results.json` holds: task, data, model, metrics, counts; the classes.

    model: what the task asks: an encoder, or of `ASKED` what it says.
    out: folder that results.json and sheet.html are written to, a path or an fsspec url; None writes nothing.
    Raises UsageError, DatasetError or EvaluationError.
    """
    began = time.monotonic()
    result: Result = TASKS[settings.task](model, settings)
    facts = {
        "task": settings.task,
        "data": {**result.trial.samples.identity(), "limit": settings.limit, "digest": result.digest},
        "model": dict(model.identity()),
        "metrics": {name: share.facts() for name, share in result.metrics.items()},
        "counts": dict(result.counts),
        **result.details,
    }
    if out is not None:
        storage = Storage(out)
        storage.commit_bytes(
            RESULTS, json.dumps(facts, indent=1, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        )
        for name, content in result.files.items():
            storage.commit_bytes(name, json.dumps(content, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        for name, picture in result.pictures.items():
            storage.commit_bytes(name, picture)
        if settings.queries:
            sheet = result.sheet(result, settings.queries, random.Random(settings.seed))
            storage.commit_bytes(SHEET, sheet.encode("utf-8", "replace"))
        storage.sweep()
    took_s = time.monotonic() - began
    log.info("task=%s samples=%d took_s=%.1f", settings.task, result.counts["samples"], took_s)
    return facts


def told(facts: Mapping[str, Any]) -> list[str]:
    """What a person reads of it: a line a metric, and what of the data did not count."""
    lines = [f"{name}: {_told(name, share)}" for name, share in facts["metrics"].items()]
    counts = facts["counts"]
    lost = {f"unreadable, {reason}": number for reason, number in counts["unreadable"].items()}
    lost |= {name: number for name, number in counts.items() if name.startswith("without_")}
    more = "".join(f"; {number:,} {what.replace('_', ' ')}" for what, number in lost.items())
    return [*lines, f"{counts['images']:,} images of {counts['samples']:,} samples{more}"]


def _told(name: str, share: Mapping[str, Any]) -> str:
    if name.partition("@")[0] in DISTANCES:
        return f"{share['value']:.4g}  (of {share['n']:,})"
    value = f"{100 * share['value']:.1f}"
    if share["low"] is None:
        return f"{value}  (of {share['n']:,})"
    return f"{value}  (95 %: {100 * share['low']:.1f} to {100 * share['high']:.1f}; of {share['n']:,})"
