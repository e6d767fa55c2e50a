"""The shipped DataComp recipes choose the uids that DataComp's definitions, read slowly row by row, choose."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Collection, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.language import bundled_model
from filters.rules import SelectRecipe, load_rules
from filters.score import score
from filters.select import select
from infra.dataset import Dataset
from infra.executors import LocalExecutor
from infra.selection import Selection
from tests.servers.commands import CHECKOUT

Row = dict[str, Any]

RECIPES = CHECKOUT / "filters/recipes"
BASIC = load_rules(str(RECIPES / "datacomp_basic.yaml"))
TOP = load_rules(str(RECIPES / "clip_l14_top30.yaml"))
LAION = SelectRecipe.parse({"rules": [{"where": "clip_b32_similarity_score >= 0.28"}]}, "laion")

# The columns of DataComp's published metadata.
METADATA = pa.schema(
    [
        ("uid", pa.string()),
        ("url", pa.string()),
        ("text", pa.string()),
        ("original_width", pa.int64()),
        ("original_height", pa.int64()),
        ("clip_b32_similarity_score", pa.float32()),
        ("clip_l14_similarity_score", pa.float32()),
        ("face_bboxes", pa.list_(pa.list_(pa.float64()))),
        ("sha256", pa.string()),
    ]
)

# White space of several kinds, captions at the edge of each rule, and languages.
TEXTS = (
    "a photograph of a black cat on the sofa", "The old bridge over the river\nin the morning", "a b c", "a b cd",
    "I am I", "photograph\u2003of\u3000me", "two words", "two words and", "  the  house  ", "", " \n ", "word",
    "eine schwarze Katze sitzt auf dem alten Sofa", "une photo du chat noir sur le canapé", "黒い猫の写真です",
    "черная кошка сидит на диване", "IMG_0001.jpg", "🐈 🐈 🐈 🐈", "the a of", "I am an",
)  # fmt: skip
SIDES = (1, 66, 67, 199, 200, 201, 599, 600, 601, 602, 603, 1800, 1803)  # 200 × 600 may stay, 200 × 601 may not


def english_by_fasttext(text: str) -> bool:
    """Is English the first guess of lid.176 for the caption as one line?"""
    guesses = _lid176().predict(text.replace("\n", " "))[0]
    return bool(guesses) and guesses[0] == "__label__en"


@cache
def _lid176() -> Any:
    import fasttext

    return fasttext.load_model(bundled_model())


def is_basic(row: Row) -> bool:
    """English, three words or more, six characters or more, both sides from 200 on, one at most thrice the other.

    What is missing fulfils nothing.
    """
    text, width, height = row["text"], row["original_width"], row["original_height"]
    if text is None or width is None or height is None:
        return False
    short, long = sorted((width, height))
    return len(text.split()) > 2 and len(text) > 5 and short >= 200 and long / short <= 3 and english_by_fasttext(text)


def highest(rows: Sequence[Row], column: str, fraction: float) -> Collection[str]:
    """Of the rows with a score, those that reach the one at place int(N × fraction) of the descending order."""
    scores = sorted((row[column] for row in rows if is_known(row[column])), reverse=True)
    if not scores:
        return []
    threshold = scores[int(len(scores) * fraction)]
    return at_least(rows, column, threshold)


def at_least(rows: Sequence[Row], column: str, threshold: float) -> Collection[str]:
    """Rows whose score reaches the threshold; both are of 32 bits, as DataComp's tools compare them."""
    return [row["uid"] for row in rows if is_known(row[column]) and row[column] >= np.float32(threshold)]


def is_known(value: float | None) -> bool:
    """Neither missing nor not-a-number?"""
    return value is not None and not math.isnan(value)


def halves(uids: Collection[str]) -> npt.NDArray[Any]:
    """DataComp's subset file of uids."""
    return np.array(sorted((int(uid[:16], 16), int(uid[16:], 16)) for uid in uids), "u8,u8")


def row_of(number: int, **values: Any) -> Row:
    """A row that every rule keeps, but for the values given."""
    return {
        "uid": f"{number + 1:032x}", "url": f"https://example.org/{number}.jpg", "text": TEXTS[0],
        "original_width": 640, "original_height": 480, "clip_b32_similarity_score": 0.5,
        "clip_l14_similarity_score": 0.5, "face_bboxes": [], "sha256": f"{number:064x}",
    } | values  # fmt: skip


