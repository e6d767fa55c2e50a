"""Every rule of the table is a few words of YAML that are checked when they are read; its reason is a stable word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from filters import RULES
from filters.expression import Cut
from filters.rules import MAX_DISTANCE, Rule, SelectRecipe, Top, Unique, load_rules, parse_rule
from infra.errors import RecipeError, UsageError

Values = dict[str, Any]

COLUMNS = st.sampled_from(["words", "text.words", "clip_score", "clip_b32.clip_score", "phash", "sha256"])
NUMBERS = st.integers(-9, 9) | st.floats(-9, 9).map(lambda value: round(value, 3))
WORD = re.compile(r"[a-z][a-z0-9_]*")
DISTANCES = st.integers(0, MAX_DISTANCE)
PATHS = st.sampled_from(["eval.npy", "lists/uids.txt", "s3://bucket/kept.parquet", "data/eval", "eval/"])


def maybe(**options: st.SearchStrategy[Any]) -> st.SearchStrategy[Values]:
    """Some of the options."""
    return st.fixed_dictionaries({}, optional=options)


def rule(key: str, subject: st.SearchStrategy[str], options: st.SearchStrategy[Values]) -> st.SearchStrategy[Values]:
    """A rule's mapping: its name first, then options, then perhaps a reason."""
    reason = maybe(reason=st.from_regex(WORD, fullmatch=True))
    return st.builds(lambda named, more, why: {key: named, **more, **why}, subject, options, reason)


SHARES = maybe(of=st.sampled_from(["all", "survivors"])).flatmap(
    lambda of: (
        st.floats(0.001, 1).map(lambda share: {"fraction": share, **of})
        | st.integers(1, 10**9).map(lambda count: {"count": count, **of})
    )
)
LISTED = maybe(by=COLUMNS) | st.fixed_dictionaries({"by": COLUMNS, "distance": DISTANCES})
DRAWN: Mapping[str, st.SearchStrategy[Values]] = {
    "where": rule("where", st.builds("{} > {}".format, COLUMNS, NUMBERS), st.just({})),
    "top": rule("top", COLUMNS, SHARES),
    "unique": rule("unique", COLUMNS, maybe(distance=DISTANCES, keep=st.sampled_from(["first", "largest", "words"]))),
    "best_caption": rule("best_caption", COLUMNS, maybe(at_least=NUMBERS)),
    "not_in": rule("not_in", PATHS, LISTED),
    "in": rule("in", PATHS, LISTED),
}


def read_back(*rules: Values) -> tuple[Rule, ...]:
    """Rules as they come out of a YAML text."""
    values = yaml.safe_load(yaml.safe_dump({"rules": list(rules)}, sort_keys=False))
    return SelectRecipe.parse(values, "test").parsed("test")


def word_of(**values: Any) -> str:
    return parse_rule(values, "test").word


