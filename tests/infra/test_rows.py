"""Which rows a dataset has: what is stored, else what was asked for, else what was found, else tables lying there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.dataset import Dataset
from infra.errors import DatasetError, UsageError
from infra.executors import LocalExecutor
from infra.indexing import index_dataset
from infra.ledger import Counts, DoneMark
from infra.rows import Rows, as_uids
from infra.sample import Caption, pair_uid
from infra.shards import ShardWriter, index_table
from infra.storage import Committed
from infra.tables import write_table
from tests.filters.small_datasets import caption_scores, make_dataset, rows_table, uid_of

UID = pa.binary(16)
TWO = [uid_of("a"), uid_of("b")]
FAILED = {"status": ["success", "failed_to_download", None, "failed_to_resize", "success"]}


def mark(dataset: Dataset, step: str, job: str, files: Sequence[Committed], num_rows: int = 0) -> None:
    """A job is done and has written files."""
    dataset.ledger.mark_done(DoneMark(step, job, "", Counts(num_rows, num_rows), tuple(files), {}))


def publish(dataset: Dataset, step: str, tables: Mapping[str, pa.Table]) -> Dataset:
    """Tables by name, of one job."""
    mark(dataset, step, "all", [write_table(dataset.storage, name, table) for name, table in tables.items()])
    return Dataset(dataset.storage.url)


def place_tars(folder: Path, shards: Mapping[str, Sequence[str]], table: Mapping[str, Any] | None = None) -> Dataset:
    """Tars that others made, of samples named by keys; `table` lies beside each."""
    folder.mkdir()
    for shard, keys in shards.items():
        with ShardWriter(folder / f"{shard}.tar") as writer:
            for key in keys:
                writer.write(b"", key, {"jpg": f"picture {key}".encode(), "txt": f"caption {key}".encode()})
        if table is not None:
            pq.write_table(pa.table(table), folder / f"{shard}.parquet")
    return Dataset(folder)


def read_all(dataset: Dataset, columns: Sequence[str] | None = ()) -> list[dict[str, Any]]:
    rows = Rows(dataset)
    return [row for shard in rows.shards for row in rows.read(shard, columns).to_pylist()]


def uids(dataset: Dataset) -> list[bytes]:
    return [row["uid"] for row in read_all(dataset)]


def test_what_is_later_in_a_datasets_life_speaks_for_it(place: str) -> None:
    dataset = Dataset(place)
    with pytest.raises(DatasetError, match="no rows there; give a folder"):
        Rows(dataset)
    told = []
    for number, (step, names) in enumerate(
        [("", ["found.parquet"]), ("crawl_merge", ["pairs/07.parquet"]), ("split", ["inputs/00003.parquet"]),
         ("download", ["00003.parquet", "00003.tar"])]
    ):  # fmt: skip
        table = rows_table([uid_of(number)])
        files = [write_table(dataset.storage, name, table) for name in names]
        if step:
            mark(dataset, step, "job", files)
        dataset = Dataset(place)
        rows = Rows(dataset)
        told.append((rows.kind, rows.shards))
        assert uids(dataset) == [uid_of(number)]
    assert told == [("table", ["found"]), ("pairs", ["07"]), ("asked", ["00003"]), ("stored", ["00003"])]


@pytest.mark.parametrize(("step", "folder"), [("crawl_merge", "pairs/"), ("split", "inputs/"), ("download", "")])
def test_what_no_done_mark_names_is_no_shard(step: str, folder: str, tmp_path: Path) -> None:
    marked, unmarked = (
        {f"{folder}{shard}.parquet": rows_table([uid]), **({} if folder else {f"{shard}.tar": rows_table([])})}
        for shard, uid in zip(("00000", "00001"), TWO, strict=True)
    )
    dataset = publish(Dataset(tmp_path), step, marked)
    for name, table in unmarked.items():
        write_table(dataset.storage, name, table)
    assert (Rows(dataset).shards, uids(dataset)) == (["00000"], TWO[:1])


def test_a_shard_without_its_tar_is_not_stored(tmp_path: Path) -> None:
    table = rows_table(TWO)
    dataset = publish(Dataset(tmp_path), "download", {"00000.parquet": table})
    dataset = publish(dataset, "split", {"inputs/00000.parquet": table})
    assert Rows(dataset).kind == "asked"


def test_resharded_samples_are_stored_ones(tmp_path: Path) -> None:
    dataset = publish(Dataset(tmp_path), "reshard", {"00000.parquet": rows_table(TWO), "00000.tar": rows_table([])})
    assert (Rows(dataset).kind, uids(dataset)) == ("stored", TWO)


def test_rows_that_were_not_stored_are_no_rows(tmp_path: Path) -> None:
    names = [uid_of(number) for number in range(5)]
    dataset = make_dataset(tmp_path, {"00000": rows_table(names, **FAILED, width=pa.array(range(5)))})
    assert [(row["uid"], row["width"]) for row in read_all(dataset, ["width"])] == [(names[0], 0), (names[4], 4)]


def test_rows_are_counted_by_their_mark_and_by_nothing_else(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "stored", {"00000": rows_table(TWO), "00001": rows_table([])})
    rows = Rows(dataset)
    assert [rows.num_rows(shard) for shard in rows.shards] == [2, 0]
    assert rows.num_rows("00002") is None
    asked = publish(Dataset(tmp_path / "asked"), "split", {"inputs/00000.parquet": rows_table(TWO)})
    assert Rows(asked).num_rows("00000") is None


def test_rows_whose_uid_came_earlier_were_not_asked_for(tmp_path: Path) -> None:
    names = [uid_of(number) for number in (1, 2, 1, 3)]
    repeated = pa.table({"uid": pa.array([names[2]], UID), "row": pa.array([2], pa.int64())})
    dataset = publish(
        Dataset(tmp_path), "split", {"inputs/00000.parquet": rows_table(names), "inputs/00001.parquet": rows_table(TWO)}
    )
    dataset = publish(dataset, "duplicates", {"inputs/duplicates/00000.parquet": repeated})
    assert uids(dataset) == [names[0], names[1], names[3], *TWO]


def test_shards_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    numbers = ["99999", "100000", "00010", "00002", "100001"]
    dataset = make_dataset(tmp_path, {name: rows_table([uid_of(name)]) for name in numbers})
    assert Rows(dataset).shards == ["00002", "00010", "99999", "100000", "100001"]
    assert uids(dataset) == [uid_of(name) for name in Rows(dataset).shards]


@pytest.mark.parametrize(
    "named",
    [("url", "caption"), ("url", "text"), ("URL", "TEXT"), ("image_url", "alt"), ("url", "title"), (None, None)],
    ids=str,
)
def test_urls_and_captions_go_by_many_names_and_a_pair_is_named_by_them(
    named: tuple[str | None, str | None], tmp_path: Path
) -> None:
    pairs = [("http://a.test/1", "a cat"), ("http://a.test/2", None), ("http://a.test/1", "a dog")]
    columns = {name: [pair[at] for pair in pairs] for at, name in enumerate(named) if name}
    pq.write_table(pa.table({**columns, "n": [1, 2, 3]}), tmp_path / "found.parquet")
    if named[0] is None:
        pairs = [("", None)] * 3
    rows = read_all(Dataset(tmp_path), ["n"])
    assert [row["uid"] for row in rows] == [pair_uid(*pair) for pair in pairs]
    assert [(row["url"] or "", row["caption"]) for row in rows] == pairs
    assert [row["n"] for row in rows] == [1, 2, 3]


def test_columns_that_a_shard_lacks_are_null_there(tmp_path: Path) -> None:
    shards = {"00000": rows_table(TWO[:1], width=[7]), "00001": rows_table(TWO[1:], height=[8])}
    dataset = make_dataset(tmp_path, shards)
    assert Rows(dataset).columns().names == ["uid", "width"]
    found = [(row["width"], row["height"], row["depth"]) for row in read_all(dataset, ["width", "height", "depth"])]
    assert found == [(7, None, None), (None, 8, None)]
    nothing: dict[str, Any] = dict.fromkeys(["key", "url", "caption"])
    assert read_all(dataset, ["uid"]) == [{"uid": uid, **nothing} for uid in TWO]
    assert [sorted(row) for row in read_all(dataset, None)] == [
        ["caption", "key", "uid", "url", "width"], ["caption", "height", "key", "uid", "url"]
    ]  # fmt: skip


@given(names=st.lists(st.binary(min_size=16, max_size=16), max_size=8), cuts=st.lists(st.integers(0, 8), max_size=2))
def test_a_uid_is_the_same_in_hex_digits_and_in_bytes(names: list[bytes], cuts: list[int]) -> None:
    digits = [name.hex() for name in names]
    columns = [
        (digits, pa.string()), (digits, pa.large_string()), ([text.upper() for text in digits], pa.string()),
        (names, UID), (names, pa.binary()),
    ]  # fmt: skip
    for values, kind in columns:
        whole = pa.array(values, kind)
        edges = [0, *sorted(min(cut, len(names)) for cut in cuts), len(names)]
        chunks = [whole[start:stop] for start, stop in pairwise(edges)]
        found = as_uids(pa.chunked_array(chunks, kind))
        found.validate(full=True)
        assert (found.type, found.to_pylist()) == (UID, names)


@pytest.mark.parametrize(
    ("values", "kind"),
    [(["0" * 31], pa.string()), (["0" * 33], pa.string()), (["0" * 31, "0" * 33], pa.string()), ([""], pa.string()),
     (["g" * 32], pa.string()), (["٠" * 32], pa.string()), ([" " * 32], pa.string()),
     (["ab " * 10 + "cd"], pa.string()), (["0" * 32, None], pa.string()), ([b"x" * 15], pa.binary()),
     ([b"x" * 32], pa.binary(32)), ([7], pa.int64())],
)  # fmt: skip
def test_what_is_no_uid_is_refused(values: list[Any], kind: pa.DataType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"uid": pa.array(values, kind)}), tmp_path / "found.parquet")
    with pytest.raises(DatasetError, match="a uid is 16 bytes or 32 hex digits"):
        uids(Dataset(tmp_path))


@pytest.mark.parametrize("which", ["stored", "asked", "pairs"])
@settings(max_examples=10)
@given(words=st.lists(st.integers(0, 2), min_size=2, max_size=2), other=st.lists(st.integers(0, 2), max_size=3))
def test_the_digest_of_a_shard_changes_with_its_rows_and_with_nothing_else(
    which: str, words: list[int], other: list[int]
) -> None:
    def digests(shards: Sequence[Sequence[int]]) -> list[str]:
        tables = {f"{at:05d}": rows_table(TWO[:1] * len(found), n=pa.array(found, pa.int8()))
                  for at, found in enumerate(shards)}  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            if which == "stored":
                dataset = make_dataset(folder, tables)
            else:
                step, place = ("split", "inputs") if which == "asked" else ("crawl_merge", "pairs")
                named = {f"{place}/{shard}.parquet": table for shard, table in tables.items()}
                dataset = publish(Dataset(folder), step, named)
            rows = Rows(dataset)
            return [rows.digest(shard) for shard in rows.shards]

    first, second = digests([words, words]), digests([other, words])
    assert first[0] == first[1] == second[1]  # neither of the shard's name, nor of its place or neighbours
    assert (first[0] == second[0]) == (words == other)


def test_the_digest_of_a_shard_changes_with_its_images(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, {"00000": rows_table(TWO), "00001": rows_table(TWO)})
    before = [Rows(dataset).digest(shard) for shard in ("00000", "00001")]
    tar = dataset.storage.commit_bytes("00001.tar", b"other images")
    table = write_table(dataset.storage, "00001.parquet", rows_table(TWO))
    mark(dataset, "download", "00001", [table, tar], 2)
    after = [Rows(Dataset(tmp_path)).digest(shard) for shard in ("00000", "00001")]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


def test_the_digest_of_a_table_or_tar_of_others_changes_when_it_is_written_anew(tmp_path: Path) -> None:
    tables = Dataset(tmp_path / "tables")
    for name in ("a", "b"):
        write_table(tables.storage, f"{name}.parquet", rows_table(TWO))
    tars = place_tars(tmp_path / "tars", {"a": ["0"], "b": ["0"]})
    index_dataset(tars, LocalExecutor())
    for dataset, file in ((tables, "b.parquet"), (tars, "b.tar")):
        before = Rows(dataset)
        path = Path(dataset.storage.path(file))
        os.utime(path, (1, path.stat().st_mtime + 5))  # as late as any later writing would be
        after = Rows(Dataset(dataset.storage.url))
        assert (before.digest("a") == after.digest("a"), before.digest("b") == after.digest("b")) == (True, False)


def test_tars_of_others_want_their_index(tmp_path: Path) -> None:
    dataset = place_tars(tmp_path / "tars", {"00000": ["0"], "00001": ["0"]})
    with pytest.raises(UsageError, match=r"2 tars have no index \(first 00000\); make it: python -m infra index"):
        Rows(dataset)


@pytest.mark.parametrize("beside", [True, False], ids=["beside the tars", "elsewhere"])
def test_tars_without_a_table_have_the_rows_of_their_index(beside: bool, tmp_path: Path) -> None:
    dataset = place_tars(tmp_path / "tars", {"00000": ["0", "1"], "00001": [], "00002": ["0"]})
    index = dataset if beside else Dataset(tmp_path / "index")
    index_dataset(dataset, LocalExecutor(), target=index)
    rows = Rows(dataset, index)
    found = [(shard, row) for shard in rows.shards for row in rows.read(shard).to_pylist()]
    assert [(shard, row["key"], row["caption"], row["url"]) for shard, row in found] == [
        ("00000", "0", "caption 0", None), ("00000", "1", "caption 1", None), ("00002", "0", "caption 0", None),
    ]  # fmt: skip
    assert [pair.image for pair in rows.pairs("00000", images=True)] == [b"picture 0", b"picture 1"]
    assert len({row["uid"] for shard, row in found if shard == "00000"}) == 2


def test_a_table_of_img2dataset_beside_its_tar_gets_its_uids_by_key(tmp_path: Path) -> None:
    table = {"key": ["0", "1", "2"], "status": ["success", "failed_to_download", "success"], "url": ["u0", "u1", "u2"],
             "caption": ["a", "b", "c"], "width": [10, None, 30]}  # fmt: skip
    dataset = place_tars(tmp_path / "tars", {"00000": ["0", "2"]}, table)
    index_dataset(dataset, LocalExecutor())
    rows = Rows(dataset)
    pairs = list(rows.pairs("00000", images=True, facts=["width"]))
    assert rows.kind == "stored"
    assert [(pair.url, pair.captions, pair.image, pair.facts) for pair in pairs] == [
        ("u0", (Caption("a"),), b"picture 0", {"width": 10}), ("u2", (Caption("c"),), b"picture 2", {"width": 30}),
    ]  # fmt: skip
    index = pq.read_table(tmp_path / "tars/index/00000.parquet")
    named = dict(zip(index["key"].to_pylist(), index["uid"].to_pylist(), strict=True))
    assert [pair.uid for pair in pairs] == [named["0"], named["2"]]


def test_pairs_are_the_rows_with_the_webs_caption_first(tmp_path: Path) -> None:
    keys = [(TWO[1], "blip", 0), (TWO[1], "blip", 1), (uid_of("stranger"), "blip", 0)]
    captions = {"blip": {"00000": caption_scores(keys, text=pa.array(["one", None, "two"]))},
                "git": {"00000": caption_scores([(TWO[1], "git", 0)], text=pa.array(["three"]))}}  # fmt: skip
    table = rows_table(TWO, caption=pa.array([None, "a cat"]), key=pa.array(["0", None]), page=["p", "q"])
    dataset = make_dataset(tmp_path, {"00000": table}, captions=captions)
    first, second = Rows(dataset).pairs("00000", captions=["git", "blip"], facts=["page", "url"])
    assert (first.uid, first.key, first.url, first.captions, first.image) == (TWO[0], "0", "", (Caption(""),), None)
    assert (first.facts, second.facts, second.key) == ({"page": "p", "url": None}, {"page": "q", "url": None}, "")
    assert second.captions == (
        Caption("a cat"), Caption("three", "git", 0), Caption("one", "blip", 0), Caption("", "blip", 1)
    )  # fmt: skip


def test_a_column_of_the_table_is_read_by_its_name_whatever_else_it_is_for(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, {"00000": rows_table(TWO, status=["success"] * 2, url=["u", "v"])})
    assert [row["status"] for row in read_all(dataset, ["status", "url"])] == ["success"] * 2


def test_the_digest_of_a_foreign_shard_changes_with_the_table_beside_it(tmp_path: Path) -> None:
    dataset = place_tars(tmp_path / "data", {"00000": ["a"]}, {"key": ["a"], "caption": ["one"]})
    index_dataset(dataset, LocalExecutor())
    before = Rows(dataset).digest("00000")
    pq.write_table(pa.table({"key": ["a"], "caption": ["another, longer"]}), tmp_path / "data/00000.parquet")
    assert Rows(Dataset(tmp_path / "data")).digest("00000") != before


def test_the_digest_of_what_was_asked_for_changes_with_the_rows_that_came_earlier(tmp_path: Path) -> None:
    dataset = publish(Dataset(tmp_path), "split", {"inputs/00000.parquet": rows_table(TWO)})
    before = Rows(dataset).digest("00000")
    dataset = publish(dataset, "duplicates", {"inputs/duplicates/00000.parquet": pa.table({"row": [1]})})
    assert Rows(dataset).digest("00000") != before


def test_a_row_without_a_uid_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, {"00000": rows_table([TWO[0], None])})  # type: ignore[list-item]
    with pytest.raises(DatasetError, match="1 rows have none"):
        read_all(dataset)


def test_a_stored_sample_that_the_tar_lacks_is_told(tmp_path: Path) -> None:
    dataset = place_tars(tmp_path / "data", {"00000": ["a"]}, {"key": ["a", "b"], "status": ["success"] * 2})
    index_dataset(dataset, LocalExecutor())
    with pytest.raises(DatasetError, match=r"00000\.tar lacks the sample b"):
        read_all(dataset)


def test_two_samples_of_one_uid_have_an_image_each(tmp_path: Path) -> None:
    dataset = place_tars(tmp_path / "data", {"00000": ["a", "b"]}, {"key": ["a", "b"], "uid": [TWO[0]] * 2})
    rows = [(uid_of("a"), key, f"{key}.jpg", 512, 4) for key in "ab"]
    write_table(dataset.storage, "index/00000.parquet", index_table([rows[0], (*rows[1][:3], 600, 4)]))
    assert [pair.key for pair in Rows(dataset).pairs("00000", images=True)] == ["a", "b"]
    images = [pair.image for pair in Rows(dataset).pairs("00000", images=True)]
    assert images[0] != images[1]


def test_a_tar_without_a_table_has_nulls_for_what_is_asked_of_it(tmp_path: Path) -> None:
    dataset = place_tars(tmp_path / "data", {"00000": ["a"]})
    index_dataset(dataset, LocalExecutor())
    assert [row["width"] for row in read_all(dataset, ["width"])] == [None]
    assert [pair.facts for pair in Rows(dataset).pairs("00000", facts=["width"])] == [{"width": None}]