def publish(folder: Path, rows: Sequence[Row], cuts: Sequence[int] = ()) -> Dataset:
    """A folder of metadata, cut into tables whose names are 32 hex digits."""
    folder.mkdir()
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    for number, (start, stop) in enumerate(pairwise(edges)):
        table = pa.Table.from_pylist(list(rows[start:stop]), METADATA)
        pq.write_table(table, folder / f"{number:032x}.parquet")
    return Dataset(folder)


def chosen(dataset: Dataset, recipe: SelectRecipe, name: str) -> set[str]:
    """The uids that a selection keeps; its subset file must hold the same."""
    with tempfile.TemporaryDirectory() as folder:
        npy = f"{folder}/{name}.npy"
        (told,) = select([dataset], recipe, name, LocalExecutor(), npy=npy)
        published = np.load(npy)
    selection = Selection(dataset, name)
    rows = [row for shard in selection.shards for row in selection.read(shard).to_pylist()]
    kept = [row["uid"].hex() for row in rows if row["keep"]]
    assert np.array_equal(published, halves(kept))
    assert (told["rows_in"], told["rows_out"]) == (len(rows), len(kept))
    assert len(rows) == len(kept) + sum(told["dropped"].values())
    return set(kept)


def top_of(scores: Sequence[float | None], folder: Path) -> list[float | None]:
    """The scores that the shipped fraction keeps, in their order."""
    rows = [row_of(number, clip_l14_similarity_score=score) for number, score in enumerate(scores)]
    kept = chosen(publish(folder / "metadata", rows), TOP, "l14")
    assert kept == set(highest(rows, "clip_l14_similarity_score", 0.3))
    return [row["clip_l14_similarity_score"] for row in rows if row["uid"] in kept]


def clip_scores() -> st.SearchStrategy[float | None]:
    """Mostly a few values, so that ties are common; the neighbours of LAION's .28 among them."""
    at_cut = np.float32(0.28)
    near_cut = [float(at_cut), float(np.nextafter(at_cut, np.float32(0))), float(np.nextafter(at_cut, np.float32(1)))]
    few = st.sampled_from([None, float("nan"), -0.125, -0.0, 0.0, 0.25, 0.25, 0.5, *near_cut])
    return few | few | few | st.floats(-1, 1, width=32)


@st.composite
def metadata(draw: st.DrawFn) -> tuple[list[Row], list[int]]:
    """Rows, and where the tables are cut."""
    number = draw(st.integers(0, 60))
    uids = draw(st.lists(st.integers(0, 2**128 - 1), min_size=number, max_size=number, unique=True))
    side = st.sampled_from(SIDES)
    side |= st.none()
    sizes = st.tuples(side, side) | st.sampled_from([(200, 600), (601, 200), (640, 480)])
    rows = []
    for at, uid in enumerate(uids):
        width, height = draw(sizes)
        rows.append(
            row_of(at, uid=f"{uid:032x}", text=draw(st.none() | st.sampled_from(TEXTS)), original_width=width,
                   original_height=height, clip_b32_similarity_score=draw(clip_scores()),
                   clip_l14_similarity_score=draw(clip_scores()))
        )  # fmt: skip
    return rows, draw(st.lists(st.integers(0, number), max_size=2))


def agrees(found: tuple[list[Row], list[int]]) -> None:
    rows, cuts = found
    with tempfile.TemporaryDirectory() as folder:
        dataset = publish(Path(folder, "metadata"), rows, cuts)
        score(dataset, ["text", "language"], LocalExecutor())
        told = {name: chosen(dataset, recipe, name) for name, recipe in
                (("basic", BASIC), ("l14", TOP), ("laion", LAION))}  # fmt: skip
    assert told["basic"] == {row["uid"] for row in rows if is_basic(row)}
    assert told["l14"] == set(highest(rows, "clip_l14_similarity_score", 0.3))
    assert told["laion"] == set(at_least(rows, "clip_b32_similarity_score", 0.28))


@settings(max_examples=3)
@given(found=metadata())
def test_recipes_choose_what_datacomps_definitions_choose(
    found: tuple[list[Row], list[int]],
) -> None:
    agrees(found)


