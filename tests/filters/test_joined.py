"""Tables are joined by uid, source and n: whatever their order, whatever they lack, however shards are grouped."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.joined import Joined
from infra.dataset import Dataset
from infra.errors import DatasetError, RecipeError
from tests.filters.small_datasets import (
    caption_scores,
    image_scores,
    make_dataset,
    rows_table,
    uid_of,
    web,
)

UIDS = [uid_of(number) for number in range(12)]
HALVES = {"00000": UIDS[:5], "00001": [], "00002": UIDS[5:]}


def values_of(
    dataset: Dataset, names: Sequence[str], captions: Sequence[str] = (), num_rows: int = 1_000_000
) -> list[Any]:
    """Every row's keys and values."""
    joined = Joined(dataset, names, captions)
    found = []
    for shards in joined.groups(num_rows):
        group = joined.read(shards)
        columns = [*group.keys.columns, *(group.columns[name] for name in names)]
        found += list(zip(*(column.to_pylist() for column in columns), strict=True))
    return found


def dataset_of(
    folder: Path | str, scores: Mapping[bytes, float], order: Sequence[int] = range(12), *, by_others: bool = False
) -> Dataset:
    """Three shards, the second empty, with a score of each image and the number of its caption's words."""
    tables: dict[str, dict[str, pa.Table]] = {"clip": {}, "text": {}}
    for shard, uids in HALVES.items():
        known = [UIDS[at] for at in order if UIDS[at] in uids and UIDS[at] in scores]
        tables["clip"][shard] = image_scores(known, clip_score=pa.array([scores[uid] for uid in known], pa.float64()))
        words = pa.array([UIDS.index(uid) for uid in known], pa.int32())
        tables["text"][shard] = caption_scores(web(known), words=words)
    rows = {shard: rows_table(uids, width=pa.array(range(len(uids)), pa.int32())) for shard, uids in HALVES.items()}
    return make_dataset(folder, rows, tables, by_others=by_others)


ALL = {uid: number / 4 for number, uid in enumerate(UIDS)}
WANTED = [(uid, "web", 0, ALL[uid], UIDS.index(uid), at) for uids in HALVES.values() for at, uid in enumerate(uids)]
NAMES = ("clip_score", "words", "width")


def test_tables_in_the_order_of_the_rows_are_read_as_they_lie(tmp_path: Path) -> None:
    assert values_of(dataset_of(tmp_path, ALL), NAMES) == WANTED


@settings(max_examples=15)
@given(order=st.permutations(range(12)), lacking=st.sets(st.integers(0, 11)))
def test_tables_of_others_in_any_order_and_with_gaps_are_joined_by_uid(order: list[int], lacking: set[int]) -> None:
    known = {uid: score for number, (uid, score) in enumerate(ALL.items()) if number not in lacking}
    with tempfile.TemporaryDirectory() as folder:
        found = values_of(dataset_of(folder, known, order, by_others=True), NAMES)
    assert found == [row if row[0] in known else (*row[:3], None, None, row[5]) for row in WANTED]


@pytest.mark.parametrize("num_rows", [1, 2, 5, 6, 100])
def test_the_size_of_groups_changes_no_row_and_no_value(tmp_path: Path, num_rows: int) -> None:
    dataset = dataset_of(tmp_path, ALL)
    groups = Joined(dataset, ["clip_score"]).groups(num_rows)
    assert [shard for group in groups for shard in group] == list(HALVES)
    assert values_of(dataset, NAMES, num_rows=num_rows) == WANTED


def test_the_fast_path_and_the_join_read_the_same(tmp_path: Path) -> None:
    ours = dataset_of(tmp_path / "ours", ALL)
    for names in (
        ("clip_score",),
        ("words", "clip_score"),
        ("width", "words"),
        ("row.width", "clip.clip_score", "words"),
    ):
        theirs = dataset_of(tmp_path / "theirs", ALL, list(reversed(range(12))), by_others=True)
        assert values_of(ours, names) == values_of(theirs, names)


def test_a_table_that_lacks_rows_is_joined_beside_one_that_has_all(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, ALL)
    nothing = image_scores([], sharp=pa.array([], pa.float32()))
    last = image_scores(UIDS[6:9], sharp=pa.array([1, 2, 3], pa.float32()))
    tables = {"00000": nothing, "00001": nothing, "00002": last}
    make_dataset(tmp_path, {}, {"other": tables})
    found = values_of(dataset, ["sharp", "clip_score"])
    assert [row[3] for row in found] == [None] * 6 + [1.0, 2.0, 3.0] + [None] * 3
    assert [row[4] for row in found] == [row[3] for row in WANTED]


