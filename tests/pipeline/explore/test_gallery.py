"""The gallery shows what lies on either side of a cut: each row once, in order; and only what may be shown."""

from __future__ import annotations

import tarfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filters.imports import import_table
from infra.errors import DatasetError
from infra.executors import LocalExecutor
from infra.tables import read_table, write_table
from pipeline.explore.counts import Explorer
from pipeline.explore.gallery import PAGE, Gallery, View
from pipeline.explore.load import load
from pipeline.explore.pictures import stored_image
from pipeline.explore.rules import Asked, Range, Share, Values


class Look:
    """A gallery, and rules by names."""

    def __init__(self, builder: Any) -> None:
        self.loaded = load(builder.dataset)
        self.gallery = Gallery(Explorer(self.loaded))
        self.at = {column.path: number for number, column in enumerate(self.loaded.columns)}

    def range(self, path: str, low: float | None = None, high: float | None = None) -> Range:
        return Range(kind="range", column=self.at[path], low=low, high=high)

    def all(self, asked: list[Asked], **view: Any) -> list[dict[str, Any]]:
        """Every row of a view, page after page."""
        items: list[dict[str, Any]] = []
        for page in range(20):
            found = self.gallery.page(asked, View(page=page, **view))
            assert len(found["items"]) == PAGE or not found["has_more"]
            items += found["items"]
            if not found["has_more"]:
                return items
        raise AssertionError("no end of pages")

    def values(self, items: list[dict[str, Any]], path: str) -> list[Any]:
        return [item["values"][self.at[path]] for item in items]


@pytest.fixture
def look(scored):
    return Look(scored)


@pytest.mark.parametrize("seed", [0, 5])
def test_pages_hold_every_row_of_a_side_once(look, seed):
    rules = [look.range("words", 3, 9), look.range("sharpness", 2)]
    counts = look.gallery.explorer.count(rules)
    kept, dropped = look.all(rules, side="kept", seed=seed), look.all(rules, side="dropped", seed=seed)
    assert len(kept) == counts["kept"] > 0
    assert len({item["row"] for item in kept + dropped}) == len(kept + dropped) == counts["total"]
    assert all(item["rule"] is None for item in kept)
    assert all(item["rule"] is not None for item in dropped)


