"""Small datasets with real tars, as a download leaves them, and selections of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from infra.dataset import Dataset
from infra.ledger import Counts, DoneMark
from infra.sample import pair_uid
from infra.selection import SCHEMA, counted, selection_table, summary_file
from infra.shards import ShardWriter
from infra.storage import Committed
from infra.tables import read_table, write_keyed_table, write_table

Verdict = Callable[[bytes, str, int], bool]  # uid, source, n → is it kept?
SIDE = 16  # pixels


def uid_of(number: int) -> bytes:
    """The uid of the image with this number."""
    return pair_uid(f"http://a.test/{number}.png", caption_of(number))


def caption_of(number: int) -> str:
    """Its caption on the web."""
    return f"picture number {number}"


def picture(number: int) -> bytes:
    """A PNG of one colour that tells the number."""
    image = np.full((SIDE, SIDE, 3), (number % 256, number // 256, 7), np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def make_shards(
    folder: Path | str, sizes: Sequence[int], images: Mapping[int, bytes] | None = None,
    more: Mapping[str, Mapping[int, Sequence[str]]] | None = None,
) -> Dataset:  # fmt: skip
    """Shards of `sizes` samples, numbered through; images: other bytes for some; more: caption tables by name."""
    dataset = Dataset(folder)
    first = 0
    for at, size in enumerate(sizes):
        shard, numbers = f"{at:05d}", range(first, first + size)
        first += size
        with dataset.storage.commit(dataset.tar(shard)) as draft, ShardWriter(draft.path) as writer:
            for number in numbers:
                parts = {"png": (images or {}).get(number, picture(number)), "txt": caption_of(number).encode()}
                writer.write(uid_of(number), f"{number:09d}", parts)
        columns = {
            "uid": pa.array([uid_of(number) for number in numbers], pa.binary(16)),
            "key": pa.array([f"{number:09d}" for number in numbers], pa.string()),
            "url": pa.array([f"http://a.test/{number}.png" for number in numbers], pa.string()),
            "caption": pa.array([caption_of(number) for number in numbers], pa.string()),
            "status": pa.array(["success"] * size, pa.string()),
        }
        files = [draft.result(), write_table(dataset.storage, dataset.table(shard), pa.table(columns)),
                 write_table(dataset.storage, dataset.index(shard), writer.index())]  # fmt: skip
        _mark(dataset, "download", shard, size, files)
        for name, texts in (more or {}).items():
            rows = [{"uid": uid_of(number), "source": name, "n": n, "text": text}
                    for number in numbers for n, text in enumerate(texts.get(number, ()))]  # fmt: skip
            table = pa.Table.from_pylist(rows, pa.schema([*list(SCHEMA)[:3], ("text", pa.string())]))
            write_keyed_table(dataset.storage, f"captions/{name}/{shard}.parquet", table)
    dataset.ledger.write_plan("download", "", [f"{at:05d}" for at in range(len(sizes))])
    return dataset


def make_selection(dataset: Dataset, name: str, is_kept: Verdict, sources: Sequence[str] = ("web",)) -> None:
    """What a finished `select` leaves, over the captions of `sources`."""
    shards = dataset.shards()
    for shard in shards:
        uids = read_table(dataset.storage, dataset.table(shard), ["uid"])["uid"].to_pylist()
        keys = [("web", uid, 0) for uid in uids]
        for source in sources:
            if source != "web":
                table = read_table(dataset.storage, f"captions/{source}/{shard}.parquet", ["uid", "n"])
                keys += [(source, row["uid"], row["n"]) for row in table.to_pylist()]
        keys.sort(key=lambda key: (uids.index(key[1]), sources.index(key[0]) if key[0] in sources else -1, key[2]))
        rows = [{"uid": uid, "source": source, "n": n, "keep": is_kept(uid, source, n), "reason": None}
                for source, uid, n in keys]  # fmt: skip
        table = counted(pa.Table.from_pylist(rows, SCHEMA))
        write_keyed_table(dataset.storage, selection_table(name, shard), table, keep_types=False)
    dataset.ledger.write_plan(f"select_{name}", "", shards)
    dataset.storage.commit_bytes(summary_file(name), json.dumps({"name": name}).encode())


def _mark(dataset: Dataset, step: str, job: str, num: int, files: Sequence[Committed]) -> None:
    dataset.ledger.mark_done(DoneMark(step, job, job, Counts(num, num), tuple(files), {}))
