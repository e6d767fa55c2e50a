"""A small downloaded dataset with pictures of noise, so that no two files share bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from infra.dataset import Dataset
from infra.executors import LocalExecutor
from infra.ledger import Counts, DoneMark
from infra.tables import write_keyed_table
from pipeline.download.config import DownloadConfig
from pipeline.download.run import download

CAPTIONS = pa.schema(
    [("uid", pa.binary(16)), ("source", pa.string()), ("n", pa.int32()), ("text", pa.string()), ("model", pa.string())]
)


def draw_noise(folder: Path, num: int) -> None:
    """NUMBER.png for each number: 40 pixels high, 40 + NUMBER wide."""
    rng = np.random.default_rng(0)
    for number in range(num):
        noise = rng.integers(0, 256, (40, 40 + number, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")


def settings(**values: Any) -> DownloadConfig:
    """Quick, on loopback, four rows a shard."""
    base = {"allow_network": ("127.0.0.0/8",), "shard_size": 4, "attempts": 1, "timeout_s": 5, "backoff_s": 0.01}
    return DownloadConfig(**{**base, **values})


def store(dataset: Dataset, rows: Sequence[dict[str, Any]], table: Path, **values: Any) -> None:
    """Download rows that are written to a table first."""
    pq.write_table(pa.Table.from_pylist(list(rows)), table)
    download(dataset, settings(**values), [str(table)], LocalExecutor())


def add_captions(dataset: Dataset, name: str, texts: dict[bytes, Sequence[str]]) -> None:
    """A caption table with its marks: further captions by uid."""
    step = f"captions_{name}"
    shards = dataset.ledger.done("download")
    dataset.ledger.write_plan(step, "", shards)
    for shard in shards:
        uids = pq.read_table(dataset.storage.open(dataset.table(shard)))["uid"].to_pylist()
        rows = [
            {"uid": uid, "source": name, "n": n, "text": text, "model": "tiny"}
            for uid in uids
            for n, text in enumerate(texts.get(uid, ()))
        ]
        table = pa.Table.from_pylist(rows, schema=CAPTIONS)
        file = write_keyed_table(dataset.storage, f"captions/{name}/{shard}.parquet", table)
        counts = Counts(table.num_rows, table.num_rows)
        dataset.ledger.mark_done(DoneMark(step, shard, shard, counts, (file,), {}))
