"""Selections are what a slow reading of their rules says, row by row, however the tables are cut and ordered."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.joined import Joined
from filters.rules import SelectRecipe
from filters.select import facts, is_stale, select
from infra.dataset import Dataset
from infra.errors import DatasetError, RecipeError, UsageError
from infra.executors import LocalExecutor
from infra.jobs import RunOptions
from infra.selection import Selection
from infra.tables import write_table
from tests.filters import plain_reading as plain
from tests.filters.small_datasets import caption_scores, image_scores, make_dataset, rows_table, uid_of, verdicts, web

NAME = "law"
CAPTION_COLUMNS = {"words": pa.int32(), "clip": pa.float32()}  # table → its one column, per caption
IMAGE_COLUMNS = {"sharp": pa.float64(), "phash": pa.uint64()}
ROW_COLUMNS = {"kind": pa.string(), "width": pa.int32(), "height": pa.int32()}

# Few values, so that ties and repetitions are common; those with a fraction are exact in 32 bits.
VALUES: Mapping[str, st.SearchStrategy[Any]] = {
    "words": st.none() | st.integers(0, 4),
    "clip": st.sampled_from([None, float("nan"), -0.25, 0.0, 0.25, 0.5, 1.0]),
    "sharp": st.sampled_from([None, float("nan"), float("-inf"), float("inf"), -1.5, 0.0, 2.0, 1e300]),
    "phash": st.none() | st.integers(0, 15) | st.sampled_from([2**64 - 1, 2**63]),
    "kind": st.none() | st.sampled_from(["jpg", "png", ""]),
    "width": st.none() | st.integers(1, 3),
    "height": st.none() | st.integers(1, 3),
}
NUMBERS = ("words", "clip", "sharp", "width")
Key = tuple[bytes, str | None, int | None]


@dataclass
class Pool:
    """A drawn dataset: what each row, image and caption has, as Python values."""

    shards: list[list[bytes]]
    row_values: dict[tuple[bytes, int], dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, dict[tuple[Key, int], Any]] = field(default_factory=dict)  # column → (key, shard) → value
    captions: dict[tuple[bytes, int], list[tuple[str, int]]] = field(default_factory=dict)
    by_others: bool = False  # score tables in any order, with rows of strangers

    def values(self, uid: bytes, shard: int, source: str, n: int) -> dict[str, Any]:
        """A caption's values, missing ones and not-a-numbers as None."""
        found = dict(self.row_values[uid, shard])
        for column, cells in self.scores.items():
            key: Key = (uid, None, None) if column in IMAGE_COLUMNS else (uid, source, n)
            found[column] = cells.get((key, shard))
        return {name: None if value != value else value for name, value in found.items()}


@st.composite
def pools(draw: st.DrawFn, prefix: str = "", with_captions: bool = False) -> Pool:
    """One to three shards of up to five images; a uid may come again in another shard, some scores have no row."""
    names = st.lists(st.integers(0, 9), max_size=5, unique=True)
    shards = draw(st.lists(names, min_size=1, max_size=3).filter(lambda found: any(found)))
    pool = Pool([[uid_of(f"{prefix}{number}") for number in shard] for shard in shards])
    pool.by_others = not with_captions and draw(st.booleans())
    for number, shard in enumerate(pool.shards):
        for uid in shard:
            pool.row_values[uid, number] = {name: draw(VALUES[name]) for name in ROW_COLUMNS}
            if with_captions:
                pool.captions[uid, number] = [("blip", n) for n in range(draw(st.integers(0, 2)))]
    for column in (*CAPTION_COLUMNS, *IMAGE_COLUMNS):
        is_whole = draw(st.booleans())
        cells = pool.scores[column] = {}
        for number, shard in enumerate(pool.shards):
            for uid in shard:
                texts = [("web", 0), *pool.captions.get((uid, number), ())]
                keys: list[Key] = [(uid, None, None)] if column in IMAGE_COLUMNS else [(uid, *text) for text in texts]
                cells.update({(key, number): draw(VALUES[column]) for key in keys if is_whole or draw(st.booleans())})
    return pool


def conditions() -> st.SearchStrategy[plain.Condition]:
    """Comparisons, values in place of missing ones, and their combinations."""
    column, number = st.sampled_from(NUMBERS), st.sampled_from([0, 1, 0.25, -1.5])
    leaves = (
        st.builds(plain.compare, column, st.sampled_from(["<", "<=", ">", ">=", "=", "<>"]), number)
        | st.builds(plain.coalesced, column, number, number)
        | st.builds(plain.is_missing, column)
    )
    return st.recursive(
        leaves,
        lambda one: st.builds(plain.negated, one) | st.builds(plain.joined, st.sampled_from(["and", "or"]), one, one),
        max_leaves=4,
    )


