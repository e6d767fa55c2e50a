"""Real pictures: what a tiny CLIP, trained from nothing on a few thousand of them, knows of those it has not seen.

    python -m benchmarks.real_clip [--task emoji|flowers] [--samples N] [--set KEY=VALUE] [--data ../shared/data]

emoji: drawings with their names, Noto's and Tux Paint's; retrieval among the held-out ones, both ways. flowers: 125
small photos with sentences made of the names of five flowers; zero-shot classification of 75 others. Shards are
written, the trainer reads them, `training.evaluate` asks its checkpoint. Beside each share, what chance gives.

What is held out is held out by kind, not by picture: "woman student: dark skin tone" has seventeen near copies. A kind
is all pictures of a name, less skin tone, gender, direction and article, with all that equal one of them in bytes, or
nearly in pixels. The hash of its pictures says where it goes. Two sources that drew the same thing drew two pictures:
"A frog." of Tux Paint may teach what Noto's frog is. Drawings are not flipped: names tell directions. held_out has all
variants, which are told apart by what training has seen, skin tones and genders, and hang together, so that its
intervals are too narrow; of_each_kind has one picture of each kind: other things, each by itself. Who tells the two
sources apart, by style and full stop, and nothing else, is right twice as often as by chance.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from infra.dataset import Dataset
from infra.pictures import rgb
from infra.sample import pair_uid
from infra.shards import ShardWriter
from infra.tables import KEYS, write_keyed_table, write_table
from training.data.source import captions_table
from training.evaluate.retrieval import CUTS, pair_up
from training.evaluate.run import evaluate
from training.evaluate.samples import CLASSES, TEMPLATES
from training.evaluate.settings import EvaluationSettings
from training.models.load import load_encoder
from training.recipe import TrainRecipe
from training.rendezvous import joined
from training.train import train

TINY = Path(__file__).resolve().parents[1] / "training/recipes/clip_tiny.yaml"
SHARD = 512  # pictures
HELD_OUT = 0.15  # of the kinds
MINIATURE, NEAR = 12, 6.0  # pixels a side; mean difference in grey levels, of 255, below which two are one kind

_TONE = re.compile(r"\b(medium-)?(light|medium|dark) skin tone\b")
_ASIDE = re.compile(r"\b((wo)?m[ae]n|person|people|facing right|an?|the)\b|[.,!]")

DRAWN = "decode|random_resized_crop(64,0.6,1)|color_jitter(0.2,0.2,0.2)|normalize(clip)"  # hues have names
PHOTOGRAPHED = "decode|random_resized_crop(64,0.3,1)|flip|color_jitter(0.3,0.3,0.3)|normalize(clip)"

SENTENCES = "sentences"  # table of captions
FLOWER = (
    "a photo of a {}, a type of flower.", "a photo of a {}.", "a {}.", "a close-up photo of a {}.",
    "a picture of one {} or more.", "a {} in a garden.",
)  # fmt: skip

Shares = dict[str, dict[str, float]]  # metric → value, low, high, n
Chances = dict[str, float]


@dataclass(frozen=True)
class Picture:
    """A file, what it is called, and of which class it is."""

    path: Path
    name: str
    label: int = 0

    @property
    def data(self) -> bytes:
        """As it is stored."""
        return self.path.read_bytes()

    @property
    def digest(self) -> bytes:
        """Of its bytes."""
        return hashlib.blake2b(self.data, digest_size=16).digest()


# What there is


def drawings(data: Path) -> list[Picture]:
    """Noto's emoji and Tux Paint's stamps."""
    tables = (data / "emoji.tsv", data / "captions/tuxpaint.tsv")
    return [Picture(data / row["file"], row["caption"]) for table in tables for row in table_rows(table)]


def photos(data: Path, split: str) -> list[Picture]:
    """Photos of flowers, with the names and numbers of their classes."""
    rows = table_rows(data / "classes/flowers.tsv")
    classes = sorted({row["class"] for row in rows})
    return [
        Picture(data / row["file"], row["class"], classes.index(row["class"])) for row in rows if row["split"] == split
    ]


def table_rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


# Kinds


def held_out(pictures: Sequence[Picture]) -> tuple[list[Picture], list[list[Picture]]]:
    """What to train on, and the kinds that are held out, each in the order of hashes."""
    seen, unseen = [], []
    for kind in kinds(pictures):
        kind.sort(key=lambda picture: picture.digest)
        # Of all its pictures: the least of their hashes would hold out the large kinds, whose least is always small.
        digest = hashlib.blake2b(b"".join(picture.digest for picture in kind), digest_size=4).digest()
        if int.from_bytes(digest, "big") < HELD_OUT * 2**32:
            unseen.append(kind)
        else:
            seen.extend(kind)
    return seen, unseen


def kinds(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """Pictures that one must not learn from to be tried on another: of one name, of the same bytes, or nearly alike."""
    parent = list(range(len(pictures)))

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = one = parent[parent[one]]
        return one

    first: dict[tuple[Path, str] | bytes, int] = {}
    for number, picture in enumerate(pictures):
        for word in ((picture.path.parent, base_name(picture.name)), picture.digest):
            parent[root(number)] = root(first.setdefault(word, number))
    miniatures = torch.stack([_miniature(picture) for picture in pictures])
    for one, other in (
        (torch.cdist(miniatures, miniatures, p=1) < NEAR * miniatures.shape[1]).triu(1).nonzero().tolist()
    ):
        parent[root(one)] = root(other)
    found: dict[int, list[Picture]] = {}
    for number, picture in enumerate(pictures):
        found.setdefault(root(number), []).append(picture)
    return list(found.values())


def base_name(name: str) -> str:
    """Less what only a variant has: "woman student: dark skin tone" and "man student" are both "student"."""
    return " ".join(_ASIDE.sub("", _TONE.sub("", name.partition(":")[0]).lower()).split())


def _miniature(picture: Picture) -> torch.Tensor:
    with Image.open(picture.path) as image:
        small = rgb(image).resize((MINIATURE, MINIATURE), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, np.float32).reshape(-1))  # (side · side · 3,)


# Shards


def write_dataset(folder: Path, pictures: Iterable[Picture], sentences: Sequence[str] = ()) -> None:
    """Shards as a download leaves them, in the order of hashes; sentences: further captions, with {} for the name."""
    dataset = Dataset(folder)
    ordered = sorted(pictures, key=lambda picture: (picture.digest, picture.name))
    for shard, at in enumerate(range(0, len(ordered), SHARD)):
        _write_shard(dataset, f"{shard:05d}", ordered[at : at + SHARD], sentences)


def _write_shard(dataset: Dataset, shard: str, pictures: Sequence[Picture], sentences: Sequence[str]) -> None:
    rows, more = [], []
    with dataset.storage.commit(dataset.tar(shard)) as draft, ShardWriter(draft.path) as tar:
        for number, picture in enumerate(pictures):
            url, key = f"http://a.test/{picture.path.parent.name}/{picture.path.name}", f"{shard}{number:04d}"
            uid = pair_uid(url, picture.name)
            tar.write(uid, key, {picture.path.suffix[1:]: picture.data, "txt": picture.name.encode()})
            rows.append({"uid": uid, "key": key, "url": url, "caption": picture.name, "status": "success"})
            more += [{"uid": uid, "source": SENTENCES, "n": n, "text": sentence.format(picture.name)}
                     for n, sentence in enumerate(sentences)]  # fmt: skip
    write_table(dataset.storage, dataset.table(shard), pa.Table.from_pylist(rows))
    write_table(dataset.storage, dataset.index(shard), tar.index())
    if more:
        schema = pa.schema([*KEYS, ("text", pa.string())])
        write_keyed_table(dataset.storage, captions_table(SENTENCES, shard), pa.Table.from_pylist(more, schema))


def write_classes(folder: Path, pictures: Sequence[Picture], sentences: Sequence[str]) -> None:
    """In CLIP_benchmark's form."""
    (folder / "test").mkdir(parents=True)
    with ShardWriter(folder / "test/0.tar") as tar:
        for number, picture in enumerate(pictures):
            parts = {picture.path.suffix[1:]: picture.data, "cls": str(picture.label).encode()}
            tar.write(picture.digest, f"{number:06d}", parts)
    names = {picture.label: picture.name for picture in pictures}
    for name, lines in ((CLASSES, [names[label] for label in sorted(names)]), (TEMPLATES, sentences)):
        (folder / name).write_text("\n".join(lines))


