"""Rows of a dataset with the columns of its score tables beside them, a group of shards at a time.

Tables are joined by uid (and source, n). A score table's footer says which uids it holds in which order, so where they
are those of the rows, its columns are read as they lie and no uid of it is read at all; elsewhere DuckDB joins.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.dataset import Dataset
from infra.errors import DatasetError, RecipeError
from infra.recipe import fingerprint
from infra.rows import Rows
from infra.storage import Committed
from infra.tables import CAPTIONS_DIGEST, KEYS, UIDS_DIGEST, keys_digests, open_table, read_table

SCORES = "score_"  # the ledger's steps of score tables
ROW = "row"  # the table of the row's own columns: url, caption, width …
ALIGNED = (b"image", b"web")  # captions of tables whose rows are the dataset's, one each
GROUP_ROWS = 1_000_000


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a rule: as the recipe names it, and where it lies."""

    name: str
    table: str
    column: str
    per_image: bool


@dataclass(frozen=True)
class Group:
    """Rows of some shards in order: keys, and values by the recipe's names."""

    shards: Mapping[str, int]  # shard → its rows
    columns: Mapping[str, pa.ChunkedArray]
    digests: Mapping[str, tuple[bytes, bytes]]  # of each shard's keys, as far as they are known
    load_keys: Callable[[], pa.Table]

    @property
    def num_rows(self) -> int:
        """Captions of all its shards."""
        return sum(self.shards.values())

    @cached_property
    def keys(self) -> pa.Table:
        """uid, source and n of each row; read when they are asked for, since a threshold needs none."""
        return self.load_keys()

    @cached_property
    def images(self) -> npt.NDArray[np.int64]:
        """A number for each row: which image it is of, counted from 0. An image's captions begin with the web's.

        Not told from the uids: folders of others may have one twice, side by side.
        """
        is_first = pc.and_(pc.equal(self.keys["source"], "web"), pc.equal(self.keys["n"], 0))
        return np.cumsum(is_first.to_numpy()) - 1

    @property
    def uids(self) -> npt.NDArray[np.uint64]:
        """(rows, 2) big-endian halves of the uids: they sort as the bytes do."""
        held = self.keys["uid"].combine_chunks()
        return np.frombuffer(held.buffers()[1], ">u8").reshape(-1, 2)[held.offset : held.offset + len(held)]

    def parts(self) -> Iterator[tuple[str, slice]]:
        """Each shard and its rows."""
        start = 0
        for shard, number in self.shards.items():
            yield shard, slice(start, start + number)
            start += number


