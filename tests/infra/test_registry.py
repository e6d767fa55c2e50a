"""A table imports an entry when it is asked for it, and not before; a wrong name is told with the nearest."""

from __future__ import annotations

import fractions
import sys

import pytest

from infra.errors import UsageError
from infra.registry import Registry

TABLE = Registry("scorer", {"clip_score": "this.module:DoesNotExist", "half": "fractions:Fraction"})


def test_a_table_can_be_listed_without_importing_anything() -> None:
    assert list(TABLE) == ["clip_score", "half"]
    assert len(TABLE) == 2
    assert "this" not in sys.modules or "this.module" not in sys.modules


def test_an_entry_is_what_its_path_names() -> None:
    assert TABLE["half"] is fractions.Fraction


def test_a_path_from_outside_is_taken_as_it_is() -> None:
    assert TABLE["fractions:Fraction"] is fractions.Fraction


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clip_scor", "no scorer named clip_scor; did you mean clip_score?"),
        ("zzz", "known: clip_score, half"),
        ("clip_score", "is its package installed"),
        ("fractions:Nothing", "module fractions has no Nothing"),
        ("no_such_package.module:Thing", "no_such_package"),
    ],
)
def test_what_is_not_there_is_told_with_a_mend(name: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        TABLE[name]
    assert words in str(caught.value)


@pytest.mark.parametrize("name", [":Thing", "fractions:", "..:x", "fractions.:Fraction"])
def test_a_path_that_is_none_is_wrong_usage(name: str) -> None:
    with pytest.raises(UsageError):
        TABLE[name]