# Training and evaluation


def learn(data: Path, out: Path, samples: int, settings: Mapping[str, Any]) -> float:
    """The tiny recipe on these shards. Returns seconds."""
    began = time.monotonic()
    settings = {"data.datasets.0.path": data, "out": out, "samples": samples, **settings}
    recipe = TrainRecipe.load(TINY, [f"{name}={value}" for name, value in settings.items()])
    with joined(os.environ) as here:
        train(recipe, here)
    return time.monotonic() - began


def ask(run: Path, task: str, data: Path) -> Shares:
    """What `python -m training evaluate` would; the sheet lies below the run."""
    settings = EvaluationSettings.parse({"task": task, "data": str(data)}, task)
    shares: Shares = evaluate(load_encoder(str(run)), settings, str(run / data.name))["metrics"]
    return shares


def chance(pictures: Sequence[Picture]) -> Chances:
    """The recalls of one who answers at random: metric → share."""
    right = pair_up([[picture.name] for picture in pictures])
    num_texts, num_images = len(right.texts), len(pictures)
    found = {}
    for cut in CUTS:
        none = [
            math.comb(num_images - own, min(cut, num_images)) / math.comb(num_images, min(cut, num_images))
            for own in torch.bincount(right.text).tolist()
            for _ in range(own)
        ]
        found[f"image_to_text_r{cut}"] = min(1.0, cut / num_texts)
        found[f"text_to_image_r{cut}"] = 1 - sum(none) / num_images
    return found


