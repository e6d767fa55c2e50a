"""Decisions that need all rows: a Top's threshold, the rows that fall by a Unique. One job a rule, in bounded memory.

selections/NAME/rule_K.json                threshold and counts, of the first dataset
selections/NAME/unique_K/SHARD.parquet     row, uid, because_of, distance: the rows of a shard that fall
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from filters.expression import connect
from filters.joined import Group, Joined
from filters.listed import lists_of
from filters.near import greedy_unique
from filters.rules import Rule, Top, Unique
from filters.values import as_hashes, nan_as_null, values_of
from filters.verdicts import Decided, Judge
from infra.dataset import Dataset
from infra.jobs import Job, Outcome, Step
from infra.ledger import Counts
from infra.recipe import fingerprint
from infra.sample import UID_BYTES
from infra.storage import Committed
from infra.tables import read_table, write_table

MEMORY = "1GB"
NEAR_MEMORY_BYTES = 1 << 30
CHUNK = 1 << 22  # values of a spilled array that are looked at together

Places = npt.NDArray[np.int64]
Distances = npt.NDArray[np.int16]
Fallen = tuple[Places, Places, Distances]  # places of rows that fall, of those that they fall for, bits between them


class Decide(Step):
    """One rule that sees all rows, over one or several datasets; the first of them keeps its mark."""

    derived = True

    def __init__(
        self, datasets: Sequence[Dataset], selection: str, rules: Sequence[Rule], captions: Sequence[str]
    ) -> None:
        self.datasets = list(datasets)
        self.dataset = self.datasets[0]
        self.selection = selection
        self.rules = list(rules)
        self.rule = self.rules[-1]
        self.captions = tuple(captions)
        self.number = len(self.rules) - 1
        self.name = f"select_{selection}.rule_{self.number}"
        # Of all rows only the rule's own columns are needed; of survivors, those of the rules before it.
        self.before = [] if isinstance(self.rule, Top) and self.rule.of == "all" else self.rules[:-1]

    def settings(self) -> Mapping[str, Any]:
        """The rules up to this one."""
        return settings_of(self.rules, self.captions)

    def inputs(self, job: Job) -> Any:
        """Everything that is read of every dataset, the lists, and the decisions before this one."""
        return job.payload["digest"]

    def plan(self) -> Sequence[Job]:
        """One job."""
        joined = [self._joined(dataset) for dataset in self.datasets]
        lists = {number: listed.digest for number, listed in lists_of(self.before).items()}
        parts = [each.inputs(each.rows.shards) for each in joined]
        return [
            Job(
                "all",
                {"digest": fingerprint(parts, lists, decisions_digest(self.dataset, self.selection, self.before))},
            )
        ]

    def run(self, job: Job) -> Outcome:
        """Rows in = rows that the rule sees. A Top's threshold is not applied here: nothing falls yet."""
        with tempfile.TemporaryDirectory(prefix="pairmill-select-") as folder:
            if isinstance(self.rule, Top):
                return self._top(self.rule, Path(folder))
            assert isinstance(self.rule, Unique)
            return self._unique(self.rule, Path(folder))

    def _top(self, rule: Top, folder: Path) -> Outcome:
        values = Spilled(folder / "values")
        for _, group, is_in in self._groups():
            found = values_of(group.columns[rule.top])[is_in]
            values.add(found[~np.isnan(found)])
        place = rule.place(values.num_values)
        threshold = values.at(place) if place < values.num_values else None
        return self._publish({"threshold": threshold, "num_values": values.num_values}, values.num_values, [])

    def _unique(self, rule: Unique, folder: Path) -> Outcome:
        seen = _Seen(folder, rule)
        places: list[tuple[int, str, int]] = []  # dataset, shard, rows: places count through all of them
        for number, group, is_in in self._groups():
            seen.add(group, is_in, self.per_image)
            places += [(number, shard, rows) for shard, rows in group.shards.items()]
        files: list[Committed] = []
        num_fallen = 0
        stale = {(number, name) for number, dataset in enumerate(self.datasets)
                 for name in dataset.tables(f"selections/{self.selection}/unique_{self.number}")}  # fmt: skip
        for number, shard, table in seen.fallen(places):
            storage = self.datasets[number].storage
            file = write_table(storage, fallen_table(self.selection, self.number, shard), table)
            files += [file] if number == 0 else []
            stale.discard((number, file.name))
            num_fallen += table.num_rows
        for number, name in stale:  # of an earlier run over other rows
            self.datasets[number].storage.remove(name)
        return self._publish({"num_values": seen.num_rows, "num_fallen": num_fallen}, seen.num_rows, files)

    def _publish(self, decision: Mapping[str, Any], num_rows: int, files: Sequence[Committed]) -> Outcome:
        text = json.dumps({"rule": self.rule.text, **decision}, indent=1).encode() + b"\n"
        file = self.dataset.storage.commit_bytes(decision_file(self.selection, self.number), text)
        return Outcome(Counts(num_rows, num_rows), (file, *files))

    def _groups(self) -> Iterator[tuple[int, Group, npt.NDArray[np.bool_]]]:
        """(dataset, group, which of its rows are still in)."""
        for number, dataset in enumerate(self.datasets):
            joined = self._joined(dataset)
            judge = Judge(
                self.before, decisions(self.dataset, dataset, self.selection, self.before), lists_of(self.before)
            )
            self.per_image = joined.columns[self.rule.columns[0]].per_image
            for shards in joined.groups():
                group = joined.read(shards)
                yield number, group, judge.judge(group).kept

    def _joined(self, dataset: Dataset) -> Joined:
        read = [name for rule in self.before for name in rule.columns]
        return Joined(dataset, [*read, *self.rule.columns, *self.rule.also_reads], self.captions)


