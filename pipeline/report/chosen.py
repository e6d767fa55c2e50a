"""What selections keep and drop: samples by reason, groups of duplicates, overlaps. Small results in plain types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pyarrow as pa

from filters.decide import fallen_table
from filters.joined import score_tables
from infra.removed import REMOVED
from infra.selection import Selection, selections
from infra.tables import urls
from pipeline.report.gallery import Picture
from pipeline.report.keyed import key_of, pictures_by_uid, texts_of, values_of
from pipeline.report.source import Source

NUM_PER_REASON = 12
NUM_GROUPS = 8
NUM_PER_GROUP = 4  # that fell, beside the kept one
MAX_SELECTIONS = 6
KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Shown:
    """One caption with its picture, and its values in the columns that the selection's rules read."""

    picture: Picture
    source: str  # of the caption: web, or a caption table
    text: str | None
    values: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows with one fate. ranks: for each column, the place of each row when sorted by it, highest first."""

    word: str
    num_rows: int
    shown: Sequence[Shown]
    ranks: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Album:
    """One selection's kept and dropped rows. columns: `table.column` as its rules name them, and bytes of the image."""

    name: str
    columns: Sequence[str]
    groups: Sequence[Group]


@dataclass(frozen=True, slots=True)
class Duplicates:
    """A kept picture and some of those that fell because of it, each with how many bits it is apart."""

    selection: str
    rule: str
    kept: Picture
    fell: Sequence[tuple[Picture, int]]
    num_fell: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two selections over the same captions."""

    one: str
    other: str
    both: int
    only_one: int
    only_other: int
    neither: int

    @property
    def jaccard(self) -> float:
        """Kept by both of kept by either, in [0, 1]."""
        either = self.both + self.only_one + self.only_other
        return self.both / either if either else 1.0


def chosen(source: Source) -> list[Selection]:
    """The finished selections, at most six."""
    return [Selection(source.dataset, name) for name in selections(source.dataset)[:MAX_SELECTIONS]]


def album(source: Source, selection: Selection, seed: int) -> Album:
    """A sample of each reason's rows, drawn by a hash of the uid. Denied and removed rows are never shown."""
    named = dict.fromkeys(name for rule in selection.summary["rules"] for name in rule["columns"])
    columns = [name for name in named if _can_be_read(source, name)]
    files = {"files": files_of(source, selection)}
    counts = {KEPT: selection.summary["rows_out"], **dict(_by_number(selection.summary["dropped"]))}
    groups = []
    for word, number in counts.items():
        if not number or word == REMOVED or word.startswith("denied"):
            continue
        rows = source.query(
            """
            SELECT s.uid, s.source, s.n, parse_filename(s.filename, true) AS shard
            FROM read_parquet($files, filename = true) s
            WHERE CASE WHEN keep THEN 'kept' ELSE reason END = $word
            ORDER BY hash(s.uid, $seed), s.source, s.n LIMIT $limit""",
            {**files, "word": word, "seed": seed, "limit": NUM_PER_REASON},
        )
        groups.append(_group(source, word, number, rows, columns))
    return Album(selection.name, columns, groups)


def duplicates(source: Source, selection: Selection) -> list[Duplicates]:
    """Groups of pictures of which one was kept, the largest first."""
    found: list[Duplicates] = []
    for number, rule in enumerate(selection.summary["rules"]):
        folder = fallen_table(selection.name, number, "").rpartition("/")[0]
        names = source.dataset.tables(folder) if rule["rule"] == "unique" else []
        if not names:
            continue
        files = {"files": urls(source.storage, names)}
        leads = source.query(
            f"""SELECT because_of, count(*) AS n FROM read_parquet($files)
            GROUP BY ALL ORDER BY n DESC, because_of LIMIT {NUM_GROUPS}""", files,
        )  # fmt: skip
        fell = source.query(
            f"""SELECT uid, because_of, distance FROM read_parquet($files) WHERE list_contains($leads, because_of)
            QUALIFY row_number() OVER (PARTITION BY because_of ORDER BY distance DESC, uid) <= {NUM_PER_GROUP}
            ORDER BY distance, uid""", {**files, "leads": [row["because_of"] for row in leads]},
        )  # fmt: skip
        uids = [{"uid": row["uid"]} for row in fell] + [{"uid": row["because_of"]} for row in leads]
        shown = pictures_by_uid(source, uids)
        for lead in leads:
            own = [(shown[row["uid"]], row["distance"]) for row in fell
                   if row["because_of"] == lead["because_of"] and row["uid"] in shown]  # fmt: skip
            if lead["because_of"] in shown and own:  # a kept row of another dataset is not here
                kept = shown[lead["because_of"]]
                found.append(Duplicates(selection.name, rule["text"], kept, own, lead["n"]))
    return found


def overlaps(source: Source, found: Sequence[Selection]) -> list[Overlap]:
    """Every two of the selections, by (uid, source, n)."""
    result = []
    for one, other in combinations(found, 2):
        rows = source.query(
            """
            SELECT a.keep AS one, b.keep AS other, count(*) AS n
            FROM read_parquet($one) a JOIN read_parquet($other) b USING (uid, source, n) GROUP BY ALL""",
            {"one": files_of(source, one), "other": files_of(source, other)},
        )
        number = {(row["one"], row["other"]): row["n"] for row in rows}
        counts = (number.get(key, 0) for key in ((True, True), (True, False), (False, True), (False, False)))
        result.append(Overlap(one.name, other.name, *counts))
    return result


def _can_be_read(source: Source, column: str) -> bool:
    """Does its value say something to a person? Hashes do not."""
    table, _, name = column.partition(".")
    schema = score_tables(source.dataset).get(table)
    kind = schema.field(name).type if schema is not None else pa.string()
    return not (kind == pa.uint64() or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _group(source: Source, word: str, number: int, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Group:
    pictures = pictures_by_uid(source, rows)
    texts = texts_of(source, rows, pictures)
    values = values_of(source, rows, columns)
    shown = [
        Shown(
            pictures[row["uid"]],
            row["source"],
            texts.get(key_of(row)),
            [values[name].get(key_of(row)) for name in columns],
        )
        for row in rows
        if row["uid"] in pictures
    ]
    sorted_by = [*range(len(columns)), len(columns)]
    ranks = [_ranks([_sortable(one, at) for one in shown]) for at in sorted_by]
    return Group(word, number, shown, ranks)


def _sortable(one: Shown, at: int) -> float:
    value = one.values[at] if at < len(one.values) else one.picture.row.get("bytes")
    return float(value) if isinstance(value, int | float) and value == value else float("-inf")


def _ranks(values: Sequence[float]) -> list[int]:
    order = sorted(range(len(values)), key=lambda at: -values[at])
    ranks = [0] * len(values)
    for rank, at in enumerate(order):
        ranks[at] = rank
    return ranks


def files_of(source: Source, selection: Selection) -> list[str]:
    """A selection's tables, as DuckDB reads them."""
    return urls(source.storage, source.dataset.tables(f"selections/{selection.name}"))


def _by_number(dropped: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
