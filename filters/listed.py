"""Lists that rules compare with: uids, values of a column, or the hashes of another dataset."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from string import hexdigits
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from filters.joined import Joined
from filters.near import NearIndex
from filters.rules import NotIn
from filters.subset import check_subset, read_subset
from filters.values import as_hashes
from infra.dataset import Dataset
from infra.errors import DatasetError, RecipeError
from infra.rows import as_uids
from infra.sample import UID_BYTES
from infra.storage import Storage

Uids = npt.NDArray[np.uint64]
Hashes = npt.NDArray[np.uint64]


class Listed:
    """What a rule's list holds. `digest` changes with its content. Raises RecipeError where it cannot be read."""

    def __init__(self, rule: NotIn) -> None:
        self.rule = rule
        self.path = rule.listed
        self.digest = self._digest()
        self._found: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (Listed, (self.rule,))  # a worker reads it itself: it may be large

    def check(self) -> None:
        """Raise RecipeError for what a worker could not use; a dataset's columns are looked up with the digest."""
        if self.path.endswith(".npy"):
            if self.rule.by != "uid":
                raise RecipeError(f"{self.rule.key} {self.path}: a .npy file lists uids; leave by: {self.rule.by} out")
            check_subset(self.path)
        elif not self._is_dataset:
            column = self._column(self.rule.by)
            if self.rule.by == "uid":
                self._as_uids(column)
            elif self.rule.distance is not None:
                self._as_hashes(column)

    @cached_property
    def values(self) -> pa.Table | None:
        """Values of the column to compare with, as a table with the one column `value`; None for uids and hashes."""
        if self.rule.by == "uid" or self.rule.distance is not None:
            return None
        return pa.table({"value": self._column(self.rule.by)})

    def holds_uids(self, uids: Uids) -> npt.NDArray[np.bool_]:
        """uids: (N, 2) halves. Is each in the list?"""
        return _are_in(uids, self._uids)

    def is_near(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Is a listed hash within the rule's distance of each?"""
        return self._near.nearest(hashes) >= 0

    @cached_property
    def _uids(self) -> Uids:
        if self.path.endswith(".npy"):
            return read_subset(self.path)
        column = self._as_uids(self._column("uid"))
        held = np.frombuffer(column.combine_chunks().buffers()[1], ">u8").reshape(-1, 2)[: len(column)]
        return held[np.lexsort((held[:, 1], held[:, 0]))]

    @cached_property
    def _near(self) -> NearIndex:
        assert self.rule.distance is not None
        return NearIndex(self._as_hashes(self._column(self.rule.by)), self.rule.distance)

    def _as_uids(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        try:
            return as_uids(column)
        except DatasetError:
            told = (value for value in column.drop_null().to_pylist() if not _is_uid(value))
            what = f"{next(told, None)!r} is no uid; a uid is 16 bytes or 32 hex digits"
            raise RecipeError(f"{self.rule.key} {self.path}: {what}") from None

    def _as_hashes(self, column: pa.ChunkedArray) -> Hashes:
        try:
            return np.asarray(as_hashes(column).drop_null().to_numpy(), np.uint64)
        except pa.ArrowException as error:
            raise RecipeError(f"{self.rule.key} {self.path}: {self.rule.by} is no column of hashes: {error}") from None

    def _column(self, name: str) -> pa.ChunkedArray:
        if self._is_dataset:
            return self._of_dataset(name)
        try:
            if self.path.endswith(".parquet"):
                with fsspec.open(self.path, "rb") as file:
                    table = pq.ParquetFile(file)
                    if name not in table.schema_arrow.names:
                        known = ", ".join(table.schema_arrow.names)
                        raise ValueError(f"no column {name}; there are {known}")
                    return table.read([name])[name]
            with fsspec.open(self.path, "rt", encoding="utf-8") as file:
                lines = [line.strip() for line in file]
        except (OSError, ValueError, pa.ArrowException) as error:
            raise RecipeError(f"{self.rule.key} {self.path}: {error}") from None
        return pa.chunked_array([pa.array([line for line in lines if line and not line.startswith("#")], pa.string())])

    def _of_dataset(self, name: str) -> pa.ChunkedArray:
        joined = Joined(Dataset(self.path), [name] if name != "uid" else [])
        groups = (joined.read(shards) for shards in joined.groups())
        columns = [group.keys["uid"] if name == "uid" else group.columns[name] for group in groups]
        return pa.chunked_array([chunk for column in columns for chunk in column.chunks])

    @property
    def _is_dataset(self) -> bool:
        return not self.path.endswith((".npy", ".txt", ".parquet"))

    def _digest(self) -> str:
        if self._is_dataset:
            joined = Joined(Dataset(self.path), [self.rule.by] if self.rule.by != "uid" else [])
            return joined.inputs(joined.rows.shards)
        storage, name = Storage.of_file(self.path)
        try:
            return storage.digest(name)
        except OSError as error:
            raise RecipeError(f"{self.rule.key} {self.path}: {error.strerror or error}; a list ends in .npy, .txt or "
                              ".parquet, anything else is a dataset") from None  # fmt: skip


def lists_of(rules: Sequence[Any]) -> dict[int, Listed]:
    """The lists that rules name, by the number of the rule."""
    return {number: Listed(rule) for number, rule in enumerate(rules) if isinstance(rule, NotIn)}


def _is_uid(value: Any) -> bool:
    if isinstance(value, bytes):
        return len(value) == UID_BYTES
    return isinstance(value, str) and len(value) == 2 * UID_BYTES and set(value.lower()) <= set(hexdigits)


def _are_in(uids: Uids, listed: Uids) -> npt.NDArray[np.bool_]:
    """uids and listed: (N, 2) and (M, 2) halves, listed sorted. A list on disk is searched where it lies."""
    found = np.zeros(len(uids), bool)
    if not len(listed):
        return found
    high = np.asarray(listed[:, 0])
    first = np.searchsorted(high, uids[:, 0], "left")
    waiting = np.arange(len(uids))
    at = first
    while len(waiting):  # nearly always one turn: equal first halves are as rare as chance
        inside = at < len(listed)
        waiting, at = waiting[inside], at[inside]
        same = listed[at, 0] == uids[waiting, 0]
        waiting, at = waiting[same], at[same]
        hit = listed[at, 1] == uids[waiting, 1]
        found[waiting[hit]] = True
        waiting, at = waiting[~hit], at[~hit] + 1
    return found
