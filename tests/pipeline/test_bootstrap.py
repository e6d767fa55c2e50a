"""The shipped loop of BLIP on a few pictures: what was trained writes and judges, and the next learns from both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.dataset import Dataset
from infra.executors import LocalExecutor
from infra.jobs import RunOptions
from infra.progress import Progress
from infra.selection import Selection
from infra.tables import read_table
from pipeline.run import load_recipe, plan_recipe, run_recipe
from tests.servers.commands import CHECKOUT
from tests.training.shards import make_shards

SHIPPED = CHECKOUT / "pipeline/recipes/bootstrap.yaml"
BATCH = 8


def small(folder: Path) -> dict[str, Any]:
    """The shipped recipe with every folder in `folder`, two steps a run, and all pictures of one trusted host."""
    told = SHIPPED.read_text().replace("out/demo-blip", f"{folder}/blip").replace("out/demo", f"{folder}/data")
    values: dict[str, Any] = yaml.safe_load(told)
    everything = {"rules": [{"where": "key >= '0'"}]}
    values["select"] = dict.fromkeys(("held_out", "trusted", "everything"), everything)
    rules = values["then"][1]["select"]["capfilt"]["rules"]
    values["then"][1]["select"]["capfilt"]["rules"] = [rules[2] | {"where": "itm.itm >= 0.0"}]
    for one in values["then"]:
        for run in one["train"].values():
            run["recipe"] = str(CHECKOUT / run["recipe"])
            run["set"] |= {"samples": 2 * BATCH, "data.batch": BATCH, "data.workers": 0}
            run["set"].pop("evaluate", None)
    return values


def written(folder: Path) -> Path:
    (folder / "loop.yaml").write_text(yaml.safe_dump(small(folder)))
    return folder / "loop.yaml"


@pytest.mark.slow
def test_the_loop_trains_writes_judges_and_trains_on_what_survives(tmp_path: Path) -> None:
    make_shards(tmp_path / "data", [9, 7])
    recipe = load_recipe(written(tmp_path))
    facts = run_recipe(recipe, LocalExecutor(), RunOptions(), Progress.quiet())
    assert {name: told["steps"] for name, told in facts["train"].items()} == dict.fromkeys(
        ("pretrained", "captioner", "filter", "bootstrapped"), 2
    )
    dataset = Dataset(tmp_path / "data")
    rows = [row for shard in dataset.shards() for row in Selection(dataset, "capfilt").read(shard).to_pylist()]
    judged = {
        (row["uid"], row["source"], row["n"])
        for shard in dataset.shards() for row in read_table(dataset.storage, f"scores/itm/{shard}.parquet").to_pylist()
    }  # fmt: skip
    assert {row["source"] for row in rows if row["keep"]} == {"web", "blip"}
    assert {(row["uid"], row["source"], row["n"]) for row in rows} == judged
    trained = yaml.safe_load((tmp_path / "blip/bootstrapped/recipe.yaml").read_text())
    assert (trained["data"]["datasets"][0]["selection"], trained["data"]["unit"]) == ("capfilt", "caption")
    assert dataset.storage.exists("recipe-bootstrap.yaml")
    assert not dataset.storage.exists("recipe.yaml"), "the recipe that made the dataset stays its own"
    assert 'id="captions' in (tmp_path / "data/bootstrap.html").read_text()
    before = sorted((path, path.read_bytes()) for path in (tmp_path / "data/captions").rglob("*.parquet"))
    run_recipe(recipe, LocalExecutor(), RunOptions(), Progress.quiet())
    assert sorted((path, path.read_bytes()) for path in (tmp_path / "data/captions").rglob("*.parquet")) == before


def test_the_shipped_recipe_says_its_whole_plan() -> None:
    plan = "\n".join(plan_recipe(load_recipe(SHIPPED)))
    steps = ["train: pretrained", "train: captioner", "train: filter", "score: caption, itm", "select: capfilt"]
    places = [plan.index(step) for step in [*steps, "train: bootstrapped"]]
    assert places == sorted(places)
