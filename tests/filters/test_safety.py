"""Which pictures are doubtful: what a column of safety says of them, and what it leaves unsaid."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from filters.safety import are_doubtful, is_doubtful
from infra.dataset import Dataset
from infra.errors import DatasetError
from tests.filters.small_datasets import image_scores, make_dataset, rows_table, uid_of

UIDS = [uid_of(word) for word in "abcd"]
ROWS = [{"shard": "00000", "key": f"k{at}", "uid": uid} for at, uid in enumerate(UIDS)]
SAFE = [False] * 4


@pytest.mark.parametrize("value", [0, 0.5, 0.1, False, Decimal("0.2"), "UNLIKELY", " safe ", "0"])
def test_a_low_score_and_a_word_of_safety_are_not_doubtful(value: Any) -> None:
    assert not is_doubtful(value)


@pytest.mark.parametrize(
    "value",
    [None, float("nan"), Decimal("NaN"), 0.51, float("inf"), True, 1, "NSFW", "UNSURE", "", ["safe"], {}, b"safe"],
)
def test_a_high_score_and_all_that_is_not_understood_are_doubtful(value: Any) -> None:
    assert is_doubtful(value)


def dataset_of(folder: Path, scores: Any = None, **own: Any) -> Dataset:
    keys = [row["key"] for row in ROWS]
    return make_dataset(folder, {"00000": rows_table(UIDS, key=keys, **own)}, scores)


def test_without_any_column_of_safety_nothing_is_doubtful(tmp_path: Path) -> None:
    assert are_doubtful(dataset_of(tmp_path, width=[1, 2, 3, 4]), ROWS) == SAFE
    assert are_doubtful(Dataset(tmp_path), []) == []


@pytest.mark.parametrize(
    ("values", "doubtful"),
    [
        (["UNLIKELY", None, "NSFW", "UNLIKELY"], [False, True, True, False]),
        ([0.1, 0.9, float("nan"), 0.2], [False, True, True, False]),
    ],
)
def test_the_row_s_own_column_is_asked_by_key_in_any_order(tmp_path: Path, values: Any, doubtful: Any) -> None:
    dataset = dataset_of(tmp_path, NSFW=values)
    assert are_doubtful(dataset, ROWS) == doubtful
    assert are_doubtful(dataset, ROWS[::-1]) == doubtful[::-1]
    # Tables of others have no uids.
    assert are_doubtful(dataset, [{**row, "uid": None} for row in ROWS]) == doubtful


def test_one_column_of_several_is_enough_and_a_row_that_a_table_lacks_is_doubtful(tmp_path: Path) -> None:
    scores = {
        "one": {"00000": image_scores(UIDS, punsafe=[0.1, 0.9, 0.1, 0.1], nsfw=[0.1, 0.1, 0.1, 0.1])},
        "two": {"00000": image_scores(UIDS[:3], explicit=[False, False, True])},
    }
    assert are_doubtful(dataset_of(tmp_path, scores), ROWS) == [False, True, True, True]


def test_a_shard_that_is_not_scored_yet_is_doubtful(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, {"one": {"00000": image_scores(UIDS, punsafe=[0.1] * 4)}})
    strangers = [{**row, "shard": "00001"} for row in ROWS[:2]]
    assert are_doubtful(dataset, [strangers[0], *ROWS, strangers[1]]) == [True, *SAFE, True]


@pytest.mark.parametrize("name", ["00000.parquet", "scores/one/00000.parquet"])
def test_a_broken_table_is_told_and_never_taken_for_safe(tmp_path: Path, name: str) -> None:
    whole = {shard: image_scores(UIDS, punsafe=[0.1] * 4) for shard in ("00000", "00001")}
    dataset = dataset_of(tmp_path, {"one": whole}, NSFW=["UNLIKELY"] * 4)
    (tmp_path / name).write_bytes(b"PAR1 and nothing more")
    dataset.ledger.keep_only("score_one", ["00001"])  # the first that is looked at tells the columns
    with pytest.raises(DatasetError, match="verify"):
        are_doubtful(dataset, ROWS)
