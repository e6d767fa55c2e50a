"""Scores and captions made elsewhere (LAION's columns, DataComp's metadata, any table) become tables of a dataset.

scores/NAME/SHARD.parquet     a row for each of the dataset's; what the table does not know is null
captions/NAME/SHARD.parquet   with a caption column: uid, source, n, text, and the table's further columns

One join over all rows, which spills to disk; either side may be far larger than memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa

from filters.base import column
from filters.foreign import Foreign, clean_names, find_foreign, let_read, quoted_name
from filters.placed import PLACE, cut, spilling
from filters.score import IMPORTED, check_name, was_imported
from infra.dataset import Dataset
from infra.errors import PairmillError, UsageError
from infra.jobs import Executor, Job, Outcome, RunOptions, Step, StepResult, refuse_changed_settings, require, run_jobs
from infra.ledger import Counts
from infra.log import one_line
from infra.progress import Progress
from infra.rows import CAPTION_NAMES, URL_NAMES, Rows
from infra.storage import Committed
from infra.tables import KEYS, write_keyed_table

On = Literal["uid", "key", "url"]
Per = Literal["caption", "image"]
USUAL: dict[On, tuple[str, ...]] = {"uid": ("uid",), "url": URL_NAMES, "key": ("key",)}  # tried in this order
TEXT = column("text", pa.string(), "the caption")
MEMORY = "2GB"


def import_table(
    dataset: Dataset,
    tables: Sequence[str],
    name: str,
    executor: Executor,
    *,
    on: On | None = None,
    caption_col: str | None = None,
    per: Per = "caption",
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> StepResult:
    """Join tables to a dataset's rows by uid, key or url (unset: the first of uid, url, key that they have).

    caption_col: the tables hold captions, in this column. per: the scores are of the web's captions, or of images and
    so of every caption. Counts' extra has `missing` rows of the dataset, `unmatched` and `unreadable` rows of tables
    and, for scores, `duplicates`: rows of a key that an earlier row has. Raises UsageError for a table or column that
    is not there and for tables of which no row belongs to the dataset, FingerprintError where NAME was made of
    something else.
    """
    options = options or RunOptions()
    step = make_step(dataset, tables, name, on=on, caption_col=caption_col, per=per)
    refuse_changed_settings(step, "Give another --as, or the tables and options of the first import")
    if not dataset.ledger.done(step.name):
        step.check()
    return require(run_jobs(step, executor, attempts=options.attempts, progress=progress), options.max_quarantined)


def make_step(
    dataset: Dataset,
    tables: Sequence[str],
    name: str,
    *,
    on: On | None = None,
    caption_col: str | None = None,
    per: Per = "caption",
) -> Import:
    """The import, checked as far as it can be before it runs."""
    foreign, kinds = _look_at(tables)
    candidates = [(way, alias) for way, aliases in USUAL.items() for alias in aliases if on in (None, way)]
    found = next(((way, alias) for way, alias in candidates if alias in kinds), None)
    has = f"it has {', '.join(kinds)}"
    if found is None:
        wanted = " or ".join(alias for _, alias in candidates)
        raise UsageError(f"{foreign.files[0]}: no column {wanted} to join by; {has}; see --on")
    if caption_col is not None and kinds.get(caption_col) != "VARCHAR":
        raise UsageError(f"{foreign.files[0]}: no text column {caption_col}; {has}; see --caption-col")
    # What a row has already is not scored again: a rule that names it means the row's own.
    rows = Rows(dataset)
    own = {"key", "uid", *URL_NAMES, *CAPTION_NAMES, caption_col, found[1], *rows.columns().names}
    values = [other for other in kinds if other not in own and not other.startswith("__index_level_")]
    if not values and caption_col is None:
        raise UsageError(
            f"{foreign.files[0]}: no scores there that the rows lack; {has}; for captions see --caption-col"
        )
    step = Import(rows, check_name(name), foreign, found, {v: kinds[v] for v in values}, caption_col, per)
    if was_imported(dataset.ledger, step.name) is False:
        maker = "a scorer's table" if caption_col is None else "a captioner's table"
        raise UsageError(f"{dataset.storage.url}: {step.folder} is {maker}; give another --as")
    return step


def _look_at(tables: Sequence[str]) -> tuple[Foreign, dict[str, str]]:
    """The tables, and their columns with DuckDB's types. Raises UsageError where they cannot be reached or read."""
    try:
        foreign = find_foreign(tables)
        with duckdb.connect() as connection:
            let_read(connection, foreign.files)
            return foreign, foreign.columns(connection)
    except PairmillError:
        raise
    except Exception as error:  # every kind of store has errors of its own
        if not any("://" in table for table in tables):
            raise
        mend = "are the address and the store's credentials (such as AWS_ACCESS_KEY_ID) right?"
        raise UsageError(f"{', '.join(tables)}: cannot be reached: {one_line(str(error))}; {mend}") from None


