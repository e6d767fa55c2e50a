"""CLIP score on the small web: does it tell a scene's true caption from a wrong one? The AUC, each kind of wrong apart.

    python -m benchmarks.clip_auc [--scenes 20000] [--held 2000] [--languages all] [--set samples=40000 …]
    python -m benchmarks.clip_auc --alike --scenes 96000 --recipe training/recipes/clip_alike.yaml

A CLIP is trained on drawn scenes as the small web's trusted host shows them: one true caption each, nothing wrong, in
the web's shapes of picture. Other scenes, drawn from other seeds, are then scored by the scorer itself, each with a
true caption and with one of every kind of wrong:

    wrong_random      what is true of another scene, which shares no shape with this one
    boilerplate       "click to enlarge"
    wrong_attribute   one attribute differs, by name: a shape, a colour … or the two things' colours swapped (binding)

The scenes to train on are drawn by chance, or with --alike in groups that share what a batch of scenes by chance
teaches first (`alike`); the scored ones are always drawn by chance.

AUC: how often a true caption, of any scene, scores higher than a wrong one, of any scene; a tie counts half. Its 95 %
interval is the bootstrap's percentiles over scenes, since captions of one picture depend on each other (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Drawn scenes and trained model stay in --work.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from filters.score import score
from infra.dataset import Dataset
from infra.executors import LocalExecutor
from infra.miniweb.captions import describe, true_of_another, wrong_in_one
from infra.miniweb.pictures import Picture, encode
from infra.miniweb.plan import BOILERPLATE
from infra.miniweb.scenes import CLASHES, Scene, random_scene, with_one_change
from infra.miniweb.words import LANGUAGES
from infra.rows import Rows
from infra.sample import pair_uid
from infra.shards import ShardWriter
from infra.tables import read_table
from training.evaluate.run import evaluate
from training.evaluate.settings import EvaluationSettings
from training.models.load import load_encoder

Scores = npt.NDArray[np.float32]
Drawn = tuple[int, str, tuple[bytes, str, str]]  # number, kind of caption; picture, caption, the wrong attribute

KINDS = ("true", "wrong_random", "boilerplate", "wrong_attribute")
RATIOS = (0.75, 0.8, 1, 1, 1.25, 4 / 3, 4 / 3, 1.5)  # width over height, as the small web has them
SHORTER = 96  # pixels of the shorter side
SHARD_SIZE = 960  # whole groups
GROUP, FAMILY = 96, 8  # scenes that lie side by side, for a loader with data.window=96 to leave them so
MIX = {"colours": 0.4, "changes": 0.4, "chance": 0.2}  # shares of the groups
SPARED = {  # kinds of families, and the attributes that their scenes never differ in
    "any": (),
    "changes": ("background", "colour", "size"),  # what a batch of any scenes teaches
    "last": ("colour", "size", "count", "shape", "binding"),  # what other families teach before the rest
}
RESAMPLES = 1000
QUERIES = 1000  # pictures among as many captions: recall@1


def alike(rng: random.Random, how: str) -> list[Scene]:
    """GROUP scenes that share what a batch of any scenes teaches first, so that a batch of them teaches the rest.

    how: "colours": one background and the same colours, all else by chance; of SPARED: families of FAMILY scenes, each
    scene with one attribute other than one before it, the spared ones aside; "chance": they share nothing. Nothing
    hides in its background, and none of many things is told to be small or large, as on the small web.
    """
    if how == "chance":
        return [random_scene(rng) for _ in range(GROUP)]
    if how in SPARED:
        return [scene for _ in range(GROUP // FAMILY) for scene in _family(rng, SPARED[how])]
    first = random_scene(rng)
    second = random_scene(rng)
    while second.things[0].colour in CLASHES.get(first.background, ()):
        second = random_scene(rng)
    colours = (first.things[0].colour, second.things[0].colour)
    scenes = [first]
    while len(scenes) < GROUP:
        scene = random_scene(rng)
        things = (replace(thing, colour=colour) for thing, colour in zip(scene.things, colours, strict=False))
        scenes.append(replace(scene, background=first.background, things=tuple(things)))
    return scenes


def _family(rng: random.Random, spared: Sequence[str]) -> list[Scene]:
    family = [random_scene(rng)]
    while len(family) < FAMILY:
        scene, attribute = with_one_change(rng.choice(family), rng)
        if attribute not in spared:
            things = tuple(replace(thing, size="medium") if thing.count > 1 else thing for thing in scene.things)
            family.append(replace(scene, things=things, variant=rng.getrandbits(32)))
    return family


def draw(number: int, split: str, languages: Sequence[str], kind: str, scene: Scene | None) -> tuple[bytes, str, str]:
    """A scene, by chance if none is given: its picture, a caption of that kind, the wrong attribute if any.

    Splits share no source of chance.
    """
    rng = random.Random(f"{split}/{number}")
    scene = scene or random_scene(rng)
    ratio = rng.choice(RATIOS)
    width, height = round(SHORTER * max(1, ratio)), round(SHORTER * max(1, 1 / ratio))
    # The trusted host speaks English on every other page.
    lang = rng.choice(languages) if rng.random() < 0.5 else "en"
    if kind == "true":
        caption, attribute = describe(scene, lang, rng), None
    elif kind == "boilerplate":
        caption, attribute = rng.choice(BOILERPLATE), None
    else:
        wrong = (true_of_another if kind == "wrong_random" else wrong_in_one)(scene, lang, rng)
        caption, attribute = wrong.text, wrong.attribute
    return encode(Picture(scene, width, height, quality=90)), caption, attribute or ""


def write_shard(
    shard: int, folder: Path, num_scenes: int, kinds: Sequence[str], languages: Sequence[str], split: str,
    *, mix: Mapping[str, float] | None,
) -> None:  # fmt: skip
    """Scenes of one kind of caption, with their table and index: shard n of as many a kind as the scenes need.

    mix: shares of the kinds of groups that lie together; None: scenes by chance.
    """
    each = -(-num_scenes // SHARD_SIZE)
    kind, first = kinds[shard // each], shard % each * SHARD_SIZE

    def drawn() -> Iterator[Drawn]:
        for number in range(first, min(first + SHARD_SIZE, num_scenes)):
            if mix and number % GROUP == 0:
                chance = random.Random(f"{split}/group/{number}")
                group = alike(chance, chance.choices(list(mix), list(mix.values()))[0])
            scene = group[number % GROUP] if mix else None
            yield number, kind, draw(number, split, languages, kind, scene)

    store(shard, folder, split, drawn())


def store(shard: int, folder: Path, split: str, drawn: Iterable[Drawn]) -> None:
    """A shard of drawn pairs, as a download and `infra index` would leave it, and what is true of each."""
    rows = []
    with ShardWriter(folder / f"{shard:05d}.tar") as tar:
        for number, kind, (image, caption, attribute) in drawn:
            url, key = f"http://example.org/{split}/{number}.jpg", f"{shard:05d}{number % SHARD_SIZE:04d}"
            uid = pair_uid(url, caption)
            tar.write(uid, key, {"jpg": image, "txt": caption.encode(), "json": b"{}"})
            told = {"caption": caption, "caption_kind": kind, "wrong_attribute": attribute}
            rows.append({"uid": uid, "key": key, "url": url, "status": "success", **told})
    pq.write_table(tar.index(), folder / f"index/{shard:05d}.parquet")
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")


def make(
    folder: Path, num_scenes: int, kinds: Sequence[str], languages: Sequence[str], split: str, *,
    mix: Mapping[str, float] | None,
) -> None:  # fmt: skip
    """A dataset as img2dataset and `infra index` would leave it, kind after kind."""
    (folder / "index").mkdir(parents=True)
    chosen = {"folder": folder, "num_scenes": num_scenes, "kinds": kinds, "languages": languages, "split": split}
    write = partial(write_shard, **chosen, mix=mix)
    with Pool(len(os.sched_getaffinity(0))) as pool:
        pool.map(write, range(len(kinds) * -(-num_scenes // SHARD_SIZE)), chunksize=1)


def auc(true: Scores, wrong: Scores) -> float:
    """The share of pairs in which the true one scores higher; a tie is half a pair.

    Source: Mann and Whitney, Annals of Mathematical Statistics 18 (1947) 50.
    """
    wrong = np.sort(wrong)
    below, up_to = np.searchsorted(wrong, true, "left"), np.searchsorted(wrong, true, "right")
    return float((below + up_to).mean() / (2 * len(wrong)))


def interval(true: Scores, wrong: Scores, among: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """95 % of the AUC, over scenes drawn anew. true, wrong: a score a scene; among: whose wrong caption counts."""
    chance = np.random.default_rng(0)
    drawn = (chance.integers(len(true), size=len(true)) for _ in range(RESAMPLES))
    drawn = (scenes for scenes in drawn if among[scenes].any())  # a rare attribute may be missed
    low, high = np.percentile([auc(true[scenes], wrong[scenes][among[scenes]]) for scenes in drawn], [2.5, 97.5])
    return float(low), float(high)


def table(held: Dataset, scorer: str = "clip_score") -> Iterator[str]:
    """A line a kind of wrong caption, and one for each attribute. The dataset has been scored."""
    rows = Rows(held)
    found: dict[str, list[tuple[float, str]]] = {kind: [] for kind in KINDS}
    for shard in rows.shards:
        told = rows.read(shard, ("caption_kind", "wrong_attribute")).to_pylist()
        scored = read_table(held.storage, f"scores/{scorer}/{shard}.parquet").to_pylist()
        for row, own in zip(told, scored, strict=True):
            assert row["uid"] == own["uid"]
            assert own[scorer] is not None
            found[row["caption_kind"]].append((own[scorer], row["wrong_attribute"]))
    scores = {kind: np.array([one for one, _ in pairs], np.float32) for kind, pairs in found.items()}
    attributes = np.array([name for _, name in found["wrong_attribute"]])
    yield f"{'wrong captions':<20}{'n':>7}{'AUC':>8}   95 %"
    for kind in KINDS[1:]:
        yield _line(kind, scores["true"], scores[kind], np.ones(len(attributes), bool))
    for name in sorted(set(attributes)):
        yield _line(f"  {name}", scores["true"], scores["wrong_attribute"], attributes == name)


def _line(name: str, true: Scores, wrong: Scores, among: npt.NDArray[np.bool_]) -> str:
    low, high = interval(true, wrong, among)
    return f"{name:<20}{among.sum():>7,}{auc(true, wrong[among]):>8.3f}   {low:.3f} to {high:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="training/recipes/clip_tiny.yaml")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="change one value of the recipe")
    parser.add_argument("--scenes", type=int, default=20_000, help="to train on")
    parser.add_argument("--alike", action="store_true", help=f"train on groups of {GROUP} scenes that are alike")
    parser.add_argument("--held", type=int, default=2_000, help="to score, each with a caption of every kind")
    parser.add_argument("--languages", choices=["en", "all"], default="en", help="all: the seven, every other page")
    parser.add_argument("--work", type=Path, default=Path("out/clip_auc"), help="an empty or new folder")
    parser.add_argument("--model", help="ask this run or checkpoint of ours instead of training one")
    options = parser.parse_args()
    languages = LANGUAGES if options.languages == "all" else ("en",)
    made = {"train": (options.scenes, KINDS[:1], MIX if options.alike else None), "held": (options.held, KINDS, None)}
    for split, (num_scenes, kinds, mix) in made.items():
        began = time.perf_counter()
        if not (options.work / split).exists():
            make(options.work / split, num_scenes, kinds, languages, split, mix=mix)
            print(f"{num_scenes:,} scenes drawn in {time.perf_counter() - began:.0f} s")
    run = options.model or str(options.work / "run")
    if options.model is None:
        began = time.perf_counter()
        places = [f"data.datasets.0.path={options.work / 'train'}", f"out={run}"]
        words = [word for setting in [*places, *options.settings] for word in ("--set", setting)]
        subprocess.run([sys.executable, "-m", "training", "train", options.recipe, *words], check=True)
        print(f"trained in {time.perf_counter() - began:.0f} s")
    began = time.perf_counter()
    held = Dataset(options.work / "held")
    score(held, ["clip_score"], LocalExecutor(), settings=[f"clip_score.model={run}"])
    print(f"scored in {time.perf_counter() - began:.0f} s")
    print(*table(held), sep="\n")
    asked = {"task": "retrieval", "data": str(options.work / "held"), "limit": QUERIES, "queries": 0}
    for name, share in evaluate(load_encoder(run), EvaluationSettings.parse(asked, "held"))["metrics"].items():
        if name.endswith("_r1"):
            print(f"{name}: {share['value']:.3f} ({share['low']:.3f} to {share['high']:.3f}) of {QUERIES:,}")


if __name__ == "__main__":
    main()
