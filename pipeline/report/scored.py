"""Columns of score tables as histograms or counts, with the cuts that selections make. Aggregates in DuckDB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from filters.base import description
from filters.joined import SCORES, score_tables
from infra.selection import Selection, selections
from infra.tables import KEYS, urls
from pipeline.report.source import Source

NUM_BINS = 40
MAX_VALUES = 12  # of a column of words
MAX_COLUMNS = 40


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a rule of a selection cuts a column: rows for which `column op value` does not hold fall."""

    selection: str
    rule: str
    op: str
    value: float

    def drops(self, low: float, high: float) -> bool:
        """Does a bin from low to high lie on the side that falls?"""
        middle = (low + high) / 2
        return {"<": middle >= self.value, "<=": middle > self.value, ">": middle <= self.value,
                ">=": middle < self.value}.get(self.op, False)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ScoreColumn:
    """One column: its bins (low edge, high edge, rows) or its most frequent values, and what is missing."""

    table: str
    name: str
    description: str
    num_rows: int
    num_missing: int
    bins: Sequence[tuple[float, float, int]] = ()
    values: Mapping[str, int] | None = None
    cuts: Sequence[Cut] = ()


def score_columns(source: Source) -> list[ScoreColumn]:
    """Every column of every score table that can be drawn, hashes left out; at most 40."""
    cuts = list(_cuts(source))
    found: list[ScoreColumn] = []
    for table, schema in score_tables(source.dataset).items():
        files = [file.name for file in source.dataset.ledger.tables(SCORES + table, f"scores/{table}").values()]
        for field in schema:
            if field.name not in KEYS.names and len(found) < MAX_COLUMNS:
                own = [cut for of, name, cut in cuts if (of, name) == (table, field.name)]
                column = _column(source, table, field, urls(source.storage, files), own)
                found += [column] if column is not None else []
    return found


def _column(
    source: Source, table: str, field: pa.Field, files: Sequence[str], cuts: Sequence[Cut]
) -> ScoreColumn | None:
    is_number = pa.types.is_floating(field.type) or (pa.types.is_integer(field.type) and field.type != pa.uint64())
    is_word = pa.types.is_string(field.type) or pa.types.is_boolean(field.type)
    if not (is_number or is_word):
        return None
    name = '"' + field.name.replace('"', '""') + '"'
    # Not-a-number is a missing value here, as it is to rules.
    value = f"nullif({name}, 'nan'::DOUBLE)" if pa.types.is_floating(field.type) else name
    rows = f"(SELECT {value} AS v FROM read_parquet($files))"
    told = source.query(f"SELECT count(*) AS n, count(*) - count(v) AS missing FROM {rows}", {"files": files})[0]
    facts = (table, field.name, description(field), told["n"], told["missing"])
    if is_word:
        counted = source.query(
            f"SELECT CAST(v AS VARCHAR) AS v, count(*) AS n FROM {rows} WHERE v IS NOT NULL "
            f"GROUP BY ALL ORDER BY n DESC, v LIMIT {MAX_VALUES}", {"files": files},
        )  # fmt: skip
        return ScoreColumn(*facts, values={row["v"]: row["n"] for row in counted}) if counted else None
    bins = _bins(source, rows, files, pa.types.is_integer(field.type), [cut.value for cut in cuts])
    return ScoreColumn(*facts, bins=bins, cuts=cuts) if bins else None


def _bins(
    source: Source, rows: str, files: Sequence[str], is_whole: bool, cuts: Sequence[float]
) -> list[tuple[float, float, int]]:
    """Equal bins over the middle 99 % of the values and all cuts; what lies outside is counted at the ends."""
    told = source.query(
        f"SELECT quantile_cont(v, 0.005) AS low, quantile_cont(v, 0.995) AS high, min(v) AS least, max(v) AS most "
        f"FROM {rows} WHERE isfinite(v::DOUBLE)", {"files": files},
    )[0]  # fmt: skip
    if told["least"] is None:
        return []
    low = max(float(told["least"]), min(float(told["low"]), *cuts, float(told["high"])))
    high = min(float(told["most"]), max(float(told["high"]), *cuts, low))
    width = (high - low) / NUM_BINS
    if is_whole:
        width = max(1.0, -(-(high - low + 1) // NUM_BINS))
    if width <= 0:
        low, width = low - 0.5, 1.0
    last = NUM_BINS - 1 if not is_whole else int((high - low) // width)
    counted = source.query(
        f"SELECT least($last, greatest(0, floor((v::DOUBLE - $low) / $width)))::INTEGER AS bin, count(*) AS n "
        f"FROM {rows} WHERE v IS NOT NULL AND NOT isnan(v::DOUBLE) GROUP BY ALL ORDER BY bin",
        {"files": files, "low": low, "width": width, "last": last},
    )  # fmt: skip
    return [(low + row["bin"] * width, low + (row["bin"] + 1) * width, row["n"]) for row in counted]


def _cuts(source: Source) -> Iterator[tuple[str, str, Cut]]:
    """(table, column, cut) of every finished selection's rules."""
    for name in selections(source.dataset):
        for rule in Selection(source.dataset, name).summary["rules"]:
            for cut in rule["cuts"]:
                if isinstance(cut["value"], int | float):
                    yield cut["table"], cut["column"], Cut(name, rule["text"], cut["op"], float(cut["value"]))


def value_text(value: Any) -> str:
    """A number in few letters."""
    return f"{value:.4g}" if isinstance(value, float) and not value.is_integer() else f"{value:,.0f}"
