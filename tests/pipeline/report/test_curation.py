"""Scores and selections in the report: figures equal the tables', doubtful pictures are blurred, removed ones gone."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image, ImageFilter, ImageStat

from filters.base import Batch, Scorer, column
from filters.rules import SelectRecipe
from filters.score import score
from filters.select import select
from infra.executors import LocalExecutor
from infra.selection import Selection
from infra.tables import read_table, write_table
from pipeline.report import write_report
from pipeline.report.chosen import album, duplicates, overlaps
from pipeline.report.gallery import stored_pictures
from pipeline.report.scored import NUM_BINS, Cut, score_columns
from pipeline.report.source import Source
from tests.pipeline.report.conftest import Builder, drawn_jpeg

SCORERS = ("tests.pipeline.report.test_curation:Letters", "tests.pipeline.report.test_curation:Look")
CLEAN = ({"where": "letters > 4", "reason": "too_short"}, {"unique": "twin"}, {"where": "tone < 0.9", "reason": "loud"})
SHARP = ({"top": "tone", "fraction": 0.5},)


class Letters(Scorer):
    """Letters of a caption."""

    name = "letters"
    per = "caption"
    columns = pa.schema([column("letters", pa.int32(), "letters, <b>0</b> or more")])

    def score(self, batch: Batch) -> pa.Table:
        return pa.table({"letters": [len(text) for text in batch.texts]})


class Look(Scorer):
    """Made-up scores of an image, by its place: every third is a twin of the first, every fifth is doubtful."""

    name = "look"
    per = "image"
    columns = pa.schema(
        [
            column("tone", pa.float32(), "0 to 1"),
            column("twin", pa.uint64(), "a hash"),
            column("punsafe", pa.float32(), ""),
        ]
    )

    def score(self, batch: Batch) -> pa.Table:
        places = [int(pair.key[-4:]) for pair in batch.pairs]
        tones = [None if place == 7 else place / 24 for place in places]
        return pa.table(
            {"tone": tones, "twin": [0 if place % 3 == 0 else place for place in places],
             "punsafe": [0.9 if place % 5 == 0 else 0.1 for place in places]},
            schema=self.columns,
        )  # fmt: skip


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    builder = Builder(tmp_path_factory.mktemp("curated") / "dataset")
    rows = [
        {"url": f"http://a.test/{at}.jpg", "caption": "x" * (at % 9), "size": (80, 60), "data": drawn_jpeg(at, 80, 60)}
        for at in range(24)
    ]
    builder.shard("00000", rows)
    score(builder.dataset, SCORERS, LocalExecutor())
    for name, rules in (("clean", CLEAN), ("sharp", SHARP)):
        select([builder.dataset], SelectRecipe(rules=rules), name, LocalExecutor())
    return builder


@pytest.fixture
def source(curated: Builder) -> Any:
    opened = Source(curated.storage.url)
    yield opened
    opened.close()


def rows_of(builder: Builder, name: str) -> list[dict[str, Any]]:
    chosen = Selection(builder.dataset, name)
    return [row for shard in chosen.shards for row in chosen.read(shard).to_pylist()]


def test_every_row_is_in_a_bin_or_missing_and_hashes_are_not_drawn(source: Source) -> None:
    columns = {(one.table, one.name): one for one in score_columns(source)}
    assert set(columns) == {("letters", "letters"), ("look", "tone"), ("look", "punsafe")}
    for one in columns.values():
        assert sum(number for _, _, number in one.bins) + one.num_missing == one.num_rows == 24
        assert len(one.bins) <= NUM_BINS
        assert all(low < high for low, high, _ in one.bins)
    assert columns["look", "tone"].num_missing == 1
    assert [(cut.selection, cut.op) for cut in columns["look", "tone"].cuts] == [("clean", "<"), ("sharp", ">=")]


@pytest.mark.parametrize(("op", "value", "fell"), [(">", 2, [0, 1]), (">=", 2, [0, 1]), ("<", 2, [2, 3]), ("=", 2, [])])
def test_what_a_cut_drops_is_the_side_for_which_it_does_not_hold(op: str, value: float, fell: list[int]) -> None:
    cut = Cut("s", "r", op, value)
    assert [at for at in range(4) if cut.drops(at, at + 1)] == fell


def test_an_album_shows_each_reason_with_rows_that_fell_by_it(curated: Builder, source: Source) -> None:
    told = {row["uid"]: row["reason"] or "kept" for row in rows_of(curated, "clean")}
    shown = album(source, Selection(curated.dataset, "clean"), seed=0)
    assert next(group.word for group in shown.groups) == "kept"
    assert {group.word: group.num_rows for group in shown.groups} == {
        word: list(told.values()).count(word) for word in set(told.values())
    }
    for group in shown.groups:
        assert group.shown
        assert {told[one.picture.row["uid"]] for one in group.shown} == {group.word}
    assert shown.columns == ["letters.letters", "look.tone"]  # the hash says nothing to a person


def test_doubtful_pictures_are_blurred_before_they_reach_the_page(curated: Builder, source: Source) -> None:
    def detail(thumbnail: str) -> float:
        image = Image.open(io.BytesIO(base64.b64decode(thumbnail.partition(",")[2]))).convert("L")
        return ImageStat.Stat(image.filter(ImageFilter.FIND_EDGES)).mean[0]

    pictures = [
        one.picture for group in album(source, Selection(curated.dataset, "clean"), 0).groups for one in group.shown
    ]
    assert {picture.is_blurred for picture in pictures} == {True, False}
    for picture in pictures:
        assert picture.is_blurred == (int(picture.row["key"][-4:]) % 5 == 0)
    blurred, sharp = (
        [detail(str(one.thumbnail)) for one in pictures if one.is_blurred is kind] for kind in (True, False)
    )
    assert max(blurred) < min(sharp)


@pytest.mark.parametrize("is_hex", [False, True])
def test_what_the_rows_own_columns_doubt_or_do_not_know_is_blurred_in_every_gallery(
    builder: Builder, is_hex: bool
) -> None:
    rows = [{"url": f"http://a.test/{at}.jpg", "caption": f"{at % 2}", "size": (80, 60)} for at in range(6)]
    builder.shard("00000", rows, marked=False)
    own = read_table(builder.storage, "00000.parquet")
    own = own.append_column("NSFW", pa.array(["UNLIKELY", "UNSURE", None, "NSFW", "UNLIKELY", "UNLIKELY"]))
    own = own.append_column("punsafe", pa.array([0.1, 0.1, 0.1, 0.1, float("nan"), 0.1]))
    if is_hex:
        own = own.set_column(0, "uid", pa.array([uid.hex() for uid in own["uid"].to_pylist()]))
    write_table(builder.storage, "00000.parquet", own)
    rules = ({"where": "caption = '0'", "reason": "odd"}, {"unique": "caption"})
    select([builder.dataset], SelectRecipe(rules=rules), "s", LocalExecutor())
    opened = Source(builder.storage.url)
    first = stored_pictures(opened, 0, 6)
    shown = [one.picture for group in album(opened, Selection(builder.dataset, "s"), 0).groups for one in group.shown]
    (group,) = duplicates(opened, Selection(builder.dataset, "s"))
    for pictures in (first, shown, [group.kept, *(picture for picture, _ in group.fell)]):
        blurred = {int(picture.row["key"][-4:]): picture.is_blurred for picture in pictures}
        assert len(blurred) == len(pictures) > 2
        assert blurred == {at: at in (1, 2, 3, 4) for at in blurred}
    opened.close()
    write_report(builder.storage.url, builder.storage.path("report.html"))
    page = Path(builder.storage.path("report.html")).read_text(encoding="utf-8")
    assert page.count("blurred · ") == sum(
        picture.is_blurred for picture in [*first, *shown, group.kept, *(picture for picture, _ in group.fell)]
    )


def test_a_removed_or_denied_row_is_never_shown(curated: Builder, source: Source) -> None:
    chosen = Selection(curated.dataset, "clean")
    chosen.summary["dropped"] |= {"removed": 1, "denied_url": 1}
    assert {"removed", "denied_url"}.isdisjoint(group.word for group in album(source, chosen, 0).groups)


def test_groups_of_duplicates_are_those_of_the_rule(curated: Builder, source: Source) -> None:
    groups = duplicates(source, Selection(curated.dataset, "clean"))
    fell = [row for row in rows_of(curated, "clean") if row["reason"] == "duplicate_twin"]
    assert sum(group.num_fell for group in groups) == len(fell) > 0
    for group in groups:
        places = [int(one.row["key"][-4:]) for one in (group.kept, *(picture for picture, _ in group.fell))]
        assert all(place % 3 == 0 for place in places)
        assert len(set(places)) == len(places)


def test_an_overlap_counts_every_caption_once(curated: Builder, source: Source) -> None:
    one, other = (Selection(curated.dataset, name) for name in ("clean", "sharp"))
    (found,) = overlaps(source, [one, other])
    kept = [{row["uid"] for row in rows_of(curated, name) if row["keep"]} for name in ("clean", "sharp")]
    assert (found.both, found.only_one, found.only_other) == (
        len(kept[0] & kept[1]), len(kept[0] - kept[1]), len(kept[1] - kept[0]),
    )  # fmt: skip
    assert found.both + found.only_one + found.only_other + found.neither == 24


def test_the_page_tells_rules_cuts_and_descriptions_escaped_and_is_the_same_each_time(
    curated: Builder, tmp_path: Path
) -> None:
    pages = []
    for name in ("one.html", "two.html"):
        write_report(curated.storage.url, tmp_path / name)
        pages.append((tmp_path / name).read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    assert "letters &gt; 4" in pages[0]
    assert "&lt;b&gt;0&lt;/b&gt;" in pages[0]
    assert "clean: &lt; 0.9" in pages[0]
    assert "<script" not in pages[0]
    assert re.search(r'class="cut"', pages[0])


@pytest.mark.browser
def test_pictures_can_be_sorted_without_a_script(curated: Builder, browser: Any, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(curated.storage.url, out)
    browser.open(out.as_uri())
    order = """
        [...document.querySelector('#verdicts .sortable .group').querySelectorAll('figure')]
        .map(figure => [figure.getBoundingClientRect().top * 1e4 + figure.getBoundingClientRect().left,
                        parseFloat(/tone ([0-9.]+)/.exec(figure.innerText)[1])])
        .sort((one, other) => one[0] - other[0]).map(pair => pair[1])"""
    before = browser.evaluate(order)
    browser.evaluate("[...document.querySelectorAll('.sorts label')].find(l => l.innerText == 'look.tone').click()")
    after = browser.evaluate(order)
    assert after == sorted(before, reverse=True)
    assert after != before
    assert browser.of("Log.entryAdded") == []
