"""A dataset drawn on the spot, with a crawl, a download and known fates."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from filters.base import column
from filters.rules import SelectRecipe
from filters.select import select
from infra.dataset import Dataset
from infra.executors import LocalExecutor
from infra.ledger import Counts, DoneMark
from infra.sample import UID_BYTES, pair_uid
from infra.selection import Selection
from infra.shards import ShardWriter
from infra.storage import Committed
from infra.tables import KEYS, write_keyed_table, write_table
from tests.servers.browser import browser  # noqa: F401 - a fixture


def drawn_jpeg(number: int, width: int, height: int) -> bytes:
    """A picture that differs from its neighbours."""
    image = Image.new("RGB", (width, height), ((number * 53) % 256, (number * 101) % 256, (number * 197) % 256))
    ImageDraw.Draw(image).ellipse(
        (width // 5, height // 5, 3 * width // 5, 4 * height // 5), fill="white", outline="black"
    )
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()


class Builder:
    """Writes tables, tars and marks as the steps do."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.dataset = Dataset(folder)
        self.storage = self.dataset.storage

    def mark(self, step: str, job: str, counts: Counts, files: tuple[Committed, ...] = (), took_s: float = 2.0) -> None:
        """One finished job."""
        clock = {"started": 1_790_000_000.0, "took_s": took_s, "host": "here"}
        self.dataset.ledger.mark_done(DoneMark(step, job, "f" * 32, counts, files, clock))
        plan = self.dataset.ledger.plan(step)
        self.plan(step, sorted({*(plan["jobs"] if plan else ()), job}))

    def plan(self, step: str, jobs: list[str], **settings: Any) -> None:
        """What a step was to do."""
        self.dataset.ledger.write_plan(step, "f" * 32, jobs, settings=settings)

    def shard(self, name: str, rows: list[dict[str, Any]], marked: bool = True, indexed: bool = True) -> None:
        """A shard of rows {url, caption, size | reason, status, …}; those with a size are stored."""
        table: list[dict[str, Any]] = []
        with self.storage.commit(f"{name}.tar") as draft, ShardWriter(draft.path) as writer:
            for at, row in enumerate(rows):
                uid, key = pair_uid(row["url"], row["caption"]), f"{name}{at:04d}"
                facts = {"uid": uid, "key": key, **{name: row.get(name) for name in ROW_COLUMNS}}
                if size := row.get("size"):
                    data = row.get("data") or drawn_jpeg(at, *size)
                    writer.write(uid, key, {"jpg": data, "txt": (row["caption"] or "").encode(), "json": b"{}"})
                    facts |= {"status": "success", "width": size[0], "height": size[1], "bytes": len(data),
                              "original_width": 2 * size[0], "original_height": 2 * size[1],
                              "sha256": hashlib.sha256(data).hexdigest(), "http_status": 200}  # fmt: skip
                table.append(facts)
        files = [draft.result(), write_table(self.storage, f"{name}.parquet", pa.Table.from_pylist(table, ROW_SCHEMA))]
        if indexed:
            files.append(write_table(self.storage, f"index/{name}.parquet", writer.index()))
        dropped = Counter(row["reason"] for row in table if row["reason"])
        num_stored = sum(row["status"] == "success" for row in table)
        if marked:
            self.mark("download", name, Counts(len(rows), num_stored, dropped), tuple(files))

    def table(self, name: str, rows: list[dict[str, Any]]) -> Committed:
        """Any table."""
        return write_table(self.storage, name, pa.Table.from_pylist(rows))


