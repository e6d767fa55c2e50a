"""What became of every row: counts that must conserve, done-marks with fingerprints, quarantine. Resume lives here.

    ledger/plan/STEP.json          the jobs of the last run of a step
    ledger/done/STEP/JOB.json      fingerprint, counts, published files with digests; the clock is apart, under "clock"
    ledger/quarantine/STEP/JOB.json  why a job was given up; a rerun tries it again

Readers trust only what a done-mark names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.storage import Committed, Storage


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of a job or step: `rows_in = rows_out + sum(dropped)`, always. `extra` holds further tallies."""

    rows_in: int = 0
    rows_out: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.rows_in + other.rows_in,
            self.rows_out + other.rows_out,
            _sum(self.dropped, other.dropped),
            _sum(self.extra, other.extra),
        )

    @property
    def num_dropped(self) -> int:
        """Rows that fell, over all reasons."""
        return sum(self.dropped.values())

    def check(self, where: str) -> None:
        """Raise ConservationError unless every row has exactly one fate."""
        if self.rows_in != self.rows_out + self.num_dropped:
            raise ConservationError(
                f"{where}: {self.rows_in} rows in, but {self.rows_out} out + {self.num_dropped} dropped; "
                "this is a defect of the step, not of the data"
            )

    def as_json(self) -> dict[str, Any]:
        """A JSON-ready mapping; reasons sorted, so that the same counts give the same bytes."""
        result: dict[str, Any] = {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "dropped": dict(sorted(self.dropped.items())),
        }
        if self.extra:
            result["extra"] = dict(sorted(self.extra.items()))
        return result

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Counts:
        """The inverse of `as_json`."""
        return cls(values["rows_in"], values["rows_out"], values["dropped"], values.get("extra", {}))


class ConservationError(AssertionError):
    """A step lost or invented a row."""


@dataclass(frozen=True, slots=True)
class DoneMark:
    """A finished job: what it was made from, what became of its rows, and the files that it published."""

    step: str
    job: str
    fingerprint: str
    counts: Counts
    files: tuple[Committed, ...]
    clock: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {
            "step": self.step,
            "job": self.job,
            "fingerprint": self.fingerprint,
            "counts": self.counts.as_json(),
            "files": {file.name: _file_json(file) for file in self.files},
            "clock": dict(self.clock),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DoneMark:
        """The inverse of `as_json`."""
        files = tuple(
            Committed(name, file["bytes"], file["blake2b"], file.get("made_as"))
            for name, file in values["files"].items()
        )
        counts = Counts.from_json(values["counts"])
        return cls(values["step"], values["job"], values["fingerprint"], counts, files, values["clock"])


class Ledger:
    """The marks of one dataset."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def steps(self) -> list[str]:
        """Names of the steps that have been planned here, sorted."""
        return [_stem(name) for name in self.storage.list("ledger/plan", ".json")]

    def done(self, step: str) -> dict[str, DoneMark]:
        """Finished jobs of a step by id, in order of id."""
        names = self.storage.list(f"ledger/done/{step}", ".json")
        found = self.storage.read_many(names)
        return {_stem(name): DoneMark.from_json(json.loads(found[name])) for name in names}

    def any_done(self, step: str) -> DoneMark | None:
        """One finished job of a step, with rows if any has, for what all of them share; None before the first."""
        found = None
        for name in self.storage.list(f"ledger/done/{step}", ".json"):
            found = DoneMark.from_json(json.loads(self.storage.read(name)))
            if found.counts.rows_out:
                break
        return found

    def tables(self, step: str, folder: str) -> dict[str, Committed]:
        """The parquet files that a step's marks name in a folder, by their stems: a shard's name, mostly."""
        files = [file for mark in self.done(step).values() for file in mark.files]
        found = [file for file in files if file.name.startswith(f"{folder}/") and file.name.endswith(".parquet")]
        return {file.name.removeprefix(f"{folder}/").removesuffix(".parquet"): file for file in found}

    def is_done(self, step: str, job: str, fingerprint: str) -> bool:
        """Was this job finished, with this fingerprint?"""
        try:
            found = json.loads(self.storage.read(f"ledger/done/{step}/{job}.json"))
        except FileNotFoundError:
            return False
        return bool(found["fingerprint"] == fingerprint)

    def mark_done(self, mark: DoneMark) -> None:
        """Lift a quarantine of the job and publish its done-mark: last of all, so that a kill leaves no quarantine."""
        self.storage.remove(f"ledger/quarantine/{mark.step}/{mark.job}.json")
        self._write(f"ledger/done/{mark.step}/{mark.job}.json", mark.as_json())

    def keep_only(self, step: str, jobs: Iterable[str]) -> None:
        """Forget marks and quarantine of other jobs: an earlier plan had them, and their rows are in others now."""
        wanted = set(jobs)
        for folder in (f"ledger/done/{step}", f"ledger/quarantine/{step}"):
            for name in self.storage.list(folder, ".json"):
                if _stem(name) not in wanted:
                    self.storage.remove(name)

    def quarantined(self, step: str) -> dict[str, dict[str, Any]]:
        """Jobs given up in the last run, by id, with their error."""
        names = self.storage.list(f"ledger/quarantine/{step}", ".json")
        found = self.storage.read_many(names)
        return {_stem(name): json.loads(found[name]) for name in names}

    def quarantine(self, step: str, job: str, error: str, num_attempts: int) -> None:
        """Give a job up for this run and say why."""
        values = {"step": step, "job": job, "error": error, "attempts": num_attempts}
        self._write(f"ledger/quarantine/{step}/{job}.json", values)

    def plan(self, step: str) -> dict[str, Any] | None:
        """The plan of a step's last run: {"step", "fingerprint", "jobs": [id...]}; None before the first."""
        try:
            return dict(json.loads(self.storage.read(f"ledger/plan/{step}.json")))
        except FileNotFoundError:
            return None

    def write_plan(self, step: str, fingerprint: str, jobs: Iterable[str], **more: Any) -> None:
        """Publish the plan of a run, before its first job starts."""
        self._write(f"ledger/plan/{step}.json", {"step": step, "fingerprint": fingerprint, "jobs": list(jobs), **more})

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        text = json.dumps(values, indent=1, ensure_ascii=False, sort_keys=False)
        self.storage.commit_bytes(name, text.encode("utf-8", "replace") + b"\n")


def _file_json(file: Committed) -> dict[str, Any]:
    return {"bytes": file.size, "blake2b": file.digest} | ({"made_as": file.made_as} if file.made_as else {})


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".json")


def _sum(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    result = dict(left)
    for reason, number in right.items():
        result[reason] = result.get(reason, 0) + number
    return result
