"""A selection is read shard by shard, in the rows' order; one that is absent or not finished is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.joined import Joined
from filters.rules import SelectRecipe
from filters.select import select
from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.executors import LocalExecutor
from infra.jobs import RunOptions
from infra.ledger import Counts, DoneMark
from infra.selection import KEPT, SCHEMA, Selection, counted, selection_table, selections, summary_file
from infra.tables import UIDS_DIGEST, keys_digests, open_table, write_keyed_table, write_table
from tests.filters.small_datasets import caption_scores, image_scores, make_dataset, rows_table, uid_of, web

SUMMARY = {"name": "good", "rows_in": 3, "rows_out": 2, "dropped": {"blurred": 1}, "rules": []}


def judged(word: str, reasons: list[str | None]) -> pa.Table:
    """A shard's verdicts; kept where there is no reason."""
    rows = [{"uid": uid_of(f"{word}{n}"), "source": "web", "n": 0, "keep": reason is None, "reason": reason}
            for n, reason in enumerate(reasons)]  # fmt: skip
    return pa.Table.from_pylist(rows, SCHEMA)


def publish(dataset: Dataset, name: str, tables: dict[str, pa.Table], summary: Any = SUMMARY) -> None:
    """What a finished `select` leaves; without a summary, an unfinished one."""
    for shard, table in tables.items():
        write_keyed_table(dataset.storage, selection_table(name, shard), table, keep_types=False)
    dataset.ledger.write_plan(f"select_{name}", "", sorted(tables))
    if summary is not None:
        dataset.storage.commit_bytes(summary_file(name), json.dumps(summary).encode())


def test_a_selection_says_what_was_published(place: str) -> None:
    dataset = Dataset(place)
    tables = {"00000": judged("a", [None, "blurred"]), "00001": judged("b", [None])}
    publish(dataset, "good", tables)
    selection = Selection(dataset, "good")
    assert (selection.name, selection.summary) == ("good", SUMMARY)
    assert selection.shards == ["00000", "00001"]
    assert {shard: selection.read(shard) for shard in selection.shards} == tables


@given(reasons=st.lists(st.none() | st.sampled_from(["blurred", "no_words", "zu kurz", "名"]), max_size=30))
def test_any_verdicts_come_back_in_their_order(tmp_path_factory: pytest.TempPathFactory, reasons) -> None:
    dataset = Dataset(tmp_path_factory.mktemp("any"))
    publish(dataset, "good", {"00000": judged("a", reasons)})
    table = Selection(dataset, "good").read("00000")
    assert table.schema.equals(SCHEMA)
    assert table["reason"].to_pylist() == reasons
    assert table["keep"].to_pylist() == [reason is None for reason in reasons]


