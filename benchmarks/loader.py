"""Loader: CPU per sample from shards to normalised float32 batches, open_clip's own loader against ours.

    pip install --target WDS --no-deps webdataset==0.2.86
    python -m benchmarks.loader --webdataset WDS [--photos ../shared/data/photos] [--work /tmp/pairmill-loader]

Same shards, same augmentation (a random crop of 0.9 to 1 of the area, to 224 px), same tokeniser, batches of 64, no
worker processes and one thread, so that CPU seconds are those of one process. open_clip's trainer needs an older
webdataset than ours, so each side runs in a process of its own; rounds are interleaved, the best of each counts. Each
side is warm before its clock starts: open_clip's shuffle buffer is full by then. A selection keeps 1 % of the images:
its cost is told per sample that is used, over its first epoch, when no table has been read before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

ARCH, BATCH, SIZE = "ViT-B-32", 64, 256
SHARDS, SAMPLES = 8, 5000
SHARE = 100  # the selection keeps one in so many


def make(folder: Path, photos: Path) -> None:
    """Shards of photos whose shorter side is 256 px, with captions of some words; and the selection."""
    import pyarrow as pa

    from infra.dataset import Dataset
    from infra.ledger import Counts, DoneMark
    from infra.sample import pair_uid
    from infra.selection import SCHEMA, counted, selection_table, summary_file
    from infra.shards import ShardWriter
    from infra.tables import write_keyed_table, write_table

    rng = random.Random(0)
    images = [_small(path) for path in rng.sample(sorted(photos.glob("*.jpg")), 300)]
    text = "a the small large red blue dog cat house tree boat on under near with two three old new street"
    dataset = Dataset(folder)
    names = [f"{at:05d}" for at in range(SHARDS)]
    for at, shard in enumerate(names):
        rows = []
        with dataset.storage.commit(dataset.tar(shard)) as draft, ShardWriter(draft.path) as writer:
            for number in range(at * SAMPLES, (at + 1) * SAMPLES):
                url, caption = f"http://a.test/{number}.jpg", " ".join(rng.choices(text.split(" "), k=9))
                uid, key = pair_uid(url, caption), f"{number:09d}"
                writer.write(uid, key, {"jpg": rng.choice(images), "txt": caption.encode()})
                rows.append({"uid": uid, "key": key, "url": url, "caption": caption, "status": "success"})
        table = pa.Table.from_pylist(rows)
        files = [draft.result(), write_table(dataset.storage, dataset.table(shard), table),
                 write_table(dataset.storage, dataset.index(shard), writer.index())]  # fmt: skip
        dataset.ledger.mark_done(DoneMark("download", shard, shard, Counts(SAMPLES, SAMPLES), tuple(files), {}))
        kept = [{"uid": row["uid"], "source": "web", "n": 0, "keep": place % SHARE == 0, "reason": None}
                for place, row in enumerate(rows)]  # fmt: skip
        judged = counted(pa.Table.from_pylist(kept, SCHEMA))
        write_keyed_table(dataset.storage, selection_table("few", shard), judged, keep_types=False)
    dataset.ledger.write_plan("download", "", names)
    dataset.ledger.write_plan("select_few", "", names)
    dataset.storage.commit_bytes(summary_file("few"), b"{}")


def _small(path: Path) -> bytes:
    photo = Image.open(path).convert("RGB")
    scale = SIZE / min(photo.size)
    small = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(small), 90, colorsubsampling="420")


def ours(folder: Path, selection: str | None) -> Generator[Any]:
    """Batches, without end."""
    from training.data.loader import DataSettings, Loader
    from training.models.clip_spec import SPEC
    from training.preprocess import set_up_worker
    from training.ranks import Ranks

    set_up_worker()
    settings = SPEC.Settings.parse({"arch": ARCH}, "model")
    datasets = [{"path": str(folder), "selection": selection}]
    data = DataSettings.parse({"datasets": datasets, "batch": BATCH, "workers": 0}, "data")
    return Loader(data, SPEC.ops(settings)[0], SPEC.tokenizer(settings), 0, ranks=Ranks()).batches()


def theirs(folder: Path) -> Iterator[Any]:
    """Batches of an epoch, by open_clip's training loader."""
    import torch

    from infra.torchvision_here import make_importable

    make_importable()
    torch.set_num_threads(1)
    import open_clip
    from open_clip.transform import image_transform
    from open_clip_train.data import get_wds_dataset

    shards = f"{folder}/{{00000..{SHARDS - 1:05d}}}.tar"
    asked = SimpleNamespace(
        train_data=shards, train_num_samples=SHARDS * SAMPLES, train_data_upsampling_factors=None, seed=0, workers=0,
        world_size=1, batch_size=BATCH,
    )  # fmt: skip
    transform, tokenizer = image_transform(224, is_train=True), open_clip.get_tokenizer(ARCH)
    return iter(get_wds_dataset(asked, transform, True, tokenizer=tokenizer).dataloader)


