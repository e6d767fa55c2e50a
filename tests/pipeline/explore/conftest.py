"""A scored dataset drawn on the spot, and the explorer's server at work in a thread."""

from __future__ import annotations

import asyncio
import io
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from infra.dataset import Dataset
from infra.ledger import Counts, DoneMark
from infra.sample import UID_BYTES, pair_uid
from infra.shards import ShardWriter
from infra.storage import Committed
from infra.tables import KEYS, write_keyed_table, write_table
from pipeline.explore.load import load
from pipeline.explore.server import Server
from tests.servers.browser import browser  # noqa: F401 - a fixture

Rows = Sequence[dict[str, Any]]


def drawn_png(number: int) -> bytes:
    """A picture of one colour, its own."""
    out = io.BytesIO()
    Image.new("RGB", (40, 30), ((number * 53) % 256, (number * 101) % 256, (number * 197) % 256)).save(out, "PNG")
    return out.getvalue()


class Builder:
    """Writes shards, tables and marks as the steps do."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.dataset = Dataset(folder)
        self.storage = self.dataset.storage

    def shard(self, name: str, rows: Rows) -> list[bytes]:
        """Rows {caption, and maybe url, image, reason, columns of their own}; those with a reason are not stored.

        Returns the uids of the stored ones.
        """
        table: list[dict[str, Any]] = []
        with self.storage.commit(f"{name}.tar") as draft, ShardWriter(draft.path) as writer:
            for at, row in enumerate(rows):
                url = row.get("url", f"http://h.test/{name}/{at}.png")
                uid, key = pair_uid(url, row["caption"]), f"{name}{at:04d}"
                reason = row.get("reason")
                if reason is None:
                    data = row.get("image", drawn_png(at))
                    writer.write(uid, key, {row.get("ending", "png"): data, "txt": row["caption"].encode()})
                own = {name: value for name, value in row.items() if name not in ("image", "ending")}
                table.append({"uid": uid, "key": key, "url": url, "status": "failed" if reason else "success", **own})
        files = [draft.result(), self._table(f"{name}.parquet", table)]
        files.append(write_table(self.storage, f"index/{name}.parquet", writer.index()))
        stored = [row["uid"] for row in table if row["status"] == "success"]
        counts = Counts(len(table), len(stored), {"timeout": len(table) - len(stored)})
        self.mark("download", name, counts, tuple(files))
        return stored

    def scores(self, table: str, shard: str, uids: Sequence[bytes], per: str = "image", **columns: pa.Array) -> None:
        """A score table's part, in the order of its rows."""
        keys = {
            "uid": pa.array(uids, pa.binary(UID_BYTES)),
            "source": pa.array([None if per == "image" else "web"] * len(uids), pa.string()),
            "n": pa.array([None if per == "image" else 0] * len(uids), pa.int32()),
        }
        assert list(keys) == KEYS.names
        file = write_keyed_table(self.storage, f"scores/{table}/{shard}.parquet", pa.table({**keys, **columns}))
        self.mark(f"score_{table}", shard, Counts(len(uids), len(uids)), (file,))

    def mark(self, step: str, job: str, counts: Counts, files: tuple[Committed, ...]) -> None:
        """One finished job."""
        self.dataset.ledger.mark_done(DoneMark(step, job, "f" * 32, counts, files, {}))
        plan = self.dataset.ledger.plan(step)
        self.dataset.ledger.write_plan(step, "f" * 32, sorted({*(plan["jobs"] if plan else ()), job}))

    def _table(self, name: str, rows: Rows) -> Committed:
        columns = {
            name: pa.array([row.get(name) for row in rows])
            for name in dict.fromkeys(key for row in rows for key in row)
        }
        columns["uid"] = columns["uid"].cast(pa.binary(UID_BYTES))
        return write_table(self.storage, name, pa.table(columns))


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """An empty dataset to fill."""
    return Builder(tmp_path / "dataset")


def draw_scored(builder: Builder) -> Builder:
    """120 stored rows of 150 in three shards, with scores of captions and of images; some lack a score.

    words 1 to 12 · language en, fr, de or none · sharpness 0 to 10, ties, NaN and none · punsafe 0 to 1.
    """
    chance = random.Random(7)
    for shard in ("00000", "00001", "00002"):
        rows = [
            {"caption": f"caption {at} of {shard}", "width": 100 + at, "reason": "timeout" if at % 5 == 4 else None}
            for at in range(50)
        ]
        uids = builder.shard(shard, rows)
        number = range(len(uids))
        builder.scores(
            "text", shard, uids, "caption",
            words=pa.array([chance.randint(1, 12) for _ in number], pa.int32()),
            is_name=pa.array([chance.random() < 0.2 for _ in number]),
        )  # fmt: skip
        builder.scores(
            "language", shard, uids, "caption",
            language=pa.array([chance.choice(["en", "en", "en", "fr", "d'e", None]) for _ in number]),
        )  # fmt: skip
        sharpness = [chance.choice([None, float("nan"), *(round(chance.random() * 10, 1) for _ in range(20))])
                     for _ in number]  # fmt: skip
        builder.scores(
            "image", shard, uids, "image",
            sharpness=pa.array(sharpness, pa.float32()),
            width=pa.array([200 + at for at in number], pa.int32()),
            punsafe=pa.array([chance.random() for _ in number], pa.float32()),
        )  # fmt: skip
    return builder


@pytest.fixture
def scored(builder: Builder) -> Builder:
    """A scored dataset of its own, see `draw_scored`."""
    return draw_scored(builder)


class Thread:
    """A server in a thread with a loop of its own."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._started: Future[int] = Future()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.port = self._started.result(20)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self.server.start())
        except Exception as error:  # the test is to see it
            self._started.set_exception(error)
            return
        self._started.set_result(self.server.port)
        self._loop.run_forever()

    def stop(self) -> None:
        """Let go of the port."""
        asyncio.run_coroutine_threadsafe(self.server.stop(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a scored dataset, for all tests of a file that only ask."""
    builder = draw_scored(Builder(tmp_path_factory.mktemp("scored") / "dataset"))
    thread = Thread(Server(load(builder.dataset)))
    yield thread.server
    thread.stop()


@pytest.fixture
def serve() -> Iterator[Callable[[Builder], Server]]:
    """Serves a dataset until the test ends."""
    threads: list[Thread] = []

    def start(builder: Builder) -> Server:
        threads.append(Thread(Server(load(builder.dataset))))
        return threads[-1].server

    yield start
    for thread in threads:
        thread.stop()
