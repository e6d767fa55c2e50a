"""Scorer clip_score: pairs/s of its step over a shard against a bare forward loop on preloaded tensors of the same.

    python -m benchmarks.clip_score [--arch ViT-B-32] [--pairs 640] [--batch 64] [--rounds 3] [--device cpu]

The step reads a tar, decodes, tokenises, runs the model and writes its table; the bare loop has decoded images and
tokens in memory and runs the model alone, in the same batches, with as many threads: once over open_clip's own forward
pass, as anyone writes it, and once over ours, which cuts texts to their ends (training/models/causal_text.py). Weights
are random: they cost the same. All take turns; wall seconds are what counts, CPU seconds are shown since a neighbour's
load spares them. Photos are stored at 256 pixels on the shorter side, JPEG; no two captions are the same, so that none
is spared its encoding.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

from filters.score import ScoreTable, make_steps
from infra.dataset import Dataset
from infra.rows import Rows
from infra.sample import pair_uid
from infra.shards import ShardWriter
from pipeline.images import ImageConfig, convert
from training.models.architecture import tokenizer
from training.models.clip import Clip, ClipSettings
from training.models.clip_spec import build
from training.preprocess import Ops

# Shapes: B batch, E embedding

SHARD = "00000"
WORDS = ("a", "photo", "of", "two", "small", "dogs", "that", "run", "along", "the", "wet", "beach", "every", "evening")


def write_shard(folder: Path, photos: list[Path], num_pairs: int) -> None:
    """One shard with its table and index, as img2dataset and `infra index` would leave them."""
    config = ImageConfig(image_size=256, resize_mode="keep_ratio", only_if_bigger=False)
    images = [convert(path.read_bytes(), config).data for path in photos[:num_pairs]]
    rows = []
    with ShardWriter(folder / f"{SHARD}.tar") as tar:
        for number in range(num_pairs):
            words = np.random.default_rng(number).permutation(WORDS)[: 6 + number % 8]
            url, key, caption = f"http://example.org/{number}.jpg", f"{number:09d}", f"{' '.join(words)}, {number}"
            uid = pair_uid(url, caption)
            tar.write(uid, key, {"jpg": images[number % len(images)], "txt": caption.encode(), "json": b"{}"})
            rows.append({"uid": uid, "key": key, "url": url, "caption": caption, "status": "success"})
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{SHARD}.parquet")
    (folder / "index").mkdir()
    pq.write_table(tar.index(), folder / f"index/{SHARD}.parquet")


def bare_loops(module: Clip, dataset: Dataset, ops: str, batch: int, device: str) -> Iterator[Callable[[], None]]:
    """The model alone, on what it is given by then: over open_clip's forward pass, and over ours."""
    pairs = list(Rows(dataset).pairs(SHARD, images=True))
    prepare, chance = Ops.parse(ops), np.random.default_rng(0)
    images = torch.stack([prepare(pair.image or b"", chance) for pair in pairs]).to(device)
    tokens = tokenizer(module.settings)([pair.captions[0].text for pair in pairs]).to(device)

    @torch.inference_mode()
    def loop(embed_texts: Callable[[Tensor], Tensor]) -> None:
        for at in range(0, len(pairs), batch):
            image_emb = module.embed_images(images[at : at + batch])  # (B, E)
            text_emb = embed_texts(tokens[at : at + batch])  # (B, E)
            (image_emb * text_emb).sum(-1).cpu()

    yield partial(loop, partial(module.clip.encode_text, normalize=True))
    yield partial(loop, module.embed_texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/photos"), help="a folder of JPEG photos")
    parser.add_argument("--arch", default="ViT-B-32")
    parser.add_argument("--pairs", type=int, default=640)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="that decode beside a GPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    photos = sorted(options.photos.glob("*.jpg"))
    if not photos:
        sys.exit(f"{options.photos}: no *.jpg there; name a folder of photos with --photos")
    with tempfile.TemporaryDirectory() as name:
        compare(Path(name), photos, options)


def compare(folder: Path, photos: list[Path], options: argparse.Namespace) -> None:
    """Both ways in turns; prints seconds and ratios."""
    (folder / "data").mkdir()
    write_shard(folder / "data", photos, options.pairs)
    module = build(ClipSettings(arch=options.arch)).eval().requires_grad_(False)
    save_file(module.clip.state_dict(), folder / "weights.safetensors")
    given = {name: getattr(options, name) for name in ("batch", "threads", "device", "dtype")}
    given |= {"model": options.arch, "pretrained": folder / "weights.safetensors"}
    dataset = Dataset(folder / "data")
    (step,) = make_steps(
        dataset, ["clip_score"], settings=[f"clip_score.{key}={value}" for key, value in given.items()]
    )
    assert isinstance(step, ScoreTable)
    step.scorer.setup()
    (job,) = step.plan()
    module.to(options.device, getattr(torch, options.dtype))
    loop, cut = bare_loops(module, dataset, step.scorer.identity()["ops"], options.batch, options.device)
    ways: dict[str, Callable[[], object]] = {"bare loop": loop, "bare, cut": cut, "scorer": lambda: step.run(job)}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(options.rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter(), time.process_time()
            way()
            if turn:  # the first warms up
                spent[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    print(
        f"{options.arch}, batch {options.batch}, {options.dtype} on {options.device}, {torch.get_num_threads()} threads"
    )
    medians = {name: [statistics.median(kind) for kind in zip(*took, strict=True)] for name, took in spent.items()}
    for name, (wall, cpu) in medians.items():
        print(f"{name:<12}{options.pairs / wall:>8.1f} pairs/s{options.pairs / cpu:>8.1f} pairs/CPU-s")
    for rival in ("bare loop", "bare, cut"):
        for kind, at in (("wall", 0), ("CPU", 1)):
            each = [bare[at] / ours[at] for bare, ours in zip(spent[rival], spent["scorer"], strict=True)]
            ratio = medians[rival][at] / medians["scorer"][at]
            turns = ", ".join(f"{one:.3f}" for one in each)
            print(f"{kind:<6}{ratio:>6.3f}x the pairs/s of {rival}, of medians; by turns {turns}")


if __name__ == "__main__":
    main()
