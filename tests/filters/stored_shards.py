"""Shards with images in them, broken ones too, as a download leaves them."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from infra.dataset import Dataset
from infra.ledger import Counts, DoneMark
from infra.shards import ShardWriter, sample_json
from infra.tables import KEYS, write_table
from tests.filters.small_datasets import uid_of

ROWS = pa.schema(
    [("uid", KEYS.field("uid").type), *((name, pa.string()) for name in ("key", "caption", "status", "reason"))]
)


@dataclass(frozen=True)
class Sample:
    """A row of a shard; one that was not downloaded has no image."""

    word: str
    caption: str | None
    image: bytes | None

    @property
    def uid(self) -> bytes:
        return uid_of(self.word)


def picture(number: int) -> bytes:
    """A JPEG of noise; another number is another picture."""
    noise = np.random.default_rng(number).integers(0, 256, (24 + number, 32, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=90)
    return file.getvalue()


def store(folder: Path | str, shards: dict[str, list[Sample]]) -> Dataset:
    """Shards as a download leaves them, broken images and all; called again, it adds to what is there."""
    dataset = Dataset(folder)
    for shard, samples in shards.items():
        rows: list[dict[str, Any]] = []
        with dataset.storage.commit(dataset.tar(shard)) as draft, ShardWriter(draft.path) as writer:
            for number, sample in enumerate(samples):
                key, is_stored = f"{shard}{number:04d}", sample.image is not None
                rows.append({"uid": sample.uid, "key": key, "caption": sample.caption,
                             "status": "success" if is_stored else "failed_to_download",
                             "reason": None if is_stored else "timeout"})  # fmt: skip
                if sample.image is not None:
                    text = (sample.caption or "").encode()
                    writer.write(sample.uid, key, {"jpg": sample.image, "txt": text, "json": sample_json(rows[-1])})
        files = (
            draft.result(),
            write_table(dataset.storage, dataset.table(shard), pa.Table.from_pylist(rows, ROWS)),
            write_table(dataset.storage, dataset.index(shard), writer.index()),
        )
        reasons = Counter(row["reason"] for row in rows if row["reason"])
        counts = Counts(len(rows), len(rows) - reasons.total(), reasons)
        dataset.ledger.mark_done(DoneMark("download", shard, shard, counts, files, {}))
    dataset.ledger.write_plan("download", "", dataset.ledger.done("download"))
    return dataset
