"""The rows of a dataset that can be scored and selected: stored samples, or url-caption pairs before any download.

A shard here is one table of rows. Which tables they are:

    stored   shards that a done-mark names, rows whose status is success; foreign tars with their index
    asked    nothing downloaded yet: inputs/, without the repeated rows
    pairs    not split yet: what a crawl found
    table    parquet tables that lie in the folder, such as DataComp's metadata
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, reduce
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from infra.dataset import Dataset
from infra.errors import DatasetError, UsageError
from infra.ledger import DoneMark
from infra.sample import UID_BYTES, Caption, Pair, pair_uid
from infra.shards import IMAGE_ENDINGS, Member, read_at
from infra.tables import open_table, read_table

STORING = ("download", "reshard")  # steps whose marks name shards
CAPTION_NAMES = ("caption", "text", "TEXT", "alt", "title")
URL_NAMES = ("url", "URL", "image_url")
UID = pa.binary(UID_BYTES)

Kind = Literal["stored", "asked", "pairs", "table"]


class Rows:
    """Rows of a dataset, shard by shard, in their order. Raises DatasetError where there are none.

    index: the folder that holds the index of a foreign dataset which may not be written.
    """

    def __init__(self, dataset: Dataset, index: Dataset | None = None) -> None:
        self.dataset = dataset
        self.index = index or dataset
        self.kind: Kind
        self._counts: dict[str, int] = {}
        self.kind, self._tables, self._digests = self._find()

    @property
    def shards(self) -> list[str]:
        """Names of the shards, sorted."""
        return list(self._tables)

    def digest(self, shard: str) -> str:
        """A word that changes with the rows (or images) of a shard; enters fingerprints."""
        return self._digests[shard]

    def num_rows(self, shard: str) -> int | None:
        """Rows of a shard as its done-mark counts them; None where there is none."""
        return self._counts.get(shard)

    def columns(self) -> pa.Schema:
        """Columns of the first shard's table, beside uid."""
        name = next(iter(self._tables.values()))
        return pa.schema([]) if name is None else open_table(self.dataset.storage, name).schema_arrow

    def read(self, shard: str, columns: Sequence[str] | None = None) -> pa.Table:
        """uid, key, url, caption and further `columns` (None: all) of a shard's rows; absent columns are null."""
        name = self._tables[shard]
        if name is None:
            rows = self._from_index(shard)
            absent = [name for name in columns or () if name not in rows.column_names]
            return reduce(lambda table, name: table.append_column(name, pa.nulls(table.num_rows)), absent, rows)
        file = open_table(self.dataset.storage, name)
        present = file.schema_arrow.names
        aliases = {"url": URL_NAMES, "caption": CAPTION_NAMES}
        named = {want: next((name for name in aliases.get(want, (want,)) if name in present), None)
                 for want in ("uid", "key", "url", "caption", "status")}  # fmt: skip
        if columns is None:
            columns = [name for name in present if name not in named]
        further = [name for name in columns if name not in ("uid", "key", "url", "caption")]
        wanted = [name for name in [*named.values(), *further] if name in present]
        table = file.read(columns=list(dict.fromkeys(wanted)))
        if named["status"]:
            table = table.filter(pc.fill_null(pc.equal(table["status"], "success"), False))
        if self.kind == "asked":
            table = _without(table, self._repeated(shard))
        text = {want: _column(table, named[want], pa.string()) for want in ("key", "url", "caption")}
        uids = self._uids(shard, table, named["uid"], text)
        rest = {name: table[name] if name in table.column_names else pa.nulls(table.num_rows) for name in further}
        return pa.table({"uid": uids, **text, **rest})

    def pairs(
        self, shard: str, *, images: bool = False, captions: Sequence[str] = (), facts: Sequence[str] = ()
    ) -> Iterator[Pair]:
        """The shard's rows as pairs, in their order: the web's caption, then those of the tables `captions`.

        A caption that is absent is the empty text. Encoded images are read one at a time, if asked for.
        """
        rows = self.read(shard, facts)
        more = self._captions(shard, captions)
        members = self._images(shard) if images else {}
        values = {name: rows[name].to_pylist() for name in dict.fromkeys(("uid", "key", "url", "caption", *facts))}
        opened: Any = self.dataset.storage.open(self.dataset.tar(shard)) if members else nullcontext()
        with opened as tar:
            for at, uid in enumerate(values["uid"]):
                member = members.get((uid, values["key"][at]))
                yield Pair(
                    uid,
                    values["key"][at] or "",
                    values["url"][at] or "",
                    (Caption(values["caption"][at] or ""), *more.get(uid, ())),
                    read_at(tar, member.offset, member.size) if member is not None else None,
                    {name: values[name][at] for name in facts},
                )

    def _find(self) -> tuple[Kind, dict[str, str | None], dict[str, str]]:
        ledger, storage = self.dataset.ledger, self.dataset.storage
        marks = [mark for step in STORING for mark in ledger.done(step).values()]
        named = _files(iter(marks))
        self._counts = {mark.job: mark.counts.rows_out for mark in marks}
        if stored := {stem: name for stem, name in _tables(named, "").items() if self.dataset.tar(stem) in named}:
            return "stored", dict(stored), {stem: f"{named[name]}-{named[self.dataset.tar(stem)]}"
                                            for stem, name in stored.items()}  # fmt: skip
        if self.dataset.tars():
            return "stored", *self._foreign()
        for kind, step, folder in (("asked", "split", "inputs"), ("pairs", "crawl_merge", "pairs")):
            named = _files(iter(ledger.done(step).values()))
            if tables := _tables(named, folder):
                repeated = _files(iter(ledger.done("duplicates").values())) if kind == "asked" else {}
                digests = {stem: named[name] + repeated.get(_duplicates(stem), "") for stem, name in tables.items()}
                return kind, dict(tables), digests  # type: ignore[return-value]
        stamps = storage.stamps() if storage.exists() else {}
        if tables := _tables(dict.fromkeys(storage.list("", ".parquet"), ""), ""):
            return "table", dict(tables), {stem: stamps[name] for stem, name in tables.items()}
        raise DatasetError(f"{storage.url}: no rows there; give a folder of shards, or of url tables in parquet")

    def _foreign(self) -> tuple[dict[str, str | None], dict[str, str]]:
        tables = set(self.dataset.storage.list("", ".parquet"))
        stamps = self.dataset.storage.stamps()
        missing = [shard for shard in self.dataset.tars() if self.index.index(shard) not in self._indexed]
        if missing:
            raise UsageError(
                f"{self.dataset.storage.url}: {len(missing)} tars have no index (first {missing[0]}); "
                f"make it: python -m infra index {self.dataset.storage.url}"
            )
        named = {shard: self.dataset.table(shard) for shard in self.dataset.tars()}
        found: dict[str, str | None] = {shard: name if name in tables else None for shard, name in named.items()}
        return found, {shard: "-".join(stamps[file] for file in (self.dataset.tar(shard), name) if file)
                       for shard, name in found.items()}  # fmt: skip

    @cached_property
    def _indexed(self) -> set[str]:
        return set(self.index.tables("index"))

    def _repeated(self, shard: str) -> set[int]:
        try:
            return set(read_table(self.dataset.storage, _duplicates(shard), ["row"])["row"].to_pylist())
        except FileNotFoundError:
            return set()

    def _uids(self, shard: str, table: pa.Table, name: str | None, text: Mapping[str, Any]) -> pa.ChunkedArray:
        if name is not None:
            return as_uids(table[name])
        if self.kind == "stored":  # img2dataset's tables have none; the index made one for each key
            known = {key: uid for uid, key in self._keys(shard)}
            keys = text["key"].to_pylist()
            if lost := next((key for key in keys if key not in known), None):
                raise DatasetError(f"{self.dataset.storage.url}: {self.dataset.tar(shard)} lacks the sample {lost}, "
                                   "which its table calls stored; download that shard again")  # fmt: skip
            return pa.chunked_array([pa.array([known[key] for key in keys], UID)])
        pairs = zip(text["url"].to_pylist(), text["caption"].to_pylist(), strict=True)
        return pa.chunked_array([pa.array([pair_uid(url or "", caption) for url, caption in pairs], UID)])

    def _keys(self, shard: str) -> list[tuple[bytes, str]]:
        index = read_table(self.index.storage, self.index.index(shard), ["uid", "key"])
        return list(dict.fromkeys(zip(index["uid"].to_pylist(), index["key"].to_pylist(), strict=True)))

    def _from_index(self, shard: str) -> pa.Table:
        """Rows of a tar without a table: keys and uids of the index, captions from the text members."""
        index = read_table(self.index.storage, self.index.index(shard)).to_pylist()
        texts: dict[bytes, str] = {}
        with self.dataset.storage.open(self.dataset.tar(shard)) as tar:
            for row in index:
                if row["member"].endswith(".txt"):
                    texts[row["uid"]] = read_at(tar, row["offset"], row["size"]).decode("utf-8", "replace")
        keys = list(dict.fromkeys((row["uid"], row["key"]) for row in index))
        columns = {"uid": [uid for uid, _ in keys], "key": [key for _, key in keys], "url": [None] * len(keys),
                   "caption": [texts.get(uid) for uid, _ in keys]}  # fmt: skip
        kinds = {"uid": UID} | dict.fromkeys(("key", "url", "caption"), pa.string())
        return pa.table({name: pa.array(values, kinds[name]) for name, values in columns.items()})

    def _images(self, shard: str) -> dict[tuple[bytes, str | None], Member]:
        """(uid, key) → the image: folders of others may have a uid twice. (uid, None) too: they may have no keys."""
        if self.kind != "stored":
            return {}
        index = read_table(self.index.storage, self.index.index(shard)).to_pylist()
        found: dict[tuple[bytes, str | None], Member] = {}
        for row in index:
            member = Member(row["member"], row["offset"], row["size"])
            if member.ending in IMAGE_ENDINGS:
                found[row["uid"], row["key"]] = member
                found.setdefault((row["uid"], None), member)
        return found

    def _captions(self, shard: str, names: Sequence[str]) -> dict[bytes, list[Caption]]:
        found: dict[bytes, list[Caption]] = {}
        for name in names:
            table = read_table(self.dataset.storage, f"captions/{name}/{shard}.parquet", ["uid", "n", "text"])
            for row in table.to_pylist():
                found.setdefault(row["uid"], []).append(Caption(row["text"] or "", name, row["n"]))
        return found