class Import(Step):
    """One job: the keys of the dataset's rows are joined to the tables' rows, and the result written shard by shard."""

    derived = True  # a dataset that has grown is joined anew

    def __init__(
        self,
        rows: Rows,
        table: str,
        foreign: Foreign,
        on: tuple[On, str],
        values: Mapping[str, str],
        caption_col: str | None,
        per: Per,
    ) -> None:
        """on: what is compared, and the tables' column for it. values: their further columns, with DuckDB's types."""
        self.dataset = rows.dataset
        self.rows = rows
        self.table = table
        self.foreign = foreign
        self.way, self.key_column = on
        self.values = dict(values)
        self.caption_col = caption_col
        self.per = per
        self.names = clean_names(values, [*KEYS.names, "text"])
        self.name = f"{'score' if caption_col is None else 'captions'}_{table}"
        self.folder = f"{'scores' if caption_col is None else 'captions'}/{table}"
        self.digests = foreign.digests()

    def settings(self) -> Mapping[str, Any]:
        """The tables, by content, and how they are joined."""
        return {IMPORTED: self.digests, "on": self.key_column, "caption_col": self.caption_col, "per": self.per}

    def inputs(self, job: Job) -> Any:
        """Every shard with its digest."""
        return {shard: self.rows.digest(shard) for shard in self.rows.shards}

    def plan(self) -> Sequence[Job]:
        """One job."""
        return [Job("all")]

    def run(self, job: Job) -> Outcome:
        """Rows in = rows of the dataset, or captions found for them; a caption that is null is dropped as `no_text`."""
        with self._opened() as (connection, unreadable):
            sizes = self._take_in_rows(connection, self.rows.shards)
            tallies = self._match(connection) | {"unreadable": unreadable}
            files: list[Committed] = []
            num_rows = 0
            for shard, found in cut(self._found(connection), sizes):
                uids = self.rows.read(shard, [])["uid"]
                table = self._scores(uids, found) if self.caption_col is None else self._captions(uids, found)
                files.append(write_keyed_table(self.dataset.storage, f"{self.folder}/{shard}.parquet", table))
                num_rows += table.num_rows
        for stale in set(self.dataset.tables(self.folder)) - {file.name for file in files}:
            self.dataset.storage.remove(stale)
        no_text = tallies.pop("no_text", 0)
        dropped = {"no_text": no_text} if no_text else {}
        extra = {word: number for word, number in tallies.items() if number}
        return Outcome(Counts(num_rows + no_text, num_rows, dropped, extra), tuple(files))

    def check(self) -> None:
        """Raise UsageError where no row of the tables belongs to the dataset. The first shard mostly tells."""
        with self._opened() as (connection, _):
            key = self._foreign_key()
            connection.execute(
                f"CREATE TEMP VIEW theirs AS SELECT {key} AS name, md5_number({key}) AS _key FROM foreign_rows"
            )
            for shards in (self.rows.shards[:1], self.rows.shards[1:]):
                self._take_in_rows(connection, shards)
                if connection.execute("SELECT 1 FROM theirs SEMI JOIN wanted USING (_key) LIMIT 1").fetchall():
                    return
            theirs = connection.execute("SELECT name FROM theirs WHERE name IS NOT NULL LIMIT 1").fetchall()
        keys = (key for shard in self.rows.shards for key in self.rows.read(shard, [])[self.way].to_pylist())
        ours = next((key for key in keys if key is not None), None)
        raise UsageError(
            f"{self.foreign.files[0]}: no row there belongs to this dataset; {self.key_column} is such as "
            f"{_shown(theirs[0][0] if theirs else None)} there, {self.way} {_shown(ours)} here; see --on"
        )

    @contextmanager
    def _opened(self) -> Iterator[tuple[duckdb.DuckDBPyConnection, int]]:
        """A query that sees `foreign_rows`, and how many of them cannot be read."""
        with spilling(MEMORY) as connection, tempfile.TemporaryDirectory(prefix="pairmill-import-") as folder:
            let_read(connection, self.foreign.files)
            as_text = [self.key_column, self.caption_col or ""]
            yield connection, self.foreign.open(connection, Path(folder), as_text)

    def _take_in_rows(self, connection: duckdb.DuckDBPyConnection, shards: Sequence[str]) -> dict[str, int]:
        """`wanted`: a row for each of the shards', with its key hashed to 128 bits. Returns the shards' sizes."""
        connection.execute("CREATE OR REPLACE TABLE wanted (_place BIGINT, _key UHUGEINT)")
        sizes: dict[str, int] = {}
        start = 0
        for shard in shards:
            rows = self.rows.read(shard, [])
            places = pa.array(np.arange(start, start + rows.num_rows))
            connection.register("arriving", pa.table([places, rows[self.way]], ["place", "name"]))
            name = "lower(hex(name))" if self.way == "uid" else "name"
            connection.execute(f"INSERT INTO wanted SELECT place, md5_number({name}) FROM arriving")
            connection.unregister("arriving")
            sizes[shard] = rows.num_rows
            start += rows.num_rows
        return sizes

    def _match(self, connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
        """`matched`: the tables' rows that have a counterpart. Returns how many rows, on either side, have none."""
        text = [] if self.caption_col is None else [f"CAST({quoted_name(self.caption_col)} AS VARCHAR) AS text"]
        values = [f"{_as_arrow(name, self.values[name])} AS {quoted_name(clean)}" for name, clean in self.names.items()]
        columns = ", ".join([f"md5_number({self._foreign_key()}) AS _key", "_at", *text, *values])
        connection.execute(
            f"CREATE TABLE matched AS SELECT * FROM (SELECT {columns} FROM foreign_rows) SEMI JOIN wanted USING (_key)"
        )

        def count(query: str) -> int:
            return int(connection.execute(f"SELECT count(*) FROM {query}").fetchall()[0][0])

        num_matched = count("matched")
        tallies = {
            "unmatched": count("foreign_rows") - num_matched,
            "missing": count("wanted") - count("wanted SEMI JOIN matched USING (_key)"),
        }
        if self.caption_col is not None:
            return tallies | {"no_text": count("wanted JOIN matched USING (_key) WHERE text IS NULL")}
        # Of several rows of a key the first counts, in the order of the files and of their rows.
        connection.execute("CREATE TABLE leads AS SELECT _key, min(_at) AS _at FROM matched GROUP BY _key")
        return tallies | {"duplicates": num_matched - count("leads")}

    def _foreign_key(self) -> str:
        """What a row of the tables is joined by, in SQL."""
        key = quoted_name(self.key_column)
        if self.way != "uid":
            return f"CAST({key} AS VARCHAR)"
        # A uid may be 16 bytes, hex digits, or a UUID with dashes.
        return (
            f"CASE WHEN typeof({key}) = 'BLOB' THEN lower(hex(CAST({key} AS BLOB))) "
            f"ELSE replace(lower(CAST({key} AS VARCHAR)), '-', '') END"
        )

    def _found(self, connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyRelation:
        """What was found for each row of the dataset, in the order of the rows."""
        which = "SEMI JOIN leads USING (_key, _at)" if self.caption_col is None else "WHERE text IS NOT NULL"
        return connection.sql(f"""
            SELECT w._place, m.* EXCLUDE (_key, _at) FROM wanted w JOIN (SELECT * FROM matched {which}) m USING (_key)
            ORDER BY w._place, m._at""")

    def _scores(self, uids: pa.ChunkedArray, found: pa.Table) -> pa.Table:
        """A row for each of the shard's; null where nothing was found."""
        which = np.full(len(uids), -1)
        which[found[PLACE].to_numpy()] = np.arange(found.num_rows)
        values = found.drop_columns([PLACE]).take(pa.array(which, mask=which < 0))
        if self.per == "image":
            return self._keyed(uids, None, pa.nulls(len(uids)), values)
        return self._keyed(uids, "web", np.zeros(len(uids)), values)

    def _captions(self, uids: pa.ChunkedArray, found: pa.Table) -> pa.Table:
        """A row for each caption; those of one row of the shard count from 0."""
        places = found[PLACE].to_numpy()
        firsts = np.searchsorted(places, places)
        return self._keyed(
            uids.take(found[PLACE]), self.table, np.arange(len(places)) - firsts, found.drop_columns([PLACE])
        )

    def _keyed(self, uids: pa.ChunkedArray, source: str | None, n: Any, values: pa.Table) -> pa.Table:
        originals = {clean: name for name, clean in self.names.items()}
        fields = [
            TEXT if f.name == "text" else column(f.name, f.type, f"{originals[f.name]}, as it was imported")
            for f in values.schema
        ]
        keys = [uids, pa.repeat(pa.scalar(source, pa.string()), len(uids)), pa.array(n, pa.int32())]
        return pa.table([*keys, *values.columns], schema=pa.schema([*KEYS, *fields]))


def _shown(key: bytes | str | None) -> str:
    return "null" if key is None else key.hex() if isinstance(key, bytes) else one_line(key)


def _as_arrow(name: str, kind: str) -> str:
    """A column in SQL, of a type that parquet and every reader know."""
    if kind in ("JSON", "UUID", "BIT", "BIGNUM") or kind.startswith("ENUM"):
        return f"CAST({quoted_name(name)} AS VARCHAR)"
    if kind in ("HUGEINT", "UHUGEINT"):
        return f"CAST({quoted_name(name)} AS DOUBLE)"
    return quoted_name(name)
