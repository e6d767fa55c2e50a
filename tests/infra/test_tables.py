"""Tables: the same rows give the same bytes; columns and DuckDB read them wherever they lie; names of a dataset."""

from __future__ import annotations

import json
import pickle

import pyarrow as pa
import pytest

from infra.dataset import Dataset
from infra.sample import UID_BYTES, pair_uid
from infra.storage import Storage
from infra.tables import (
    CAPTIONS_DIGEST,
    KEYS,
    UIDS_DIGEST,
    connect,
    keys_digests,
    open_table,
    read_table,
    urls,
    write_keyed_table,
    write_table,
)


def some_rows(first: int = 0, num: int = 100) -> pa.Table:
    numbers = range(first, first + num)
    return pa.table(
        {
            "uid": pa.array([pair_uid("https://a.example/", str(n)) for n in numbers], pa.binary(UID_BYTES)),
            "caption": pa.array([None if n % 7 == 0 else f"nº {n}" for n in numbers], pa.string()),
            "width": pa.array(list(numbers), pa.int32()),
        }
    )


def test_a_table_comes_back_as_it_went_in(place: str) -> None:
    storage = Storage(place)
    committed = write_table(storage, "folder/00000.parquet", some_rows())
    assert read_table(storage, "folder/00000.parquet").equals(some_rows())
    assert read_table(storage, "folder/00000.parquet", ["width"]).column_names == ["width"]
    assert storage.size(committed.name) == committed.size
    assert storage.digest(committed.name) == committed.digest
    with pytest.raises(FileNotFoundError):
        read_table(storage, "absent.parquet")


def test_the_same_rows_give_the_same_bytes_however_they_were_put_together(place: str) -> None:
    storage = Storage(place)
    whole = write_table(storage, "whole.parquet", some_rows())
    again = write_table(
        storage, "again.parquet", pa.concat_tables([some_rows(0, 60), some_rows(60, 40)]).combine_chunks()
    )
    assert whole.digest == again.digest


def test_row_groups_bound_what_a_reader_holds(place: str) -> None:
    import pyarrow.parquet as pq

    storage = Storage(place)
    write_table(storage, "t.parquet", some_rows(), row_group=30)
    with storage.open("t.parquet") as file:
        assert pq.ParquetFile(file).metadata.num_row_groups == 4


def test_duckdb_joins_tables_by_uid_wherever_they_lie(place: str) -> None:
    storage = Storage(place)
    write_table(storage, "a/00000.parquet", some_rows())
    write_table(storage, "b/00000.parquet", some_rows().take(pa.array(range(99, 49, -1))))
    connection = connect(storage)
    query = "SELECT count(*), sum(a.width) FROM read_parquet(?) a JOIN read_parquet(?) b USING (uid)"
    found = connection.execute(
        query, [urls(storage, ["a/00000.parquet"]), urls(storage, ["b/00000.parquet"])]
    ).fetchall()
    assert found == [(50, sum(range(50, 100)))]


def test_a_dataset_names_its_shards_in_the_order_of_their_numbers(place: str) -> None:
    dataset = pickle.loads(pickle.dumps(Dataset(place)))
    for name in ("99999.parquet", "100000.parquet", "00001.parquet", "notes.parquet", "00001.tar", "train-2.tar"):
        dataset.storage.commit_bytes(name, b"x")
    assert dataset.shards() == ["00001", "99999", "100000"]
    assert dataset.tars() == ["00001", "train-2"]
    assert dataset.tables("index") == []
    names = (dataset.tar("00001"), dataset.table("00001"), dataset.stats("00001"), dataset.index("00001"))
    assert names == ("00001.tar", "00001.parquet", "00001_stats.json", "index/00001.parquet")


def test_sizes_are_in_the_order_of_the_shards(place: str) -> None:
    dataset = Dataset(place)
    dataset.write_sizes({"100000.tar": 3, "99999.tar": 1})
    assert list(json.loads(dataset.storage.read("sizes.json")).items()) == [("99999.tar", 1), ("100000.tar", 3)]


def test_digests_of_keys_tell_equal_uids_from_other_ones_and_another_order():
    def table(*columns):
        return pa.Table.from_arrays([pa.array(v, f.type) for v, f in zip(columns, KEYS, strict=True)], schema=KEYS)

    one, two = bytes(16), bytes(15) + b"\1"
    plain = keys_digests(table([one, two], ["web", "web"], [0, 0]))
    assert keys_digests(pa.concat_tables([table([one], ["web"], [0]), table([two], ["web"], [0])])) == plain
    assert keys_digests(table([two, one, two], ["blip", "web", "web"], [0, 0, 0]).slice(1)) == plain
    assert keys_digests(table([two, one], ["web", "web"], [0, 0]))[0] != plain[0]
    assert keys_digests(table([one, two], ["web", "blip"], [0, 0]))[1] != plain[1]
    assert keys_digests(table([one, two], ["web", "web"], [0, 1]))[1] != plain[1]
    assert keys_digests(table([one, two], [None, None], [None, None]))[1] != plain[1]


def test_a_keyed_table_says_its_digests_in_its_footer(tmp_path):
    storage = Storage(tmp_path)
    keys = [pa.array([bytes(16)], KEYS.field("uid").type), pa.array(["web"]), pa.array([0], pa.int32())]
    table = pa.Table.from_arrays([*keys, pa.array([{"a": [1, 2]}])], [*KEYS.names, "more"])
    write_keyed_table(storage, "scores/x/0.parquet", table)
    footer = open_table(storage, "scores/x/0.parquet").schema_arrow.metadata
    assert (footer[UIDS_DIGEST], footer[CAPTIONS_DIGEST]) == keys_digests(table)
    assert read_table(storage, "scores/x/0.parquet").to_pylist() == table.to_pylist()