@pytest.mark.slow
@settings(max_examples=40)
@given(found=metadata())
def test_recipes_choose_the_same_from_many_tables(found: tuple[list[Row], list[int]]) -> None:
    agrees(found)


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        # int(10 × .3) = 3 is the place, from 0: the fourth score is the threshold, and one row more than 30 % stays
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [6, 7, 8, 9]),
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [9, 8, 7, 6]),
        ([3, 2, 1], [3]),  # int(.9) = 0
        ([4, 3, 2, 1], [4, 3]),  # int(1.2) = 1
        ([-1, -2, -3, -4], [-1, -2]),
        # what ties with the threshold stays, what is a hair below does not
        ([9, 8, 7, 6, 6, 6, 6, 1, 0, 6], [9, 8, 7, 6, 6, 6, 6, 6]),
        ([9, 9, 9, 9, 9, 1, 1, 1, 1, 1], [9, 9, 9, 9, 9]),
        ([0.5, 0.5, 0.5, float(np.nextafter(np.float32(0.5), np.float32(0)))], [0.5, 0.5, 0.5]),
        ([0.0, -0.0, -1, -1], [0.0, 0.0]),
        ([1] * 7, [1] * 7),
        ([7], [7]),
        ([], []),
        # rows without a score neither stay nor count: of ten, four have one
        ([None, 4, None, float("nan"), 3, None, 2, float("nan"), 1, None], [4, 3]),
        ([None, float("nan"), None], []),
    ],
    ids=["ascending", "descending", "three", "four", "negative", "ties at the cut", "ties above it", "a hair below",
         "zeros", "all equal", "one row", "no row", "missing", "all missing"],
)  # fmt: skip
def test_the_fraction_keeps_one_row_more_and_all_ties(
    scores: list[float | None], kept: list[float | None], tmp_path: Path
) -> None:
    assert top_of(scores, tmp_path) == kept


@pytest.mark.parametrize("number", [1, 3, 4, 9, 10, 11, 30, 59, 60])
def test_of_distinct_scores_the_fraction_keeps_its_share_and_one(number: int, tmp_path: Path) -> None:
    scores = [float(score) for score in range(number)]
    random.Random(number).shuffle(scores)
    assert len(top_of(scores, tmp_path)) == int(number * 0.3) + 1


BASIC_CASES: list[tuple[Row, str | None]] = [
    ({}, None),
    ({"text": TEXTS[1]}, None),  # two lines are one caption
    ({"text": "eine schwarze Katze sitzt auf dem alten Sofa"}, "not_english"),
    ({"text": "the black cat"}, None),
    ({"text": "the cat"}, "few_words"),
    ({"text": "photograph\u2003of\u3000me"}, None),  # white space is Unicode's
    ({"text": "I a b"}, "few_characters"),
    ({"text": "I am I"}, None),
    ({"text": " a b  c "}, None),  # white space counts as characters, not as words
    ({"text": "🐈 🐈 🐈"}, "few_characters"),  # a character is a code point
    ({"text": ""}, "no_language"),
    ({"text": None}, "no_language"),
    ({"original_width": 200, "original_height": 200}, None),
    ({"original_width": 199, "original_height": 200}, "small"),
    ({"original_width": 200, "original_height": 199}, "small"),
    ({"original_width": 600, "original_height": 200}, None),
    ({"original_width": 200, "original_height": 600}, None),
    ({"original_width": 601, "original_height": 200}, "elongated"),
    ({"original_width": 200, "original_height": 601}, "elongated"),
    ({"original_width": 2_000_000_000, "original_height": 700_000_000}, None),
    ({"original_width": 0, "original_height": 0}, "small"),
    ({"original_width": None, "original_height": None}, "no_original_width"),
]


def test_basic_keeps_what_lies_on_its_edges_and_names_what_lies_beyond(tmp_path: Path) -> None:
    rows = [row_of(number, **values) for number, (values, _) in enumerate(BASIC_CASES)]
    dataset = publish(tmp_path / "metadata", rows)
    score(dataset, ["text", "language"], LocalExecutor())
    assert chosen(dataset, BASIC, "basic") == {row["uid"] for row in rows if is_basic(row)}
    selection = Selection(dataset, "basic")
    told = [row["reason"] for shard in selection.shards for row in selection.read(shard).to_pylist()]
    assert told == [reason for _, reason in BASIC_CASES]


@pytest.mark.parametrize("recipe", [TOP, LAION], ids=["top", "threshold"])
def test_the_order_of_rows_and_tables_changes_no_choice(recipe: SelectRecipe, tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [row_of(number, clip_l14_similarity_score=rng.choice([0.25, 0.5, 0.75]),
                   clip_b32_similarity_score=rng.choice([0.25, 0.28, 0.5])) for number in range(40)]  # fmt: skip
    wanted = chosen(publish(tmp_path / "as_drawn", rows), recipe, "one")
    for number, turned in enumerate([rows[::-1], rng.sample(rows, 40)]):
        assert chosen(publish(tmp_path / f"turned_{number}", turned, [0, 7, 7, 30]), recipe, "one") == wanted
    assert 0 < len(wanted) < 40