def test_captions_stand_behind_the_webs_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, ALL)
    texts = {
        "blip": {
            "00000": [(UIDS[1], 0), (UIDS[0], 0), (UIDS[1], 1), (uid_of("stranger"), 0)],
            "00001": [],
            "00002": [],
        },
        "git": {"00000": [(UIDS[1], 0)], "00001": [], "00002": [(UIDS[11], 0)]},
    }
    captions = {
        name: {shard: caption_scores([(uid, name, n) for uid, n in keys], text=pa.array(["t"] * len(keys), pa.string()))
               for shard, keys in of_shards.items()}
        for name, of_shards in texts.items()
    }  # fmt: skip
    itm = {
        shard: caption_scores([(UIDS[1], "blip", 1), (UIDS[0], "blip", 0)] if shard == "00000" else [],
                              itm=pa.array([0.5, 0.25] if shard == "00000" else [], pa.float32()))
        for shard in HALVES
    }  # fmt: skip
    make_dataset(tmp_path, {}, {"itm": itm}, captions)
    found = values_of(dataset, ["clip_score", "itm", "width", "words"], ["git", "blip"])
    assert [row[:3] for row in found][:7] == [
        (UIDS[0], "web", 0), (UIDS[0], "blip", 0), (UIDS[1], "web", 0), (UIDS[1], "git", 0), (UIDS[1], "blip", 0),
        (UIDS[1], "blip", 1), (UIDS[2], "web", 0)]  # fmt: skip
    assert [row[3] for row in found][:7] == [0.0, 0.0, 0.25, 0.25, 0.25, 0.25, 0.5]  # of an image: all its captions
    assert [row[4] for row in found][:7] == [None, 0.25, None, None, None, 0.5, None]
    assert [row[5] for row in found][:7] == [0, 0, 1, 1, 1, 1, 2]  # the row's own columns, too
    assert [row[6] for row in found][:7] == [0, None, 1, None, None, None, 2]
    assert [row[:3] for row in found][-2:] == [(UIDS[11], "web", 0), (UIDS[11], "git", 0)]


@pytest.mark.parametrize("captions", [(), ("blip",)])
@pytest.mark.parametrize("by_others", [False, True])
def test_a_uid_that_a_shard_has_twice_keeps_each_rows_own_values(
    tmp_path: Path, captions: tuple[str, ...], by_others: bool
) -> None:
    uids = [UIDS[0], UIDS[1], UIDS[0], UIDS[2], UIDS[0]]
    scores = {"clip": {"00000": image_scores(uids, clip_score=[0, 1, 2, 3, 4])}}
    texts = {"blip": {"00000": caption_scores([(UIDS[2], "blip", 0)], text=["t"])}}
    dataset = make_dataset(
        tmp_path, {"00000": rows_table(uids, width=[0, 1, 2, 3, 4])}, scores, texts, by_others=by_others
    )
    found = values_of(dataset, ["clip_score", "width"], captions)
    assert [row for row in found if row[1] == "web"] == [(uid, "web", 0, at, at) for at, uid in enumerate(uids)]


def test_columns_of_shards_may_differ_in_width_and_presence(tmp_path: Path) -> None:
    rows = {"00000": rows_table(UIDS[:2], width=pa.array([1, 2], pa.int16())), "00001": rows_table(UIDS[2:4])}
    scores = {"clip": {"00000": image_scores(UIDS[:2], s=pa.array([0.5, None], pa.float32())),
                       "00001": image_scores(UIDS[2:4], s=pa.array([1e300, None], pa.float64()))}}  # fmt: skip
    found = values_of(make_dataset(tmp_path, rows, scores), ["s", "width"])
    assert [row[3:] for row in found] == [(0.5, 1), (None, 2), (1e300, None), (None, None)]


def test_names_that_no_sql_would_take_are_columns_like_others(tmp_path: Path) -> None:
    odd = 'a "b" c; --'
    table = image_scores(UIDS[:2], **{odd: [1, 2], "place": [3, 4], "turn": [5, 6], "c1": [7, 8]})
    dataset = make_dataset(tmp_path, {"00000": rows_table(UIDS[:2])}, {"clip": {"00000": table}}, by_others=True)
    assert [row[3:] for row in values_of(dataset, [odd, "place", "turn", "c1"])] == [(1, 3, 5, 7), (2, 4, 6, 8)]


