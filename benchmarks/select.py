"""Selecting: rows/s and memory over 100 million rows, and a hundred selections against the way of DataComp's tools.

    python -m benchmarks.select scale [--rows 1e8] [--shards 100,10000]
    python -m benchmarks.select grid  [--rows 1e7] [--selections 100] [--peer-selections 3]

scale: four score tables, `Where` + `Top` of the survivors, as the command is typed (--local), start-up included.
grid: selections of the same kind with other thresholds, one after the other. The peer reads a metadata parquet by
pandas, filters in numpy, and writes uids with two processes, as DataComp's apply_filter.py does (arXiv 2304.14108);
once over the same columns ready made ("scores given"), once counting words and telling the language anew for every
selection, as it is shipped. The peer's time is that of a few selections, multiplied, and for the second on a sample of
the rows; both are said. Ours writes a verdict and a reason for every row, the peer the kept uids alone.
The rows are random; uids of 16 bytes, words and sizes as small integers, scores as float32.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from filters.fasttext_model import load_model
from filters.language import LABEL, bundled_model, readable
from filters.rules import SelectRecipe
from filters.select import select
from infra.dataset import Dataset
from infra.executors import LocalExecutor
from infra.ledger import Counts, DoneMark
from infra.tables import write_keyed_table, write_table

ROOT = Path(__file__).resolve().parent.parent
TABLES = {
    "text": {"words": 30, "characters": 200},
    "language": {"language_score": None},
    "image": {"width": 600, "height": 600},
    "clip": {"clip_score": None},
}
RECIPE = """rules:
  - where: words > 2 and characters > 5 and language_score > 0.5 and least(width, height) >= 100
  - top: clip_score
    fraction: 0.3