def top_of(**share: Any) -> Top:
    found = parse_rule({"top": "clip", **share}, "test")
    assert isinstance(found, Top)
    return found


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of three rules."""
    path = tmp_path / "rules.yaml"
    path.write_text("rules:\n  - where: words > 2\n  - top: clip_score\n    fraction: 0.3\n  - unique: phash\n")
    return path


@pytest.mark.parametrize("key", RULES)
@given(data=st.data())
def test_a_rule_comes_out_of_yaml_as_it_was_written_and_says_so_in_a_line(key: str, data: st.DataObject) -> None:
    values = data.draw(DRAWN[key])
    (found,) = read_back(values)
    assert type(found) is RULES[key]
    assert found.key == key
    written = found.model_dump(mode="json", by_alias=True)
    assert values.items() <= written.items()
    assert parse_rule(written, "again") == found  # as summary.json holds it
    assert "\n" not in found.text
    assert str(values[key]) in found.text
    told = {name: field for name, field in values.items() if name not in (key, "reason")}
    defaults = RULES[key].model_fields
    assert [name for name in told if f"{name}: " not in found.text and told[name] != defaults[name].default] == []
    assert found.text == parse_rule({**values, "reason": "another"}, "test").text


@pytest.mark.parametrize("key", RULES)
@given(data=st.data())
def test_every_reason_is_a_word_and_the_rules_own_comes_first(key: str, data: st.DataObject) -> None:
    values = data.draw(DRAWN[key])
    found = parse_rule(values, "test")
    assert found.reasons[0] == found.word == values.get("reason", found.default_reason)
    assert all(WORD.fullmatch(reason) for reason in found.reasons)
    assert len(found.reasons) == 1 + len(found.columns)
    assert all(reason.startswith("no_") for reason in found.reasons[1:])


@pytest.mark.parametrize(
    ("values", "reasons"),
    [
        ({"where": "words > 2"}, ["fails_words", "no_words"]),
        ({"where": "text.words > 2 and clip >= 0.28"}, ["fails_words_clip", "no_words", "no_clip"]),
        ({"where": "a.words > 2 or b.words > 2"}, ["fails_words", "no_words", "no_words"]),
        ({"where": "\"Largeur (px)\" > 2"}, ["fails_largeur_px", "no_largeur_px"]),
        ({"where": '"2" > 2'}, ["fails_2", "no_2"]),
        ({"where": '"名" > 2'}, ["fails_value", "no_value"]),
        ({"top": "clip_b32.clip_score", "count": 5}, ["below_top_clip_score", "no_clip_score"]),
        ({"unique": "sha256"}, ["duplicate_sha256", "no_sha256"]),
        ({"unique": "phash", "distance": 0}, ["near_duplicate_phash", "no_phash"]),
        ({"unique": "phash", "keep": "largest"}, ["duplicate_phash", "no_phash"]),  # without a size a row comes last
        ({"best_caption": "itm_score"}, ["not_best_caption", "no_itm_score"]),
        ({"not_in": "eval.npy"}, ["listed"]),
        ({"not_in": "eval.txt", "by": "url"}, ["listed", "no_url"]),
        ({"not_in": "sets/Eval/", "by": "phash", "distance": 6}, ["near_eval", "no_phash"]),
        ({"in": "kept.npy"}, ["not_listed"]),
        ({"in": "sets/eval", "by": "phash", "distance": 6}, ["not_listed", "no_phash"]),
        ({"top": "clip", "count": 5, "reason": "poor"}, ["poor", "no_clip"]),
    ],
    ids=lambda values: next(iter(values)) if isinstance(values, dict) else "",
)  # fmt: skip
def test_default_reasons_are_made_of_the_rule_and_its_columns(values: Values, reasons: list[str]) -> None:
    assert list(parse_rule(values, "test").reasons) == reasons


def test_default_reasons_stay_when_a_threshold_moves() -> None:
    assert word_of(where="words > 2") == word_of(where="words < 500")
    assert word_of(top="clip", fraction=0.3) == word_of(top="clip", count=7, of="all")
    assert word_of(unique="phash", distance=2) == word_of(unique="phash", distance=9, keep="largest")
    assert word_of(best_caption="itm") == word_of(best_caption="itm", at_least=0.5)
    assert word_of(not_in="a.npy") == word_of(not_in="b.txt", by="url")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"where": "words > 2", "resaon": "short"}, "unknown key resaon; did you mean reason"),
        ({"top": "clip", "part": 0.3}, "unknown key part; known: reason, top, fraction, count, of"),
        ({"where": "words > 2", "top": "clip"}, "unknown key top"),  # one mapping is one rule
        ({"top": "clip"}, "give fraction .* or count"),
        ({"top": "clip", "fraction": 0.3, "count": 2}, "give fraction .* or count"),
        ({"top": "clip", "fraction": 0}, "fraction=0"),
        ({"top": "clip", "fraction": 30}, "fraction=30"),
        ({"top": "clip", "fraction": -0.3}, "fraction=-0.3"),
        ({"top": "clip", "fraction": float("nan")}, "fraction=nan"),
        ({"top": "clip", "count": 0}, "count=0"),
        ({"top": "clip", "count": 2.5}, "count=2.5"),
        ({"top": "clip", "count": 2, "of": "some"}, "of='some'"),
        ({"top": 3, "count": 2}, "top=3"),
        ({"where": None}, "where=None"),
        ({"where": True}, "where=True"),
        ({"where": "1 = 1"}, "reads no column"),
        ({"unique": "phash", "distance": MAX_DISTANCE + 1}, "distance=17"),
        ({"unique": "phash", "distance": -1}, "distance=-1"),
        ({"not_in": "eval", "by": "phash", "distance": 64}, "distance=64"),
        ({"best_caption": "itm", "at_least": "much"}, "at_least='much'"),
        ({"in": ["eval.npy"]}, "in="),
    ],
)
def test_what_a_rule_does_not_know_or_cannot_be_is_refused(values: Values, said: str) -> None:
    with pytest.raises(RecipeError, match=rf"^here: .*{said}"):
        parse_rule(values, "here")


@pytest.mark.parametrize("condition", ["words >", "words > 2, clip > 1", "sum(words) > 2", "(SELECT 1) > words", "*"])
def test_a_condition_that_is_none_is_refused_when_the_recipe_is_read(condition: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(repr(condition))):
        read_back({"where": condition})


@pytest.mark.parametrize("values", [{}, None, [], "where", "where: words > 2", 3])
def test_what_is_no_mapping_is_refused_and_the_rules_are_named(values: Any) -> None:
    with pytest.raises(RecipeError, match=f"known: {', '.join(RULES)}"):
        parse_rule(values, "test")


@pytest.mark.parametrize(
    ("name", "said"), [("wher", "did you mean where"), ("listed", ", ".join(RULES)), ("blur", ", ".join(RULES))]
)
def test_an_unknown_rule_is_refused_and_the_known_ones_are_named(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"{name}; .*{said}"):
        read_back({"where": "words > 2"}, {name: "words"})


@pytest.mark.parametrize(
    "reason", ["", "Short", "too short", "2short", "_short", "too-short", "é", "short\n", "no.words"]
)
@pytest.mark.parametrize("key", RULES)
def test_a_reason_that_is_no_word_is_refused(key: str, reason: str) -> None:
    subject: Values = {key: "words > 2" if key == "where" else "words", **({"count": 1} if key == "top" else {})}
    assert parse_rule({**subject, "reason": "short_2"}, "test").word == "short_2"
    with pytest.raises(RecipeError, match="small letters"):
        parse_rule({**subject, "reason": reason}, "test")


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ({"where": "words > 2"}, {"where": "words < 50"}, "fails_words"),
        ({"where": "words > 2"}, {"where": "clip > 2", "reason": "fails_words"}, "fails_words"),
        ({"top": "clip", "count": 2, "reason": "bad"}, {"unique": "phash", "reason": "bad"}, "bad"),
        ({"not_in": "a.npy"}, {"not_in": "b.npy"}, "listed"),
    ],
)
def test_two_rules_may_not_give_one_reason(first: Values, second: Values, word: str) -> None:
    with pytest.raises(RecipeError, match=f"2 rules give the reason {word}; name one of them by reason:"):
        read_back(first, second)
    assert len(read_back(first, {**second, "reason": "another"})) == 2


def test_two_rules_may_lack_the_same_column() -> None:
    found = read_back({"where": "words > 2"}, {"top": "words", "count": 3})
    assert [rule.reasons[1] for rule in found] == ["no_words", "no_words"]


@given(number=st.integers(0, 10**12), share=st.floats(0, 1, exclude_min=True), more=st.floats(0, 1, exclude_min=True))
def test_a_fraction_places_the_threshold_where_datacomp_does(number: int, share: float, more: float) -> None:
    place = top_of(fraction=share).place(number)
    assert place == int(number * share)
    assert 0 <= place <= number
    assert place <= top_of(fraction=max(share, more)).place(number)
    assert top_of(fraction=1).place(number) == number  # all stay


@given(number=st.integers(0, 10**12), count=st.integers(1, 10**12))
def test_a_count_is_the_number_of_values_from_the_highest_to_the_threshold(number: int, count: int) -> None:
    assert top_of(count=count).place(number) == count - 1


def test_what_is_not_said_has_a_default() -> None:
    assert top_of(count=1).of == "survivors"
    unique = parse_rule({"unique": "phash"}, "test")
    assert isinstance(unique, Unique)
    assert (unique.keep, unique.order, unique.also_reads) == ("first", None, ())
    assert parse_rule({"unique": "a", "keep": "largest"}, "test").also_reads == ("width", "height")
    assert parse_rule({"unique": "a", "keep": "clip + text.words"}, "test").also_reads == ("clip", "text.words")
    assert parse_rule({"best_caption": "itm", "at_least": 0.5}, "test").cuts == [Cut("itm", ">=", 0.5)]


def test_a_rule_does_not_change() -> None:
    with pytest.raises(pydantic.ValidationError):
        top_of(count=1).count = 2


def test_a_recipe_is_read_in_its_order(recipe: Path) -> None:
    assert [rule.key for rule in load_rules(str(recipe)).parsed()] == ["where", "top", "unique"]


def test_set_changes_a_recipe_and_what_it_gives_is_checked_too(recipe: Path) -> None:
    changed = load_rules(str(recipe), ["captions=[blip, git]", "rules=[{where: clip > 1}]"])
    assert changed.captions == ("blip", "git")
    assert [rule.text for rule in changed.parsed()] == ["clip > 1"]
    for setting in (
        "captions=blip",
        "caption=[blip]",
        "rules=3",
        "rules=[{where: words >}]",
        "rules.0.fraction=1",
        "x",
    ):
        with pytest.raises(RecipeError):
            load_rules(str(recipe), [setting])


@pytest.mark.parametrize(
    "text", ["", "rules:", "rules: 3", "rules: [where]", "rules: {where: words > 2}", "rule: []", "- where: words > 2",
             "rules: [{where: words > 2}", "captions: [blip]"]
)  # fmt: skip
def test_a_file_that_is_no_recipe_is_refused_by_its_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "given.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"given\.yaml"):
        load_rules(str(path))


def test_an_error_tells_the_file_and_the_number_of_the_rule(recipe: Path) -> None:
    recipe.write_text(f"{recipe.read_text()}    distanse: 4\n")
    with pytest.raises(RecipeError, match=r"rules\.yaml, rule 3: unknown key distanse; did you mean distance"):
        load_rules(str(recipe))
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: no such recipe"):
        load_rules(str(recipe.with_name("nowhere.yaml")))