class Joined:
    """One dataset's rows and score tables. Raises RecipeError for a column that is in none of them, or in several."""

    def __init__(self, dataset: Dataset, names: Sequence[str], captions: Sequence[str] = ()) -> None:
        self.dataset = dataset
        self.rows = Rows(dataset)
        self.captions = tuple(captions)
        self.schemas = score_tables(dataset)
        self.columns = {name: self._resolve(name) for name in dict.fromkeys(names)}
        tables = dict.fromkeys(column.table for column in self.columns.values() if column.table != ROW)
        self._scores = {table: self._complete(SCORES + table, f"scores/{table}") for table in tables}
        self._captions = {name: self._complete(f"captions_{name}", f"captions/{name}") for name in self.captions}

    def inputs(self, shards: Sequence[str]) -> str:
        """A word that changes with anything that `read` of these shards reads."""
        tables = [*self._scores.items(), *self._captions.items()]
        return fingerprint(
            [self.rows.digest(shard) for shard in shards],
            [[name, *(found[shard].identity for shard in shards)] for name, found in tables],
        )

    def types(self) -> dict[str, pa.DataType]:
        """The type of each column that was asked for, as the first table has it; half floats are read as floats."""
        rows = self.rows.columns()
        found = {}
        for name, column in self.columns.items():
            schema = self.schemas.get(column.table, KEYS if column.column in self._of_keys else rows)
            kind = schema.field(column.column).type if column.column in schema.names else pa.string()
            found[name] = pa.float32() if pa.types.is_float16(kind) else kind
        return found

    def groups(self, num_rows: int = GROUP_ROWS) -> list[list[str]]:
        """Shards in order, cut into groups of about `num_rows` rows: small shards share a query."""
        groups: list[list[str]] = []
        size = num_rows
        for shard in self.rows.shards:
            if size >= num_rows:
                groups.append([])
                size = 0
            groups[-1].append(shard)
            size += self._about(shard, num_rows)
        return groups

    def read(self, shards: Sequence[str], names: Sequence[str] | None = None) -> Group:
        """Rows of these shards with the columns `names` (None: all that were asked for)."""
        wanted = [self.columns[name] for name in (self.columns if names is None else dict.fromkeys(names))]
        with ThreadPoolExecutor(2 if self.dataset.storage.is_local else 16) as pool:
            parts = list(pool.map(lambda shard: self._read(shard, wanted), shards))
        columns = {column.name: _concat([part.columns[column.name] for part in parts]) for column in wanted}
        counts = {shard: part.num_rows for shard, part in zip(shards, parts, strict=True)}
        digests = {shard: known for part in parts for shard, known in part.digests.items()}
        return Group(counts, columns, digests, lambda: pa.concat_tables([part.keys for part in parts]))

    def _read(self, shard: str, wanted: Sequence[Column]) -> Group:
        names: dict[str, list[Column]] = {}
        for column in wanted:
            names.setdefault(column.table, []).append(column)
        files = {table: self._open(table, shard) for table in names if table != ROW}
        columns: dict[str, pa.ChunkedArray] = {}
        keys: pa.Table | None = None
        first = None if ROW in names else self._vouching(shard, files)
        if first is not None:
            num_rows, digest = first.metadata.num_rows, _word(first, UIDS_DIGEST)
        else:
            own = [column.column for column in names.get(ROW, ()) if column.column not in self._of_keys]
            rows = self.rows.read(shard, own)
            keys, places = self._keys(shard, rows["uid"])
            num_rows, digest = keys.num_rows, None if self.captions else keys_digests(keys)[0]
            for column in names.pop(ROW, ()):
                if column.column in self._of_keys:
                    columns[column.name] = keys[column.column]
                    continue
                values = rows[column.column]
                columns[column.name] = values if places is None else values.take(places)

        def load_keys() -> pa.Table:
            return keys if first is None else _web_keys(first.read(["uid"])["uid"])

        for table, file in files.items():
            own = list(dict.fromkeys(column.column for column in names[table]))
            is_aligned = _word(file, UIDS_DIGEST) == digest and _word(file, CAPTIONS_DIGEST) in ALIGNED
            scores = file.read(own) if is_aligned else _joined(load_keys(), file.read([*KEYS.names, *own]), own)
            columns |= {column.name: scores[column.column] for column in names[table]}
        return Group({shard: num_rows}, columns, {shard: (digest, b"web")} if digest is not None else {}, load_keys)

    def _vouching(self, shard: str, files: Mapping[str, pq.ParquetFile]) -> pq.ParquetFile | None:
        """A score table whose rows are just the shard's, so that the shard's own table need not be read."""
        known = self.rows.num_rows(shard)
        if known is None or self.captions:
            return None
        fits = (file for file in files.values() if _word(file, CAPTIONS_DIGEST) in ALIGNED and _word(file, UIDS_DIGEST))
        return next((file for file in fits if file.metadata.num_rows == known), None)

    def _keys(self, shard: str, uids: pa.ChunkedArray) -> tuple[pa.Table, pa.Array | None]:
        """Keys of the web's captions; with further ones behind them, also the place of each one's row."""
        web = _web_keys(uids)
        if not self.captions:
            return web, None
        tables = [
            read_table(self.dataset.storage, f"captions/{name}/{shard}.parquet", KEYS.names) for name in self.captions
        ]
        further = pa.concat_tables([table.cast(KEYS) for table in tables])
        # The web's caption of an image first, then the others in the order of the recipe.
        places = pa.concat_arrays([
            pa.array(np.arange(len(uids)), pa.int32()),
            pc.index_in(further["uid"], value_set=uids.combine_chunks()).combine_chunks(),
        ])  # fmt: skip
        order = np.argsort(places.fill_null(len(uids)).to_numpy(), kind="stable")[: len(places) - places.null_count]
        return pa.concat_tables([web, further]).take(order), places.take(order)

    def _open(self, table: str, shard: str) -> pq.ParquetFile:
        return open_table(self.dataset.storage, f"scores/{table}/{shard}.parquet")

    def _about(self, shard: str, default: int) -> int:
        known = self.rows.num_rows(shard)
        return default if known is None else known

    def _complete(self, step: str, folder: str) -> Mapping[str, Committed]:
        tables = self.dataset.ledger.tables(step, folder)
        missing = [shard for shard in self.rows.shards if shard not in tables]
        if missing:
            raise DatasetError(
                f"{self.dataset.storage.url}: {folder} lacks {len(missing)} of {len(self.rows.shards)} shards "
                f"(first {missing[0]}); run the command that made it again: it goes on where it stopped"
            )
        return tables

    def _resolve(self, name: str) -> Column:
        table, dot, column = name.partition(".")
        if dot and (table in self.schemas or table == ROW):
            owners = [table] if column in self._fields(table) else []
        else:
            owners = [table for table in self.schemas if name in self._fields(table)]
            # A score is asked for before a column of the row: it was made on purpose.
            owners, column = owners or [ROW] * (name in self._fields(ROW)), name
        if len(owners) == 1:
            return Column(name, owners[0], column, owners[0] == ROW or self._is_per_image(owners[0]))
        if owners:
            choice = " or ".join(f"{owner}.{name}" for owner in owners)
            raise RecipeError(f"column {name} is in several tables; write {choice}")
        known = [f"{table}.{field}" for table in (*self.schemas, ROW) for field in self._fields(table)]
        close = difflib.get_close_matches(name, [*known, *(one.partition(".")[2] for one in known)], n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)};"
        raise RecipeError(
            f"{self.dataset.storage.url}: no column {name}; {hint} Scores are made by python -m filters score"
        )

    def _fields(self, table: str) -> list[str]:
        if table != ROW:
            return [name for name in self.schemas[table].names if name not in KEYS.names]
        return list(dict.fromkeys(("key", "url", "caption", *self._of_keys, *self.rows.columns().names)))

    @cached_property
    def _of_keys(self) -> list[str]:
        """Which caption a row is: a rule may ask that, too, unless the row has columns of its own by these names."""
        return [name for name in ("source", "n") if name not in self.rows.columns().names]

    def _is_per_image(self, table: str) -> bool:
        return (self.schemas[table].metadata or {}).get(CAPTIONS_DIGEST) == b"image"


