"""Rounds of a recipe: what was trained scores what the next is trained on; misspelt rounds are told before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from selectolax.lexbor import LexborHTMLParser

from infra.errors import PairmillError, RecipeError
from infra.executors import LocalExecutor
from infra.jobs import RunOptions
from infra.progress import Progress
from pipeline.report import write_report
from pipeline.run import fact_lines, load_recipe, plan_recipe, run_recipe
from pipeline.train import TrainingEnded, TrainPart, train
from tests.training.models.dalles import VAE, WORDS
from tests.training.runs import BATCH, recipe
from tests.training.shards import make_shards

TOP = {"top": "clip_score.clip_score", "fraction": 0.5}


def rounds(folder: Path) -> dict[str, Any]:
    """Train on all, score with that, keep half, train on the half."""
    base = str(recipe(folder, folder / "data", samples=2 * BATCH))
    data, first, second = (str(folder / name) for name in ("data", "first", "second"))
    asked = [{"task": "retrieval", "data": data, "queries": 0}]
    few = {"data.datasets": [{"path": data, "selection": "fitting"}], "out": second, "evaluate": asked}
    return {
        "dataset": data,
        "then": [
            {
                "train": {"first": {"recipe": base, "set": {"out": first}}},
                "score": {"scorers": ["clip_score"], "settings": {"clip_score": {"model": first}}},
                "select": {"fitting": {"rules": [TOP]}},
            },
            {"train": {"second": {"recipe": base, "set": few}}},
        ],
        "report": {"out": str(folder / "report.html")},
    }


def written(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "rounds.yaml").write_text(yaml.safe_dump(values))
    return folder / "rounds.yaml"


@pytest.mark.slow
def test_each_round_goes_by_what_the_one_before_it_has_trained(tmp_path: Path) -> None:
    make_shards(tmp_path / "data", [20, 17])
    loaded = load_recipe(written(tmp_path, rounds(tmp_path)))
    facts = run_recipe(loaded, LocalExecutor(), RunOptions(), Progress.quiet())
    assert [facts["train"][name]["steps"] for name in ("first", "second")] == [2, 2]
    assert facts["select"]["fitting"]["rows_out"] == 19  # of 37, one more than the fraction: int(18.5) + 1
    recipe_of = [yaml.safe_load((tmp_path / name / "recipe.yaml").read_text()) for name in ("first", "second")]
    assert [one["data"]["datasets"][0]["selection"] for one in recipe_of] == [None, "fitting"]
    assert not facts["train"]["first"]["metrics"]
    found = facts["train"]["second"]["metrics"]
    assert 0 <= found["retrieval/text_to_image_r10/low"] <= found["retrieval/text_to_image_r10"] <= 1
    (line,) = (line for line in fact_lines(facts) if line.startswith("train: second, 2 steps; "))
    assert f"retrieval/text_to_image_r10 {100 * found['retrieval/text_to_image_r10']:.1f} (" in line
    page = LexborHTMLParser((tmp_path / "report.html").read_text())
    models = page.css_first("section#models")
    assert {"first", "second"} <= {cell.text().strip() for cell in models.css("th[scope=row]")}
    assert [caption for caption in models.css("figcaption") if caption.text().startswith("Loss")]
    assert not page.css("script, [onerror], [onload]")


def test_the_plan_says_each_run_as_a_person_would_type_it(tmp_path: Path) -> None:
    plan = plan_recipe(load_recipe(written(tmp_path, rounds(tmp_path))))
    of_rounds = [line for line in plan if line.startswith(("train", "score", "select"))]
    assert of_rounds == [
        f"train: first: python -m training train {tmp_path}/recipe.yaml --set 'out=\"{tmp_path}/first\"'",
        "score: clip_score, every stored image and caption",
        "select: fitting, by 1 rules",
        of_rounds[3],
    ]
    assert of_rounds[3].startswith("train: second: python -m training train ")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"select": {"fitting": {"rules": [{"top": "clip_score"}]}}}, "select: fitting"),
        ({"train": {"first": {"recipe": "nowhere.yaml"}}}, "nowhere.yaml: no such recipe"),
        ({"train": {"first": {"recipe": "rounds.yaml"}}}, "rounds.yaml names no folder"),
        ({"train": {"first": {"recipe": "recipe.yaml"}, "other": {"recipe": "recipe.yaml"}}}, "2 runs in one folder"),
        ({"train": {"first": {"recipe": "recipe.yaml", "sets": {}}}}, "unknown key then.0.train.first.sets"),
    ],
)
def test_a_round_that_cannot_be_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], told: str
) -> None:
    values = rounds(tmp_path)
    values["then"][0] |= change
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, values)
    with pytest.raises(RecipeError, match=told):
        load_recipe(path)


def test_a_mapping_changes_what_it_names_and_leaves_its_neighbours() -> None:
    changes = {"optim": {"lr": 0.1, "betas": [0.9, 0.98]}, "data.workers": 0, "model": {}}
    part = TrainPart.parse({"recipe": "r.yaml", "set": changes}, "train")
    assert part.settings() == ["optim.lr=0.1", "optim.betas=[0.9, 0.98]", "data.workers=0", "model={}"]


@pytest.mark.parametrize(("ends_with", "code"), [(75, 75), (1, 1), (137, 1)])
def test_a_run_that_ends_early_ends_the_pipeline(ends_with: int, code: int) -> None:
    part = TrainPart.parse({"recipe": "r.yaml", "launcher": f"bash -c 'exit {ends_with}'"}, "train")
    with pytest.raises(TrainingEnded, match="train clip: ") as caught:
        train("clip", part)
    assert caught.value.exit_code == code


def test_what_a_run_says_beside_its_facts_is_passed_over() -> None:
    facts = {"out": "o", "steps": 3, "total": 3, "metrics": {}}
    part = TrainPart.parse(
        {"recipe": "r.yaml", "launcher": f"bash -c 'echo hello; echo \"$0\"' '{json.dumps(facts)}'"}, "t"
    )
    assert train("clip", part) == facts


def test_a_report_on_a_run_that_is_not_there_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_shards(tmp_path / "data", [2])
    with pytest.raises(PairmillError, match="cannot be shown"):
        write_report(str(tmp_path / "data"), str(tmp_path / "report.html"), [str(tmp_path / "absent")])
    assert "give the folder of a run" in capfd.readouterr().err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_pictures_become_tokens_between_two_runs_and_the_second_reads_them(tmp_path: Path) -> None:
    make_shards(tmp_path / "data", [8, 7])
    data, vae = str(tmp_path / "data"), str(tmp_path / "vae" / "run")
    first, second = (
        recipe(tmp_path / name, tmp_path / "data", samples=2 * BATCH, model=model)
        for name, model in (("vae", {"name": "dalle.vae", **VAE}), ("dalle", {"name": "dalle", **WORDS}))
    )
    values = {
        "dataset": data,
        "then": [
            {"train": {"vae": {"recipe": str(first)}}, "encode": {"few": {"checkpoint": vae}}},
            {"train": {"dalle": {"recipe": str(second), "set": {"data.datasets": [{"path": data, "tokens": "few"}]}}}},
        ],
    }
    loaded = load_recipe(written(tmp_path, values))
    assert f"encode: few: python -m training encode {vae} --data {data} --name few" in plan_recipe(loaded)
    facts = run_recipe(loaded, LocalExecutor(), RunOptions(), Progress.quiet())
    assert facts["encode"]["few"]["rows_out"] == 15
    assert facts["train"]["dalle"]["steps"] == 2
    assert "encode: few, tokens of 15 pictures" in fact_lines(facts)
