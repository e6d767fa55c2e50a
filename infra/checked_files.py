"""Files read once, for their content and for the size and digest that a done-mark promises.

What is wrong is noted as a phrase in `found`, and None stands for what could not be read: a check goes on.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import DatasetError
from infra.shards import Member, walk_members
from infra.storage import Committed, Storage, digest_bytes


class CheckedFiles:
    """Reads files of one storage. `quick`: compares sizes only, and passes over what is not needed."""

    def __init__(self, storage: Storage, quick: bool) -> None:
        self.storage = storage
        self.quick = quick

    def members(self, name: str, promised: Committed | None, found: list[str]) -> list[Member] | None:
        """A tar's members. An object store is asked for each byte once: they wait in a temporary file."""
        try:
            with self.storage.open(name) as file, ExitStack() as stack:
                if promised is None or self.quick:
                    size, digest = file.seek(0, 2), None
                else:
                    copy = None if self.storage.is_local else stack.enter_context(TemporaryFile())
                    size, digest = _measure(file, copy)
                    file = copy or file
                if promised is not None:
                    found += differences(promised, size, digest)
                return list(walk_members(file))
        except FileNotFoundError:
            found.append(f"{name} is gone")
        except DatasetError as error:
            found.append(f"{name}: {str(error).partition(': ')[2]}")
        return None

    def table(self, name: str, promised: Committed | None, found: list[str], columns: Sequence[str]) -> pa.Table | None:
        """A parquet table, those of `columns` that it has."""
        try:
            data = self.storage.read(name)
        except FileNotFoundError:
            found.append(f"{name} is gone")
            return None
        if promised is not None:
            found += differences(promised, len(data), None if self.quick else digest_bytes(data))
        try:
            file = pq.ParquetFile(io.BytesIO(data))
            return file.read([column for column in columns if column in file.schema_arrow.names])
        except (pa.ArrowException, OSError, ValueError) as error:
            found.append(f"{name} is no readable parquet file ({first_line(error)})")
            return None

    def num_rows(self, name: str) -> int | None:
        """Rows of a parquet table by its footer; None where it is absent or broken."""
        try:
            with self.storage.open(name) as file:
                return int(pq.ParquetFile(file).metadata.num_rows)
        except (pa.ArrowException, OSError, ValueError):
            return None

    def compare(self, promised: Committed, size: int | None, found: list[str]) -> None:
        """A file's size (asked for where it is not known) and digest against what was promised."""
        try:
            if size is None:
                size = self.storage.size(promised.name)
            digest = None if self.quick or size != promised.size else self.storage.digest(promised.name)
        except FileNotFoundError:
            found.append(f"{promised.name} is gone")
            return
        found += differences(promised, size, digest)


def differences(promised: Committed, size: int, digest: str | None) -> list[str]:
    """At most one phrase; no digest: it was not read."""
    if size != promised.size:
        return [f"{promised.name} has {size} bytes, its done-mark says {promised.size}"]
    if digest is not None and digest != promised.digest:
        return [f"{promised.name} has changed since it was written: its digest differs"]
    return []


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _measure(file: IO[bytes], copy: IO[bytes] | None) -> tuple[int, str]:
    """Bytes and blake2b-128 of a file, which is copied on the way if asked for."""
    size, digest = 0, hashlib.blake2b(digest_size=16)
    while block := file.read(1 << 20):
        size += len(block)
        digest.update(block)
        if copy is not None:
            copy.write(block)
    return size, digest.hexdigest()
