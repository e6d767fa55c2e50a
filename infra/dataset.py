"""A dataset folder: shards, tables, where each lies. The disk contract in code (see ARCHITECTURE.md)."""

from __future__ import annotations

import json
import os
import re
from functools import cached_property

from infra.ledger import Ledger
from infra.storage import Storage

_SHARD = re.compile(r"^\d+$")


class Dataset:
    """One dataset folder, on a disk or an object store. Shards are named by their digits: "00012"."""

    def __init__(self, url: str | os.PathLike[str] | Storage) -> None:
        self.storage = url if isinstance(url, Storage) else Storage(url)

    def __reduce__(self) -> tuple[type[Dataset], tuple[Storage]]:
        return (Dataset, (self.storage,))

    def __repr__(self) -> str:
        return f"Dataset({self.storage.url!r})"

    @cached_property
    def ledger(self) -> Ledger:
        """Done-marks, plans and quarantine."""
        return Ledger(self.storage)

    def shards(self) -> list[str]:
        """Names of the shards whose table is published, sorted."""
        names = (name.removesuffix(".parquet") for name in self.storage.list("", ".parquet"))
        return sorted((name for name in names if _SHARD.match(name)), key=lambda name: (len(name), name))

    def tars(self) -> list[str]:
        """Names of the shards whose tar is published, sorted; a foreign folder may have tars without tables."""
        names = (name.removesuffix(".tar") for name in self.storage.list("", ".tar"))
        return sorted(names, key=lambda name: (len(name), name))

    def tables(self, folder: str) -> list[str]:
        """Sorted names of a folder's parquet files, such as "pairs" or "ledger/pages"."""
        return self.storage.list(folder, ".parquet")

    @staticmethod
    def tar(shard: str) -> str:
        """Name of a shard's tar."""
        return f"{shard}.tar"

    @staticmethod
    def table(shard: str) -> str:
        """Name of a shard's table: one row per input row, stored or not."""
        return f"{shard}.parquet"

    @staticmethod
    def stats(shard: str) -> str:
        """Name of a shard's img2dataset-style statistics; clocks may live there."""
        return f"{shard}_stats.json"

    @staticmethod
    def index(shard: str) -> str:
        """Name of a shard's index: uid, key, member, offset, size."""
        return f"index/{shard}.parquet"

    def read_sizes(self) -> dict[str, int]:
        """`sizes.json`, empty before it was written."""
        try:
            return dict(json.loads(self.storage.read("sizes.json")))
        except FileNotFoundError:
            return {}

    def write_sizes(self, sizes: dict[str, int]) -> None:
        """Publish `sizes.json` (tar name → samples), as open_clip reads it."""
        ordered = {name: sizes[name] for name in sorted(sizes, key=lambda name: (len(name), name))}
        self.storage.commit_bytes("sizes.json", json.dumps(ordered, indent=1).encode() + b"\n")
