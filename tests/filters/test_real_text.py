"""Real captions: LAION's and Conceptual Captions' scored and selected without images, 48 languages told apart.

Measured shares stand in docs/scores.md; the bounds here leave room for another version of a library, not for a defect.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest

from benchmarks.languages import fasttext_guesses, read_captions
from filters.rules import SelectRecipe
from filters.score import score
from filters.select import select
from infra.dataset import Dataset
from infra.executors import LocalExecutor
from infra.tables import read_table
from tests.servers.commands import SHARED

TEXT = SHARED / "text"
BASIC = SelectRecipe(
    rules=(
        {"where": "language = 'en'", "reason": "not_english"},
        {"where": "words > 2", "reason": "too_few_words"},
        {"where": "characters > 5", "reason": "too_few_characters"},
        {"where": "not boilerplate", "reason": "boilerplate"},
        {"where": "caption_count <= 3", "reason": "common_caption"},
    )
)

needs_text = pytest.mark.skipif(not TEXT.is_dir(), reason="../shared/data/text is not there")


def scored(folder: Path, rows: pa.Table) -> tuple[Dataset, pa.Table]:
    """A dataset of url-caption pairs, with its scores of captions beside each other."""
    folder.mkdir()
    pq.write_table(rows.slice(0, 700), folder / "00000.parquet")
    pq.write_table(rows.slice(700), folder / "00001.parquet")
    dataset = Dataset(folder)
    score(dataset, ["text", "language", "recurrence"], LocalExecutor())
    columns: dict[str, Any] = {}
    for name in ("text", "language", "recurrence"):
        parts = [read_table(dataset.storage, table) for table in dataset.tables(f"scores/{name}")]
        columns |= {column: pa.concat_tables(parts)[column] for column in parts[0].column_names}
    return dataset, pa.table(columns)


@pytest.fixture(scope="module")
def laion(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, pa.Table]:
    rows = pq.read_table(TEXT / "laion-1000.parquet", columns=["URL", "TEXT"])
    return scored(tmp_path_factory.mktemp("real") / "laion", rows)


@pytest.fixture(scope="module")
def cc3m(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, pa.Table]:
    layout = pcsv.ParseOptions(delimiter="\t", newlines_in_values=True)
    rows = pcsv.read_csv(TEXT / "cc3m-validation.tsv", parse_options=layout)
    return scored(tmp_path_factory.mktemp("real") / "cc3m", rows)


def share(values: pa.ChunkedArray, holds: Callable[[Any], Any]) -> float:
    return float(np.mean([bool(holds(value)) for value in values.to_pylist()]))


@needs_text
def test_human_captions_read_as_english_sentences(cc3m: tuple[Dataset, pa.Table]) -> None:
    _, scores = cc3m
    assert scores.num_rows == 4_728
    assert share(scores["language"], lambda code: code == "en") >= 0.99
    assert share(scores["words"], lambda number: 5 <= number <= 50) == 1  # as its makers cut it, or nearly
    assert share(scores["alphanumeric"], lambda part: part > 0.7) >= 0.98
    assert share(scores["boilerplate"], bool) == 0  # they have filtered it: what we find would be an error
    assert share(scores["repetition"], lambda part: part > 0.3) <= 0.01


@needs_text
def test_alternative_texts_of_the_web_are_messier(
    laion: tuple[Dataset, pa.Table], cc3m: tuple[Dataset, pa.Table]
) -> None:
    _, scores = laion
    assert scores.num_rows == 1_000
    assert 0.85 <= share(scores["language"], lambda code: code == "en") <= 0.93
    assert 0.001 <= share(scores["boilerplate"], bool) <= 0.02
    assert share(scores["words"], lambda number: number <= 2) >= 0.02
    repeats = [share(table["repetition"], lambda part: part > 0.3) for _, table in (laion, cc3m)]
    assert repeats[0] > 2 * repeats[1]  # keyword stuffing


@needs_text
@pytest.mark.parametrize(("name", "least", "most"), [("laion", 0.80, 0.90), ("cc3m", 0.98, 1.0)])
def test_captions_are_selected_without_any_image(
    name: str, least: float, most: float, request: pytest.FixtureRequest
) -> None:
    dataset, scores = request.getfixturevalue(name)
    (told,) = select([dataset], BASIC, "basic", LocalExecutor())
    assert told["rows_in"] == scores.num_rows == told["rows_out"] + sum(told["dropped"].values())
    assert least <= told["rows_out"] / told["rows_in"] <= most
    # DataComp's text part, read directly off the columns.
    rows = scores.to_pylist()
    english = [row for row in rows if row["language"] == "en"]
    assert told["dropped"]["not_english"] == len(rows) - len(english)
    assert told["dropped"].get("too_few_words", 0) == sum(row["words"] <= 2 for row in english)


@pytest.fixture(scope="module")
def guesses() -> list[tuple[str, str, str | None]]:
    path = SHARED / "captions" / "tuxpaint-translations.tsv"
    if not path.is_file():
        pytest.skip("../shared/data/captions is not there")
    rows = read_captions(path)
    found = fasttext_guesses()([caption for _, caption in rows])
    return [(lang, caption, guess) for (lang, caption), guess in zip(rows, found, strict=True)]


def accuracy(rows: list[tuple[str, str, str | None]]) -> float:
    return float(np.mean([lang == guess for lang, _, guess in rows]))


def test_languages_of_short_captions_are_told_apart_as_well_as_measured(
    guesses: list[tuple[str, str, str | None]],
) -> None:
    assert len(guesses) > 27_000
    assert accuracy(guesses) >= 0.59  # most are of two words: "A frog."
    assert accuracy([row for row in guesses if len(row[1]) >= 40]) >= 0.87
    for lang in ("ar", "el", "he", "ja", "ka", "km", "ko", "th"):  # scripts of their own
        assert accuracy([row for row in guesses if row[0] == lang]) >= 0.88, lang
    for lang in ("de", "fr", "it", "nl", "pt", "ru", "tr"):
        assert accuracy([row for row in guesses if row[0] == lang]) >= 0.78, lang


def test_few_captions_of_other_languages_pass_for_english(guesses: list[tuple[str, str, str | None]]) -> None:
    assert np.mean([guess == "en" for _, _, guess in guesses]) <= 0.09
    assert np.mean([guess == "en" for _, caption, guess in guesses if len(caption) >= 40]) <= 0.01
