"""Where a dataset stands, read from its ledger alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.ledger import Counts

ORDER = ("crawl_frontier", "crawl_live", "crawl_archive", "crawl_merge", "split", "duplicates", "download")


@dataclass(frozen=True, slots=True)
class StepStatus:
    """One step: jobs planned, done and given up, and the fates of the rows so far."""

    step: str
    num_planned: int
    num_done: int
    quarantined: dict[str, str]
    counts: Counts

    def as_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {
            "planned": self.num_planned,
            "done": self.num_done,
            "quarantined": self.quarantined,
            **self.counts.as_json(),
        }


def read_status(dataset: Dataset) -> list[StepStatus]:
    """The steps in the order of the work. Raises DatasetError where no step was ever planned."""
    steps = dataset.ledger.steps()
    if not steps:
        raise DatasetError(f"{dataset.storage.url}: no run has been here; is the path right?")
    result = []
    for step in sorted(steps, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
        plan = dataset.ledger.plan(step) or {"jobs": []}
        done = dataset.ledger.done(step)
        given_up = {job: str(values["error"]) for job, values in dataset.ledger.quarantined(step).items()}
        counts = sum((mark.counts for mark in done.values()), Counts())
        num_planned = len({*plan["jobs"], *done})  # archives of earlier commands are not in the last one's plan
        result.append(StepStatus(step, num_planned, len(done), given_up, counts))
    return result