def score_tables(dataset: Dataset) -> dict[str, pa.Schema]:
    """The score tables that the ledger names, with their columns (KEYS among them), sorted by name."""
    found = {}
    for step in dataset.ledger.steps():
        mark = dataset.ledger.any_done(step) if step.startswith(SCORES) else None
        if mark is not None:
            tables = (open_table(dataset.storage, file.name) for file in mark.files)
            # An empty table is of images as well as of captions.
            last = next((table for table in tables if table.metadata.num_rows), None)
            table = last or open_table(dataset.storage, mark.files[0].name)
            found[step.removeprefix(SCORES)] = table.schema_arrow
    return found


def _joined(keys: pa.Table, scores: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The scores of each key, null where it has none; by uid alone where the scores are of images.

    Where a shard has a key twice (folders of others may), its first row has the first of the scores, and so on.
    """
    connection = duckdb.connect()
    connection.register("keys", _numbered(keys))
    kinds = [scores.schema.field(name) for name in columns]
    # Names of our own: those of a table may hold anything.
    own = [f"c{at}" for at in range(len(columns))]
    connection.register("scores", _numbered(scores.select([*KEYS.names, *columns]).rename_columns([*KEYS.names, *own])))
    turn = "row_number() OVER (PARTITION BY uid, source, n ORDER BY place) AS turn"
    found: pa.Table = connection.sql(f"""
        SELECT {", ".join(own)} FROM (SELECT *, {turn} FROM keys) k
            LEFT JOIN (SELECT * EXCLUDE (place), {turn} FROM scores) s
            ON s.uid = k.uid AND s.turn = k.turn AND (s.source IS NULL OR (s.source = k.source AND s.n = k.n))
        ORDER BY k.place""").to_arrow_table()
    return found.cast(
        pa.schema([field.with_name(name) for name, field in zip(own, kinds, strict=True)])
    ).rename_columns(list(columns))


def _numbered(table: pa.Table) -> pa.Table:
    return table.append_column("place", pa.array(np.arange(table.num_rows)))


def _web_keys(uids: pa.ChunkedArray) -> pa.Table:
    number = len(uids)
    return pa.table([uids, pa.repeat("web", number), pa.array(np.zeros(number, np.int32))], schema=KEYS)


def _concat(parts: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    # Half floats are no type of SQL's.
    parts = [part.cast(pa.float32()) if pa.types.is_float16(part.type) else part for part in parts]
    kinds = {part.type for part in parts}
    if len(kinds) > 1:  # a column that some shards lack is null there; numbers may be wider in one table than another
        schemas = [pa.schema([("value", part.type)]) for part in parts]
        kind = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        parts = [part.cast(kind) for part in parts]
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], type=parts[0].type)


def _word(file: pq.ParquetFile, name: bytes) -> Any:
    return (file.schema_arrow.metadata or {}).get(name)