"""
WORDS = "a the photo of red blue dog cat house street old new man woman with on in tree car sky sale price free"


def make(folder: Path, num_rows: int, num_shards: int, metadata: Path | None = None) -> Dataset:
    """A dataset of score tables as a download and four scorers leave it; the tars are empty files."""
    dataset = Dataset(folder)
    rng = np.random.default_rng(0)
    shards = [f"{number:05d}" for number in range(num_shards)]
    for step in ("download", *(f"score_{table}" for table in TABLES)):
        dataset.ledger.write_plan(step, "", shards, settings={})
    for shard in shards:
        number = num_rows // num_shards
        uid = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), number, [None, pa.py_buffer(rng.bytes(16 * number))])
        rows = write_table(dataset.storage, dataset.table(shard), pa.table({"uid": uid}))
        tar = dataset.storage.commit_bytes(dataset.tar(shard), b"")
        _mark(dataset, "download", shard, number, rows, tar)
        values: dict[str, pa.Array] = {}
        for table, columns in TABLES.items():
            is_image = table == "image"
            source = pa.nulls(number, pa.string()) if is_image else pa.repeat("web", number)
            n = pa.nulls(number, pa.int32()) if is_image else pa.array(np.zeros(number, np.int32))
            drawn = {name: _drawn(rng, number, top) for name, top in columns.items()}
            scores = pa.table([uid, source, n, *drawn.values()], names=["uid", "source", "n", *drawn])
            file = write_keyed_table(dataset.storage, f"scores/{table}/{shard}.parquet", scores)
            _mark(dataset, f"score_{table}", shard, number, file)
            values |= drawn
        if metadata is not None:
            metadata.mkdir(parents=True, exist_ok=True)
            texts = [" ".join(rng.choice(WORDS.split(), 6)) for _ in range(1000)] * (number // 1000 + 1)
            hexes = [value.hex() for value in uid.to_pylist()]
            pq.write_table(pa.table({"uid": hexes, "text": texts[:number], **values}), metadata / f"{shard}.parquet")
    return dataset


def _drawn(rng: np.random.Generator, number: int, top: int | None) -> pa.Array:
    return pa.array(rng.random(number, np.float32) if top is None else rng.integers(0, top, number, np.int32))


def _mark(dataset: Dataset, step: str, shard: str, number: int, *files: Any) -> None:
    dataset.ledger.mark_done(DoneMark(step, shard, "", Counts(number, number), files, {"took_s": 0.0}))


def scale(num_rows: int, shard_counts: Sequence[int]) -> None:
    """The command over many rows: seconds, rows/s, peak memory."""
    for num_shards in shard_counts:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR"), prefix="bench-select-") as name:
            folder = Path(name)
            make(folder / "data", num_rows, num_shards)
            (folder / "rules.yaml").write_text(RECIPE)
            command = [sys.executable, "-m", "filters", "select", str(folder / "data"), "--rules",
                       str(folder / "rules.yaml"), "--name", "bench", "--local", "--json"]  # fmt: skip
            started = time.monotonic()
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            peak = 0
            while process.poll() is None:
                found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
                peak = max(peak, int(found[1]) // 1024 if found else 0)
                time.sleep(0.1)
            took_s = time.monotonic() - started
            assert process.returncode == 0
            print(f"{num_rows:,} rows, 4 tables, {num_shards:,} shards: {took_s:.1f} s, "
                  f"{num_rows / took_s / 1e6:.2f} million rows/s, peak {peak:,} MiB")  # fmt: skip


def grid(num_rows: int, num_selections: int, num_peer: int) -> None:
    """Many selections over the same scores, ours against the peer's way."""
    with tempfile.TemporaryDirectory(prefix="bench-select-") as name:
        folder = Path(name)
        dataset = make(folder / "data", num_rows, 100, folder / "metadata")
        started = time.monotonic()
        for number, (words, fraction) in enumerate(_settings(num_selections)):
            rules = ({"where": f"words > {words} and width > 100"}, {"top": "clip_score", "fraction": fraction})
            select([dataset], SelectRecipe(rules=rules), f"grid_{number}", LocalExecutor())
            shutil.rmtree(folder / "data" / "selections")  # 200 MB each
        ours_s = (time.monotonic() - started) / num_selections
        print(f"ours: {num_selections} selections over {num_rows:,} rows in {ours_s * num_selections:.0f} s, "
              f"{ours_s:.2f} s each")  # fmt: skip
        files = sorted((folder / "metadata").glob("*.parquet"))
        given_s = _peer(files, num_peer, with_texts=False)
        print(f"peer, scores given: {given_s:.2f} s each (mean of {num_peer}); ratio {given_s / ours_s:.1f}")
        sample = files[: max(2, len(files) // 10)]
        shipped_s = _peer(sample, 1, with_texts=True) * len(files) / len(sample)
        print(f"peer, as shipped (language told and words counted for every selection): {shipped_s:.1f} s each "
              f"(one, on {len(sample)} of {len(files)} files, multiplied); ratio {shipped_s / ours_s:.1f}")  # fmt: skip


def _settings(number: int) -> Iterator[tuple[int, float]]:
    for at in range(number):
        yield at % 10, 0.05 + 0.9 * at / number


def _peer(files: Sequence[Path], num_selections: int, *, with_texts: bool) -> float:
    """Seconds a selection: threshold over all, then rows file by file in two processes."""
    started = time.monotonic()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for words, fraction in _settings(num_selections):
            scores = np.concatenate(pool.map(_scores_of, files))
            threshold = np.sort(scores)[::-1][min(len(scores) - 1, int(len(scores) * fraction))]
            jobs = [(file, words, float(threshold), with_texts) for file in files]
            uids = np.concatenate(pool.starmap(_uids_of, jobs, chunksize=1))
            uids.sort()
            np.save(files[0].parent / "subset.npy", uids)
    return (time.monotonic() - started) / num_selections


def _scores_of(file: Path) -> np.ndarray:
    return pd.read_parquet(file, columns=["clip_score"])["clip_score"].to_numpy()


def _uids_of(file: Path, words: int, threshold: float, with_texts: bool) -> np.ndarray:
    columns = ["uid", "clip_score", "width", *(["text"] if with_texts else ["words"])]
    frame = pd.read_parquet(file, columns=columns)
    if with_texts:
        model = load_model(Path(bundled_model()).read_bytes(), bundled_model())
        known = frame["text"].map(lambda text: model.predict(readable(text))[0][0].removeprefix(LABEL))
        frame = frame[(known == "en") & (frame["text"].map(lambda text: len(text.split())) > words)]
    else:
        frame = frame[frame["words"] > words]
    frame = frame[(frame["width"] > 100) & (frame["clip_score"] >= threshold)]
    return np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in frame["uid"]], np.dtype("u8,u8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["scale", "grid"])
    parser.add_argument("--rows", type=float)
    parser.add_argument("--shards", default="100,10000")
    parser.add_argument("--selections", type=int, default=100)
    parser.add_argument("--peer-selections", type=int, default=3)
    options = parser.parse_args()
    if options.part == "scale":
        scale(int(options.rows or 1e8), [int(word) for word in options.shards.split(",")])
    else:
        grid(int(options.rows or 1e7), options.selections, options.peer_selections)


if __name__ == "__main__":
    main()