class World:
    """Images by their places, with web captions, synthetic ones and scores."""

    def __init__(self, builder: Builder, webs: Sequence[str | None], addresses: Sequence[str] = ()) -> None:
        self.builder = builder
        addresses = addresses or [f"http://a.test/{at}.jpg" for at in range(len(webs))]
        rows = [{"url": url, "caption": web, "size": (40, 30)} for url, web in zip(addresses, webs, strict=True)]
        builder.shard("00000", rows)
        self.uids = [pair_uid(row["url"], row["caption"]) for row in rows]
        self.keys: list[Key] = [(at, "web", 0) for at in range(len(webs))]

    def captions(self, source: str, texts: Sequence[Sequence[str | None]]) -> None:
        """A caption table: the texts of each image."""
        keys = [(at, source, n) for at, own in enumerate(texts) for n in range(len(own))]
        self._write(f"captions_{source}", f"captions/{source}", keys, CAPTIONS,
                    text=[text for own in texts for text in own], log_prob=[-1.5] * len(keys))  # fmt: skip
        self.keys += keys

    def scores(self, table: str, values: Mapping[Key, float | None]) -> None:
        """A score table of captions with a column of the same name."""
        keys = sorted(values)
        schema = pa.schema([*KEYS, column(table, pa.float32(), "")])
        self._write(f"score_{table}", f"scores/{table}", keys, schema, **{table: [values[key] for key in keys]})

    def select(self, rules: Sequence[Mapping[str, Any]], *sources: str, name: str = "capfilt") -> Selection:
        """The selection of the web's captions and those of the sources."""
        recipe = SelectRecipe(rules=tuple(dict(rule) for rule in rules), captions=sources)
        select([self.builder.dataset], recipe, name, LocalExecutor())
        return Selection(self.builder.dataset, name)

    def _write(self, step: str, folder: str, keys: Sequence[Key], schema: pa.Schema, **values: Any) -> None:
        of = [[self.uids[at] for at, _, _ in keys], [source for _, source, _ in keys], [n for _, _, n in keys]]
        table = pa.table([pa.array(one, kind.type) for one, kind in zip([*of, *values.values()], schema, strict=True)],
                         schema=schema)  # fmt: skip
        name = f"{folder}/00000.parquet"
        self.builder.mark(step, "00000", Counts(len(keys), len(keys)),
                          (write_keyed_table(self.builder.storage, name, table),))  # fmt: skip


CAPTIONS = pa.schema([*KEYS, column("text", pa.string(), ""), column("log_prob", pa.float32(), "")])
Key = tuple[int, str, int]  # place of the image, source, n
ROW_COLUMNS = ("url", "caption", "status", "reason", "error_message", "http_status", "width", "height",
               "original_width", "original_height", "bytes", "sha256")  # fmt: skip
_NUMBERS = {"http_status", "width", "height", "original_width", "original_height", "bytes"}
ROW_SCHEMA = pa.schema(
    [("uid", pa.binary(UID_BYTES)), ("key", pa.string())]
    + [(name, pa.int64() if name in _NUMBERS else pa.string()) for name in ROW_COLUMNS]
)


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """An empty dataset to fill."""
    return Builder(tmp_path / "dataset")


@pytest.fixture
def finished(builder: Builder) -> Builder:
    """A crawl of 40 pages and a download of 60 rows in two shards, all done: 45 stored, 15 failed by four reasons."""
    pages = [
        {"url": f"http://a.test/{at}", "host": "a.test", "depth": at % 3, "status": 404 if at % 10 == 0 else 200,
         "reason": "http_404" if at % 10 == 0 else "ok", "num_img": 3, "num_pairs": 2, "num_links": 5}
        for at in range(40)
    ]  # fmt: skip
    file = builder.table("ledger/pages/00000-000.parquet", pages)
    extra = {"images": 108, "pairs": 72, "no_pair:no_caption": 30, "no_pair:data_url": 6}
    builder.mark("crawl_live", "00000-000", Counts(40, 36, {"http_404": 4}, extra), (file,))
    pairs = [
        {"uid": at.to_bytes(16, "big"), "url": f"http://a.test/{at}.jpg", "caption": "x", "page_url": "http://a.test/1",
         "caption_from": "alt" if at % 4 else "figcaption", "lang_hint": "en" if at % 3 else None, "licence": None}
        for at in range(64)
    ]  # fmt: skip
    builder.mark(
        "crawl_merge", "00000", Counts(72, 64, {"duplicate_pair": 8}), (builder.table("pairs/00000.parquet", pairs),)
    )
    builder.mark("split", "00000", Counts(64, 64))
    builder.mark("duplicates", "all", Counts(64, 60, {"duplicate_row": 4}))
    failures = (
        ("failed_to_download", "http_404", 404, "Not Found"),
        ("failed_to_download", "timeout", None, "no answer within 10 s"),
        ("failed_to_resize", "too_small", 200, "12 x 12 pixels"),
        ("failed_to_download", "dns", None, None),
    )
    rows: list[dict[str, Any]] = []
    for at in range(60):
        row: dict[str, Any] = {"url": f"http://{'ab'[at % 2]}.test/{at}.jpg", "caption": f"caption number {at}"}
        if at % 4 == 3:
            row |= dict(zip(("status", "reason", "http_status", "error_message"), failures[at // 4 % 4], strict=True))
        else:
            row["size"] = (120 + at, 90 + 2 * at)
        rows.append(row)
    builder.shard("00000", rows[:30])
    builder.shard("00001", rows[30:])
    builder.storage.commit_bytes("recipe.yaml", b"download:\n  image_size: 256\n")
    return builder
