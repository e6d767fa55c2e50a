"""Reason words: each has a sentence, whatever the word."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.reasons import REASONS, explain


@pytest.mark.parametrize("word", REASONS)
def test_every_word_is_a_stable_word_with_one_full_sentence(word: str) -> None:
    assert word.replace("_", "").isalnum()
    assert word == word.lower()
    assert REASONS[word][0].isupper()
    assert REASONS[word].endswith(".")


@given(st.text() | st.from_regex(r"http_\d{1,4}", fullmatch=True))
def test_any_word_is_explained_without_an_error(word: str) -> None:
    assert explain(word).endswith(".")


@pytest.mark.parametrize(("word", "part"), [("http_404", "Not Found"), ("http_5xx", "5xx"), ("http_799", "799")])
def test_families_of_statuses_name_their_status(word: str, part: str) -> None:
    assert part in explain(word)


def words_in_code(path: Path) -> set[str]:
    """Words that a file gives as a reason: reason="…", SomeError("…", Skipped("…"."""
    words = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        told = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
        told += node.args[:1] if name.endswith("Error") or name == "Skipped" else []
        words |= {word.value for word in told if isinstance(word, ast.Constant) and isinstance(word.value, str)}
    return {word for word in words if re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", word)}


def test_every_word_that_the_pipeline_gives_has_a_sentence() -> None:
    rooms = Path(__file__).parents[2] / "pipeline"
    words = {word for path in rooms.rglob("*.py") for word in words_in_code(path)}
    assert len(words) > 10
    assert {word for word in words if word not in REASONS and not word.startswith("http_")} == set()
