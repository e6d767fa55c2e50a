"""Url tables to one input table a shard, and the rows among them that repeat an earlier uid.

inputs/NNNNN.parquet             uid, url, caption, further columns: what shard NNNNN will fetch
inputs/duplicates/NNNNN.parquet  uid, row: its rows whose uid came earlier; they are never fetched
ledger/inputs.json               which table became which shards; later tables append
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from infra.dataset import Dataset
from infra.errors import DatasetError, FingerprintError
from infra.jobs import Job, Outcome, Step
from infra.ledger import Counts
from infra.sample import UID_BYTES
from infra.storage import Committed
from infra.tables import connect, read_table, urls, write_table
from pipeline.download.config import DownloadConfig
from pipeline.download.inputs import check_columns, identify, only_allowed_archives, read_rows

INPUTS = "ledger/inputs.json"


@dataclass(frozen=True, slots=True)
class Input:
    """One url table and the shards that its rows fill. `retried`: its rows failed before, by reason."""

    path: str  # "./…" where it lies in the dataset itself, which may be moved as a whole
    digest: str
    num_rows: int
    first_shard: int
    num_shards: int
    batch: int  # tables added by one command
    retried: Mapping[str, int] = field(default_factory=dict)


def known_inputs(dataset: Dataset) -> list[Input]:
    """The tables that the dataset was made from, in order."""
    try:
        return [Input(**values) for values in json.loads(dataset.storage.read(INPUTS))]
    except FileNotFoundError:
        return []


def add_inputs(
    dataset: Dataset, paths: Sequence[str], config: DownloadConfig, retried: Mapping[str, int] | None = None
) -> list[Input]:
    """Append tables that are not known yet (by content: a moved table is the same one); each fills its own shards.

    retried: the tables are of rows that failed before. Returns all inputs. Raises UsageError for a table that lacks
    a column, FingerprintError where a known path has other content now; a table of this dataset, such as the pairs of
    a crawl that went on, may grow: its known rows are then repeated ones.
    """
    known = known_inputs(dataset)
    inputs = _settled(dataset, known)
    paths_before = {item.path for item in inputs}
    digests_before = {item.digest for item in inputs}
    batch = inputs[-1].batch + 1 if inputs else 0
    for path in dict.fromkeys(paths):
        digest, num_rows = identify(path)
        if digest in digests_before and not retried:
            continue
        if not retried:
            check_columns(path, config)
        inside = dataset.storage.inside(path)
        path = path if inside is None else f"./{inside}"
        if path in paths_before and inside is None:
            raise FingerprintError(
                f"{path}: its content has changed since {dataset.storage.url} was made from it; "
                "give the new rows as another table, or another --out"
            )
        first = inputs[-1].first_shard + inputs[-1].num_shards if inputs else 0
        num_shards = -(-num_rows // config.shard_size)
        inputs = [*inputs, Input(path, digest, num_rows, first, num_shards, batch, retried or {})]
    if inputs != known:
        dataset.storage.commit_bytes(INPUTS, json.dumps([asdict(item) for item in inputs], indent=1).encode() + b"\n")
    return inputs


def _settled(dataset: Dataset, inputs: Sequence[Input]) -> list[Input]:
    """All but batches at the end of which nothing was split: their run was refused or killed, and left no trace."""
    done = dataset.ledger.done(Split.name)
    last = max((item.batch for number, item in enumerate(inputs) if _split_job(number) in done), default=-1)
    return [item for item in inputs if item.batch <= last]


def _split_job(number: int) -> str:
    return f"{number:05d}"


def shard_name(number: int, digits: int) -> str:
    """A shard's name: its number, zero-padded."""
    return f"{number:0{digits}d}"


def input_table(shard: str) -> str:
    """Name of a shard's input table."""
    return f"inputs/{shard}.parquet"


def duplicates_table(shard: str) -> str:
    """Name of the list of a shard's repeated rows; absent where there are none."""
    return f"inputs/duplicates/{shard}.parquet"


def read_input(dataset: Dataset, shard: str) -> pa.Table:
    """The rows that a shard stores: its input table without the repeated ones."""
    rows = read_table(dataset.storage, input_table(shard))
    try:
        repeated = set(read_table(dataset.storage, duplicates_table(shard), ["row"])["row"].to_pylist())
    except FileNotFoundError:
        return rows
    return rows.take(pa.array([row for row in range(rows.num_rows) if row not in repeated], pa.int64()))


class Split(Step):
    """One job a url table: read as a stream, written as input tables of `shard_size` rows."""

    name = "split"

    def __init__(self, dataset: Dataset, config: DownloadConfig) -> None:
        self.dataset = dataset
        self.config = config

    def settings(self) -> Mapping[str, Any]:
        """What changes the input tables."""
        names = ("url_col", "caption_col", "hash_col", "bbox_col", "allow_archive", "shard_size", "shard_digits")
        return {name: getattr(self.config, name) for name in names}

    def inputs(self, job: Job) -> Any:
        """The table's digest and its first shard."""
        return {name: job.payload[name] for name in ("digest", "first_shard")}

    def plan(self) -> Sequence[Job]:
        """A job for each known table."""
        tables = known_inputs(self.dataset)
        return [Job(_split_job(number), asdict(item)) for number, item in enumerate(tables)]

    def run(self, job: Job) -> Outcome:
        """Rows in = rows of the table; those that cannot be read are dropped as `bad_row`."""
        item = Input(**job.payload)
        files: list[Committed] = []
        num_bad = 0
        num_rows = 0
        shard = item.first_shard
        path = self.dataset.storage.file_url(item.path[2:]) if item.path.startswith("./") else item.path
        config = self.config
        if item.retried:  # our own table, whatever the names in the first one
            config = config.model_copy(update={"url_col": None, "caption_col": None})
        for part in rebatch(read_rows(path, config), config.shard_size):
            if isinstance(part, int):
                num_bad += part
                continue
            if not item.path.startswith("./"):
                part = only_allowed_archives(part, self.config.allow_archive)
            if num_rows + part.num_rows > item.num_rows:
                raise DatasetError(f"{path}: it has grown since this run began; run again when it is whole")
            name = input_table(shard_name(shard, self.config.shard_digits))
            files.append(write_table(self.dataset.storage, name, part))
            num_rows += part.num_rows
            shard += 1
        if num_rows != item.num_rows:
            raise DatasetError(f"{path}: it has shrunk since this run began; run again when it is whole")
        dropped = {"bad_row": num_bad} if num_bad else {}
        return Outcome(Counts(num_rows + num_bad, num_rows, dropped), tuple(files))


