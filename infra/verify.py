"""Do tars, tables, index, ledger and sizes.json of a dataset agree? Findings are streamed, a line each.

Works from the ledger: every file that a done-mark names has its size and digest, every shard's tar, index, table and
counts fit, and tables made from shards hold just their rows. The shards of a foreign folder have no ledger; there, tar,
table and index must fit.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from infra.checked_files import CheckedFiles, first_line
from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.keyed_check import SELECTING, KeyedTables, check_summary, stored_digest
from infra.ledger import Counts, DoneMark
from infra.removed import OPEN, REMOVING, TOMBSTONES, UID, RemovedRows
from infra.selection import summary_file
from infra.shard_check import SUCCESS, TABLE_COLUMNS, check_counts, check_removed, check_shard
from infra.shards import INDEX_SCHEMA
from infra.storage import Committed
from infra.tables import connect, urls

INDEXING = "index"  # the step of `python -m infra index`
DERIVING = ("captions_", "score_", "tokens_", SELECTING)  # steps that make tables from shards, whoever wrote those
INDEX_MEND = "make it again: python -m infra index"
MAX_REPEATED = 100  # uids told one by one
DATA = (".tar", ".parquet", ".npy", "_stats.json")
# What one gives out, the other takes in.
CHAIN = (("split", "duplicates"), ("duplicates", "download"), ("reshard_plan", "reshard"))

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Finding:
    """One disagreement: where, what, and the mend. A warning is no fault: work not done yet, files of no one."""

    where: str
    what: str
    mend: str
    is_problem: bool = True

    def __str__(self) -> str:
        return f"{'problem' if self.is_problem else 'warning'}: {self.where}: {self.what}; {self.mend}"

    def as_json(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return {"where": self.where, "what": self.what, "mend": self.mend, "problem": self.is_problem}


@dataclass
class Verdict:
    """What was looked at; complete when the findings have been read."""

    samples: dict[str, int] = field(default_factory=dict)  # tar → stored samples
    steps: dict[str, Counts] = field(default_factory=dict)  # of the jobs that are done
    num_files: int = 0  # named by done-marks


@dataclass(frozen=True, slots=True)
class _Looked:
    """What came of one done-mark or foreign shard, and what the sums at the end need of it."""

    findings: Sequence[Finding]
    mark: DoneMark | None = None
    samples: Mapping[str, int] = field(default_factory=dict)
    uids_in: str | None = None  # a readable table of the stored uids
    stored: Mapping[str, bytes] = field(default_factory=dict)  # shard → digest of its stored uids
    uids: Mapping[str, bytes] = field(default_factory=dict)  # score table or selection's → digest of its uids


class Verify:
    """One look at a dataset: `findings()` does the work.

    quick: read nothing for its digest alone. complete: unfinished and quarantined jobs are problems, too.
    sidecar: the folder that holds the index of a dataset that may not be written.
    Memory: a shard's rows for each thread, and the names of the files.
    """

    def __init__(
        self, dataset: Dataset, *, quick: bool = False, complete: bool = False, sidecar: Dataset | None = None,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        self.dataset = dataset
        self.verdict = Verdict()
        self._ours = sidecar or dataset  # where index and ledger lie
        self._files = CheckedFiles(self._ours.storage, quick)
        self._tars = CheckedFiles(dataset.storage, quick)
        self._complete = complete
        # Threads wait for an object store; on a disk they would only wait for each other.
        self._threads = threads or (1 if dataset.storage.is_local and self._ours.storage.is_local else 8)

    def findings(self) -> Iterator[Finding]:
        """Raises DatasetError where there is no dataset at all."""
        self._sizes = self._ours.storage.sizes()
        self._removed = RemovedRows.of(self._ours.storage)
        self._keyed = KeyedTables(self._files, self._removed)
        self._plans = {}
        for step in self._ours.ledger.steps():
            try:
                self._plans[step] = list((self._ours.ledger.plan(step) or {})["jobs"])
            except (ValueError, KeyError, TypeError):
                yield Finding(
                    step, f"ledger/plan/{step}.json is not readable", "run the command again: it is made anew"
                )
        steps = {name.split("/")[2] for name in self._sizes if name.startswith("ledger/done/")} | set(self._plans)
        tars = self.dataset.tars()
        if not tars and not steps:
            raise DatasetError(f"{self.dataset.storage.url}: no shards and no ledger; is the path right?")
        is_own = any(step != INDEXING and not step.startswith(DERIVING) for step in steps)
        uids_in: list[str] = []
        named: set[str] = set()
        for looked in _in_order(self._look_at_mark, self._marks(), self._threads):
            yield from self._noted(looked, uids_in, named)
        if not is_own:
            for looked in _in_order(self._look_at_foreign, tars, self._threads):
                yield from self._noted(looked, uids_in, named)
        unfinished = list(self._unfinished())
        yield from unfinished
        if OPEN in self._sizes:
            what = "a removal is not finished: files may still hold what was to go"
            yield Finding("removal", what, "run the same python -m pipeline remove again")
        yield from self._sums()
        yield from self._summaries()
        yield from self._wrong_sizes(is_own, bool(unfinished))
        yield from self._repeated(uids_in, is_own)
        if is_own:
            yield from self._leftovers(named)

    def _noted(self, looked: _Looked, uids_in: list[str], named: set[str]) -> Iterator[Finding]:
        yield from looked.findings
        self.verdict.samples.update(looked.samples)
        if looked.uids_in is not None:
            uids_in.append(looked.uids_in)
        if (mark := looked.mark) is not None:
            self.verdict.steps[mark.step] = self.verdict.steps.get(mark.step, Counts()) + mark.counts
            self.verdict.num_files += len(mark.files)
            named.update(file.name for file in mark.files)
            for what, is_problem in self._keyed.compare(looked.stored, looked.uids):
                mend = _done_anew(mark.step, mark.job) if is_problem else "run the command that made it again"
                yield Finding(f"{mark.step} {mark.job}", what, mend, is_problem)

    def _marks(self) -> Iterator[tuple[str, bytes]]:
        names = [name for name in self._sizes if name.startswith("ledger/done/") and name.endswith(".json")]
        names.sort(key=lambda name: name.split("/")[2].startswith(DERIVING))  # shards first: others are held to them
        for at in range(0, len(names), 256):
            yield from self._ours.storage.read_many(names[at : at + 256]).items()

    def _look_at_mark(self, named: tuple[str, bytes]) -> _Looked:
        name, data = named
        _, _, step, base = name.split("/", 3)
        job = base.removesuffix(".json")
        mend = _done_anew(step, job)
        try:
            mark = DoneMark.from_json(json.loads(data))
            counts = Counts() + mark.counts
            is_torn = counts.rows_in != counts.rows_out + counts.num_dropped
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"its done-mark is not readable ({type(error).__name__})"
            return _Looked([Finding(f"{step} {job}", what, mend)])
        found: list[str] = []
        if (mark.step, mark.job) != (step, job):
            found.append(f"its done-mark is that of {mark.step} {mark.job}")
        if is_torn:
            found.append(f"{counts.rows_in} rows in, but {counts.rows_out} out + {counts.num_dropped} dropped")
        files = {file.name: file for file in mark.files}
        tar = next((name for name in files if name.endswith(".tar") and "/" not in name), None)
        # The mark's own count: a damaged tar is told once, not again for sizes.json.
        samples = {tar: counts.rows_out} if tar is not None else {}
        uids_in, stored = None, {}
        if tar is not None:
            shard = tar.removesuffix(".tar")
            table = self._look_at_shard(shard, mark, files, found)
            if table is not None and {"uid", "status"} <= set(table.column_names):
                uids_in = self.dataset.table(shard)
                stored = {shard: stored_digest(table)} if table["uid"].type == UID else {}
        uids = self._keyed.look(mark, files, found)
        for file in files.values():  # those that were not read for what they say
            self._files.compare(file, self._sizes.get(file.name), found)
        findings = [Finding(f"{step} {job}", what, mend) for what in found]
        return _Looked(findings, mark, samples, uids_in, stored, uids)

    def _look_at_shard(
        self, shard: str, mark: DoneMark, files: dict[str, Committed], found: list[str]
    ) -> pa.Table | None:
        """Note what does not fit. Takes what it reads out of `files`; returns the shard's table if it can be read."""
        names = self.dataset.tar(shard), self.dataset.index(shard), self.dataset.table(shard)
        tar, index_file, table_file = (files.pop(name, None) for name in names)
        assert tar is not None
        members = self._files.members(tar.name, tar, found)
        index = table = None
        if index_file is not None:
            index = self._files.table(index_file.name, index_file, found, INDEX_SCHEMA.names)
        if table_file is not None:
            table = self._files.table(table_file.name, table_file, found, TABLE_COLUMNS)
        absent = [name for name, file in zip(names, (tar, index_file, table_file), strict=True) if file is None]
        found += [f"its done-mark names no {name}" for name in absent]
        found += check_shard(members, index, table, uniform=True)
        if table is not None:
            found += check_counts(table, mark.counts)
            found += check_removed(table, self._removed)
        num_asked = self._files.num_rows(f"inputs/{shard}.parquet")
        num_repeated = self._files.num_rows(f"inputs/duplicates/{shard}.parquet") or 0
        if num_asked is not None and mark.counts.rows_in != num_asked - num_repeated:
            found.append(
                f"{mark.counts.rows_in} rows in; its input table has {num_asked}, {num_repeated} of them repeated"
            )
        return table

    def _look_at_foreign(self, shard: str) -> _Looked:
        found: list[str] = []
        table = None
        members = self._tars.members(self.dataset.tar(shard), None, found)
        if self.dataset.storage.exists(self.dataset.table(shard)):
            table = self._tars.table(self.dataset.table(shard), None, found, TABLE_COLUMNS)
        found += check_shard(members, None, table, uniform=False)
        where, mend = f"shard {shard}", "fetch the shard again, or take it out of the folder"
        findings = [Finding(where, what, mend) for what in found]
        samples = {} if members is None else {self.dataset.tar(shard): len({member.key for member in members})}
        name = self.dataset.index(shard)
        if name not in self._sizes:
            findings.append(Finding(where, "it has no index yet", INDEX_MEND, is_problem=False))
            return _Looked(findings, samples=samples)
        stale: list[str] = []
        index = self._files.table(name, None, stale, INDEX_SCHEMA.names)
        stale += [what for what in check_shard(members, index, table, uniform=False) if what not in found]
        mend = f"remove {name} and ledger/done/{INDEXING}/{shard}.json and {INDEX_MEND}"
        findings += [Finding(where, what, mend) for what in stale]
        return _Looked(findings, samples=samples, uids_in=name if index is not None else None)

    def _unfinished(self) -> Iterator[Finding]:
        for step, jobs in self._plans.items():
            left = self._left(step)
            given_up = [job for job in left if f"ledger/quarantine/{step}/{job}.json" in self._sizes]
            why = f", {len(given_up)} of them quarantined (first {given_up[0]})" if given_up else ""
            if left:
                what = f"{len(left)} of {len(jobs)} jobs unfinished{why}"
                yield Finding(step, what, "run the same command again to go on", is_problem=self._complete)

    def _left(self, step: str) -> list[str]:
        return [job for job in self._plans[step] if f"ledger/done/{step}/{job}.json" not in self._sizes]

    def _sums(self) -> Iterator[Finding]:
        told = self.verdict.steps
        for earlier, later in CHAIN:
            if earlier not in told or later not in told or earlier not in self._plans or self._left(earlier):
                continue
            given, taken = told[earlier].rows_out, told[later].rows_in
            is_finished = later in self._plans and not self._left(later)
            if taken > given or (is_finished and taken < given):
                what = f"{earlier} gave {given} rows out, {later} took {taken} in"
                yield Finding(
                    later, what, "mend the jobs named above; if none is, report it: a step lost or invented rows"
                )

    def _summaries(self) -> Iterator[Finding]:
        """What the summaries of selections say, against their marks."""
        for step in [step for step in self._plans if step.startswith(SELECTING) and "." not in step]:
            name = summary_file(step.removeprefix(SELECTING))
            mend = "run the same command again: it is written anew"
            try:
                summary = json.loads(self._ours.storage.read(name))
            except FileNotFoundError:
                if not self._left(step):
                    yield Finding(step, f"{name} is not written yet", mend, is_problem=self._complete)
                continue
            except ValueError:
                summary = None
            for what in check_summary(summary, self.verdict.steps.get(step, Counts())):
                yield Finding(step, f"{name}: {what}", mend)

    def _wrong_sizes(self, is_own: bool, is_unfinished: bool) -> Iterator[Finding]:
        mend = "run the download again: it writes the file anew" if is_own else INDEX_MEND
        holder = self._ours if "sizes.json" in self._sizes else self.dataset
        try:
            told = json.loads(holder.storage.read("sizes.json"))
        except FileNotFoundError:
            if self.verdict.samples:  # a run writes it at its end
                yield Finding("sizes.json", "it is absent", mend, is_problem=is_own and not is_unfinished)
            return
        except ValueError:
            told = None
        if not isinstance(told, dict):
            yield Finding("sizes.json", "it is not a JSON object", mend)
            return
        for name in sorted({*told, *self.verdict.samples}):
            held = self.verdict.samples.get(name)
            if name not in told:
                yield Finding("sizes.json", f"it does not name {name}", mend, is_problem=not is_unfinished)
            elif told[name] != held:
                what = f"it says {told[name]} samples in {name}, " + (
                    "which is not there" if held is None else f"not {held}"
                )
                yield Finding("sizes.json", what, mend)

    def _repeated(self, files: Sequence[str], is_own: bool) -> Iterator[Finding]:
        """uids that two shards store: one DuckDB query over columns, which spills to disk."""
        if not files:
            return
        source = "read_parquet(?, filename = true)"
        samples = (
            f"SELECT uid, filename FROM {source} WHERE status = '{SUCCESS}'"
            if is_own
            else f"SELECT DISTINCT uid, key, filename FROM {source}"
        )
        # Within a shard of ours it has been told with the table.
        more_than_one = "min(filename) <> max(filename)" if is_own else "count(*) > 1"
        query = f"""
            SELECT uid, min(parse_filename(filename, true)), max(parse_filename(filename, true)), count(*) OVER ()
            FROM ({samples}) WHERE uid IS NOT NULL
            GROUP BY uid HAVING {more_than_one} ORDER BY uid LIMIT {MAX_REPEATED}
        """
        storage = self._ours.storage
        try:
            rows = connect(storage).execute(query, [urls(storage, files)]).fetchall()
        except duckdb.Error as error:
            yield Finding("uids", f"not comparable over shards: {first_line(error)}", "mend the tables named above")
            return
        mend = "leave one of them out by a selection"
        for uid, first, last, _ in rows:
            where = f"shard {first}" if first == last else f"shards {first} and {last}"
            yield Finding(where, f"uid {uid.hex()} is stored more than once", mend, is_problem=is_own)
        if rows and rows[0][3] > len(rows):
            yield Finding("uids", f"{rows[0][3] - len(rows)} more are stored more than once", mend, is_problem=is_own)

    def _leftovers(self, named: set[str]) -> Iterator[Finding]:
        """Data that no done-mark names: of a killed run, mostly."""
        known = {TOMBSTONES, *named, *self._input_tables()}
        known |= {self.dataset.stats(name.removesuffix(".tar")) for name in named if name.endswith(".tar")}
        for name in self._sizes:
            if name.endswith(DATA) and name not in known and not name.startswith(REMOVING):
                what, mend = "no done-mark names it", "go on with the run that made it, or delete it"
                yield Finding(name, what, mend, is_problem=False)

    def _input_tables(self) -> set[str]:
        """Url tables that lie in the dataset itself."""
        try:
            inputs = json.loads(self._ours.storage.read("ledger/inputs.json"))
            return {item["path"].removeprefix("./") for item in inputs}
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return set()


def _done_anew(step: str, job: str) -> str:
    return f"remove ledger/done/{step}/{job}.json and run the command again: the job is done anew"


def _in_order(function: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """Results in the order of the items; no more than two items a thread are begun and not yet taken."""
    with ThreadPoolExecutor(threads, "verify") as pool:
        waiting: deque[Future[B]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
