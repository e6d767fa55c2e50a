"""One job of a removal at work: files are written anew one by one, and the marks that name them last.

What a mark promises is looked at before the first file is touched, so that damage is never taken for our own work:

begun/JOB.json   in the removal's own folder: from here on a file may differ from what its mark says
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.jobs import Outcome
from infra.ledger import Counts, DoneMark
from infra.removed import REMOVED, RemovedRows, is_in
from infra.selection import counted
from infra.storage import Committed, digest_bytes
from infra.tables import UIDS_DIGEST, read_table, write_keyed_table, write_table
from pipeline.download.inputs import IDENTITY, identify
from pipeline.remove.tables import Kind, held, kind_of, without
from pipeline.remove.tallies import counts_now, stats_now
from pipeline.remove.tars import holds_any, index_of, rewrite_without


class Unit:
    """Some files and the marks that name them. `end` when all of them have been purged."""

    def __init__(
        self, source: Dataset, work: Dataset, removed: RemovedRows, name: str, marks: Sequence[DoneMark]
    ) -> None:
        self.source = source
        self.storage = source.storage
        self._removed = removed
        self._marks = marks
        self._promised = {file.name: file for mark in marks for file in mark.files}
        self._work = work.storage
        self._begun = f"begun/{name}.json"
        self._was_begun = self._has_begun = self._work.exists(self._begun)
        self._now: dict[str, Committed] = {}  # files that were looked at, as they are
        self._num_rows = self._num_held = 0
        self._selections: Counter[str] = Counter()  # rows that a selection kept, or would have

    def purge_table(self, name: str) -> None:
        """Take removed rows out of a table."""
        self._purge_table(name, kind_of(name))

    def purge_shard(self, shard: str) -> None:
        """Take removed samples out of a shard: its tar first and its index last, which knows whose key is whose."""
        tar, table, index = self.source.tar(shard), self.source.table(shard), self.source.index(shard)
        present = [name for name in (table, index) if self.storage.exists(name)]
        keys = {key for name in present for key in self._keys(name)}
        if not keys and not self._was_begun:
            return
        self._look(tar, self.storage.size(tar), self.storage.digest(tar))
        if holds_any(self.storage, tar, keys):
            self._begin()
            self._now[tar] = rewrite_without(self.storage, tar, keys)
        if table in present:
            self._purge_table(table, kind_of(table), keys)
            self._write_stats(shard)
        if index in present:
            self._purge_index(index, tar)

    def end(self) -> Outcome:
        """Write the marks, now that their files are what they will say."""
        for mark in self._marks:
            files = tuple(self._renewed(file) for file in mark.files)
            if files != mark.files:
                self.source.ledger.mark_done(replace(mark, files=files, counts=counts_now(self.source, mark)))
        dropped = {REMOVED: self._num_held} if self._num_held else {}
        return Outcome(Counts(self._num_rows, self._num_rows - self._num_held, dropped, dict(self._selections)))

    def _keys(self, name: str) -> list[str]:
        """Keys of removed samples in an index or a shard's table; none where it does not tell."""
        table = read_table(self.storage, name)
        if not {"uid", "key"} <= set(table.column_names):
            return []
        return list(table["key"].filter(pa.array(held(table, self._removed))).to_pylist())

    def _purge_table(self, name: str, kind: Kind, keys: Collection[str] | None = None) -> None:
        """keys: of removed samples, where this is the table of their shard."""
        data = self.storage.read(name)
        self._look(name, len(data), digest_bytes(data))
        file = pq.ParquetFile(io.BytesIO(data))
        table = file.read()
        if keys is None or "uid" in table.column_names:
            rows = held(table, self._removed)
        else:
            rows = is_in(table["key"], pa.array(sorted(keys), pa.string()))
        if keys is not None and "status" not in table.column_names:
            kind = "dropped"  # all that such a table names is in the tar
        new = without(table, rows, kind)
        self._num_rows += table.num_rows
        self._num_held += int(rows.sum())
        if kind == "judged":
            self._selections[name.split("/")[1]] += new["reason"].filter(pa.array(rows)).to_pylist().count(REMOVED)
        if not rows.any() or new.equals(table):
            return
        self._begin()
        if kind == "blanked" and keys is None:  # a url table is known by its content
            known = {IDENTITY: identify(self.storage.file_url(name))[0].encode()}
            new = new.replace_schema_metadata({**(new.schema.metadata or {}), **known})
        if kind == "judged":
            new = counted(new)
        is_keyed = kind == "dropped" and UIDS_DIGEST in (new.schema.metadata or {})
        keep_types = b"ARROW:schema" in (file.metadata.metadata or {})
        write = write_keyed_table if is_keyed else write_table
        self._now[name] = write(self.storage, name, new, keep_types=keep_types)

    def _purge_index(self, name: str, tar: str) -> None:
        data = self.storage.read(name)
        self._look(name, len(data), digest_bytes(data))
        old = pq.read_table(io.BytesIO(data))
        new = index_of(self.storage, tar, old)
        if not new.equals(old):
            self._begin()
            self._now[name] = write_table(self.storage, name, new)

    def _write_stats(self, shard: str) -> None:
        name, table = self.source.stats(shard), read_table(self.storage, self.source.table(shard))
        if self.storage.exists(name) and "status" in table.column_names:
            told = json.loads(self.storage.read(name))
            if (now := stats_now(told, table)) != told:
                self.storage.commit_bytes(name, json.dumps(now, indent=1).encode() + b"\n")

    def _look(self, name: str, size: int, digest: str) -> None:
        """Note a file as it is. Raises DatasetError where it was damaged before this removal came to it."""
        promised = self._promised.get(name)
        if not self._was_begun and promised is not None and promised.digest != digest:
            raise DatasetError(
                f"{self.storage.file_url(name)}: it has changed since it was written; mend it first (python -m infra "
                "verify says how), then run the same removal again"
            )
        self._now[name] = Committed(name, size, digest)

    def _begin(self) -> None:
        if not self._has_begun:
            self._work.commit_bytes(self._begun, b"{}\n")
            self._has_begun = True

    def _renewed(self, file: Committed) -> Committed:
        now = self._now.get(file.name)
        return file if now is None or now.digest == file.digest else replace(now, made_as=file.identity)
