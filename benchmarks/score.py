"""Scoring: images/s of `image` and `duplicates` over shards against bare decode loops over the same tars, and on Ray.

    python -m benchmarks.score [--photos ../shared/data/photos] [--images 4000] [--shards 8] [--rounds 3]

A bare loop finds each image in its tar, decodes it and throws it away: by the decoder that scoring uses, by Pillow, and
as webdataset's reader does. CPU figures are for one process; wall figures are for two, of the loop and of Ray. Rounds
take turns, the best counts, so that a neighbour's load spares no one. Photos are stored at 256 and 512 pixels, JPEG.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image

from filters.pixels import decode
from filters.score import score
from infra.dataset import Dataset
from infra.executors import LocalExecutor, RayExecutor
from infra.jobs import Executor
from infra.sample import pair_uid
from infra.shards import ShardWriter, read_at, walk_members
from pipeline.images import ImageConfig, convert

SCORERS = ("image", "duplicates")
NUM_WORKERS = 2


def write_dataset(folder: Path, photos: list[Path], num_images: int, num_shards: int, side: int) -> None:
    """Shards, tables and indexes as img2dataset and `infra index` would leave them."""
    config = ImageConfig(image_size=side, resize_mode="keep_ratio_largest", only_if_bigger=False)
    images = [convert(path.read_bytes(), config).data for path in photos[:num_images]]
    (folder / "index").mkdir()
    for shard in range(num_shards):
        rows = []
        with ShardWriter(folder / f"{shard:05d}.tar") as tar:
            for number in range(shard, num_images, num_shards):
                url, key = f"http://example.org/{number}.jpg", f"{number:09d}"
                uid = pair_uid(url, "a photo")
                tar.write(uid, key, {"jpg": images[number % len(images)], "txt": b"a photo", "json": b"{}"})
                rows.append({"uid": uid, "key": key, "url": url, "caption": "a photo", "status": "success"})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")
        pq.write_table(tar.index(), folder / f"index/{shard:05d}.parquet")


def images_of(tar: Path) -> Iterator[bytes]:
    """The images of a shard, by seeking: the other members are not read."""
    with tar.open("rb") as walked, tar.open("rb") as file:
        for member in walk_members(walked):
            if member.ending == "jpg":
                yield read_at(file, member.offset, member.size)


def decode_all(decoder: Callable[[bytes], object], tar: Path) -> None:
    """The bare loop."""
    for image in images_of(tar):
        decoder(image)


def by_pillow(data: bytes) -> np.ndarray:
    """What most loaders do with one image."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def by_webdataset(tars: list[Path]) -> None:
    """What most loaders are: webdataset's own reader, of the images alone."""
    urls = [str(tar) for tar in tars]
    images = webdataset.WebDataset(urls, shardshuffle=False, select_files=lambda name: name.endswith(".jpg"))
    for _ in images.decode("rgb8"):
        pass


def run_score(folder: Path, executor: Executor) -> None:
    """The real step, from nothing."""
    for name in ("scores", "ledger"):
        shutil.rmtree(folder / name, ignore_errors=True)
    score(Dataset(folder), SCORERS, executor)


def best(ways: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of each way, the least of `rounds`."""
    spent = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            started = clock()
            way()
            spent[name] = min(spent[name], clock() - started)
    return spent


def show(title: str, spent: dict[str, float], num_images: int, against: str) -> None:
    """Print a line for each way, and its speed over that of the loop."""
    for name, seconds in spent.items():
        ratio = spent[against] / seconds
        print(f"{title:<26}{name:<34}{num_images / seconds:>9,.0f}{seconds / num_images * 1e3:>9.3f}{ratio:>8.2f}")


def compare(folder: Path, num_images: int, side: int, rounds: int, ray: Executor) -> None:
    """One process by CPU time, then two by wall time."""
    tars = sorted(folder.glob("*.tar"))
    local = LocalExecutor()
    one: dict[str, Callable[[], object]] = {
        "bare loop, our decoder": lambda: [decode_all(decode, tar) for tar in tars],
        "bare loop, Pillow": lambda: [decode_all(by_pillow, tar) for tar in tars],
        "bare loop, webdataset": lambda: by_webdataset(tars),
        "filters score --local": lambda: run_score(folder, local),
    }
    show(f"{side} px, one process, CPU", best(one, rounds, time.process_time), num_images, "bare loop, our decoder")
    with ProcessPoolExecutor(NUM_WORKERS) as pool:
        two: dict[str, Callable[[], object]] = {
            "two bare loops, our decoder": lambda: list(pool.map(partial(decode_all, decode), tars)),
            "two bare loops, Pillow": lambda: list(pool.map(partial(decode_all, by_pillow), tars)),
            "filters score --local": lambda: run_score(folder, local),
            "filters score, Ray, 2 CPUs": lambda: run_score(folder, ray),
        }
        spent = best(two, rounds, time.perf_counter)
    show(f"{side} px, wall", spent, num_images, "two bare loops, our decoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/photos"), help="a folder of JPEG photos")
    parser.add_argument("--images", type=int, default=4000, help="photos are repeated up to this number")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds; the best counts")
    options = parser.parse_args()
    photos = sorted(options.photos.glob("*.jpg"))
    if not photos:
        sys.exit(f"{options.photos}: no *.jpg there; name a folder of photos with --photos")
    ray = RayExecutor(num_cpus=NUM_WORKERS)
    ray.describe()  # its start is not what is measured
    print(f"{'stored at':<26}{'':<34}{'images/s':>9}{'ms each':>9}{'ratio':>8}")
    for side in (256, 512):
        with tempfile.TemporaryDirectory() as name:
            write_dataset(Path(name), photos, options.images, options.shards, side)
            compare(Path(name), options.images, side, options.rounds, ray)
    ray.close()
    print("ratio: speed over that of the bare loop by our decoder, at as many processes")


if __name__ == "__main__":
    main()