class Spilled:
    """Numbers on disk, for the exact value at a place of their descending order: four passes, a bounded count each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self.num_values = 0

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Append values; none may be NaN."""
        bits = (values + 0.0).view(np.uint64)  # -0.0 and 0.0 are one value
        # Unsigned integers in the order of the numbers: negative ones turned over, positive ones above them.
        keys = np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))
        self._file.write(keys.tobytes())
        self.num_values += len(values)

    def at(self, place: int) -> float:
        """The value at `place`, counted from 0 down from the highest."""
        self._file.flush()
        keys = np.memmap(self._path, np.uint64, "r")
        prefix, above = 0, place
        for shift in (48, 32, 16, 0):
            counts = np.zeros(1 << 16, np.int64)
            for start in range(0, len(keys), CHUNK):
                chunk = np.asarray(keys[start : start + CHUNK])
                if shift < 48:
                    chunk = chunk[chunk >> np.uint64(shift + 16) == prefix]
                counts += np.bincount((chunk >> np.uint64(shift)).astype(np.int64) & 0xFFFF, minlength=1 << 16)
            down = np.cumsum(counts[::-1])
            bucket = int(np.searchsorted(down, above, side="right"))
            above -= int(down[bucket - 1]) if bucket else 0
            prefix = prefix << 16 | (0xFFFF - bucket)
        bits = prefix & ~(1 << 63) if prefix >> 63 else ~prefix & 0xFFFF_FFFF_FFFF_FFFF
        return float(np.array([bits], np.uint64).view(np.float64)[0])


