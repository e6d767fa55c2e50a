"""What comes into memory: every stored row once, with the scores of its uid; of too many, the same part each time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filters.imports import import_table
from filters.score import score
from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.executors import LocalExecutor
from infra.ledger import Counts
from infra.tables import KEYS, write_table
from pipeline.explore.load import Loaded, load


def values_of(loaded: Loaded, path: str) -> dict[bytes, Any]:
    """A column by uid."""
    name = next(column.sql for column in loaded.columns if column.path == path)
    return dict(loaded.connection.execute(f"SELECT uid, {name} FROM rows").fetchall())


def on_disk(builder: Any, table: str, column: str) -> dict[bytes, Any]:
    """The same, read from the files; NaN is none."""
    found: dict[bytes, Any] = {}
    for name in builder.storage.list(f"scores/{table}", ".parquet"):
        part = pq.read_table(builder.storage.path(name)).to_pylist()
        found |= {row["uid"]: None if row[column] != row[column] else row[column] for row in part}
    return found


def test_scores_of_captions_and_of_images_join_by_uid_and_nan_is_missing(scored):
    loaded = load(scored.dataset)
    assert loaded.num_rows == loaded.num_seen == 120
    for table, column in (("text", "words"), ("language", "language"), ("image", "sharpness"), ("text", "is_name")):
        got, want = values_of(loaded, column), on_disk(scored, table, column)
        assert got == want
        assert len(got) == 120
    assert None in on_disk(scored, "image", "sharpness").values()


def test_a_score_table_in_another_order_or_with_gaps_still_finds_its_rows(builder):
    uids = builder.shard("00000", [{"caption": str(at)} for at in range(10)])
    backwards = uids[::-1][:7]
    builder.scores("image", "00000", backwards, score=pa.array(range(7), pa.int32()))
    got = values_of(load(builder.dataset), "score")
    assert got == dict(zip(backwards, range(7), strict=True)) | dict.fromkeys(uids[:3])


def test_the_row_s_own_columns_are_offered_but_not_its_names_and_places(scored):
    loaded = load(scored.dataset)
    paths = [column.path for column in loaded.columns]
    assert paths == ["sharpness", "width", "punsafe", "language", "words", "is_name", "row.width"]
    assert [column.kind for column in loaded.columns] == [
        "number", "whole", "number", "category", "whole", "flag", "whole",
    ]  # fmt: skip


def test_values_of_a_category_are_ordered_by_frequency(scored):
    loaded = load(scored.dataset)
    counts = Counter(value for value in on_disk(scored, "language", "language").values() if value is not None)
    (column,) = [column for column in loaded.columns if column.name == "language"]
    assert list(column.values) == sorted(counts, key=lambda text: (-counts[text], text))


def test_a_sample_is_the_same_each_time_and_the_smaller_one_lies_in_the_larger(scored):
    samples = []
    for max_rows in (100, 100, 40, 7):
        loaded = load(scored.dataset, max_rows=max_rows)
        assert loaded.num_seen == 120
        assert 0 < loaded.num_rows <= max_rows
        samples.append(set(values_of(loaded, "words")))
        assert len(samples[-1]) == loaded.num_rows
    assert samples[0] == samples[1]
    assert samples[0] > samples[2] > samples[3]


def test_captions_of_further_tables_are_rows_of_their_own(builder):
    uids = builder.shard("00000", [{"caption": str(at)} for at in range(4)])
    captions = {"uid": pa.array([uids[1], uids[1], uids[3]], KEYS.field("uid").type), "source": ["blip"] * 3,
                "n": pa.array([0, 1, 0], pa.int32()), "text": ["a", "b", "c"]}  # fmt: skip
    file = write_table(builder.storage, "captions/blip/00000.parquet", pa.table(captions))
    builder.mark("captions_blip", "00000", Counts(3, 3), (file,))
    builder.scores("image", "00000", uids, sharp=pa.array([1, 2, 3, 4], pa.int32()))
    assert load(builder.dataset).num_rows == 4
    loaded = load(builder.dataset, ["blip"])
    found = loaded.connection.execute("SELECT uid, source, n, c0 FROM rows ORDER BY source, n, c0").fetchall()
    assert found == [
        (uids[1], "blip", 0, 2), (uids[3], "blip", 0, 4), (uids[1], "blip", 1, 2),
        *((uid, "web", 0, at + 1) for at, uid in enumerate(uids)),
    ]  # fmt: skip


def test_columns_that_tell_no_row_from_another_are_left_out_and_named(builder):
    uids = builder.shard("00000", [{"caption": str(at)} for at in range(400)])
    builder.scores(
        "all", "00000", uids,
        hash=pa.array(range(400), pa.uint64()),
        same=pa.array([1.5] * 400),
        none=pa.array([None] * 400, pa.float32()),
        text=pa.array([f"text {at}" for at in range(400)]),
        huge=pa.array([at << 52 for at in range(400)], pa.int64()),
        some=pa.array(["one", None] * 200),
        score=pa.array(range(400), pa.int16()),
    )  # fmt: skip
    loaded = load(builder.dataset)
    assert [column.path for column in loaded.columns] == ["some", "score"]
    assert loaded.left_out == {
        "text": "too many different texts",
        "same": "one value: 1.5",
        "none": "no values",
        "huge": "numbers too large to cut",
    }


def test_a_table_that_is_not_finished_is_left_out_and_named(builder):
    for shard in ("00000", "00001"):
        uids = builder.shard(shard, [{"caption": f"{shard} {at}", "width": at} for at in range(3)])
        builder.scores("whole", shard, uids, score=pa.array([1, 2, 3], pa.int32()))
        if shard == "00000":
            builder.scores("half", shard, uids, score=pa.array([1, 2, 3], pa.int32()), width=pa.array([1, 2, 3]))
    loaded = load(builder.dataset)
    # Rules must name the table all the same: to them, half is there.
    assert [column.path for column in loaded.columns] == ["whole.score", "row.width"]
    assert loaded.left_out == {"half": "scored in 1 of 2 shards so far"}


def test_tables_that_one_job_made_for_all_shards_are_there_and_those_of_further_shards_are_told(builder, tmp_path):
    rows = [{"caption": "logo" if at else "a cat", "url": f"http://h.test/{at}"} for at in range(3)]
    for shard in ("00000", "00001"):
        builder.shard(shard, rows)
    told = tmp_path / "told.csv"
    told.write_text("url,punsafe\nhttp://h.test/0,0.5\nhttp://h.test/1,0.25\n")
    import_table(builder.dataset, [str(told)], "laion", LocalExecutor())
    score(builder.dataset, ["recurrence"], LocalExecutor())
    loaded = load(builder.dataset)
    assert loaded.left_out == {}
    assert [column.path for column in loaded.columns] == ["punsafe", "caption_count"]
    assert set(values_of(loaded, "punsafe").values()) == {0.5, 0.25, None}
    assert set(values_of(loaded, "caption_count").values()) == {2, 4}
    builder.shard("00002", [{"caption": "new"}])
    assert load(builder.dataset).left_out == dict.fromkeys(("laion", "recurrence"), "scored in 2 of 3 shards so far")


def test_descriptions_travel_from_the_scorer_to_the_page(builder):
    from filters.base import column

    uids = builder.shard("00000", [{"caption": "a"}, {"caption": "b"}])
    field = column("score", pa.int32(), "How good it is, 0 to 9.")
    keys = pa.table({"uid": pa.array(uids, KEYS.field("uid").type), "source": pa.nulls(2, pa.string()),
                     "n": pa.nulls(2, pa.int32())})  # fmt: skip
    file = write_table(
        builder.storage, "scores/a/00000.parquet", keys.append_column(field, pa.array([1, 2], pa.int32()))
    )
    builder.mark("score_a", "00000", Counts(2, 2), (file,))
    assert [column.description for column in load(builder.dataset).columns] == ["How good it is, 0 to 9."]


def test_a_folder_of_url_tables_can_be_explored_before_any_download(tmp_path):
    table = pa.table({"uid": [f"{at:032x}" for at in range(5)], "url": ["http://h.test/a.jpg"] * 5,
                      "text": ["t"] * 5, "clip_l14_similarity_score": [0.1, 0.2, 0.3, None, 0.5]})  # fmt: skip
    pq.write_table(table, tmp_path / "metadata.parquet")
    loaded = load(Dataset(tmp_path))
    assert loaded.rows.kind == "table"
    assert sorted(values_of(loaded, "clip_l14_similarity_score").items()) == [
        (at.to_bytes(16, "big"), score) for at, score in enumerate([0.1, 0.2, 0.3, None, 0.5])
    ]


def test_an_empty_folder_is_refused_with_the_mend(tmp_path):
    with pytest.raises(DatasetError, match="give a folder of shards"):
        load(Dataset(tmp_path))
