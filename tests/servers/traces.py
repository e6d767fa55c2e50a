"""What is left of pictures and texts in a folder: every file is searched, the values of parquet tables too."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

WINDOW = 64


def windows(data: bytes) -> set[bytes]:
    """Every run of 64 bytes."""
    return {data[at : at + WINDOW] for at in range(len(data) - WINDOW + 1)}


def telling(gone: Collection[bytes], others: Collection[bytes]) -> set[bytes]:
    """Runs of bytes that only pictures have which are to be gone; all JPEGs share their headers."""
    return set().union(*map(windows, gone)) - set().union(*map(windows, others))


def traces(folder: Path, runs: set[bytes], texts: Collection[str]) -> list[str]:
    """Names of files that hold one of the runs of bytes or one of the texts, with what they hold."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        values = [path.read_bytes(), *(_values(path) if name.endswith(".parquet") else ())]
        for value in values:
            held = next((text for text in texts if text.encode() in value), None)
            if held is None and len(value) >= WINDOW and not windows(value).isdisjoint(runs):
                held = "image bytes"
            if held is not None:
                found.append(f"{name}: {held}")
                break
    return found


def _values(path: Path) -> Iterator[bytes]:
    """All values of a table, as bytes."""
    for column in pq.read_table(path).columns:
        for value in column.to_pylist():
            yield from _leaves(value)


def _leaves(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, bytes):
        yield value
    elif value is not None:
        yield str(value).encode()