class _Seen:
    """The rows that a Unique sees, on disk: their values, their order, and the uids of all rows by place."""

    def __init__(self, folder: Path, rule: Unique) -> None:
        self._folder = folder
        self._rule = rule
        self._connection = connect(memory_limit=MEMORY, temp_directory=str(folder))
        kind = "UBIGINT" if rule.distance is not None else "UHUGEINT"
        self._connection.execute(f"CREATE TABLE seen (place BIGINT, value {kind}, rank DOUBLE)")
        self._uids = (folder / "uids").open("wb")
        self._spans = (folder / "spans").open("wb")
        self._num_places = 0
        self.num_rows = 0

    def add(self, group: Group, is_in: npt.NDArray[np.bool_], per_image: bool) -> None:
        """Take in the rows that are still in and have a value; of an image's captions, the first speaks for all."""
        rule = self._rule
        names = {name: f"c{at}" for at, name in enumerate(dict.fromkeys((*rule.columns, *rule.also_reads)))}
        columns = {own: nan_as_null(group.columns[name]) for name, own in names.items()}
        value = names[rule.unique]
        if rule.distance is not None:
            columns[value] = as_hashes(columns[value])
        table = pa.table(columns)
        table = table.append_column("place", pa.array(np.arange(group.num_rows) + self._num_places))
        table = table.append_column("image", pa.array(group.images)).filter(pa.array(is_in))
        key = value if rule.distance is not None else f"md5_number(CAST({value} AS VARCHAR))"
        rank = f"nullif(TRY(CAST({rule.order.sql(names)} AS DOUBLE)), 'nan')" if rule.order is not None else "NULL"
        first = "QUALIFY row_number() OVER (PARTITION BY image ORDER BY place) = 1" if per_image else ""
        self._connection.register("rows", table)
        self._connection.execute(
            f"INSERT INTO seen SELECT place, {key}, {rank} FROM rows WHERE {value} IS NOT NULL {first}"
        )
        self._connection.unregister("rows")
        self._uids.write(group.uids.tobytes())
        self._spans.write(_spans(group.images if per_image else np.arange(group.num_rows), is_in).tobytes())
        self._num_places += group.num_rows
        self.num_rows = self._connection.execute("SELECT count(*) FROM seen").fetchall()[0][0]

    def fallen(self, places: Sequence[tuple[int, str, int]]) -> Iterator[tuple[int, str, pa.Table]]:
        """(dataset, shard, its rows that fall), for shards with any."""
        self._uids.close()
        self._spans.close()
        if not self.num_rows:
            return
        uids: Any = np.memmap(self._folder / "uids", np.uint8, "r").reshape(-1, UID_BYTES)
        rows, because, distances = self._equal() if self._rule.distance is None else self._near(self._rule.distance)
        rows, because, distances = self._with_their_captions(rows, because, distances)
        ends = np.cumsum([number for _, _, number in places])
        for (number, shard, size), end in zip(places, ends, strict=True):
            own = slice(*np.searchsorted(rows, (end - size, end)))
            if own.stop > own.start:
                yield (
                    number,
                    shard,
                    pa.table(
                        {
                            "row": pa.array(rows[own] - (end - size), pa.int64()),
                            "uid": _uid_array(uids[rows[own]]),
                            "because_of": _uid_array(uids[because[own]]),
                            "distance": pa.array(distances[own], pa.int16()),
                        }
                    ),
                )

    def _with_their_captions(self, rows: Places, because: Places, distances: Distances) -> Fallen:
        """An image falls with all its captions that are still in."""
        spans: Any = np.memmap(self._folder / "spans", np.int32, "r")
        number = spans[rows]
        into = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        rows, because, distances = (
            np.repeat(rows, number) + into,
            np.repeat(because, number),
            np.repeat(distances, number),
        )
        still_in = spans[rows] > 0
        return rows[still_in], because[still_in], distances[still_in]

    def _equal(self) -> Fallen:
        found = self._connection.execute("""
            SELECT place, lead FROM seen JOIN (
                SELECT value, arg_min(place,
                    {'without': rank IS NULL, 'rank': coalesce(-rank, 0), 'place': place}) AS lead
                FROM seen GROUP BY value HAVING count(*) > 1
            ) USING (value) WHERE place <> lead ORDER BY place""").fetchnumpy()
        rows, because = np.asarray(found["place"], np.int64), np.asarray(found["lead"], np.int64)
        return rows, because, np.zeros(len(rows), np.int16)

    def _near(self, distance: int) -> Fallen:
        """Hashes in the stated order on disk, judged greedily."""
        with (self._folder / "hashes").open("wb") as hashes, (self._folder / "places").open("wb") as places:
            reader: Any = self._connection.sql(
                "SELECT value, place FROM seen ORDER BY rank DESC NULLS LAST, place"
            ).to_arrow_reader(CHUNK)
            for batch in reader:
                hashes.write(batch.column(0).to_numpy().tobytes())
                places.write(batch.column(1).to_numpy().tobytes())
        in_order = np.memmap(self._folder / "hashes", np.uint64, "r")
        place = np.memmap(self._folder / "places", np.int64, "r")
        because = greedy_unique(in_order, distance, memory_bytes=NEAR_MEMORY_BYTES)
        ranks = np.flatnonzero(because >= 0)
        order = np.argsort(place[ranks], kind="stable")
        ranks = ranks[order]
        leads = because[ranks]
        return place[ranks], place[leads], np.bitwise_count(in_order[ranks] ^ in_order[leads]).astype(np.int16)


