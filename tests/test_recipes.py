"""Every shipped recipe loads, tells its cost and result in its head, refuses what it does not know, plans, and runs."""

from __future__ import annotations

import gzip
import json
import shutil
from itertools import takewhile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from filters.imports import import_table
from filters.rules import SelectRecipe, load_rules
from filters.score import score
from filters.select import select
from infra.cli import run_main
from infra.dataset import Dataset
from infra.errors import RecipeError
from infra.executors import LocalExecutor
from infra.jobs import RunOptions
from infra.progress import Progress
from pipeline.__main__ import main
from pipeline.run import Recipe, load_recipe, run_recipe
from tests.servers.files import serve_folder
from tests.servers.pictures import draw_noise, store

ROOT = Path(__file__).resolve().parents[1]
RULES = "filters/recipes"
HEAD = ("Command:", "Cost:", "Expected:", "Source:")
NUM_PICTURES = 6

whole = pytest.mark.parametrize("path", sorted((ROOT / "pipeline/recipes").glob("*.yaml")), ids=lambda path: path.stem)
of_rules = pytest.mark.parametrize("path", sorted((ROOT / RULES).glob("*.yaml")), ids=lambda path: path.stem)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with recipes of the checkout, and the files that recipes take from their user."""
    for folder in (RULES, "training/recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    rows = {"url": ["https://example.org/1.jpg"] * 3, "text": ["a", "b", "c"], "face_bboxes": [[], [], []]}
    (tmp_path / "metadata").mkdir()
    for name in ("urls.parquet", "metadata/0123456789abcdef0123456789abcdef.parquet"):
        pq.write_table(pa.table(rows), tmp_path / name)
    (tmp_path / "warc.paths.gz").write_bytes(gzip.compress(b"crawl-data/one.warc.gz\ncrawl-data/two.warc.gz\n"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset as a download leaves it, with the scores that shipped recipes of rules expect from elsewhere."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "web").mkdir()
    draw_noise(folder / "web", NUM_PICTURES)
    with serve_folder(folder / "web") as server:
        rows = [
            {"url": f"{server.url}/{at}.png", "text": f"a drawing of plain noise number {at}",
             "clip_l14_similarity_score": at / 10}
            for at in range(NUM_PICTURES)
        ]  # fmt: skip
        store(Dataset(folder / "data"), rows, folder / "rows.parquet")
    # Those of a model, which is no part of the checkout.
    scores = [{"url": row["url"], "clip_score": at / 10} for at, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(scores), folder / "scores.parquet")
    import_table(Dataset(folder / "data"), [str(folder / "scores.parquet")], "clip_score", LocalExecutor())
    judged = [{"url": row["url"], "itm": at / 10, "text": "noise"} for at, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(judged).drop_columns("text"), folder / "itm.parquet")
    import_table(Dataset(folder / "data"), [str(folder / "itm.parquet")], "itm", LocalExecutor(), per="image")
    pq.write_table(pa.Table.from_pylist(judged).drop_columns("itm"), folder / "written.parquet")
    written = [str(folder / "written.parquet")]
    import_table(Dataset(folder / "data"), written, "blip", LocalExecutor(), caption_col="text")
    return folder / "data"


def curated(path: Path, dataset: Path) -> Recipe:
    """What the recipe does after its download, on another dataset."""
    recipe = load_recipe(path)
    reshard = recipe.reshard and recipe.reshard.model_copy(update={"out": f"{dataset}-curated"})
    elsewhere = {"dataset": str(dataset), "miniweb": None, "crawl": None, "download": None, "report": None}
    # Rounds of training name a dataset of their own: `make demo` runs them, in test_readme.py.
    return recipe.model_copy(update={**elsewhere, "reshard": reshard, "then": ()})


@whole
def test_a_recipe_tells_its_command_cost_result_and_source(path):
    assert_told(path, "pipeline/recipes")


@of_rules
def test_rules_tell_their_command_cost_result_and_source(path):
    assert_told(path, RULES)


def assert_told(path: Path, folder: str) -> None:
    text = path.read_text(encoding="utf-8")
    head = "\n".join(takewhile(lambda line: line.startswith("#") or not line, text.splitlines()))
    assert [word for word in HEAD if word not in head] == []
    assert f"{folder}/{path.name}" in head
    assert "TODO" not in text


@whole
def test_a_recipe_loads_and_survives_the_way_through_yaml(path):
    recipe = load_recipe(path)
    again = Recipe.parse(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json"))), "again")
    assert again == recipe


@whole
def test_a_key_that_nobody_knows_is_refused_in_every_part(path):
    values = yaml.safe_load(path.read_text())
    parts = [name for name, value in values.items() if isinstance(value, dict) and name != "select"]
    # A selection's name is its maker's; one that is a file of rules has no keys here.
    parts += [f"select.{name}" for name, rules in values.get("select", {}).items() if isinstance(rules, dict)]
    assert parts
    for key in ["no_such_key", *(f"{part}.no_such_key" for part in parts)]:
        with pytest.raises(RecipeError, match=f"unknown key {key}"):
            load_recipe(path, [f"{key}=1"])


@whole
def test_a_misspelt_key_is_answered_with_the_right_one(path):
    with pytest.raises(RecipeError, match="did you mean dataset"):
        load_recipe(path, ["datset=x"])


@whole
def test_a_dry_run_plans_every_part_and_writes_nothing(path, workplace, capsys):
    before = sorted(workplace.rglob("*"))
    assert run_main(main, "python -m pipeline", ["run", str(path), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["plan"]
    told = "\n".join(plan)
    recipe = load_recipe(path)
    for part in ("crawl", "download", "reshard", "report"):
        assert bool(getattr(recipe, part)) == (f"{part}:" in told), part
    for part in ("score", "select"):
        assert any(getattr(one, part) for one in recipe.rounds) == (f"{part}:" in told), part
    for name in (name for one in recipe.rounds for name in one.select):
        assert f"select: {name}, " in told
    assert told.count("train: ") == len(recipe.runs)
    assert sorted(workplace.rglob("*")) == before


@whole
def test_what_a_recipe_does_after_the_download_runs_on_a_download(path, downloaded, tmp_path):
    dataset = shutil.copytree(downloaded, tmp_path / "data")
    recipe = curated(path, dataset)
    facts = run_recipe(recipe, LocalExecutor(), RunOptions(), Progress())
    assert sorted(facts["select"]) == sorted(recipe.select)
    for told in facts["select"].values():
        assert told["rows_in"] == NUM_PICTURES == told["rows_out"] + sum(told["dropped"].values())
        assert not [word for word in told["dropped"] if word.startswith("no_")]  # every column was scored
    if recipe.reshard is not None:
        assert facts["reshard"]["rows_out"] == facts["select"][recipe.reshard.selection]["rows_out"]


@of_rules
def test_rules_select_from_scores_and_a_downloads_columns(path, downloaded, tmp_path):
    dataset = Dataset(shutil.copytree(downloaded, tmp_path / "data"))
    score(dataset, ["text", "language"], LocalExecutor())
    rules = load_rules(str(path))
    (told,) = select([dataset], rules, "shipped", LocalExecutor())
    assert told["rows_in"] == told["rows_out"] + sum(told["dropped"].values())
    assert told["rows_in"] == NUM_PICTURES * (1 + len(rules.captions))
    assert not [word for word in told["dropped"] if word.startswith("no_")]


@of_rules
def test_a_recipe_may_name_a_file_of_rules_in_their_place(path):
    assert SelectRecipe.parse(str(path), "select") == load_rules(str(path))