class Duplicates(Step):
    """One job a batch of tables: which of its rows repeat a uid that came earlier, here or in an older batch."""

    name = "duplicates"

    def __init__(self, dataset: Dataset, config: DownloadConfig, memory: str = "2GB") -> None:
        self.dataset = dataset
        self.config = config
        self.memory = memory

    def settings(self) -> Mapping[str, Any]:
        """None: the shards' names say all."""
        return {}

    def inputs(self, job: Job) -> Any:
        """Digests of every input table up to the batch."""
        return job.payload["digests"]

    def plan(self) -> Sequence[Job]:
        """A job for each batch; it sees the shards of all batches up to its own."""
        tables = known_inputs(self.dataset)
        jobs = []
        for batch in sorted({item.batch for item in tables}):
            own = [item for item in tables if item.batch == batch]
            payload = {
                "digests": [item.digest for item in tables if item.batch <= batch],
                "first_shard": own[0].first_shard,
                "end_shard": own[-1].first_shard + own[-1].num_shards,
                "retry": bool(own[0].retried),
            }
            jobs.append(Job(f"{batch:05d}", payload))
        return jobs

    def run(self, job: Job) -> Outcome:
        """Rows in = rows of the batch; repeated ones are dropped as `duplicate_row`. One DuckDB query over uids."""
        first, end = job.payload["first_shard"], job.payload["end_shard"]
        digits = self.config.shard_digits
        names = [shard_name(number, digits) for number in range(end)]
        if not names:
            return Outcome(Counts())
        storage = self.dataset.storage
        connection = connect(storage, self.memory)
        connection.execute(
            """
            CREATE TEMP TABLE place AS
            SELECT uid, file_row_number AS row,
                   CAST(parse_filename(filename, true) AS BIGINT) AS shard
            FROM read_parquet(?, filename = true, file_row_number = true)
            """,
            [urls(storage, [input_table(name) for name in names])],
        )
        num_rows = connection.execute("SELECT count(*) FROM place WHERE shard >= ?", [first]).fetchall()[0][0]
        if job.payload["retry"]:  # the rows of a retry repeat failed ones on purpose
            return Outcome(Counts(num_rows, num_rows))
        repeated = connection.sql(
            """
            SELECT place.shard, place.row, place.uid
            FROM place JOIN (
                SELECT uid, min({'shard': shard, 'row': row}) AS first
                FROM place GROUP BY uid HAVING count(*) > 1
            ) earliest USING (uid)
            WHERE place.shard >= ? AND {'shard': place.shard, 'row': place.row} <> earliest.first
            ORDER BY place.shard, place.row
            """,
            params=[first],
        ).to_arrow_reader(100_000)
        files = []
        num_repeated = 0
        for shard, rows in _by_shard(repeated):
            name = duplicates_table(shard_name(shard, digits))
            files.append(write_table(storage, name, rows))
            num_repeated += rows.num_rows
        dropped = {"duplicate_row": num_repeated} if num_repeated else {}
        return Outcome(Counts(num_rows, num_rows - num_repeated, dropped), tuple(files))


def _by_shard(reader: Any) -> Iterator[tuple[int, pa.Table]]:
    """Group a stream of (shard, row, uid), sorted by shard, into one table a shard."""
    shard: int | None = None
    rows: list[int] = []
    uids: list[bytes] = []
    for batch in reader:
        for number, row, uid in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if shard is not None and number != shard:
                yield shard, _duplicates(uids, rows)
                rows, uids = [], []
            shard = number
            rows.append(row)
            uids.append(uid)
    if shard is not None:
        yield shard, _duplicates(uids, rows)


def _duplicates(uids: list[bytes], rows: list[int]) -> pa.Table:
    return pa.table({"uid": pa.array(uids, pa.binary(UID_BYTES)), "row": pa.array(rows, pa.int64())})


def rebatch(parts: Iterator[pa.Table | int], size: int) -> Iterator[pa.Table | int]:
    """Join and cut a stream of tables into tables of `size` rows; numbers pass through."""
    held: list[pa.Table] = []
    num_held = 0
    for part in parts:
        if isinstance(part, int):
            yield part
            continue
        held.append(part)
        num_held += part.num_rows
        while num_held >= size:
            table = pa.concat_tables(held, promote_options="permissive")
            yield table.slice(0, size).combine_chunks()
            held = [table.slice(size)]
            num_held -= size
    if num_held:
        yield pa.concat_tables(held, promote_options="permissive").combine_chunks()
