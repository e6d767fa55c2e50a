"""The recipe that the page shows says what the page counts: `filters select` makes the same of it."""

from __future__ import annotations

import pytest
import yaml

from filters.rules import load_rules
from filters.select import select
from infra.executors import LocalExecutor
from pipeline.explore.counts import Explorer
from pipeline.explore.load import load
from pipeline.explore.rules import Asked, Column, Range, Share, Values, literal


def rule_sets(explorer: Explorer) -> list[list[Asked]]:
    """Rules over the scored dataset."""
    at = {column.path: number for number, column in enumerate(explorer.loaded.columns)}
    words = Range(kind="range", column=at["words"], low=3, high=10)
    english = Values(kind="values", column=at["language"], values=(0,))
    no_names = Values(kind="values", column=at["is_name"], values=(1,), drop=True)
    sharp = Range(kind="range", column=at["sharpness"], low=2.5)
    best = Share(kind="top", column=at["sharpness"], fraction=0.3, of="survivors")
    best_of_all = Share(kind="top", column=at["sharpness"], fraction=0.3, of="all")
    wide, wide_as_told = (
        Range(kind="range", column=at[path], low=low) for path, low in (("width", 210), ("row.width", 115))
    )
    quoted = Values(kind="values", column=at["language"], values=(1, 2))
    return [[words, english, best], [best_of_all, no_names, words], [sharp, quoted], [wide, wide_as_told, best]]


@pytest.mark.parametrize("number", range(4))
def test_select_makes_of_the_shown_recipe_what_the_page_counts(scored, tmp_path, number):
    explorer = Explorer(load(scored.dataset))
    asked = rule_sets(explorer)[number]
    found = explorer.count(asked)
    recipe = tmp_path / "rules.yaml"
    recipe.write_text(found["recipe"])
    (summary,) = select([scored.dataset], load_rules(str(recipe)), "shown", LocalExecutor())
    assert summary["rows_in"] == found["total"] == 120
    assert summary["rows_out"] == found["kept"]
    assert [sum(rule["dropped"].values()) for rule in summary["rules"]] == [rule["dropped"] for rule in found["rules"]]
    assert 0 < found["kept"] < 120


def test_the_recipe_is_yaml_of_the_rules_in_their_order(scored):
    explorer = Explorer(load(scored.dataset))
    words, english, best = rule_sets(explorer)[0]
    open_rule = Range(kind="range", column=0)
    recipe = explorer.count([best, open_rule, english, words])["recipe"]
    assert yaml.safe_load(recipe)["rules"] == [
        {"top": "sharpness", "fraction": 0.3, "of": "survivors"},
        {"where": "language = 'en'"},
        {"where": "words >= 3 and words <= 10"},
    ]
    assert explorer.count([open_rule])["recipe"] == ""


def test_columns_of_one_name_give_reasons_that_a_recipe_may_hold(scored):
    explorer = Explorer(load(scored.dataset))
    recipe = yaml.safe_load(explorer.count(rule_sets(explorer)[3])["recipe"])
    assert recipe["rules"][:2] == [
        {"where": "width >= 210"},
        {"where": "row.width >= 115", "reason": "fails_width_2"},
    ]


def test_a_name_that_is_no_plain_word_stands_in_quotes():
    def ref(table: str, name: str, is_unique: bool = True) -> str:
        return Column(table, name, "number", "c0", is_unique).ref

    assert ref("text", "words") == "words"
    assert ref("text", "words", False) == "text.words"
    assert ref("a", 'CLIP "L/14"') == '"CLIP ""L/14"""'
    assert ref("a", "select", False) == 'a."select"'


def test_a_number_is_written_without_an_exponent():
    assert [literal(number) for number in (3, 3.0, 0.28, 1e-5, -2.5, 1e15)] == [
        "3", "3", "0.28", "0.00001", "-2.5", "1000000000000000",
    ]  # fmt: skip
