"""Judging rules by the truth: hand-counted precision and recall, and what must hold of any selection."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.rules import parse_rule
from infra.dataset import Dataset
from infra.miniweb.plan import plan_site
from infra.miniweb.truth import SCHEMA as TRUTH
from infra.miniweb.truth import truth_table
from infra.removed import REMOVED
from infra.rows import Rows
from infra.selection import SCHEMA, Selection, selection_table, summary_file
from infra.tables import write_table
from pipeline.judge import Judgement, Tally, judge, judgement_rows, kind_rows, unguarded, weigh
from pipeline.truth import EDITS, UNKNOWN, ToldRow, truth_of

CAPTION_KINDS = ("true", "wrong_random", "wrong_attribute", "boilerplate")
COPY_KINDS = ("exact_duplicate", "near_resized", "near_cropped")


def place(folder: Path, rows: Sequence[tuple[str, str, str | None]], *rules: dict[str, Any]) -> Dataset:
    """A dataset of (url, caption, reason) rows with the selection "s" of them by `rules`, as select publishes it."""
    dataset = Dataset(folder)
    uids = pa.array([number.to_bytes(16, "big") for number in range(len(rows))], pa.binary(16))
    urls, captions, reasons = ([row[at] for row in rows] for at in range(3))
    write_table(dataset.storage, "00000.parquet", pa.table({"uid": uids, "url": urls, "caption": captions}))
    keys = [uids, pa.repeat("web", len(rows)), pa.nulls(len(rows), pa.int32()).fill_null(0)]
    kept = [reason is None for reason in reasons]
    table = pa.table([*keys, pa.array(kept), pa.array(reasons, pa.string())], schema=SCHEMA)
    write_table(dataset.storage, selection_table("s", "00000"), table)
    told = []
    for values in rules:
        rule = parse_rule(values, "test")
        dropped = {word: number for word in rule.reasons if (number := reasons.count(word))}
        told.append(
            {"rule": rule.key, "text": rule.text, "columns": [f"t.{c}" for c in rule.columns], "dropped": dropped}
        )
    text = json.dumps({"rules": told, "recipe": {"rules": rules}})
    dataset.storage.commit_bytes(summary_file("s"), text.encode())
    return dataset


def img(url: str, caption: str, **values: Any) -> dict[str, Any]:
    plain = {"row": "candidate", "caption_kind": "true", "lang": "en", "image_kind": "plain", "alternatives": []}
    return plain | {"url": url, "caption": caption} | values


def truth(*imgs: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{"row": "page", "page_url": "http://web/"}, *imgs], schema=TRUTH)


def row(caption_kind: str = "true", image_kind: str = "plain", picture: str = "p", **values: Any) -> ToldRow:
    change = 0 if image_kind in ("plain", UNKNOWN) else 2 + EDITS.index(image_kind) if image_kind in EDITS else 1
    lang = None if caption_kind in ("boilerplate", UNKNOWN) else values.get("lang", "en")
    return ToldRow(0, caption_kind, lang, image_kind, change, f"{picture}#{max(1, change)}", picture)


def copies(*rows: tuple[ToldRow, bool], of: str = "copy") -> Judgement:
    return weigh("unique", [of], [each for each, _ in rows], [fell for _, fell in rows])


def test_precision_and_recall_are_those_that_a_person_counts(tmp_path: Path) -> None:
    rows = [
        ("http://web/1", "logo", "stock"),
        ("http://web/2", "photo", "stock"),
        ("http://web/3", "a red car", "stock"),  # wrongly
        ("http://web/4", "share", None),  # missed, by both
        ("http://web/5", "ein rotes Auto", "not_en"),
        ("http://web/6", "une voiture", None),  # missed
        ("http://web/7", "a blue car", "not_en"),  # wrongly
        ("http://web/8", "a green car", None),
        ("http://web/9", "a cat", "no_language"),  # a missing value is a drop like another: wrongly
    ]
    langs = {5: "de", 6: "fr"}
    kinds = {1: "boilerplate", 2: "boilerplate", 4: "boilerplate", 8: "wrong_random", 9: "wrong_attribute"}
    told = truth(*(img(url, text, lang=langs.get(at, "en"), caption_kind=kinds.get(at, "true"))
                   for at, (url, text, _) in enumerate(rows, 1)))  # fmt: skip
    rules = ({"where": "not boilerplate", "reason": "stock"}, {"where": "language = 'en'", "reason": "not_en"})
    stock, language, whole = judge(place(tmp_path, rows, *rules), "s", told)

    assert stock.meant_for == ("boilerplate",)
    assert (stock.rows, stock.bad, stock.good) == (Tally(3, 9), Tally(2, 3), Tally(1, 6))
    assert (stock.precision, stock.recall) == (2 / 3, 2 / 3)

    assert language.meant_for == ("language",)
    assert language.ills == {"de": Tally(1, 1), "fr": Tally(0, 1)}
    assert language.good == Tally(2, 3)  # the truth does not say of what language boilerplate is
    assert (language.precision, language.recall) == (1 / 3, 1 / 2)
    assert language.captions == {"boilerplate": Tally(0, 1), "true": Tally(2, 3), "wrong_attribute": Tally(1, 1),
                                 "wrong_random": Tally(0, 1)}  # fmt: skip

    assert whole.bad == Tally(4, 7)
    assert whole.good == Tally(2, 2)
    assert unguarded([stock, language, whole]) == {"wrong_attribute": Tally(1, 1), "wrong_random": Tally(0, 1)}
    heads, *lines = judgement_rows([stock, language, whole])
    assert lines[0] == ["not boilerplate", "boilerplate", "9", "3", "0.667 (2 of 3)", "0.667 (2 of 3)", ""]
    assert {len(line) for line in lines} == {len(heads)}
    assert kind_rows([stock], ["true", "missing"])[1] == ["not boilerplate", "1 of 4", "–"]


def test_rows_that_were_removed_since_are_not_judged(tmp_path: Path) -> None:
    rule = {"where": "not boilerplate", "reason": "stock"}
    rows = [("http://web/1", "logo", "stock"), ("http://web/2", "a cat", None), ("http://web/3", "a dog", None)]
    told = truth(*(img(url, text, caption_kind="boilerplate" if text == "logo" else "true") for url, text, _ in rows))
    dataset = place(tmp_path, rows, rule)
    left = Rows(dataset).read("00000", [])
    write_table(dataset.storage, "00000.parquet", left.slice(1, 1))  # a kept row goes, and one that had fallen
    judged = Selection(dataset, "s").read("00000").set_column(4, "reason", pa.array(["stock", None, REMOVED]))
    write_table(dataset.storage, selection_table("s", "00000"), judged)
    stock, whole = judge(dataset, "s", told)
    assert (stock.rows, stock.bad, stock.good) == (Tally(0, 1), Tally(), Tally(0, 1))
    assert whole.rows == Tally(0, 1)


def test_the_port_is_told_by_the_first_row_that_has_a_url(tmp_path: Path) -> None:
    dataset = place(tmp_path, [("http://web:81/1", "a", None)])
    rows = Rows(dataset).read("00000", [])
    blank = rows.set_column(2, "url", pa.array([None], pa.string()))
    write_table(dataset.storage, "00000.parquet", blank)  # as a removal leaves it
    write_table(dataset.storage, "00001.parquet", pa.concat_tables([blank, rows]))
    dataset.storage.commit_bytes("recipe.yaml", b"miniweb: {pages: 3, seed: 7, port: 0}\n")
    found = truth_of(dataset)
    assert found is not None
    assert found.equals(truth_table(plan_site(3, 7, 81)))


BAD = {
    "boilerplate": row("boilerplate"),
    "caption": row("wrong_attribute"),
    "language": row(lang="de"),
    "copy": row(image_kind="near_resized"),
    "file": row(image_kind="exact_duplicate"),
}


@pytest.mark.parametrize("target", BAD)
def test_dropping_just_what_is_bad_is_right_and_dropping_nothing_finds_nothing(target: str) -> None:
    seen = [row(), *[BAD[target]] * 3]
    unwanted = frozenset({"de"})
    exact = weigh("rule", [target], seen, [False, True, True, True], unwanted)
    assert (exact.precision, exact.recall) == (1.0, 1.0)
    nothing = weigh("rule", [target], seen, [False] * 4, unwanted)
    assert (nothing.precision, nothing.recall) == (None, 0.0)
    all_others = weigh("rule", [target], [row(picture=str(at)) for at in range(3)], [True] * 3, unwanted)
    assert (all_others.precision, all_others.recall) == (0.0, None)


def test_of_what_the_truth_does_not_tell_nothing_is_judged() -> None:
    unknown = row(UNKNOWN, UNKNOWN, "elsewhere")
    for target in (*BAD, "blank"):
        judged = weigh("rule", [target], [unknown, unknown], [True, False], frozenset({"de"}))
        assert (judged.bad, judged.good) == (Tally(), Tally())
        assert judged.rows == Tally(1, 2)
    blank = weigh("uniform < .9", ["blank"], [row(), row()], [True, False])  # every drawing shows something
    assert (blank.precision, blank.recall) == (0.0, None)
    size = weigh("width > 64", [], [row(), BAD["boilerplate"]], [True, False])
    assert (size.precision, size.recall, size.rows) == (None, None, Tally(1, 2))


def test_a_copy_is_found_whichever_of_the_two_stays() -> None:
    original, resized = row(), row(image_kind="near_resized")
    assert copies((original, False), (resized, True)).ills == {"near_resized": Tally(1, 1)}
    assert copies((original, True), (resized, False)).ills == {"near_resized": Tally(1, 1)}
    assert copies((original, False), (resized, False)).ills == {"near_resized": Tally(0, 1)}
    cropped, exact = row(image_kind="near_cropped"), row(image_kind="exact_duplicate")
    missed = {"exact_duplicate": Tally(1, 1), "near_cropped": Tally(0, 1)}  # the crop, wherever it comes
    for order in ((cropped, exact), (exact, cropped)):
        assert copies((original, True), *((each, False) for each in order)).ills == missed
    both = {"another_format": Tally(1, 1), "near_resized": Tally(0, 1)}
    assert copies((resized, False), (original, False), (row(), True)).ills == both


def test_a_picture_that_is_lost_was_dropped_wrongly() -> None:
    lost = copies((row(), True), (row(image_kind="near_resized"), True), (row(picture="look-alike"), False))
    assert (lost.bad, lost.good) == (Tally(), Tally(2, 3))


def test_a_picture_that_only_looks_alike_was_dropped_wrongly() -> None:
    judged = copies((row(), False), (row(picture="other"), True))
    assert (judged.precision, judged.recall) == (0.0, None)


def test_a_rule_over_bytes_is_not_blamed_for_copies_of_other_bytes() -> None:
    rows = [(row(), False), (row(image_kind="near_cropped"), False), (row(image_kind="exact_duplicate"), True)]
    assert copies(*rows, of="file").recall == 1.0
    assert copies(*rows, of="copy").recall == 0.5


def test_urls_of_one_img_show_one_picture(tmp_path: Path) -> None:
    one, modern, two = "http://web/1.jpg", "http://web/1.webp", "http://web/2.jpg"
    rows = [(one, "a cat", None), (modern, "a cat", "near"), (two, "a dog", "near"), (one, "a dog", "near")]
    told = truth(
        img(one, "a cat", alternatives=[modern]),
        img(two, "a dog", image_kind="near_cropped", duplicate_of=one),
        img(one, "a dog", image_kind="shared_image", duplicate_of=one),
    )
    unique, _ = judge(place(tmp_path, rows, {"unique": "phash", "distance": 4, "reason": "near"}), "s", told)
    assert unique.ills == {"another_format": Tally(1, 1), "near_cropped": Tally(1, 1), "shared_image": Tally(1, 1)}
    exact, _ = judge(place(tmp_path / "2", rows, {"unique": "sha256", "reason": "near"}), "s", told)
    assert exact.ills == {"shared_image": Tally(1, 1)}
    assert exact.good == Tally(2, 3)


@pytest.mark.parametrize(
    ("condition", "bad"),
    [
        ("language = 'en'", {"de", "ja"}),
        ("language in ('en', 'ja') and words > 2", {"de"}),
        ("t.language <> 'de' and lower(caption) like '%x%'", {"de"}),
        ("language_score > .5 and not boilerplate", set()),
        ("language = 'en' or words > 9", set()),  # of other languages, long ones are wanted
        ("boilerplate is false and language = 'en'", set()),  # false of all where boilerplate is not known
    ],
)
def test_a_condition_tells_which_languages_it_is_meant_to_drop(tmp_path: Path, condition: str, bad: set[str]) -> None:
    langs = ("en", "de", "ja")
    rows = [(f"http://web/{lang}", lang, None) for lang in langs]
    told = truth(*(img(f"http://web/{lang}", lang, lang=lang) for lang in langs))
    first, _ = judge(place(tmp_path, rows, {"where": condition, "reason": "fell"}), "s", told)
    assert {ill for ill in first.ills if ill != "boilerplate"} == bad
    assert ("language" in first.meant_for) == bool(bad)


@pytest.mark.parametrize(
    ("values", "meant_for"),
    [
        ({"unique": "phash_fine", "distance": 4}, ("copy",)),
        ({"unique": "sha256"}, ("file",)),
        ({"top": "clip_score", "fraction": 0.3}, ("caption",)),
        ({"where": "words > 2 and alphanumeric > .5"}, ("boilerplate",)),
        ({"where": "words > 2 and clip_score > .2"}, ("boilerplate", "caption")),
        ({"where": "uniform < .95"}, ("blank",)),
        ({"where": "width > 64"}, ()),
        ({"not_in": "eval", "by": "phash", "distance": 4}, ()),
    ],
)
def test_the_columns_of_a_rule_say_what_it_is_meant_for(
    tmp_path: Path, values: dict[str, Any], meant_for: tuple[str, ...]
) -> None:
    told = truth(img("http://web/1", "a cat"))
    judged = judge(place(tmp_path, [("http://web/1", "a cat", None)], {"reason": "fell", **values}), "s", told)
    assert judged[0].meant_for == meant_for


FATES = st.lists(
    st.tuples(st.sampled_from(CAPTION_KINDS), st.sampled_from(("plain", *COPY_KINDS)), st.integers(0, 4),
              st.sampled_from((None, "one", "two", "no_phash"))), max_size=25,
)  # fmt: skip


@settings(max_examples=25)  # each is written to disk and read
@given(FATES)
def test_every_row_that_a_rule_saw_is_in_each_of_its_tables_once(
    tmp_path_factory: pytest.TempPathFactory, fates: list[tuple[str, str, int, str | None]]
) -> None:
    rows = [(f"http://web/{at}", f"caption {at}", reason) for at, (*_, reason) in enumerate(fates)]
    imgs = [img(url, text, caption_kind=caption, image_kind=kind,
                duplicate_of=None if kind == "plain" else f"http://web/original-{picture}")
            for (url, text, _), (caption, kind, picture, _) in zip(rows, fates, strict=True)]  # fmt: skip
    rules = ({"where": "boilerplate", "reason": "one"}, {"unique": "phash", "distance": 2, "reason": "two"})
    *judged, whole = judge(place(tmp_path_factory.mktemp("d"), rows, *rules), "s", truth(*imgs))
    fell = Counter(reason for *_, reason in rows)
    dropped = [fell["one"], fell["two"] + fell["no_phash"]]
    seen = [len(rows), len(rows) - fell["one"]]
    for each, out, of in zip([*judged, whole], [*dropped, sum(dropped)], [*seen, len(rows)], strict=True):
        assert each.rows == Tally(out, of)
        assert sum(each.images.values(), Tally()) == each.rows
        assert sum(each.ills.values(), Tally()) == each.bad
        assert each.bad + each.good == each.rows  # the truth knows all of them
    # A picture of which all is dropped has no copies: so as many rows are good as there are pictures, and more.
    pictures = {imgs[at]["duplicate_of"] or rows[at][0] for at in range(len(rows)) if rows[at][2] != "one"}
    assert judged[1].good.seen >= len(pictures)


def test_the_truth_of_a_dataset_is_that_of_its_recipe(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    assert truth_of(dataset) is None
    dataset.storage.commit_bytes("recipe.yaml", b"download:\n  image_size: 64\n")
    assert truth_of(dataset) is None
    dataset.storage.commit_bytes("recipe.yaml", b"miniweb: {pages: 3, seed: 7, port: 8123, dns_port: 0}\n")
    expected = truth_table(plan_site(3, 7, 8123))
    told = truth_of(dataset)
    assert told is not None
    assert told.equals(expected)
    # Any free port was taken: the rows' urls say which.
    pairs = [(each["url"], each["caption"], "stock" if each["caption_kind"] == "boilerplate" else None)
             for each in expected.to_pylist() if each["outcome"] == "success"]  # fmt: skip
    place(tmp_path, pairs, {"where": "not boilerplate", "reason": "stock"})
    dataset.storage.commit_bytes("recipe.yaml", b"miniweb: {pages: 3, seed: 7, port: 0}\n")
    told = truth_of(dataset)
    assert told is not None
    assert told.equals(expected)
    first, whole = judge(dataset, "s", told)
    assert (first.precision, first.recall) == (1.0, 1.0)
    assert UNKNOWN not in whole.captions