def test_some_columns_are_read_alone(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    publish(dataset, "good", {"00000": judged("a", [None, "blurred"])})
    table = Selection(dataset, "good").read("00000", ["keep", "uid"])
    assert set(table.column_names) == {"keep", "uid"}
    assert table["keep"].to_pylist() == [True, False]


def test_shards_are_in_the_order_of_their_numbers_and_decisions_are_none(tmp_path: Path) -> None:
    dataset, table = Dataset(tmp_path), judged("a", [None])
    publish(dataset, "good", dict.fromkeys(("100000", "00009", "00010", "b", "a"), table))
    write_keyed_table(dataset.storage, "selections/good/unique_0/00011.parquet", table)
    dataset.storage.commit_bytes("selections/good/rule_0.json", b"{}")
    assert Selection(dataset, "good").shards == ["a", "b", "00009", "00010", "100000"]


def test_selections_are_the_finished_ones_by_name(place: str) -> None:
    dataset = Dataset(place)
    assert selections(dataset) == []
    publish(dataset, "zebras", {"00000": judged("a", [None])})
    publish(dataset, "apes", {"00000": judged("a", [None])})
    publish(dataset, "unfinished", {"00000": judged("a", [None])}, summary=None)
    dataset.ledger.write_plan("select_apes.rule_0", "", ["all"])
    dataset.ledger.write_plan("score_text", "", ["00000"])
    assert selections(dataset) == ["apes", "zebras"]


def test_an_absent_selection_is_refused_with_those_that_are_there_and_the_mend(place: str) -> None:
    dataset = Dataset(place)
    with pytest.raises(DatasetError, match="no finished selection good; there are: none"):
        Selection(dataset, "good")
    publish(dataset, "apes", {"00000": judged("a", [None])})
    publish(dataset, "bees", {"00000": judged("a", [None])})
    with pytest.raises(DatasetError) as error:
        Selection(dataset, "good")
    said = str(error.value)
    assert said.startswith(f"{dataset.storage.url}: no finished selection good; there are: apes, bees.")
    assert "python -m filters select DATASET --rules RECIPE --name NAME" in said


def test_an_unfinished_selection_is_refused_and_not_among_those_that_are_there(place: str) -> None:
    dataset = Dataset(place)
    publish(dataset, "good", {"00000": judged("a", [None])}, summary=None)
    with pytest.raises(DatasetError, match="no finished selection good; there are: none"):
        Selection(dataset, "good")


# What the command leaves is what the reader promises.

RULES = {"rules": [{"where": "words > 2", "reason": "few_words"}, {"unique": "phash"}, {"top": "words", "count": 3}]}


@pytest.fixture
def scored(tmp_path: Path) -> Dataset:
    uids = {shard: [uid_of(f"{shard}{n}") for n in range(4)] for shard in ("00000", "00001")}
    text = {shard: caption_scores(web(of), words=pa.array([1, 3, 4, 5], pa.int32())) for shard, of in uids.items()}
    phash = {shard: image_scores(of, phash=pa.array([0, 1, 2, 3], pa.uint64())) for shard, of in uids.items()}
    rows = {shard: rows_table(of) for shard, of in uids.items()}
    return make_dataset(tmp_path, rows, {"text": text, "duplicates": phash})


def test_what_select_writes_has_the_schema_and_the_shards_rows(scored: Dataset) -> None:
    (told,) = select([scored], SelectRecipe(**RULES), "good", LocalExecutor())
    selection = Selection(scored, "good")
    assert selections(scored) == ["good"]
    assert selection.shards == ["00000", "00001"]
    assert selection.summary == json.loads(json.dumps(told))
    for shard in selection.shards:
        table = selection.read(shard)
        assert table.schema.equals(SCHEMA)
        assert table["uid"].to_pylist() == [uid_of(f"{shard}{n}") for n in range(4)]
        assert open_table(scored.storage, selection_table("good", shard)).schema_arrow.names == SCHEMA.names
    reasons = [reason for shard in selection.shards for reason in selection.read(shard)["reason"].to_pylist()]
    assert reasons == ["few_words", None, None, None, "few_words", *["duplicate_phash"] * 3]
    assert (told["rows_in"], told["rows_out"]) == (8, 3)
    assert told["dropped"] == {"duplicate_phash": 3, "few_words": 2}


def test_a_limited_select_is_not_finished(scored: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Joined.groups, "__defaults__", (4,))  # rows a job
    select([scored], SelectRecipe(**RULES), "good", LocalExecutor(), options=RunOptions(limit=1))
    assert len(scored.ledger.done("select_good")) == 1
    with pytest.raises(DatasetError, match="no finished selection good"):
        Selection(scored, "good")
    select([scored], SelectRecipe(**RULES), "good", LocalExecutor())
    assert Selection(scored, "good").summary["rows_in"] == 8


def test_the_footer_of_a_table_names_its_keys(scored: Dataset) -> None:
    select([scored], SelectRecipe(**RULES), "good", LocalExecutor())
    metadata = open_table(scored.storage, selection_table("good", "00001")).schema_arrow.metadata or {}
    assert metadata.get(UIDS_DIGEST) == keys_digests(Selection(scored, "good").read("00001"))[0]


def test_a_selection_made_again_when_urls_have_become_shards_counts_each_row_once(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    rows = {shard: rows_table([uid_of(f"{shard}{n}") for n in range(4)], words=[1, 3, 4, 5])
            for shard in ("00000", "00001")}  # fmt: skip
    files = tuple(write_table(dataset.storage, f"inputs/{shard}.parquet", table) for shard, table in rows.items())
    dataset.ledger.mark_done(DoneMark("split", "00000", "", Counts(8, 8), files, {}))
    for number in (8, 6):
        (told,) = select([dataset], SelectRecipe(rules=[{"where": "words > 2"}]), "good", LocalExecutor())
        selection = Selection(dataset, "good")
        num_rows = sum(selection.read(shard).num_rows for shard in selection.shards)
        assert (told["rows_in"], num_rows) == (number, number)
        make_dataset(tmp_path, {shard: table.slice(1) for shard, table in rows.items()})


@given(rows=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30))
def test_kept_images_and_captions_are_told_by_the_footer_and_by_the_rows_alike(tmp_path_factory, rows) -> None:
    dataset = Dataset(tmp_path_factory.mktemp("any"))
    table = pa.Table.from_pylist(
        [{"uid": uid_of(f"{image}"), "source": "web", "n": n, "keep": keep, "reason": None}
         for n, (image, keep) in enumerate(rows)], SCHEMA)  # fmt: skip
    publish(dataset, "good", {"00000": table})
    kept = [image for image, keep in rows if keep]
    images = sum(1 for at, image in enumerate(kept) if at == 0 or kept[at - 1] != image)
    assert Selection(dataset, "good").num_kept("00000") == (images, len(kept))
    write_keyed_table(dataset.storage, selection_table("good", "00000"), counted(table), keep_types=False)
    assert KEPT in open_table(dataset.storage, selection_table("good", "00000")).metadata.metadata
    assert Selection(dataset, "good").num_kept("00000") == (images, len(kept))
