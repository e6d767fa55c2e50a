"""Options are made from the models: one for each field, its help and default from the field, nothing typed twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner
from hypothesis import given as draw
from hypothesis import strategies as st
from pydantic import Field

from infra import cli
from infra.errors import FingerprintError, UsageError
from infra.options import config_options, given, spread
from infra.recipe import Config, tuning


class Model(Config):
    image_size: int = Field(256, gt=0, description="Pixels of the shorter side.")
    fraction: float | None = Field(None, description="A share.")
    mode: Literal["border", "no"] = Field("border", description="How.")
    words: tuple[str, ...] = Field(("alt", "title"), description="Several.")
    keep: bool = Field(True, description="Keep it.")
    skipped: int = Field(3, description="Not an option.")
    threads: int = tuning(4, "Threads.")


def parse(argv: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}

    @click.command()
    @config_options(Model, skip=["skipped"])
    def command(**values: Any) -> None:
        found.update(given(Model, values))

    result = CliRunner().invoke(command, list(argv), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return found


def test_what_was_not_typed_is_left_to_the_model() -> None:
    assert parse([]) == {}
    assert Model.parse(parse([]), "test") == Model()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--image-size", "64"], {"image_size": 64}),
        (["--fraction", "0"], {"fraction": 0.0}),
        (["--mode", "no"], {"mode": "no"}),
        (["--keep"], {"keep": True}),
        (["--no-keep"], {"keep": False}),
        (["--words", "alt,title"], {"words": ("alt", "title")}),
        (["--words", "alt", "--words", "b,c"], {"words": ("alt", "b", "c")}),
        (["--threads", "0"], {"threads": 0}),
    ],
)
def test_what_was_typed_becomes_the_fields_value(argv: list[str], expected: dict[str, Any]) -> None:
    assert parse(argv) == expected


@pytest.mark.parametrize("argv", [["--image-size", "big"], ["--mode", "other"], ["--skipped", "3"], ["--nope"]])
def test_wrong_words_are_wrong_usage(argv: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parse(argv)


def test_help_tells_every_fields_description_and_default() -> None:
    command = config_options(Model)(click.command()(lambda **values: None).callback)  # type: ignore[arg-type]
    text = CliRunner().invoke(click.command()(command), ["--help"]).output
    for name, field in Model.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert str(field.description) in text
    assert "[default: 256]" in text
    assert "[border|no]" in text


words = st.lists(st.sampled_from(["--seed", "--out", "-v", "a", "b", "1"]), max_size=12)


@draw(words)
def test_spread_changes_nothing_where_no_option_takes_more_words(argv: list[str]) -> None:
    assert spread(argv, {}) == argv


@draw(st.lists(st.sampled_from(["a", "b", "1"]), min_size=1, max_size=5), words)
def test_spread_gives_each_following_word_its_own_flag(values: list[str], rest: list[str]) -> None:
    argv = ["x", "--seed", *values, "--out", *rest]
    result = spread(argv, {"--seed": lambda word: True})
    assert result[: 1 + 2 * len(values)] == ["x", *[part for value in values for part in ("--seed", value)]]
    assert [word for word in result if word != "--seed"] == [word for word in argv if word != "--seed"]


def test_a_word_that_the_option_does_not_accept_is_an_argument() -> None:
    argv = ["--seed", "1", "2", "table", "3"]
    assert spread(argv, {"--seed": str.isdigit}) == ["--seed", "1", "--seed", "2", "table", "3"]


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (None, 0, ""),
        (3, 3, ""),
        (UsageError("name it"), 2, "error: name it\n"),
        (FingerprintError("never mixed"), 1, "error: never mixed\n"),
        (click.UsageError("no such flag"), 2, "no such flag"),
        (click.Abort(), 1, "run the same command again"),
        (KeyboardInterrupt(), 1, "run the same command again"),
    ],
)
def test_every_end_has_its_exit_code(capfd: pytest.CaptureFixture[str], raised: Any, code: int, words: str) -> None:
    @click.command()
    def command() -> Any:
        if isinstance(raised, BaseException):
            raise raised
        return raised

    assert cli.run_main(command, "test", []) == code
    assert words in capfd.readouterr().err


def test_a_defect_of_ours_is_not_hidden() -> None:
    @click.command()
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run_main(command, "test", [])


def test_asking_for_help_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run_main(click.Command("x", help="what it does"), "test", ["--help"]) == 0
    assert "what it does" in capfd.readouterr().out