def settings_of(rules: Sequence[Rule], captions: Sequence[str]) -> dict[str, Any]:
    """What names a selection: each rule on its own, so that a changed one can be told."""
    numbered = {f"rule {number}": rule for number, rule in enumerate(rules, 1)}
    told = {name: rule.model_dump(mode="json", by_alias=True, exclude_none=True) for name, rule in numbered.items()}
    return {**told, "captions": list(captions)}


def decision_file(selection: str, number: int) -> str:
    """Name of what a rule decided."""
    return f"selections/{selection}/rule_{number}.json"


def fallen_table(selection: str, number: int, shard: str) -> str:
    """Name of the rows of a shard that fall by a Unique; absent where none do."""
    return f"selections/{selection}/unique_{number}/{shard}.parquet"


def decisions(home: Dataset, dataset: Dataset, selection: str, rules: Sequence[Rule]) -> dict[int, Decided]:
    """What was decided for `dataset`, by the number of the rule."""
    found: dict[int, Decided] = {}
    for number, rule in enumerate(rules):
        if isinstance(rule, Top):
            told = json.loads(home.storage.read(decision_file(selection, number)))
            found[number] = Decided(threshold=told["threshold"])
        elif isinstance(rule, Unique):
            found[number] = Decided(fallen=_Fallen(dataset, selection, number))
    return found


def decisions_digest(home: Dataset, selection: str, rules: Sequence[Rule]) -> list[Any]:
    """Digests of all files that the rules' decisions have written."""
    numbers = [number for number, rule in enumerate(rules) if rule.sees_all]
    marks = [home.ledger.done(f"select_{selection}.rule_{number}").get("all") for number in numbers]
    return [[file.identity for file in mark.files] if mark else None for mark in marks]


class _Fallen:
    """shard → places of its rows that fall."""

    def __init__(self, dataset: Dataset, selection: str, number: int) -> None:
        self._dataset, self._selection, self._number = dataset, selection, number

    def __call__(self, shard: str) -> npt.NDArray[np.int64]:
        try:
            table = read_table(self._dataset.storage, fallen_table(self._selection, self._number, shard), ["row"])
        except FileNotFoundError:
            return np.zeros(0, np.int64)
        return np.asarray(table["row"].to_numpy(), np.int64)


def _spans(images: npt.NDArray[np.int64], is_in: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Rows from each one to the last that it speaks for; 0 for a row that is out."""
    spans = np.searchsorted(images, images, side="right") - np.arange(len(images))
    return np.where(is_in, spans, 0).astype(np.int32)


def _uid_array(uids: npt.NDArray[np.uint8]) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(UID_BYTES), len(uids), [None, pa.py_buffer(np.ascontiguousarray(uids).tobytes())]
    )