@st.composite
def rule_lists(draw: st.DrawFn, folder: Path, pool: Sequence[Pool]) -> list[plain.Rule]:
    """One to four rules of any kind, each with a reason of its own."""
    kinds = st.sampled_from(["where", "top", "top", "unique", "unique", "near", "best_caption", "listed", "near_list"])
    return [_rule(draw, kind, f"reason_{at}", folder, pool)
            for at, kind in enumerate(draw(st.lists(kinds, min_size=1, max_size=4)))]  # fmt: skip


def _rule(draw: st.DrawFn, kind: str, reason: str, folder: Path, pool: Sequence[Pool]) -> plain.Rule:
    if kind == "where":
        return plain.where(draw(conditions()), reason)
    if kind == "top":
        fraction = draw(st.none() | st.sampled_from([0.1, 0.29, 1 / 3, 0.5, 0.9, 1.0]))
        count = draw(st.integers(1, 6)) if fraction is None else None
        return plain.top(draw(st.sampled_from(NUMBERS)), reason, fraction=fraction, count=count,
                         of=draw(st.sampled_from(["all", "survivors"])))  # fmt: skip
    if kind in ("unique", "near"):
        keep, order = draw(st.sampled_from(ORDERS))
        column = "phash" if kind == "near" else draw(st.sampled_from(["phash", "kind", "words", "width"]))
        return plain.unique(column, reason, per_image=column not in CAPTION_COLUMNS, keep=keep, order=order,
                            distance=draw(st.integers(0, 3)) if kind == "near" else None)  # fmt: skip
    if kind == "best_caption":
        at_least = draw(st.none() | st.sampled_from([0.0, 0.25]))
        return plain.best_caption(draw(st.sampled_from(NUMBERS)), reason, at_least)
    key = draw(st.sampled_from(["in", "not_in"]))
    if kind == "near_list":
        hashes = draw(st.lists(st.integers(0, 15), max_size=3))
        path = folder / f"{reason}.parquet"
        table = pa.table({"phash": pa.array(hashes, pa.uint64())})
        write_table(Dataset(folder).storage, path.name, table)
        return plain.listed(key, str(path), reason, by="phash", listed=hashes, distance=draw(st.integers(0, 2)))
    path = folder / f"{reason}.txt"
    if draw(st.booleans()):
        words = draw(st.lists(st.sampled_from(["jpg", "png", "webp"]), max_size=2))
        path.write_text("# kinds\n" + "\n".join(words))
        return plain.listed(key, str(path), reason, by="kind", listed=words)
    known = sorted({uid for one in pool for shard in one.shards for uid in shard})
    uids = draw(st.lists(st.sampled_from([*known, uid_of("stranger")]), max_size=4))
    path.write_text("\n".join(uid.hex() for uid in uids) + "\n")
    return plain.listed(key, str(path), reason, by="uid", listed=uids)


def _area(values: Mapping[str, Any]) -> Any:
    return None if None in (values["width"], values["height"]) else values["width"] * values["height"]


ORDERS = [
    ("first", lambda values: None),
    ("largest", _area),
    ("clip", lambda values: values["clip"]),
    ("-sharp", lambda values: None if values["sharp"] is None else -values["sharp"]),
]


def publish(folder: Path, pool: Pool) -> Dataset:
    """The pool as a dataset on disk."""
    rng = np.random.default_rng(0)
    names = [f"{number:05d}" for number in range(len(pool.shards))]
    rows = {}
    scores: dict[str, dict[str, pa.Table]] = {column: {} for column in pool.scores}
    captions = {}
    for number, (name, uids) in enumerate(zip(names, pool.shards, strict=True)):
        own = [pool.row_values[uid, number] for uid in uids]
        rows[name] = rows_table(uids, **{column: pa.array([row[column] for row in own], kind)
                                         for column, kind in ROW_COLUMNS.items()})  # fmt: skip
        for column, cells in pool.scores.items():
            found = [(key, value) for (key, shard), value in cells.items() if shard == number]
            if pool.by_others:
                name_of = (None, None) if column in IMAGE_COLUMNS else ("web", 0)
                found = [((uid_of("stranger"), *name_of), None), *found]
                found = [found[at] for at in rng.permutation(len(found))]
            values = pa.array([value for _, value in found], (CAPTION_COLUMNS | IMAGE_COLUMNS)[column])
            table = (image_scores([key[0] for key, _ in found], **{column: values}) if column in IMAGE_COLUMNS else
                     caption_scores([key for key, _ in found], **{column: values}))  # fmt: skip
            scores[column][name] = table
        texts = [(uid, *text) for uid in uids for text in pool.captions.get((uid, number), ())]
        captions[name] = caption_scores(texts, text=pa.array(["a text"] * len(texts), pa.string()))
    return make_dataset(folder, rows, scores, {"blip": captions} if any(pool.captions.values()) else {},
                        by_others=pool.by_others)  # fmt: skip


