"""The explorer over 1 and 5 million rows: seconds to start, memory, milliseconds from a slider's move to its counts.

    python -m benchmarks.explore [--rows 1000000,5000000] [--shard-size 10000] [--repeats 30]

A made dataset of four score tables beside its shards (no tars: no picture is read here), 13 columns in all. Each move
changes one rule of four (a range, a category, a flag, a top share) and asks as the page does, over HTTP on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import tempfile
import time
from typing import Any

import aiohttp
import numpy as np
import pyarrow as pa

from infra.dataset import Dataset
from infra.ledger import Counts, DoneMark
from infra.sample import UID_BYTES
from infra.storage import Committed
from infra.tables import KEYS, write_keyed_table, write_table
from pipeline.explore.load import load
from pipeline.explore.server import Server

LANGUAGES = np.array(["en", "de", "fr", "es", "zh", "ja", "ru", "it"])


def make(folder: str, num_rows: int, shard_size: int) -> Dataset:
    """Shards' tables with scores of four kinds; 3 % of the rows lack a clip score."""
    dataset = Dataset(folder)
    chance = np.random.default_rng(0)
    shards = [f"{at:05d}" for at in range(-(-num_rows // shard_size))]
    for shard in shards:
        size = min(shard_size, num_rows - int(shard) * shard_size)
        uids = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(UID_BYTES), size, [None, pa.py_buffer(chance.bytes(size * UID_BYTES))]
        )
        words = chance.geometric(0.12, size).astype(np.int32)
        row = pa.table({
            "uid": uids, "key": [f"{shard}{at:04d}" for at in range(size)], "status": ["success"] * size,
            "url": [f"https://host{at % 97}.example/{shard}/{at}.jpg" for at in range(size)],
            "caption": [f"caption {at} of shard {shard}, with a few words more" for at in range(size)],
            "width": chance.integers(100, 600, size), "height": chance.integers(100, 600, size),
        })  # fmt: skip
        _done(dataset, "download", shard, size, write_table(dataset.storage, f"{shard}.parquet", row))
        clip = pa.array(chance.normal(0.25, 0.05, size).astype(np.float32), mask=chance.random(size) < 0.03)
        tables = {
            "text": {"words": words, "characters": words * 6, "alnum": chance.beta(9, 1, size).astype(np.float32),
                     "boilerplate": chance.random(size) < 0.02},
            "language": {"language": LANGUAGES[chance.integers(0, 8, size) * (chance.random(size) < 0.5)],
                         "confidence": chance.beta(5, 1, size).astype(np.float32)},
            "image": {"aspect": chance.gamma(3, 0.5, size).astype(np.float32) + 1, "entropy": chance.normal(6, 1, size),
                      "sharpness": chance.gamma(2, 3, size)},
            "clip": {"clip_score": clip, "aesthetic": chance.normal(5, 1, size).astype(np.float32)},
        }  # fmt: skip
        for name, columns in tables.items():
            is_image = name == "image"
            keys = [uids, pa.array([None if is_image else "web"] * size), pa.array([None if is_image else 0] * size)]
            table = pa.table([*keys, *columns.values()], names=[*KEYS.names, *columns])
            table = table.cast(pa.schema([*KEYS, *(table.schema.field(column) for column in columns)]))
            file = write_keyed_table(dataset.storage, f"scores/{name}/{shard}.parquet", table)
            _done(dataset, f"score_{name}", shard, size, file)
    for step in ("download", *(f"score_{name}" for name in tables)):
        dataset.ledger.write_plan(step, "made", shards)
    return dataset


def _done(dataset: Dataset, step: str, shard: str, size: int, file: Committed) -> None:
    files = (file, Committed(f"{shard}.tar", 0, "made")) if step == "download" else (file,)
    dataset.ledger.mark_done(DoneMark(step, shard, "made", Counts(size, size), files, {}))


async def moves(server: Server, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each kind of question, asked while one rule moves."""
    await server.start()
    columns = {column.path: at for at, column in enumerate(server.loaded.columns)}
    top = {"kind": "top", "column": columns["clip_score"], "of": "survivors"}
    took: dict[str, list[float]] = {}
    async with aiohttp.ClientSession(headers={"X-Token": server.token}) as session:

        async def timed(name: str, path: str, **body: Any) -> None:
            started = time.perf_counter()
            async with session.post(f"http://127.0.0.1:{server.port}/{path}", json=body) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()
            took.setdefault(name, []).append(1000 * (time.perf_counter() - started))

        for at in range(repeats):
            rules: list[dict[str, Any]] = [
                {"kind": "range", "column": columns["words"], "low": 2 + at % 10, "high": 60},
                {"kind": "values", "column": columns["language"], "values": [0, 1, 2]},
                {"kind": "values", "column": columns["boilerplate"], "values": [0]},
                {"kind": "range", "column": columns["entropy"], "low": 4 + at / 100},
            ]
            await timed("count, one rule", "count", rules=rules[:1])
            await timed("count, four rules", "count", rules=rules)
            share = {**top, "fraction": 0.2 + at / 100}
            await timed("count, a top share of survivors moves", "count", rules=[*rules[1:3], share])
            await timed(
                "count, a rule before a share moves", "count", rules=[rules[0], *rules[1:3], {**top, "fraction": 0.3}]
            )
            await timed("histograms of four rules", "effects", rules=rules)
            near = {"side": "dropped", "near": 0}
            await timed("a page of rows at the cut", "rows", rules=rules, view=near)
    await server.stop()
    return took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000000,5000000")
    parser.add_argument("--shard-size", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    for num_rows in map(int, options.rows.split(",")):
        with tempfile.TemporaryDirectory(prefix="explore-") as folder:
            dataset = make(folder, num_rows, options.shard_size)
            started = time.perf_counter()
            server = Server(load(dataset))
            started_s = time.perf_counter() - started
            took = asyncio.run(moves(server, options.repeats))
        num_columns = len(server.loaded.columns)
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"{num_rows:,} rows, {num_columns} columns: started in {started_s:.1f} s, peak {peak_mib} MiB")
        for name, times in took.items():
            times = sorted(times)
            print(f"  {name:40} median {statistics.median(times):6.1f} ms   worst {times[-1]:6.1f} ms")


if __name__ == "__main__":
    main()
