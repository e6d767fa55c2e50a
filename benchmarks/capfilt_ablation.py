"""Table 1 of BLIP in small: what do filter and captioner each do for the model that is trained on what they leave?

    make tour && python -m benchmarks.capfilt_ablation [--seeds 3] [--set samples=48000 …]

On the demo's small web, captioned and judged by `make tour`, four selections, as the paper's rows:

    none        the web's captions and the human pairs, as they are
    filter      the web's captions that match, and the human pairs
    captioner   the web's captions and the written ones, all of them, and the human pairs
    both        those of either kind that match, and the human pairs

On each a BLIP is pretrained from nothing, with every seed, on as many samples; then asked for what it was not trained
on, the held-out part of the trusted host: retrieval (recall@1 by contrast, and re-ranked by matching) and captions
(CIDEr). Runs stay in --work, and finished ones are not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from filters.rules import SelectRecipe
from filters.select import select
from infra.dataset import Dataset
from infra.executors import LocalExecutor

HUMAN = "url like 'http://trusted.%'"
WEB = {"where": f"source = 'web' or not ({HUMAN})", "reason": "human_has_its_own"}  # the paper captions the web alone
MATCHES = {"where": f"itm.itm >= 0.5 or {HUMAN}", "reason": "does_not_match"}
TRAINED = {"where": "sha256 >= '2'", "reason": "held_out"}
ROWS: Mapping[str, Mapping[str, Any]] = {
    "none": {"rules": [TRAINED]},
    "filter": {"rules": [TRAINED, MATCHES]},
    "captioner": {"captions": ["blip"], "rules": [TRAINED, WEB]},
    "both": {"captions": ["blip"], "rules": [TRAINED, WEB, MATCHES]},
}
ASKED = [
    {"task": "retrieval", "selection": "held_out", "rerank": 32, "queries": 0},
    {"task": "caption", "selection": "held_out", "queries": 0},
]
SHOWN = {
    "retrieval/image_to_text_r1": "TR@1", "retrieval/text_to_image_r1": "IR@1",
    "retrieval/reranked_image_to_text_r1": "TR@1 re-ranked", "retrieval/reranked_text_to_image_r1": "IR@1 re-ranked",
    "caption/CIDEr": "CIDEr", "caption/Bleu_4": "B@4",
}  # fmt: skip


def run(row: str, seed: int, dataset: str, work: Path, recipe: str, settings: Sequence[str]) -> Mapping[str, float]:
    """Metrics of one training."""
    asked = [{**each, "data": dataset, "every": 10**9} for each in ASKED]
    values = {
        "data.datasets": [{"path": dataset, "selection": f"ablation_{row}"}],
        "evaluate": asked,
        "seed": seed,
        "out": str(work / f"{row}-{seed}"),
    }
    words = [word for name, value in values.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    words += [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "training", "train", recipe, *words, "--json"]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    metrics: Mapping[str, float] = json.loads(told.strip().splitlines()[-1])["metrics"]
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="out/demo", help="captioned and judged")
    parser.add_argument("--recipe", default="training/recipes/blip_tiny.yaml")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="change one value of the recipe")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--work", type=Path, default=Path("out/capfilt_ablation"))
    options = parser.parse_args()
    dataset = Dataset(options.dataset)
    for row in options.rows:
        rules = SelectRecipe.parse(yaml.safe_load(json.dumps(ROWS[row])), row)
        (summary,) = select([dataset], rules, f"ablation_{row}", LocalExecutor())
        print(f"{row}: {summary['rows_out']:,} of {summary['rows_in']:,} texts", flush=True)
    print(f"\n{'':<12}" + "".join(f"{name:>20}" for name in SHOWN.values()))
    for row in options.rows:
        found = [run(row, seed, options.dataset, options.work, options.recipe, options.settings)
                 for seed in range(options.seeds)]  # fmt: skip
        cells = []
        for name in SHOWN:
            values = [100 * metrics[name] for metrics in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        print(f"{row:<12}" + "".join(f"{cell:>20}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