def check(pools: Sequence[Pool], rules: Sequence[plain.Rule], folder: Path) -> None:
    """Select, and compare every row and every count with the plain reading."""
    datasets = [publish(folder / f"data_{number}", pool) for number, pool in enumerate(pools)]
    rows: list[plain.Row] = []
    for pool in pools:
        rows += plain.candidates(pool.shards, pool.values, pool.captions, len(rows))
    wanted, funnel = plain.fates(rows, rules)
    names = ("blip",) if any(any(pool.captions.values()) for pool in pools) else ()
    recipe = SelectRecipe(captions=names, rules=tuple(dict(rule.recipe) for rule in rules))
    summaries = select(datasets, recipe, NAME, LocalExecutor())

    told = [row for dataset in datasets for row in verdicts(dataset, NAME)]
    assert told == [(row.uid, row.source, row.n, reason) for row, reason in zip(rows, wanted, strict=True)]
    assert [Selection(dataset, NAME).summary for dataset in datasets] == summaries
    for number, counts in enumerate(funnel):
        found: dict[str, int] = {}
        for summary in summaries:
            rule = summary["rules"][number]
            assert rule["rows_in"] == rule["rows_out"] + sum(rule["dropped"].values())
            found = {word: found.get(word, 0) + rule["dropped"].get(word, 0) for word in {*found, *rule["dropped"]}}
        assert found == counts
    for summary in summaries:
        assert summary["rows_in"] == summary["rows_out"] + sum(summary["dropped"].values())
        assert summary["rules"][-1]["rows_out"] == summary["rows_out"]
    assert sum(summary["rows_out"] for summary in summaries) == wanted.count(None)


@st.composite
def worlds(draw: st.DrawFn, folder: Path) -> tuple[list[Pool], list[plain.Rule]]:
    """One or two datasets and rules over them."""
    with_captions = draw(st.booleans())
    found = [draw(pools(prefix, with_captions)) for prefix in draw(st.sampled_from([("",), ("", ""), ("", "b")]))]
    if with_captions and not all(any(pool.captions.values()) for pool in found):
        for pool in found:
            pool.captions = {}
            for column in CAPTION_COLUMNS:
                pool.scores[column] = {key: value for key, value in pool.scores[column].items() if key[0][1] == "web"}
    return found, draw(rule_lists(folder, found))


