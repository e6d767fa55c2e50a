"""Recipes: unknown keys are refused with the mend, fingerprints name the output's settings and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from infra.errors import RecipeError
from infra.recipe import Config, apply_settings, fingerprint, load_yaml, tuning


class Part(Config):
    image_size: int = Field(256, gt=0, description="Pixels.")
    mode: str = Field("border", description="How.")
    threads: int = tuning(4, "Threads.", gt=0)


class Whole(Config):
    part: Part = Part()
    name: str | None = None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("given_values", "words"),
    [
        ({"part": {"imagesize": 3}}, "recipe.yaml: unknown key part.imagesize"),
        ({"prt": {}}, "recipe.yaml: unknown key prt; did you mean part?"),
        ({"zzz": 1}, "unknown key zzz; known: part, name"),
        ({"part": {"image_size": 0}}, "part.image_size=0: Input should be greater than 0"),
        ({"part": {"image_size": "big"}}, "part.image_size='big'"),
        ({"part": 3}, "recipe.yaml: part=3"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_place(given_values: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Whole.parse(given_values, "recipe.yaml")
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        Whole.parse({"part": {"image_size": 0, "threads": 0}, "nme": "x"}, "r")
    assert len(str(caught.value).splitlines()) == 3


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Part().image_size = 3  # type: ignore[misc]


@given(st.integers(1, 10**6), st.text(), st.integers(1, 99))
def test_tuning_never_enters_a_fingerprint_and_the_rest_always_does(size: int, mode: str, threads: int) -> None:
    one = Part(image_size=size, mode=mode, threads=threads)
    assert one.fingerprint_values() == {"image_size": size, "mode": mode}
    assert fingerprint(one.fingerprint_values()) == fingerprint(
        one.model_copy(update={"threads": 1}).fingerprint_values()
    )
    other = one.model_copy(update={"image_size": size + 1})
    assert fingerprint(one.fingerprint_values()) != fingerprint(other.fingerprint_values())


@given(st.dictionaries(st.text(), values))
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(mapping: dict[str, Any]) -> None:
    turned = dict(reversed(mapping.items()))
    assert fingerprint(mapping) == fingerprint(turned)
    assert len(fingerprint(mapping)) == 32


def test_fingerprints_tell_neighbours_apart() -> None:
    told = [
        fingerprint(*parts) for parts in [(), ("",), ("a", "b"), ("ab",), ("a", ["b"]), (1,), ("1",), (None,), (True,)]
    ]
    assert len(set(told)) == len(told)


@given(st.dictionaries(st.text(st.characters(categories=["Ll"]), min_size=1), st.integers(), min_size=1), st.data())
def test_set_changes_one_value_and_not_the_original(mapping: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(mapping)))
    before = json.loads(json.dumps(mapping))
    changed = apply_settings({"a": mapping}, (f"a.{name}=[1, x]",))
    assert changed == {"a": {**mapping, name: [1, "x"]}}
    assert mapping == before


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("a.b=3", {"a": {"b": 3}}),
        ("a.b=c=d", {"a": {"b": "c=d"}}),
        ("a.b=", {"a": {"b": None}}),
        ("x.y=true", {"a": {"b": 1}, "x": {"y": True}}),
    ],
)
def test_set_reads_its_value_as_yaml(setting: str, expected: dict[str, Any]) -> None:
    assert apply_settings({"a": {"b": 1}}, (setting,)) == expected


@pytest.mark.parametrize("setting", ["a", "=3", "a.b.c=3", "a.b=[1", "a.b={x: 1", "a.b=: :"])
def test_a_setting_that_cannot_be_applied_is_refused(setting: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        apply_settings({"a": {"b": 1}}, (setting,))


def test_a_recipe_file_is_a_mapping_or_an_error_that_names_it(tmp_path: Path) -> None:
    good, bad, other = tmp_path / "good.yaml", tmp_path / "bad.yaml", tmp_path / "other.yaml"
    good.write_text("a: {b: é}", encoding="utf-8")
    bad.write_text("a: [1")
    other.write_text("- 1")
    assert load_yaml(good) == {"a": {"b": "é"}}
    for path, words in ((bad, "not YAML"), (other, "not a list"), (tmp_path / "absent.yaml", "no such recipe")):
        with pytest.raises(RecipeError, match=words) as caught:
            load_yaml(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("data", [b"a: \xff", b"a: \x00"])
def test_a_recipe_file_of_bytes_is_an_error_not_a_crash(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bytes.yaml"
    path.write_bytes(data)
    with pytest.raises(RecipeError, match="not YAML"):
        load_yaml(path)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=str(tmp_path)):
        load_yaml(tmp_path)
