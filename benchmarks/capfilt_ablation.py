"""Table 1 of BLIP in small: what do filter and captioner each do for the model that is trained on what they leave?

    python -m benchmarks.capfilt_auc && python -m benchmarks.capfilt_ablation [--seeds 3]

A web of drawn scenes, three captions of ten wrong or useless (the small web's mixture), is captioned and judged by the
two models that capfilt_auc has trained. Beside a human set of true pairs, which stays as it is, four selections of it:

    none        its captions as they are
    filter      those that match
    captioner   them and the written ones, one an image, all of them
    both        those of either kind that match

On each a BLIP is pretrained from nothing, with every seed, on as many samples; then asked for scenes that nothing was
trained on, each with one true caption: zero-shot retrieval by contrast, and captions. Runs stay in --work, and finished
ones are not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.capfilt_auc import make_web
from benchmarks.clip_auc import make
from filters.rules import SelectRecipe
from filters.score import score
from filters.select import select
from infra.dataset import Dataset
from infra.executors import LocalExecutor

MATCHES = [{"where": "itm.itm >= 0.5", "reason": "does_not_match"}]
READ = [{"where": "itm.itm >= 0", "reason": "not_judged"}]  # all that a filter can judge
ROWS: Mapping[str, Mapping[str, Any]] = {
    "none": {"rules": READ},
    "filter": {"rules": MATCHES},
    "captioner": {"captions": ["blip"], "rules": READ},
    "both": {"captions": ["blip"], "rules": MATCHES},
}
SHOWN = {
    "retrieval/image_to_text_r1": "TR@1", "retrieval/text_to_image_r1": "IR@1",
    "retrieval/image_to_text_r10": "TR@10", "retrieval/text_to_image_r10": "IR@10",
    "caption/CIDEr": "CIDEr", "caption/Bleu_4": "B@4",
}  # fmt: skip


def run(row: str, seed: int, options: argparse.Namespace) -> Mapping[str, float]:
    """Metrics of one training."""
    work: Path = options.work
    web, human = {"path": str(work / "web"), "selection": f"ablation_{row}"}, {"path": str(work / "human")}
    asked = [
        {"task": task, "data": str(work / "asked"), "limit": options.asked, "queries": 0, "every": 10**9}
        for task in ("retrieval", "caption")
    ]
    values = {
        "data.datasets": [web, human], "data.window": 8192, "samples": options.samples, "evaluate": asked,
        "seed": seed, "out": str(work / f"{row}-{seed}"),
    }  # fmt: skip
    words = [word for name, value in values.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    command = [sys.executable, "-m", "training", "train", "training/recipes/blip_tiny.yaml", *words, "--json"]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    metrics: Mapping[str, float] = json.loads(told.strip().splitlines()[-1])["metrics"]
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("out/capfilt_auc"), help="holds writer and filter")
    parser.add_argument("--web", type=int, default=20_000, help="pairs of the web")
    parser.add_argument("--human", type=int, default=2_000, help="true pairs")
    parser.add_argument("--asked", type=int, default=1_000, help="scenes to retrieve and caption")
    parser.add_argument("--samples", type=int, default=48_000, help="of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--work", type=Path, default=Path("out/capfilt_ablation"), help="an empty or new folder")
    options = parser.parse_args()
    work: Path = options.work
    for split, num in {"human": options.human, "asked": options.asked}.items():
        if not (work / split).exists():
            make(work / split, num, ("true",), ("en",), split, mix=None)
    if not (work / "web").exists():
        make_web(work / "web", options.web)
    web = Dataset(work / "web")
    models = [f"caption.checkpoint={options.models}/writer", f"itm.checkpoint={options.models}/filter"]
    score(web, ["caption", "itm"], LocalExecutor(), settings=models)
    for row in options.rows:
        rules = SelectRecipe.parse(ROWS[row], row)
        (summary,) = select([web], rules, f"ablation_{row}", LocalExecutor())
        print(f"{row}: {summary['rows_out']:,} of {summary['rows_in']:,} texts", flush=True)
    print(f"\n{'':<12}" + "".join(f"{name:>16}" for name in SHOWN.values()), flush=True)
    for row in options.rows:
        found = [run(row, seed, options) for seed in range(options.seeds)]
        cells = []
        for name in SHOWN:
            values = [100 * metrics[name] for metrics in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        print(f"{row:<12}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