def measure(side: str, folder: Path, num_batches: int) -> dict[str, float]:
    """CPU-milliseconds and seconds a sample, in this process."""
    if side == "ours, 1 %":
        with closing(ours(folder, None)) as warm:  # libraries and the tokeniser are loaded, no table of it is
            next(warm)
        batches, num_batches = ours(folder, "few"), SHARDS * SAMPLES // SHARE // BATCH
    else:
        batches = ours(folder, None) if side == "ours" else theirs(folder)
        next(batches)
    began, cpu = time.perf_counter(), time.process_time()
    num = sum(1 for _ in islice(batches, num_batches)) * BATCH
    spent = time.process_time() - cpu, time.perf_counter() - began
    return {"cpu_ms": 1e3 * spent[0] / num, "wall_ms": 1e3 * spent[1] / num, "samples": num}


def run(side: str, folder: Path, num_batches: int, webdataset: str) -> dict[str, float]:
    """The same, in a process of its own."""
    paths = [webdataset] if side == "open_clip" else []
    told = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, "."]), "OMP_NUM_THREADS": "1"}
    words = ["--side", side, "--work", str(folder), "--batches", str(num_batches)]
    command = [sys.executable, "-m", "benchmarks.loader", *words]
    done = subprocess.run(command, env=told, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/photos"), help="a folder of JPEG photos")
    parser.add_argument("--work", type=Path, default=Path("/tmp/pairmill-loader"), help="where shards are made, once")
    parser.add_argument("--webdataset", help="a folder with the webdataset that open_clip's trainer needs")
    parser.add_argument("--batches", type=int, default=60, help="batches of 64 a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.work, options.batches)))
        return
    if not options.webdataset:
        sys.exit("--webdataset FOLDER: open_clip's trainer needs webdataset 0.2.86; see --help for how to get it")
    if not (options.work / "selections/few/summary.json").exists():
        make(options.work, options.photos)
    best: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds):
        for side in ("open_clip", "ours", "ours, 1 %"):
            found = run(side, options.work, options.batches, options.webdataset)
            best[side] = min(best.get(side, found), found, key=lambda told: told["cpu_ms"])
    print(f"{'loader':<14}{'samples':>9}{'CPU-ms a sample':>18}{'samples a CPU-second':>24}")
    for side, told in best.items():
        print(f"{side:<14}{told['samples']:>9.0f}{told['cpu_ms']:>18.3f}{1e3 / told['cpu_ms']:>24,.0f}")
    theirs_ms, ours_ms, few_ms = (best[side]["cpu_ms"] for side in ("open_clip", "ours", "ours, 1 %"))
    print(f"ours against open_clip's: {theirs_ms / ours_ms:.2f}x the samples a CPU-second")
    print(f"a used sample of 1 %, against one of everything: {few_ms / ours_ms:.2f}x the CPU")


if __name__ == "__main__":
    main()
