"""Recurrence: counts over all rows against a direct count, several datasets, growth, and the same bytes every time."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.recurrence import normalised
from filters.rules import SelectRecipe
from filters.score import score
from filters.select import select
from infra.dataset import Dataset
from infra.executors import LocalExecutor
from infra.selection import Selection
from infra.storage import Storage
from infra.tables import read_table, write_table
from tests.servers.commands import assert_same

CAPTIONS = st.one_of(
    st.none(),
    st.sampled_from(["", " ", "A cat", "a  CAT ", "a\ncat", "Straße", "STRASSE", "a cat.", "\u3000a cat\u2028"]),
    st.text(),
)


def make_shard(place: str, shard: str, captions: list[str | None]) -> None:
    """A table of rows as DataComp's metadata lies about: uid in hex, url, text."""
    uids = [hashlib.blake2b(f"{shard}/{at}".encode(), digest_size=16).hexdigest() for at in range(len(captions))]
    urls = [f"http://x.test/{shard}/{at}.jpg" for at in range(len(captions))]
    table = pa.table({"uid": uids, "url": urls, "text": pa.array(captions, pa.string())})
    write_table(Storage(place), f"{shard}.parquet", table)


def counts_of(place: str, shard: str, table: str = "recurrence") -> list[int]:
    counts: list[int] = read_table(Storage(place), f"scores/{table}/{shard}.parquet")["caption_count"].to_pylist()
    return counts


@settings(max_examples=15)
@given(st.lists(st.lists(CAPTIONS, min_size=1, max_size=6), min_size=1, max_size=4))
def test_every_row_is_told_how_many_rows_have_its_caption(shards: list[list[str | None]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        for number, captions in enumerate(shards):
            make_shard(place, f"{number:05d}", captions)
        (result,) = score(Dataset(place), ["recurrence"], LocalExecutor())
        times = Counter(" ".join((text or "").casefold().split()) for captions in shards for text in captions)
        for number, captions in enumerate(shards):
            assert counts_of(place, f"{number:05d}") == [times[normalised(text)] for text in captions]
        assert result.counts.rows_in == result.counts.rows_out == sum(map(len, shards))


def test_rows_of_further_datasets_are_counted_but_get_no_table(place: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    make_shard(place, "00000", ["a cat", "a dog"])
    make_shard(other, "00000", ["A CAT", "a cat", "a hen"])
    score(Dataset(place), ["recurrence"], LocalExecutor(), settings=[f"recurrence.also=['{other}']"])
    assert counts_of(place, "00000") == [3, 1]
    assert Storage(other).list("scores") == []


def test_a_dataset_that_has_grown_is_counted_anew_and_an_unchanged_one_is_not(place: str) -> None:
    make_shard(place, "00000", ["a cat", "a dog"])
    score(Dataset(place), ["recurrence"], LocalExecutor())
    before = Storage(place).stamps()
    score(Dataset(place), ["recurrence"], LocalExecutor())
    assert Storage(place).stamps() == before
    make_shard(place, "00001", ["a cat"])
    score(Dataset(place), ["recurrence"], LocalExecutor())
    assert counts_of(place, "00000") == [2, 1]
    assert counts_of(place, "00001") == [2]


def test_the_table_of_a_shard_that_is_gone_goes_too(place: str) -> None:
    make_shard(place, "00000", ["a cat"])
    make_shard(place, "00001", ["a cat"])
    score(Dataset(place), ["recurrence"], LocalExecutor())
    Storage(place).remove("00001.parquet")
    score(Dataset(place), ["recurrence"], LocalExecutor())
    assert counts_of(place, "00000") == [1]
    assert Storage(place).list("scores/recurrence") == ["scores/recurrence/00000.parquet"]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        for shard in ("00000", "00001"):
            make_shard(str(tmp_path / name), shard, [f"caption {at % 7}" for at in range(50)])
            os.utime(tmp_path / name / f"{shard}.parquet", (1, 1))  # tables of others are known by their time, too
        score(Dataset(tmp_path / name), ["recurrence"], LocalExecutor())
    assert_same(tmp_path / "one", tmp_path / "two")


def test_a_rule_can_cut_what_recurs(place: str) -> None:
    make_shard(place, "00000", ["image", "a cat", "image", "a dog", "Image"])
    score(Dataset(place), ["recurrence"], LocalExecutor())
    recipe = SelectRecipe(rules=({"where": "caption_count <= 2", "reason": "common_caption"},))
    (told,) = select([Dataset(place)], recipe, "rare", LocalExecutor())
    assert told["dropped"] == {"common_caption": 3}
    assert Selection(Dataset(place), "rare").read("00000")["keep"].to_pylist() == [False, True, False, True, False]


def test_the_column_says_what_it_is(place: str) -> None:
    make_shard(place, "00000", ["a cat"])
    score(Dataset(place), ["recurrence"], LocalExecutor())
    with Storage(place).open("scores/recurrence/00000.parquet") as file:
        field = pq.read_schema(file).field("caption_count")
    assert b"rows with this caption" in field.metadata[b"description"]
