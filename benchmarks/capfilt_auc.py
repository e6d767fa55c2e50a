"""CapFilt's filter on the small web: which wrong captions does it find, and how many of them are left among survivors?

    python -m benchmarks.capfilt_auc [--scenes 144000] [--web 20000] [--write SAMPLES] [--judge SAMPLES]

Drawn scenes as the small web's trusted host shows them, one true caption each, stand for the human set. The filter's
towers begin as ImageNet's ViT and BERT do in the paper, as those of a model that has seen much: here of one that learnt
to write these captions (blip.caption), which teaches a small tower to see from the fewest samples. Then it learns to
contrast and to match (blip.retrieval). The scenes lie in groups, most of them families whose scenes differ by single
changes of any kind, and learning to match leaves a group together in a batch, so that the hard negatives are hard; all
captions are true. At last it goes on at half the rate on other scenes, of which more differ in nothing but background,
relation or texture, which are learnt last, and with a third of its wrong pairs drawn evenly (model.easy): what contrast
tells apart at a glance, another background, is no hard negative any more, and matching forgets it. Then it judges

    held    2,000 other scenes, drawn by chance, each with a true caption and one of every kind of wrong: AUC by kind,
            as clip_auc has it, of `itm` and of `clip_score` (the cosine of the same model's contrast)
    web     20,000 pairs with the small web's own mixture of captions, English alone: the noise ratio at CapFilt's
            threshold of .5, and the share of wrong and useless captions before and among the survivors, by kind

The drawn scenes and all runs stay in --work, and are not made again.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import Pool
from pathlib import Path

from benchmarks.clip_auc import KINDS, SHARD_SIZE, Drawn, draw, make, store, table
from filters.score import score
from infra.dataset import Dataset
from infra.executors import LocalExecutor
from infra.rows import Rows
from infra.tables import read_table

# Shares of the groups to train on, first and at last.
FAMILIES = {"any": 0.35, "last": 0.25, "colours": 0.2, "chance": 0.2}
LAST = {"any": 0.2, "last": 0.5, "colours": 0.1, "chance": 0.2}
MIX = {"true": 0.7, "wrong_random": 0.1, "wrong_attribute": 0.1, "boilerplate": 0.1}  # of captions with a text
THRESHOLD = 0.5
# Half as deep again as the tiny recipes' text.
TEXT = 'model.text={"width": 96, "layers": 3, "heads": 3, "positions": 64, "dropout": 0.0}'


def write_web(shard: int, folder: Path, num_pairs: int) -> None:
    """Pairs with the web's mixture of captions."""

    def drawn() -> Iterator[Drawn]:
        for number in range(shard * SHARD_SIZE, min((shard + 1) * SHARD_SIZE, num_pairs)):
            kind = random.Random(f"kind/{number}").choices(list(MIX), list(MIX.values()))[0]
            yield number, kind, draw(number, "web", ("en",), kind, None)

    store(shard, folder, "web", drawn())


def make_web(folder: Path, num_pairs: int) -> None:
    """A dataset as img2dataset and `infra index` would leave it, kinds of caption mixed."""
    (folder / "index").mkdir(parents=True)
    with Pool() as pool:
        pool.map(partial(write_web, folder=folder, num_pairs=num_pairs), range(-(-num_pairs // SHARD_SIZE)))


def survivors(web: Dataset) -> Iterator[str]:
    """The noise ratio, and the share of each kind before and after."""
    rows, before, after = Rows(web), Counter[str](), Counter[str]()
    for shard in rows.shards:
        kinds = rows.read(shard, ("caption_kind",))["caption_kind"].to_pylist()
        judged = read_table(web.storage, f"scores/itm/{shard}.parquet", ["itm"])["itm"].to_pylist()
        before.update(kinds)
        after.update(kind for kind, itm in zip(kinds, judged, strict=True) if itm is not None and itm >= THRESHOLD)
    yield f"noise ratio: {1 - after.total() / before.total():.1%} of {before.total():,} texts fall"
    for name, kinds in (("wrong or useless", [kind for kind in KINDS if kind != "true"]), *((k, [k]) for k in KINDS)):
        was, left = (sum(count[kind] for kind in kinds) for count in (before, after))
        yield (
            f"{name:<20}{was / before.total():>8.1%} before, {left / max(1, after.total()):>7.1%} among survivors; "
            f"{left:,} of {was:,} stay ({left / max(1, was):.1%})"
        )


def train(recipe: str, settings: Sequence[str]) -> None:
    began = time.perf_counter()
    words = [word for setting in settings for word in ("--set", setting)]
    subprocess.run([sys.executable, "-m", "training", "train", recipe, *words], check=True)
    print(f"{recipe}: {time.perf_counter() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=144_000, help="to train on")
    parser.add_argument("--held", type=int, default=2_000, help="to judge, each with a caption of every kind")
    parser.add_argument("--web", type=int, default=20_000, help="pairs with the web's mixture of captions")
    parser.add_argument("--write", type=int, default=192_000, help="samples of learning to write")
    parser.add_argument("--judge", type=int, default=480_000, help="samples of learning to judge")
    parser.add_argument("--sharpen", type=int, default=240_000, help="samples of going on with it")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="change one value of all recipes")
    parser.add_argument("--work", type=Path, default=Path("out/capfilt_auc"), help="an empty or new folder")
    options = parser.parse_args()
    work = options.work
    for split, (num, kinds, mix) in {
        "train": (options.scenes, KINDS[:1], FAMILIES), "last": (options.scenes // 2, KINDS[:1], LAST),
        "held": (options.held, KINDS, None),
    }.items():  # fmt: skip
        if not (work / split).exists():
            make(work / split, num, kinds, ("en",), split, mix=mix)
    if not (work / "web").exists():
        make_web(work / "web", options.web)
    data = f'data.datasets=[{{"path": "{work}/train"}}]'
    train("training/recipes/blip_caption_tiny.yaml", [
        data, f"out={work}/writer", "model.pretrained=null", TEXT, f"samples={options.write}", "data.batch=24",
        "data.window=8192", "optim.lr=1.5e-3", *options.settings,
    ])  # fmt: skip
    # A batch is one half of a group, so that wrong captions are drawn among like pictures.
    for name, start, split, samples, rate, easy in (
        ("first", f"model.towers={work}/writer", "train", options.judge, 1e-3, 0),
        ("filter", f"model.pretrained={work}/first", "last", options.sharpen, 5e-4, 1 / 3),
    ):
        train("training/recipes/blip_retrieval_tiny.yaml", [
            f'data.datasets=[{{"path": "{work}/{split}"}}]', f"out={work}/{name}", "model.pretrained=null", start, TEXT,
            f"samples={samples}", "data.batch=48", "data.lanes=1", "data.window=48", f"optim.lr={rate}",
            f"model.easy={easy}", *options.settings,
        ])  # fmt: skip
    held, web = Dataset(work / "held"), Dataset(work / "web")
    asked = [f"itm.checkpoint={work}/filter", f"clip_score.model={work}/filter"]
    score(held, ["itm", "clip_score"], LocalExecutor(), settings=asked)
    score(web, ["itm"], LocalExecutor(), settings=asked[:1])
    for scorer in ("itm", "clip_score"):
        print(f"\n{scorer}", *table(held, scorer), sep="\n")
    print("\nweb", *survivors(web), sep="\n")


if __name__ == "__main__":
    main()
