"""Reason words: each has a sentence, whatever the word."""

from __future__ import annotations

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
