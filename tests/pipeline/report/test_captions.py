"""Web and synthetic captions in the report: counts conserve, each fate has its images, hostile texts stay texts."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from selectolax.lexbor import LexborHTMLParser

from infra.miniweb.plan import plan_site
from infra.miniweb.truth import truth_table
from infra.page.words import share_text
from infra.removed import REMOVED
from infra.selection import Selection, selection_table
from infra.tables import read_table, write_table
from pipeline.report import write_report
from pipeline.report.captions import FATES, MAX_PER_IMAGE, NUM_PER_FATE, Contest, contest
from pipeline.report.chosen import album
from pipeline.report.curation import KIND_WORDS
from pipeline.report.source import Source
from tests.pipeline.report.conftest import Builder, World

ITM = ({"where": "itm > 0.5", "reason": "does_not_match"},)


def contest_of(world: World, selection: Selection) -> Contest | None:
    """What the report makes of a selection."""
    source = Source(world.builder.storage.url)
    try:
        return contest(source, selection, seed=0)
    finally:
        source.close()


def page_of(world: World) -> LexborHTMLParser:
    """The report, parsed."""
    out = Path(world.builder.storage.path()).parent / "report.html"
    write_report(world.builder.storage.url, out)
    return LexborHTMLParser(out.read_text(encoding="utf-8"))


@pytest.fixture
def world(builder: Builder) -> World:
    """Eighty images with none to three captions of `blip`, one of `tiny` for some, and chance as ITM."""
    rng = random.Random(4)
    made = World(builder, [f"web {at}" for at in range(80)])
    made.captions("blip", [[f"blip {at} {n}" for n in range(at % 4)] for at in range(80)])
    made.captions("tiny", [[f"tiny {at}"] if at % 5 == 0 else [] for at in range(80)])
    made.scores("itm", {key: None if rng.random() < 0.1 else rng.random() for key in made.keys})
    return made


def texts(page: LexborHTMLParser, selector: str) -> list[str]:
    """Texts of the nodes, white space joined."""
    return [" ".join(node.text().split()) for node in page.css(selector)]


def kept_by_image(selection: Selection) -> dict[bytes, dict[bool, list[bool]]]:
    """uid → is it synthetic → verdicts, by a plain loop."""
    found: dict[bytes, dict[bool, list[bool]]] = {}
    for row in (row for shard in selection.shards for row in selection.read(shard).to_pylist()):
        found.setdefault(row["uid"], {True: [], False: []})[row["source"] != "web"].append(row["keep"])
    return found


def test_every_text_and_every_image_is_counted_once(world: World) -> None:
    selection = world.select(ITM, "blip", "tiny")
    found = contest_of(world, selection)
    assert found is not None
    rows = [row for shard in selection.shards for row in selection.read(shard).to_pylist()]
    told = {one.source: (one.num_texts, one.num_kept) for one in found.texts}
    assert list(told) == ["web", "blip", "tiny"]
    for source, counts in told.items():
        own = [row["keep"] for row in rows if row["source"] == source]
        assert counts == (len(own), sum(own))
    assert found.all.num_texts == found.web.num_texts + found.synthetic.num_texts == selection.summary["rows_in"]
    assert found.all.num_kept == selection.summary["rows_out"]
    images = kept_by_image(selection).values()
    fates = Counter((any(one[False]), any(one[True])) for one in images)
    alone = Counter((any(one[False]), any(one[True])) for one in images if not one[True])
    assert [(fate.web, fate.synthetic) for fate in found.fates] == list(FATES)
    assert {(fate.web, fate.synthetic): fate.num_images for fate in found.fates} == {key: fates[key] for key in FATES}
    assert [fate.num_alone for fate in found.fates] == [alone[key] for key in FATES]
    assert found.num_images == 80


def test_each_fate_shows_images_of_its_own_with_all_their_captions_and_scores(world: World) -> None:
    selection = world.select(ITM, "blip", "tiny")
    found = contest_of(world, selection)
    assert found is not None
    images = kept_by_image(selection)
    scores = {(row["uid"], row["source"], row["n"]): row["itm"]
              for row in read_table(world.builder.storage, "scores/itm/00000.parquet").to_pylist()}  # fmt: skip
    shown: list[bytes] = []
    for fate in found.fates:
        assert len(fate.cards) == min(NUM_PER_FATE, fate.num_images - fate.num_alone)
        for card in fate.cards:
            uid = card.picture.row["uid"]
            shown.append(uid)
            assert (any(images[uid][False]), any(images[uid][True])) == (fate.web, fate.synthetic)
            at = world.uids.index(uid)
            own = [f"web {at}", *(f"blip {at} {n}" for n in range(at % 4)), *([f"tiny {at}"] if at % 5 == 0 else [])]
            assert [caption.text for caption in card.captions] == own
            assert [caption.is_kept for caption in card.captions] == images[uid][False] + images[uid][True]
            want = [scores[key] for key in sorted(scores, key=lambda key: (key[1] != "web", *key[1:])) if key[0] == uid]
            assert [caption.scores for caption in card.captions] == [[value] for value in want]
    assert len(set(shown)) == len(shown) > 0


def test_the_page_marks_every_caption_in_words_and_is_the_same_each_time(world: World) -> None:
    world.select(ITM, "blip", "tiny")
    page = page_of(world)
    rivals = page.css("#captions .rival")
    assert {("in" in node.attributes["class"].split(), "✓ kept" in node.text(), "✗ dropped" in node.text())
            for node in rivals} == {(True, True, False), (False, False, True)}  # fmt: skip
    assert all("does_not_match" in node.text() or "no_itm" in node.text() for node in page.css("#captions .rival.out"))
    assert any("itm missing" in node.text() for node in rivals)
    assert page.html == page_of(world).html


def test_without_synthetic_captions_there_is_no_section(world: World) -> None:
    selection = world.select(ITM)
    assert contest_of(world, selection) is None
    assert not page_of(world).css("#captions")


def test_a_selection_beside_one_of_the_web_alone_is_shown_alone(world: World) -> None:
    world.select(ITM, name="plain")
    world.select(ITM, "tiny", name="with_tiny")
    assert texts(page_of(world), "#captions h3") == ["with_tiny"]


def test_without_a_score_of_the_texts_the_page_says_so(builder: Builder) -> None:
    made = World(builder, ["a cat", "a dog"])
    made.captions("blip", [["one"], ["two", "three"]])
    made.select(({"where": "caption = 'a cat'", "reason": "other"},), "blip")
    page = page_of(made)
    assert texts(page, "#captions .note") == ["No table has a score of these texts."]
    assert len(page.css("#captions .rival")) == 5
    assert not page.css("#captions .gauge")


def test_itm_comes_first_and_scores_of_images_or_of_the_web_alone_stay_away(world: World) -> None:
    for name in ("clip_score", "aesthetic"):
        world.scores(name, dict.fromkeys(world.keys, 0.25))
    world.scores("web_only", dict.fromkeys(world.keys[:80], 0.5))
    found = contest_of(world, world.select(({"where": "clip_score > 0"}, *ITM), "blip"))
    assert found is not None
    assert list(found.columns) == ["itm.itm", "clip_score.clip_score", "aesthetic.aesthetic"]
    assert found.labels == ["itm", "clip_score", "aesthetic"]


def test_hostile_long_empty_and_missing_texts_stay_within_their_rows(builder: Builder) -> None:
    turning = "\u202eevil\u2066 \u05d0\u05d1\u05d2\x00\x07\n\n"
    attacks = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', turning, "x" * 5000, "", None]
    made = World(builder, attacks)
    made.captions("blip", [[attack] for attack in reversed(attacks)])
    made.scores("itm", dict.fromkeys(made.keys, 0.25) | {(0, "web", 0): float("nan")})
    made.select(ITM, "blip")
    page = page_of(made)
    assert not page.css("script, [onerror], #captions img:not([src^='data:image/jpeg'])")
    shown = texts(page, "#captions .rival .caption")
    assert shown.count("<script>alert(1)</script>") == 2
    assert shown.count("evil אבג") == shown.count("(text missing)") == shown.count("(empty text)") == 2
    cut = [text for text in shown if text.endswith("…")]
    assert len(cut) == 2
    assert all(len(text) < 300 for text in cut)
    assert sum("cut here: 5,000 characters" in text for text in texts(page, "#captions .rival .facts")) == 2
    assert all(node.attributes["dir"] == "auto" for node in page.css("#captions .caption"))
    assert sum("itm missing" in node.text() for node in page.css("#captions .rival")) == 1


def test_captions_beyond_the_bound_are_counted(builder: Builder) -> None:
    made = World(builder, ["a cat"])
    made.captions("blip", [[f"text {n}" for n in range(20)]])
    made.scores("itm", {key: key[2] / 10 for key in made.keys})
    found = contest_of(made, made.select(ITM, "blip"))
    assert found is not None
    (card,) = [card for fate in found.fates for card in fate.cards]
    assert [caption.text for caption in card.captions] == ["a cat", *(f"text {n}" for n in range(MAX_PER_IMAGE - 1))]
    assert (card.num_more, card.num_more_kept) == (15, 14)


def test_the_truth_tells_how_many_of_the_webs_captions_are_wrong_before_and_after(builder: Builder) -> None:
    builder.storage.commit_bytes("recipe.yaml", b"miniweb: {pages: 20, seed: 3, port: 8123}\n")
    imgs = {(img["url"], img["caption"]): img["caption_kind"] for img in
            truth_table(plan_site(20, 3, 8123)).to_pylist() if img["url"] and img["caption"]}  # fmt: skip
    made = World(builder, [caption for _, caption in imgs], [url for url, _ in imgs])
    made.captions("blip", [["synthetic"]] * len(imgs))
    kinds = list(imgs.values())
    fits = [kind == "true" or at % 3 == 0 for at, kind in enumerate(kinds)]
    made.scores("itm", {key: float(fits[key[0]] or key[1] != "web") for key in made.keys})
    made.select(ITM, "blip")
    rows = [
        [" ".join(cell.text().split()) for cell in row.css("th, td")] for row in page_of(made).css(".kinds tbody tr")
    ]
    seen, kept = Counter(kinds), Counter(kind for kind, fit in zip(kinds, fits, strict=True) if fit)
    wrong_seen, wrong_kept = seen.total() - seen["true"], kept.total() - kept["true"]
    assert len(set(kinds)) == 4
    assert rows == [
        [words, f"{before:,}", share_text(before / seen.total()), f"{after:,}", share_text(after / kept.total())]
        for words, before, after in (
            ("wrong, of any kind", wrong_seen, wrong_kept),
            *((words, seen[kind], kept[kind]) for kind, words in KIND_WORDS.items()),
        )
    ]


def test_an_album_shows_the_text_that_its_verdict_is_about(world: World) -> None:
    selection = world.select(ITM, "blip", "tiny")
    source = Source(world.builder.storage.url)
    shown = [one for group in album(source, selection, 0).groups for one in group.shown]
    source.close()
    assert {one.source for one in shown} == {"web", "blip", "tiny"}
    assert all(one.text is not None and one.text.split()[0] == one.source for one in shown)


def test_an_image_of_which_a_caption_is_denied_is_counted_and_not_shown(world: World) -> None:
    selection = world.select(({"where": "itm > 0.5", "reason": "denied_words"},), "blip", "tiny")
    found = contest_of(world, selection)
    assert found is not None
    rows = (row for shard in selection.shards for row in selection.read(shard).to_pylist())
    denied = {row["uid"] for row in rows if row["reason"] == "denied_words"}
    shown = {card.picture.row["uid"] for fate in found.fates for card in fate.cards}
    assert found.num_images == 80
    assert shown
    assert denied
    assert denied.isdisjoint(shown)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 375])
def test_no_text_leaves_its_row_on_any_screen(builder: Builder, browser: Any, tmp_path: Path, width: int) -> None:
    stacked = "z" + "\u0338\u0322\u031b" * 60
    made = World(builder, ["w" * 900, stacked, "\u202e\u05d0\u05d1 \u0627\u0644"])
    made.captions("blip", [["m" * 900], [stacked], ["\u0627\u0644 abc"]])
    made.scores("itm", {key: key[0] / 2 for key in made.keys})
    made.select(ITM, "blip")
    out = tmp_path / "report.html"
    write_report(builder.storage.url, out)
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    browser.open(out.as_uri())
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("""
        [...document.querySelectorAll('#captions .rival')].every(row => {
            const [own, card] = [row, row.closest('figure')].map(node => node.getBoundingClientRect());
            return own.width > 100 && own.left >= card.left && own.right <= card.right
                && getComputedStyle(row).overflow == 'hidden';
        })""")
    assert browser.of("Log.entryAdded") == []


def test_what_was_removed_is_neither_counted_nor_shown(world: World) -> None:
    selection = world.select(ITM, "blip", "tiny")
    before = contest_of(world, selection)
    assert before is not None
    gone = {card.picture.row["uid"] for fate in before.fates for card in fate.cards}
    name = selection_table("capfilt", "00000")
    rows = read_table(world.builder.storage, name).to_pylist()
    told = [row | {"keep": False, "reason": REMOVED} if row["uid"] in gone else row for row in rows]
    write_table(world.builder.storage, name, pa.Table.from_pylist(told))
    after = contest_of(world, selection)
    assert after is not None
    assert after.num_images == 80 - len(gone)
    assert after.all.num_texts == sum(row["uid"] not in gone for row in rows)
    assert gone.isdisjoint(card.picture.row["uid"] for fate in after.fates for card in fate.cards)