def as_uids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """uids as 16 bytes: ours as they are, DataComp's from 32 hex digits. Raises DatasetError for anything else."""
    try:
        if column.null_count:
            raise ValueError(f"{column.null_count} rows have none")
        if column.type == UID:
            return column
        if pa.types.is_binary(column.type) or pa.types.is_fixed_size_binary(column.type):
            return column.cast(UID)
        if not pc.all(pc.equal(pc.utf8_length(column), 2 * UID_BYTES), skip_nulls=False, min_count=0).as_py():
            raise ValueError("not all of one length")
        # One conversion of all digits: a row at a time takes ten times as long.
        data = bytes.fromhex("".join(column.to_pylist()))
        return pa.chunked_array([pa.FixedSizeBinaryArray.from_buffers(UID, len(column), [None, pa.py_buffer(data)])])
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise DatasetError(f"column uid: {error}; a uid is 16 bytes or 32 hex digits") from None


def _duplicates(shard: str) -> str:
    return f"inputs/duplicates/{shard}.parquet"


def _files(marks: Iterator[DoneMark]) -> dict[str, str]:
    return {file.name: file.identity for mark in marks for file in mark.files}


def _tables(names: Mapping[str, Any], folder: str) -> dict[str, str]:
    """stem → name of the parquet files directly in a folder, in order."""
    found = (name for name in names if name.endswith(".parquet") and name.rpartition("/")[0] == folder)
    stems = {name.rpartition("/")[2].removesuffix(".parquet"): name for name in found}
    return {stem: stems[stem] for stem in sorted(stems, key=lambda stem: (len(stem), stem))}


def _without(table: pa.Table, rows: set[int]) -> pa.Table:
    return table.take([row for row in range(table.num_rows) if row not in rows]) if rows else table


def _column(table: pa.Table, name: str | None, kind: pa.DataType) -> pa.ChunkedArray:
    if name is None:
        return pa.chunked_array([pa.nulls(table.num_rows, kind)])
    return table[name].cast(kind)
