"""Rules against the small web's truth on 20,000 pairs: precision and recall of each, and of near hashes by distance.

    python -m benchmarks.rules [--pages 7000] [--dataset out/bench-rules]

The first run crawls, downloads and scores the web by the demo's recipe; later ones only select and judge. Tables: the
rules of each of its selections in their order, where each sees what the ones before it have left; each rule alone, over
all rows; the kinds of captions that each has dropped; and what the greedy removal of near pictures drops at several
distances, by brute force.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from filters.rules import SelectRecipe
from filters.select import select
from infra.dataset import Dataset
from infra.executors import LocalExecutor
from infra.jobs import RunOptions
from infra.progress import Progress
from infra.recipe import fingerprint
from infra.selection import Selection
from infra.tables import read_table
from pipeline.judge import Judgement, Tally, judge, judgement_rows, kind_rows, unguarded, weigh
from pipeline.run import Recipe, load_recipe, run_recipe
from pipeline.truth import EDITS, ToldRow, told_rows, truth_of

DEMO = "pipeline/recipes/demo.yaml"
# The demo's recipe but for what waits: among many pages many servers stall, and each costs whole deadlines.
SETTINGS = (
    *("reshard=null", "report=null", "miniweb.port=8971", "miniweb.dns_port=8954"),
    *("crawl.max_pages=100000", "crawl.buckets=1", "crawl.delay_s=0", "crawl.attempts=2", "crawl.backoff_s=0.1"),
    *("crawl.timeout_s=1", "crawl.total_timeout_s=5"),
    *("download.delay_s=0", "download.attempts=2", "download.backoff_s=0.1", "download.timeout_s=2"),
    *("download.total_timeout_s=20", "download.max_bytes=1000000", "download.shard_size=10000"),
    *("download.connections=64", "download.dns_timeout_s=60"),  # one process draws all pictures and tells all names
)
CAPTION_KINDS = ("true", "wrong_random", "wrong_attribute", "boilerplate")
DISTANCES = (0, 2, 4, 6, 8, 10)


def build(recipe: Recipe) -> Dataset:
    """Crawl, download and score the web; what is done already is skipped."""
    run_recipe(recipe.model_copy(update={"select": {}}), LocalExecutor(), RunOptions(), Progress())
    return Dataset(recipe.dataset)


def selected(dataset: Dataset, recipe: SelectRecipe) -> str:
    """Select by a recipe, under a name of its own; returns the name."""
    name = f"bench_{fingerprint(recipe.model_dump(mode='json'))[:12]}"
    select([dataset], recipe, name, LocalExecutor(), progress=Progress.quiet())
    return name


def near_judgements(dataset: Dataset, rows: Sequence[ToldRow]) -> list[Judgement]:
    """Greedy removal of near pictures in the order of the rows, for each hash and distance."""
    names = dataset.tables("scores/duplicates")
    found = []
    for column in ("phash", "phash_fine"):
        hashes = np.concatenate([read_table(dataset.storage, name, [column])[column].to_numpy() for name in names])
        assert len(hashes) == len(rows)
        for distance in DISTANCES:
            found.append(weigh(f"{column} {distance}", ["copy"], rows, fallen(hashes, distance)))
    return found


def fallen(hashes: np.ndarray, distance: int) -> list[bool]:
    """Which rows are within `distance` bits of one kept before them; every kept one is looked at."""
    kept = np.empty_like(hashes)
    num_kept = 0
    fell = []
    for value in hashes:
        fell.append(bool((np.bitwise_count(kept[:num_kept] ^ value) <= distance).any()))
        if not fell[-1]:
            kept[num_kept] = value
            num_kept += 1
    return fell


def near_rows(judgements: Sequence[Judgement]) -> list[list[str]]:
    """A table of the distances: recall by edit, and precision without the exact copies, which any hash finds."""
    lines = [["column and distance", "dropped", "precision", "of near ones alone", *EDITS]]
    for each in judgements:
        found = sum(each.ills.get(edit, Tally()).dropped for edit in EDITS)
        near = Tally(found, found + each.good.dropped)
        edits = [f"{share(tally)} of {tally.seen}" for tally in (each.ills.get(edit, Tally()) for edit in EDITS)]
        told = Tally(each.bad.dropped, each.bad.dropped + each.good.dropped)
        lines.append([each.rule, f"{each.rows.dropped:,}", share(told), share(near), *edits])
    return lines


def share(tally: Tally) -> str:
    """As people read it."""
    return "–" if tally.share is None else f"{tally.share:.4f}"


def show(title: str, lines: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown."""
    print(f"\n{title}\n")
    heads, *rows = lines
    for line in (heads, ["---"] * len(heads), *rows):
        print(f"| {' | '.join(line)} |")


def main() -> None:
    """Build, select, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=7_000, help="of the small web: about three stored pairs each")
    parser.add_argument("--dataset", default="out/bench-rules", help="kept from run to run")
    options = parser.parse_args()
    started = time.monotonic()
    recipe = load_recipe(DEMO, (*SETTINGS, f"dataset={options.dataset}", f"miniweb.pages={options.pages}"))
    dataset = build(recipe)
    built_s = time.monotonic() - started
    truth = truth_of(dataset)
    assert truth is not None
    for title, rules in recipe.select.items():
        name = selected(dataset, rules)
        in_order = judge(dataset, name, truth)
        alone = [
            judge(dataset, selected(dataset, rules.model_copy(update={"rules": (rule,)})), truth)[0]
            for rule in rules.rules
        ]
        show(f"{title}: rules in their order", judgement_rows(in_order))
        for kind, tally in unguarded(in_order).items():
            print(f"\nNo rule is meant for {kind}: {tally.dropped:,} of {tally.seen:,} fell by others, by chance.")
        show(f"{title}: each rule alone", judgement_rows(alone))
        show(f"{title}: captions dropped by each rule alone", kind_rows([*alone, in_order[-1]], CAPTION_KINDS))
    rows = list(told_rows(Selection(dataset, name), truth))
    show(f"Near duplicates among all {len(rows):,} rows", near_rows(near_judgements(dataset, rows)))
    size = sum(path.stat().st_size for path in Path(options.dataset).rglob("*.tar"))
    print(f"\nbuilt in {built_s:.0f} s, {size / 1e6:.0f} MB; judged in {time.monotonic() - started - built_s:.0f} s")


if __name__ == "__main__":
    main()