# Tasks


def emoji(data: Path, work: Path, samples: int, settings: Mapping[str, Any]) -> dict[str, tuple[Shares, Chances]]:
    """Retrieval among what was held out, and among one picture of each kind of that."""
    seen, unseen = held_out(drawings(data))
    tried = {"held_out": [picture for kind in unseen for picture in kind], "of_each_kind": [kind[0] for kind in unseen]}
    write_dataset(work / "train", seen)
    took_s = learn(work / "train", work / "run", samples, {"ops": DRAWN} | dict(settings))
    print(f"emoji: {len(seen):,} pictures, {samples:,} samples seen in {took_s:.0f} s; {len(unseen)} kinds held out")
    found = {}
    for name, pictures in tried.items():
        write_dataset(work / name, pictures)
        found[f"{name}, {len(pictures)} pictures"] = ask(work / "run", "retrieval", work / name), chance(pictures)
    return found


def flowers(data: Path, work: Path, samples: int, settings: Mapping[str, Any]) -> dict[str, tuple[Shares, Chances]]:
    """Zero-shot classification of the test split."""
    seen, unseen = (photos(data, split) for split in ("train", "test"))
    write_dataset(work / "train", seen, FLOWER)
    write_classes(work / "classes", unseen, FLOWER)
    # Small batches: of five kinds, most of a large one are each other's wrong answers.
    own = {"ops": PHOTOGRAPHED, "data.datasets.0.captions": [SENTENCES], "data.batch": 32}
    took_s = learn(work / "train", work / "run", samples, own | dict(settings))
    print(f"flowers: {len(seen)} photos, {samples:,} samples seen in {took_s:.0f} s")
    by_chance = {"top1": 1 / len({picture.label for picture in unseen})}
    return {f"test, {len(unseen)} photos": (ask(work / "run", "zero_shot", work / "classes"), by_chance)}


TASKS = {"emoji": (emoji, 48_000), "flowers": (flowers, 8_000)}  # what it is, and samples to see


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, help="one alone")
    parser.add_argument("--samples", type=int, help="to see in all")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="of the recipe"
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/pairmill-real"), help="emptied first")
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"{options.data}: no such folder; name the test material's with --data")
    settings = dict(one.split("=", 1) for one in options.settings)
    for name in [options.task] if options.task else TASKS:
        task, samples = TASKS[name]
        work = options.work / name
        shutil.rmtree(work, ignore_errors=True)
        for what, (shares, by_chance) in task(options.data, work, options.samples or samples, settings).items():
            print(f"{what}")
            for metric, value in by_chance.items():
                share = shares[metric]
                print(f"    {metric:<20}{share['value']:>7.1%}   95 %: {share['low']:>5.1%} to {share['high']:>5.1%}   "
                      f"chance {value:>5.1%}, {share['value'] / value:>5.1f} times")  # fmt: skip
        for sheet in sorted(work.rglob("sheet.html")):
            print(sheet)


if __name__ == "__main__":
    main()
