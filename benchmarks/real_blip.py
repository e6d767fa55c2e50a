"""Real pictures: what a tiny BLIP, trained from nothing on drawings with their names, writes under others.

    python -m benchmarks.real_blip [--samples N] [--set KEY=VALUE] [--data ../shared/data]

Trained on Noto's emoji and Tux Paint's stamps, of which a part is held out by kind (benchmarks/real_clip.py says how);
its words are learnt from the captions that it is trained on. It then captions what was held out, all of it and one
picture of each kind, and COCO's photos, of which it has seen nothing: a table of metrics, and for each a sheet of 40
captions drawn by chance. Below each, what the same captions get when they are dealt to other images: no metric is zero
for nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.real_clip import DRAWN, Picture, drawings, held_out, table_rows, write_dataset
from infra.dataset import Dataset
from infra.tables import KEYS, read_table, write_keyed_table
from training.data.source import captions_of, captions_table
from training.evaluate.caption import CANDIDATES, REFERENCES
from training.evaluate.caption_metrics import score
from training.evaluate.run import evaluate
from training.evaluate.settings import EvaluationSettings
from training.models.load import load_captioner
from training.recipe import TrainRecipe
from training.rendezvous import joined
from training.tokenize import learn_words
from training.train import train

TINY = Path(__file__).resolve().parents[1] / "training/recipes/blip_tiny.yaml"
NUM_WORDS = 4000
PEOPLE = "people"  # table of COCO's further captions
SHOWN = 40
METRICS = ("Bleu_1", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")


def coco(data: Path, folder: Path) -> None:
    """Photos, each with its first caption as the web's and the others in a table."""
    captions: dict[str, list[str]] = {}
    for row in table_rows(data / "captions/coco.tsv"):
        captions.setdefault(row["file"], []).append(row["caption"])
    write_dataset(folder, [Picture(data / file, own[0]) for file, own in captions.items()])
    dataset = Dataset(folder)
    by_name = {file.rpartition("/")[2]: own for file, own in captions.items()}
    for table in dataset.storage.list("", ".parquet"):
        rows = read_table(dataset.storage, table, ["uid", "url"]).to_pylist()
        more = [{"uid": row["uid"], "source": PEOPLE, "n": n, "text": text}
                for row in rows for n, text in enumerate(by_name[row["url"].rpartition("/")[2]][1:])]  # fmt: skip
        schema = pa.schema([*KEYS, ("text", pa.string())])
        name = captions_table(PEOPLE, table.removesuffix(".parquet"))
        write_keyed_table(dataset.storage, name, pa.Table.from_pylist(more, schema))


def learn(work: Path, samples: int, settings: Mapping[str, Any]) -> float:
    """Words, then the tiny recipe. Returns seconds."""
    began = time.monotonic()
    words = learn_words(captions_of([str(work / "train")], None), NUM_WORDS)
    (work / "words.txt").write_text("".join(f"{word}\n" for word in words))
    own = {"data.datasets.0.path": work / "train", "out": work / "run", "samples": samples, "ops": DRAWN,
           "model.vocab": work / "words.txt"}  # fmt: skip
    recipe = TrainRecipe.load(TINY, [f"{name}={value}" for name, value in {**own, **settings}.items()])
    with joined(os.environ) as here:
        train(recipe, here)
    return time.monotonic() - began


def dealt_anew(folder: Path) -> Mapping[str, float]:
    """Metrics of the same captions, dealt to other images by chance."""
    written = {row["image_id"]: row["caption"] for row in json.loads((folder / CANDIDATES).read_text())}
    references: dict[str, list[str]] = {}
    for row in json.loads((folder / REFERENCES).read_text())["annotations"]:
        references.setdefault(row["image_id"], []).append(row["caption"])
    texts = [written[name] for name in references]
    random.Random(0).shuffle(texts)
    return score(references, dict(zip(references, texts, strict=True))).corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=96_000, help="to see in all")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/pairmill-real/blip"), help="emptied first")
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"{options.data}: no such folder; name the test material's with --data")
    work = options.work
    shutil.rmtree(work, ignore_errors=True)
    seen, unseen = held_out(drawings(options.data))
    write_dataset(work / "train", seen)
    write_dataset(work / "held_out", [picture for kind in unseen for picture in kind])
    write_dataset(work / "of_each_kind", [kind[0] for kind in unseen])
    coco(options.data, work / "coco")
    took_s = learn(work, options.samples, dict(one.split("=", 1) for one in options.settings))
    print(f"{len(seen):,} drawings, {options.samples:,} samples in {took_s:.0f} s; {len(unseen)} kinds held out")
    captioner = load_captioner(str(work / "run"))
    print(f"{'':<34}{'images':>7}" + "".join(f"{name:>9}" for name in METRICS))
    for name, captions in (("held_out", ("web",)), ("of_each_kind", ("web",)), ("coco", ("web", PEOPLE))):
        asked = {"task": "caption", "data": str(work / name), "captions": captions, "queries": SHOWN, "min_length": 2}
        facts = evaluate(captioner, EvaluationSettings.parse(asked, name), str(work / "run" / name))
        shares = facts["metrics"]
        cells = "".join(f"{100 * shares[metric]['value']:>9.1f}" for metric in METRICS)
        cider = shares["CIDEr"]
        folder = work / "run" / name
        print(f"{name:<34}{facts['counts']['images']:>7}{cells}   CIDEr, 95 %: {100 * cider['low']:.1f} to "
              f"{100 * cider['high']:.1f}   {folder / 'sheet.html'}")  # fmt: skip
        by_chance = dealt_anew(folder)
        print(
            f"{'  dealt to other images':<41}" + "".join(f"{100 * by_chance[one]:>9.1f}" for one in METRICS), flush=True
        )


if __name__ == "__main__":
    main()
