"""Every shipped recipe loads, tells its cost and result in its head, refuses what it does not know, and plans."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import yaml

from infra.cli import run_main
from infra.errors import RecipeError
from pipeline.__main__ import main
from pipeline.run import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "pipeline/recipes").glob("*.yaml"))
HEAD = ("Command:", "Cost:", "Expected:", "Source:")

pytestmark = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, with the files that recipes take from their user."""
    (tmp_path / "urls.parquet").write_bytes(_url_table())
    (tmp_path / "warc.paths.gz").write_bytes(gzip.compress(b"crawl-data/one.warc.gz\ncrawl-data/two.warc.gz\n"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _url_table() -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"url": ["https://example.org/1.jpg"] * 3, "caption": ["a", "b", "c"]}), file)
    return file.getvalue()


def test_a_recipe_tells_its_command_cost_result_and_source(path):
    text = path.read_text(encoding="utf-8")
    head = text[: text.index("\ndataset:")]
    assert all(line.startswith("#") for line in head.splitlines() if line)
    assert [word for word in HEAD if word not in head] == []
    assert f"pipeline/recipes/{path.name}" in head
    assert "TODO" not in text


def test_a_recipe_loads_and_survives_the_way_through_yaml(path):
    recipe = load_recipe(path)
    again = Recipe.parse(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json"))), "again")
    assert again == recipe


def test_a_key_that_nobody_knows_is_refused_in_every_part(path):
    parts = [name for name, value in yaml.safe_load(path.read_text()).items() if isinstance(value, dict)]
    assert parts
    parts = [f"{part}.clean" if part == "select" else part for part in parts]  # a selection's name is its maker's
    for key in ["no_such_key", *(f"{part}.no_such_key" for part in parts)]:
        with pytest.raises(RecipeError, match=f"unknown key {key}"):
            load_recipe(path, [f"{key}=1"])


def test_a_misspelt_key_is_answered_with_the_right_one(path):
    with pytest.raises(RecipeError, match="did you mean dataset"):
        load_recipe(path, ["datset=x"])


def test_a_dry_run_plans_every_part_and_writes_nothing(path, workplace, capsys):
    before = sorted(workplace.rglob("*"))
    assert run_main(main, "python -m pipeline", ["run", str(path), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["plan"]
    told = "\n".join(plan)
    recipe = load_recipe(path)
    for part in ("crawl", "download", "report"):
        assert (getattr(recipe, part) is None) == (f"{part}:" not in told)
    assert sorted(workplace.rglob("*")) == before