def test_another_seed_gives_another_order(look):
    orders = [[item["row"] for item in look.all([], side="kept", seed=seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


@pytest.mark.parametrize(("edge", "cut"), [("low", 3), ("high", 9)])
def test_beside_a_cut_the_nearest_come_first_and_all_other_rules_keep_them(look, edge, cut):
    rules = [look.range("sharpness", 2), look.range("words", 3, 9)]
    kept = look.values(look.all(rules, side="kept", near=1, edge=edge), "words")
    items = look.all(rules, side="dropped", near=1, edge=edge)
    dropped = look.values(items, "words")
    assert kept
    assert dropped
    assert kept == sorted(kept, key=lambda words: abs(words - cut))
    assert dropped == sorted(dropped, key=lambda words: abs(words - cut))
    assert all(3 <= words <= 9 for words in kept)
    assert all(words < 3 if edge == "low" else words > 9 for words in dropped)
    assert {item["rule"] for item in items} == {1}


def test_beside_a_share_lie_its_threshold_s_neighbours(look):
    rules: list[Asked] = [Share(kind="top", column=look.at["sharpness"], fraction=0.3, of="all")]
    threshold = look.gallery.explorer.count(rules)["rules"][0]["threshold"]
    kept = look.values(look.all(rules, side="kept", near=0), "sharpness")
    dropped = look.values(look.all(rules, side="dropped", near=0), "sharpness")
    assert kept == sorted(kept)
    assert dropped == sorted(dropped, reverse=True)
    assert kept[0] == threshold > dropped[0]


def test_beside_a_choice_of_values_lie_the_other_values(look):
    rules: list[Asked] = [Values(kind="values", column=look.at["language"], values=(0,))]
    assert set(look.values(look.all(rules, side="kept", near=0), "language")) == {"en"}
    assert set(look.values(look.all(rules, side="dropped", near=0), "language")) == {"fr", "d'e"}


def test_dropped_rows_can_be_had_by_reason_and_by_want_of_a_value(look):
    rules = [look.range("words", 3), look.range("sharpness", 2)]
    told = look.gallery.explorer.count(rules)["rules"][1]
    fell = look.all(rules, side="dropped", reason=1)
    missing = look.all(rules, side="dropped", reason=1, is_missing=True)
    assert len(fell) == told["dropped"] - told["missing"] > 0
    assert len(missing) == told["missing"] > 0
    assert all(value < 2 for value in look.values(fell, "sharpness"))
    assert set(look.values(missing, "sharpness")) == {None}
    assert {item["rule"] for item in fell + missing} == {1}


def test_a_row_comes_with_its_own_caption_and_link(look, scored):
    stored = {row["uid"].hex(): row for shard in scored.dataset.shards()
              for row in read_table(scored.storage, f"{shard}.parquet").to_pylist()}  # fmt: skip
    for item in look.all([], side="kept"):
        assert (item["caption"], item["url"]) == (stored[item["uid"]]["caption"], stored[item["uid"]]["url"])


def test_only_web_addresses_become_links(builder):
    builder.shard(
        "00000", [{"caption": "a", "url": "javascript:alert(1)"}, {"caption": "b", "url": "file:///etc/passwd"}]
    )
    assert [item["url"] for item in Look(builder).all([], side="kept")] == [None, None]


@pytest.mark.parametrize(
    ("column", "doubtful"),
    [
        (pa.array([0.9, 0.1, None], pa.float32()), [True, False, True]),
        (pa.array([True, False, None]), [True, False, True]),
        (pa.array(["NSFW", "UNLIKELY", None]), [True, False, True]),
    ],
)
def test_what_a_safety_column_doubts_or_does_not_know_is_marked(builder, column, doubtful):
    uids = builder.shard("00000", [{"caption": str(at)} for at in range(3)])
    builder.scores("safety", "00000", uids, punsafe=column)
    found = {item["uid"]: item["is_doubtful"] for item in Look(builder).all([], side="kept")}
    assert [found[uid.hex()] for uid in uids] == doubtful


def test_a_safety_column_that_cannot_be_cut_or_is_the_row_s_own_or_was_imported_counts_too(builder, tmp_path):
    rows = [{"caption": str(at), "url": f"http://h.test/{at}", "NSFW": "UNLIKELY"} for at in range(4)]
    uids = builder.shard("00000", rows)
    builder.scores("one_value", "00000", uids, nsfw=pa.array([0.1] * 4))
    assert [item["is_doubtful"] for item in Look(builder).all([], side="kept")] == [False] * 4
    told = tmp_path / "told.parquet"
    pq.write_table(pa.table({"url": ["http://h.test/1", "http://h.test/2"], "punsafe": [0.9, 0.1]}), told)
    import_table(builder.dataset, [str(told)], "laion", LocalExecutor())
    found = {item["uid"]: item["is_doubtful"] for item in Look(builder).all([], side="kept")}
    assert [found[uid.hex()] for uid in uids] == [True, True, False, True]  # of two rows it says nothing
    builder.scores("one_value", "00000", uids, nsfw=pa.array(["NSFW"] * 4))
    assert [item["is_doubtful"] for item in Look(builder).all([], side="kept")] == [True] * 4


def test_images_come_as_they_are_stored(look, scored):
    stored = {}
    for shard in scored.dataset.shards():
        with tarfile.open(scored.storage.path(f"{shard}.tar")) as tar:
            rows = read_table(scored.storage, f"{shard}.parquet").to_pylist()
            uids = {row["key"]: row["uid"].hex() for row in rows}
            for member in tar.getmembers():
                if member.name.endswith(".png"):
                    stored[uids[member.name.removesuffix(".png")]] = tar.extractfile(member).read()
    shown = {item["uid"]: stored_image(look.loaded, item["row"]) for item in look.all([], side="kept")}
    assert shown == {uid: (data, "image/png") for uid, data in stored.items()}


@pytest.mark.parametrize(
    "image", [b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", b"<html>", b"", b"BM1234"]
)
def test_what_is_no_picture_for_browsers_is_refused(builder, image):
    builder.shard("00000", [{"caption": "a", "image": image}])
    with pytest.raises(DatasetError, match="no image that browsers show"):
        stored_image(load(builder.dataset), 0)


def test_rows_that_were_not_stored_are_not_there_and_no_row_beyond_the_last(builder):
    builder.shard("00000", [{"caption": "gone", "reason": "denied"}, {"caption": "here"}])
    loaded = load(builder.dataset)
    assert loaded.num_rows == 1
    assert [item["caption"] for item in Look(builder).all([], side="kept")] == ["here"]
    with pytest.raises(DatasetError):
        stored_image(loaded, 1)


def test_what_is_removed_while_the_page_is_open_is_not_shown_from_memory(builder):
    uids = builder.shard("00000", [{"caption": "a"}, {"caption": "b"}])
    loaded = load(builder.dataset)
    index = read_table(builder.storage, "index/00000.parquet")
    left = [row for row in index.to_pylist() if row["uid"] != uids[0]]
    write_table(builder.storage, "index/00000.parquet", pa.Table.from_pylist(left, index.schema))
    rows = dict(loaded.connection.execute("SELECT uid, rowid FROM rows").fetchall())
    with pytest.raises(DatasetError, match="no image of"):
        stored_image(loaded, rows[uids[0]])
    assert stored_image(loaded, rows[uids[1]])[1] == "image/png"


def test_without_a_download_there_are_rows_but_no_images(tmp_path):
    from infra.dataset import Dataset

    table = pa.table({"url": ["http://h.test/a", "http://h.test/b"], "caption": ["a", "b"], "score": [1.5, 2.5]})
    pq.write_table(table, tmp_path / "urls.parquet")
    loaded = load(Dataset(tmp_path))
    items = Gallery(Explorer(loaded)).page([], View(side="kept"))["items"]
    assert sorted(item["caption"] for item in items) == ["a", "b"]
    with pytest.raises(DatasetError, match="has no image"):
        stored_image(loaded, 0)