def _one_world(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        found, rules = data.draw(worlds(Path(name)))
        check(found, rules, Path(name))


def recipe_of(*rules: dict[str, Any]) -> SelectRecipe:
    return SelectRecipe.parse({"rules": rules}, "test")


def test_an_image_that_falls_as_a_copy_falls_with_all_its_captions(tmp_path: Path) -> None:
    one, two = uid_of("one"), uid_of("two")
    rows = {"00000": rows_table([one, two])}
    captions = {"blip": {"00000": caption_scores([(two, "blip", 0), (two, "blip", 1)], text=["a", "b"])}}
    dataset = make_dataset(tmp_path, rows, {"phash": {"00000": image_scores([one, two], phash=[7, 7])}}, captions)
    select([dataset], SelectRecipe(captions=("blip",), rules=({"unique": "phash"},)), NAME, LocalExecutor())
    assert verdicts(dataset, NAME) == [
        (one, "web", 0, None), *[(two, *text, "duplicate_phash") for text in (("web", 0), ("blip", 0), ("blip", 1))]
    ]  # fmt: skip


def test_of_equals_one_without_a_rank_comes_after_the_lowest(tmp_path: Path) -> None:
    uids = [uid_of(number) for number in range(3)]
    scores = image_scores(uids, phash=[7, 7, 7], sharp=[None, float("-inf"), float("nan")])
    dataset = make_dataset(tmp_path, {"00000": rows_table(uids)}, {"image": {"00000": scores}})
    for rule in ({"unique": "phash", "keep": "sharp"}, {"unique": "phash", "keep": "sharp", "distance": 0}):
        select([dataset], recipe_of(rule), f"near_{len(rule)}", LocalExecutor())
        kept = [reason is None for *_, reason in verdicts(dataset, f"near_{len(rule)}")]
        assert kept == [False, True, False]


def test_rows_with_one_uid_side_by_side_are_images_of_their_own(tmp_path: Path) -> None:
    uids = [uid_of("a"), uid_of("a"), uid_of("b"), uid_of("a")]
    images, texts = image_scores(uids, phash=[1] * 4), caption_scores(web(uids), s=[1, 2, 3, 4])
    dataset = make_dataset(
        tmp_path, {"00000": rows_table(uids)}, {"image": {"00000": images}, "clip": {"00000": texts}}
    )
    for rule, kept in (({"unique": "phash"}, [True, False, False, False]), ({"best_caption": "s"}, [True] * 4)):
        (told,) = select([dataset], recipe_of(rule), next(iter(rule)), LocalExecutor())
        assert [reason is None for *_, reason in verdicts(dataset, told["name"])] == kept


def test_the_order_of_unique_is_the_same_with_and_without_a_distance(tmp_path: Path) -> None:
    uids = [uid_of(number) for number in range(4)]
    scores = image_scores(uids, phash=[7] * 4, w=[0.0, 1.0, 2.0, float("inf")], h=[0.0, 1.0, 1.0, float("inf")])
    dataset = make_dataset(tmp_path, {"00000": rows_table(uids)}, {"image": {"00000": scores}})
    for number, more in enumerate(({}, {"distance": 0}, {"distance": 2})):
        rule = {"unique": "phash", "keep": "w / h", **more}  # of the first and the last it cannot be told
        select([dataset], recipe_of(rule), f"s{number}", LocalExecutor())
        assert [reason is None for *_, reason in verdicts(dataset, f"s{number}")] == [False, False, True, False]


def test_hashes_may_be_signed(tmp_path: Path) -> None:
    uids = [uid_of(number) for number in range(3)]
    scores = image_scores(uids, phash=pa.array([-1, -2, 5], pa.int64()))
    dataset = make_dataset(tmp_path, {"00000": rows_table(uids)}, {"image": {"00000": scores}})
    write_table(Dataset(tmp_path).storage, "list.parquet", pa.table({"phash": pa.array([-1], pa.int64())}))
    for name, rule, kept in (("near", {"unique": "phash", "distance": 1}, [True, False, True]),
                             ("list", {"not_in": str(tmp_path / "list.parquet"), "by": "phash", "distance": 1},
                              [False, False, True])):  # fmt: skip
        select([dataset], recipe_of(rule), name, LocalExecutor())
        assert [reason is None for *_, reason in verdicts(dataset, name)] == kept


def small(folder: Path, **columns: Any) -> Dataset:
    """Two rows with scores."""
    uids = [uid_of(number) for number in range(2)]
    tables = {name: {"00000": image_scores(uids, **{name: values})} for name, values in columns.items()}
    return make_dataset(folder, {"00000": rows_table(uids, url=["u", "v"])}, tables)


@pytest.mark.parametrize(
    ("rule", "told"),
    [({"top": "word", "count": 1}, "word is of type string"), ({"best_caption": "word"}, "word is of type string"),
     ({"unique": "word", "distance": 2}, "64-bit hashes"), ({"unique": "number", "keep": "word"}, "keep"),
     ({"where": "word"}, "rule 1"), ({"where": "number = 'x' and url + 1 > 2"}, "rule 1")],
)  # fmt: skip
def test_a_rule_that_a_columns_type_cannot_answer_is_refused_before_anything_runs(
    tmp_path: Path, rule: dict[str, Any], told: str
) -> None:
    dataset = small(tmp_path, word=["a", "b"], number=[1, 2])
    with pytest.raises(RecipeError, match=told):
        select([dataset], recipe_of(rule), NAME, LocalExecutor())
    assert not [step for step in dataset.ledger.steps() if step.startswith("select")]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [("uids.txt", "5f0c\n", "'5f0c' is no uid"), ("hashes.txt", "abc\n", "hashes"), ("empty.npy", "", "no .npy file"),
     ("none.txt", None, "No such file")],
)  # fmt: skip
def test_a_list_that_cannot_be_read_is_refused_by_its_name(
    tmp_path: Path, name: str, text: str | None, told: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    rule = {"not_in": str(tmp_path / name)} | ({"by": "number", "distance": 2} if name == "hashes.txt" else {})
    with pytest.raises(RecipeError, match=f"{name}.*{told}"):
        select([small(tmp_path / "data", number=[1, 2])], recipe_of(rule), NAME, LocalExecutor())


def test_a_selection_is_stale_once_its_scores_have_changed_and_until_it_is_made_again(tmp_path: Path) -> None:
    recipe = recipe_of({"top": "number", "count": 1})
    select([small(tmp_path / "a", number=[1, 2])], recipe, NAME, LocalExecutor())
    assert not is_stale(Dataset(tmp_path / "a"), NAME)
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    assert not is_stale(Dataset(tmp_path / "moved"), NAME)
    dataset = small(tmp_path / "a", number=[3, 2])
    assert is_stale(dataset, NAME)
    select([dataset], recipe, NAME, LocalExecutor())
    assert not is_stale(dataset, NAME)


def test_of_datasets_selected_as_one_the_second_is_stale_when_the_first_is_selected_alone(tmp_path: Path) -> None:
    first, second = (small(tmp_path / name, number=[1, 2]) for name in "ab")
    recipe = recipe_of({"top": "number", "count": 1})
    select([first, second], recipe, NAME, LocalExecutor())
    assert not is_stale(second, NAME)
    small(tmp_path / "a", number=[1, 9])
    select([Dataset(tmp_path / "a")], recipe, NAME, LocalExecutor())
    assert is_stale(Dataset(tmp_path / "b"), NAME)


def test_a_dataset_given_twice_is_refused(tmp_path: Path) -> None:
    dataset = small(tmp_path, number=[1, 2])
    with pytest.raises(UsageError, match="2 times"):
        select([dataset, Dataset(f"{tmp_path}/")], recipe_of({"unique": "number"}), NAME, LocalExecutor())


def test_a_word_that_a_rule_gives_for_two_columns_is_counted_for_both(tmp_path: Path) -> None:
    uids = [uid_of(number) for number in range(3)]
    tables = {name: {"00000": image_scores(uids, words=values)} for name, values in
              (("x", [None, 5, 5]), ("y", [5, None, 5]))}  # fmt: skip
    dataset = make_dataset(tmp_path, {"00000": rows_table(uids)}, tables)
    rules = ({"where": "x.words > 1 and y.words > 1"}, {"where": "x.words < 9", "reason": "many"})
    (told,) = select([dataset], recipe_of(*rules), NAME, LocalExecutor())
    assert [(rule["rows_in"], rule["rows_out"], rule["dropped"]) for rule in told["rules"]] == [
        (3, 1, {"no_words": 2}), (1, 1, {})
    ]  # fmt: skip


def test_what_a_limit_leaves_is_told_and_is_no_selection(tmp_path: Path) -> None:
    uids = [uid_of(number) for number in range(4)]
    shards = {f"{number:05d}": [uid] for number, uid in enumerate(uids)}
    dataset = make_dataset(
        tmp_path, {shard: rows_table(own) for shard, own in shards.items()},
        {"n": {shard: image_scores(own, number=[1]) for shard, own in shards.items()}},
    )  # fmt: skip
    recipe = recipe_of({"where": "number > 0"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Joined.groups, "__defaults__", (1,))  # a job for each shard
        (told,) = select([dataset], recipe, NAME, LocalExecutor(), options=RunOptions(1, 1, 0.0))
        assert (told["rows_in"], told["waiting"]) == (1, 3)
        assert facts([told])["paths"] == []
        with pytest.raises(DatasetError, match="no finished selection"):
            Selection(dataset, NAME)
        (told,) = select([dataset], recipe, NAME, LocalExecutor())
    assert (told["rows_in"], "waiting" in told) == (4, False)


@settings(max_examples=4)
@given(data=st.data())
def test_a_selection_is_what_a_slow_reading_of_its_rules_says(data: st.DataObject) -> None:
    _one_world(data)


@pytest.mark.slow
@settings(max_examples=40)
@given(data=st.data())
def test_many_selections_are_what_a_slow_reading_of_their_rules_says(data: st.DataObject) -> None:
    _one_world(data)