def test_half_floats_are_read(tmp_path: Path) -> None:
    halves = pa.array([0.5, None], pa.float16())
    dataset = make_dataset(
        tmp_path, {"00000": rows_table(UIDS[:2])}, {"clip": {"00000": image_scores(UIDS[:2], s=halves)}}
    )
    joined = Joined(dataset, ["s"])
    assert joined.read(["00000"]).columns["s"].type == pa.float32()


def test_a_dataset_of_empty_shards_has_no_rows_and_breaks_nothing(tmp_path: Path) -> None:
    dataset = make_dataset(
        tmp_path, {"00000": rows_table([])}, {"clip": {"00000": image_scores([], s=pa.array([], pa.int8()))}}
    )
    group = Joined(dataset, ["s"]).read(["00000"])
    assert (group.num_rows, len(group.uids), len(group.images)) == (0, 0, 0)


def test_images_are_numbered_within_and_across_shards(tmp_path: Path) -> None:
    rows = {"00000": rows_table([UIDS[0], UIDS[1]]), "00001": rows_table([UIDS[1], UIDS[2]])}
    captions = {
        "blip": {"00000": caption_scores([(UIDS[0], "blip", 0)], text=["t"]), "00001": caption_scores([], text=[])}
    }
    dataset = make_dataset(tmp_path, rows, {}, captions)
    group = Joined(dataset, ["key"], ["blip"]).read(["00000", "00001"])
    assert group.images.tolist() == [0, 0, 1, 2, 3]


def test_uids_sort_as_their_bytes_do(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    uids = sorted(rng.bytes(16) for _ in range(50))
    group = Joined(make_dataset(tmp_path, {"00000": rows_table(uids)}), ["key"]).read(["00000"])
    assert [tuple(map(int, pair)) for pair in group.uids] == sorted(tuple(map(int, pair)) for pair in group.uids)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("clip_scor", "did you mean clip_score"), ("text.wordz", "did you mean text.words"), ("clip.words", "no column"),
     ("nothing_like_it", "there are"), ("a.b.c", "no column"), ("row.nope", "no column")],
)  # fmt: skip
def test_a_column_that_is_nowhere_is_refused_with_a_hint(tmp_path: Path, name: str, hint: str) -> None:
    dataset = dataset_of(tmp_path, ALL)
    with pytest.raises(RecipeError, match=hint):
        Joined(dataset, [name])


def test_a_column_in_two_tables_is_asked_for_by_table_and_a_score_comes_before_the_rows_own(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, ALL)
    more = {
        shard: image_scores(uids, clip_score=[9.0] * len(uids), width=[7] * len(uids)) for shard, uids in HALVES.items()
    }
    make_dataset(tmp_path, {}, {"clip_l14": more})
    with pytest.raises(RecipeError, match=r"clip\.clip_score or clip_l14\.clip_score"):
        Joined(dataset, ["clip_score"])
    found = values_of(dataset, ["clip_l14.clip_score", "width", "row.width"])
    assert {row[3] for row in found} == {9.0}
    assert {row[4] for row in found} == {7}
    assert [row[5] for row in found] == [row[5] for row in WANTED]


def test_a_table_that_lacks_a_shard_is_refused_and_named(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, ALL)
    make_dataset(tmp_path, {}, {"half": {"00000": image_scores(UIDS[:5], half=[1] * 5)}})
    with pytest.raises(DatasetError, match=r"scores/half lacks 2 of 3 shards \(first 00001\)"):
        Joined(dataset, ["half"])


def test_what_is_read_changes_the_word_of_its_inputs_and_nothing_else_does(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, ALL)
    shards = ["00000", "00002"]
    before = Joined(dataset, ["clip_score"]).inputs(shards)
    make_dataset(
        tmp_path, {}, {"unasked": {shard: image_scores(uids, more=[1] * len(uids)) for shard, uids in HALVES.items()}}
    )
    assert Joined(dataset, ["clip_score"]).inputs(shards) == before
    assert Joined(dataset, ["clip_score", "more"]).inputs(shards) != before
    dataset_of(tmp_path, {**ALL, UIDS[0]: 0.125})
    assert Joined(dataset, ["clip_score"]).inputs(shards) != before
