"""Scores and selections are the same bytes after any number of kills, from any number of workers, on a disk or S3."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from filters.joined import Joined
from filters.rules import SelectRecipe, load_rules
from filters.score import score
from filters.select import select
from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.executors import LocalExecutor
from infra.jobs import Executor, Resources, Step
from infra.selection import Selection, selections
from infra.tables import read_table
from tests.servers.commands import assert_same, published, run, start
from tests.servers.files import serve_folder
from tests.servers.pictures import draw_noise, store
from tests.servers.ray_nodes import kill_tree
from tests.servers.stopping import stops_at

KILLS_A_RUN = 5
NUM_RUNS = max(1, int(os.environ.get("PAIRMILL_CHAOS", "5")) // KILLS_A_RUN)

NUM_PICTURES, NUM_ROWS = 50, 240
SCORERS = ["text", "language", "image", "duplicates", "recurrence"]
RULES: list[dict[str, Any]] = [
    {"where": "words > 3", "reason": "few_words"},
    {"unique": "phash", "distance": 2, "keep": "largest"},
    {"where": "caption_count < 12 or language = 'de'", "reason": "recurring"},
    {"top": "sharpness", "fraction": 0.6},
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def rows_of(url: str) -> list[dict[str, Any]]:
    """Pictures under several addresses each, captions that recur, some of them short; every 20th is gone."""
    texts = [
        "a dog on a lawn",
        "a dog",
        "ein Hund auf einer Wiese",
        "number {n} of many pictures",
        "",
        "noise {n} \n x",
    ]
    names = [f"{n % NUM_PICTURES}.png" if n % 20 else "gone.png" for n in range(NUM_ROWS)]
    return [{"url": f"{url}/{name}?{n}", "caption": texts[n % len(texts)].format(n=n)} for n, name in enumerate(names)]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Downloaded shards that nobody has scored."""
    folder = tmp_path_factory.mktemp("pristine")
    draw_noise(folder, NUM_PICTURES)
    with serve_folder(folder) as web:
        store(Dataset(folder / "dataset"), rows_of(web.url), folder / "rows.parquet", shard_size=8)
    return folder / "dataset"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "rules.yaml"
    path.write_text(yaml.safe_dump({"rules": RULES}))
    return path


def score_words(folder: Path, *more: str) -> tuple[str, ...]:
    return ("filters", "score", str(folder), "--scorers", ",".join(SCORERS), *more)


def select_words(folder: Path, recipe: Path, *more: str) -> tuple[str, ...]:
    return ("filters", "select", str(folder), "--rules", str(recipe), "--name", "good", *more)


@pytest.fixture(scope="module")
def undisturbed(pristine: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scored and selected by the commands, one worker, no kill."""
    folder = tmp_path_factory.mktemp("undisturbed") / "dataset"
    shutil.copytree(pristine, folder)
    run(*score_words(folder, "--local"))
    facts = run(*select_words(folder, recipe, "--local"))
    assert set(facts["dropped"]) == {"few_words", "near_duplicate_phash", "recurring", "below_top_sharpness"}, facts[
        "dropped"
    ]
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "dataset")
    return tmp_path / "dataset"


def make(dataset: Dataset, executor: Executor, rules: Path) -> dict[str, Any]:
    """What the commands do, in this process."""
    score(dataset, SCORERS, executor)
    (told,) = select([dataset], load_rules(str(rules)), "good", executor)
    return told


def with_name_of(other: Path, folder: Path | str, url: str | None = None) -> None:
    """A summary tells where its dataset lies: let it lie where the other does."""
    for path in Path(folder).glob("selections/*/summary.json"):
        path.write_text(path.read_text().replace(url or str(folder), str(other)))


def assert_same_but_for_the_place(undisturbed: Path, folder: Path) -> None:
    with_name_of(undisturbed, folder)
    assert_same(undisturbed, folder)


def num_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def kill_at(words: tuple[str, ...], written: Path, number: int, delay_s: float, kill: Callable[[Any], None]) -> bool:
    """Start a command; kill -9 it when it has written so many files, and a moment more. Was there anything to kill?"""
    process = start(*words)
    while process.poll() is None and num_files(written) < number:
        time.sleep(0.002)
    time.sleep(delay_s)
    is_running = process.poll() is None
    if is_running:
        kill(process)
    process.communicate()
    return is_running


def kill_group(process: Any) -> None:
    os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(NUM_RUNS))
def test_killed_runs_end_with_the_same_bytes(undisturbed, folder, recipe, seed) -> None:
    rng = random.Random(seed)
    for words, name, num_kills in ((score_words(folder), "scores", 3), (select_words(folder, recipe), "selections", 2)):
        in_all = num_files(undisturbed / name)
        numbers = sorted(rng.sample(range(1, in_all - in_all // 8), num_kills))
        killed = [kill_at((*words, "--local"), folder / name, n, rng.uniform(0, 0.02), kill_group) for n in numbers]
        assert any(killed), "the moments came too late to disturb anything"
        run(*words, "--local")
    assert not list((folder / ".tmp").glob("*"))
    assert run("infra", "verify", folder, "--complete")["findings"] == []
    assert_same_but_for_the_place(undisturbed, folder)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(NUM_RUNS))
def test_runs_on_ray_that_lose_all_their_processes_end_with_the_same_bytes(undisturbed, folder, recipe, seed) -> None:
    number = random.Random(seed).randint(1, num_files(undisturbed / "scores") // 2)
    assert kill_at(score_words(folder), folder / "scores", number, 0, kill_tree), "the run was over too soon"
    run(*score_words(folder, "--local"))
    run(*select_words(folder, recipe, "--local"))
    assert_same_but_for_the_place(undisturbed, folder)


@pytest.mark.ray
def test_ray_gives_the_same_bytes(undisturbed, folder, recipe, ray_here) -> None:
    make(Dataset(folder), ray_here, recipe)
    assert_same_but_for_the_place(undisturbed, folder)


@pytest.mark.ray
def test_more_workers_and_smaller_jobs_give_the_same_tables(undisturbed, folder, recipe, ray_here, monkeypatch) -> None:
    monkeypatch.setattr(Step, "resources", Resources(cpus=0.5))
    monkeypatch.setattr("filters.base.Scorer.resources", Resources(cpus=0.5))
    monkeypatch.setattr(Joined.groups, "__defaults__", (40,))  # rows a job of a selection
    told = make(Dataset(folder), ray_here, recipe)
    assert len(Dataset(folder).ledger.done("select_good")) > 4
    want = Selection(Dataset(undisturbed), "good").summary
    apart = ("fingerprint", "datasets")
    assert {k: v for k, v in told.items() if k not in apart} == {k: v for k, v in want.items() if k not in apart}
    assert tables_of(folder) == tables_of(undisturbed)


def tables_of(folder: Path) -> dict[str, bytes]:
    files = {name: data for name, data in published(folder).items() if name.startswith(("scores/", "selections/"))}
    return {name: data for name, data in files.items() if not name.endswith("summary.json")}


def test_every_row_has_one_fate_and_the_summary_counts_them(undisturbed: Path) -> None:
    dataset = Dataset(undisturbed)
    selection = Selection(dataset, "good")
    told, stored = selection.summary, [
        row for shard in dataset.shards() for row in read_table(dataset.storage, f"{shard}.parquet").to_pylist()
        if row["status"] == "success"
    ]  # fmt: skip
    judged = [row for shard in selection.shards for row in selection.read(shard).to_pylist()]
    assert [row["uid"] for row in judged] == [row["uid"] for row in stored]
    assert (told["rows_in"], told["rows_out"]) == (len(stored), sum(row["keep"] for row in judged))
    reasons = Counter(row["reason"] for row in judged if not row["keep"])
    assert told["dropped"] == dict(sorted(reasons.items()))
    assert told["rows_in"] == told["rows_out"] + reasons.total()
    left = told["rows_in"]
    for rule, given in zip(told["rules"], RULES, strict=True):
        assert rule["rule"] == next(iter(given))
        assert rule["rows_in"] == left
        left -= sum(rule["dropped"].values())
        assert rule["rows_out"] == left
    assert left == told["rows_out"]
    for name in SCORERS:
        counts = [mark.counts for mark in dataset.ledger.done(f"score_{name}").values()]
        num_rows = sum(read_table(dataset.storage, table).num_rows for table in dataset.tables(f"scores/{name}"))
        assert num_rows == len(stored) == sum(c.rows_in for c in counts) == sum(c.rows_out for c in counts)


# A small dataset: every moment of its run, and an object store, which takes its time.


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards; the third is told apart, so that it can come later."""
    folder = tmp_path_factory.mktemp("small")
    draw_noise(folder, 6)
    with serve_folder(folder) as web:
        rows = [{"url": f"{web.url}/{n % 6}.png?{n}", "caption": f"some words of {n % 5}"} for n in range(11)]
        store(Dataset(folder / "dataset"), rows[:7], folder / "rows.parquet")
        shutil.copytree(folder / "dataset", folder / "two shards")
        store(Dataset(folder / "dataset"), rows[7:], folder / "more.parquet")
    return folder


SMALL_SCORERS = ["text", "image", "duplicates", "recurrence"]
SMALL = SelectRecipe(rules=[{"unique": "phash", "distance": 2}, {"top": "caption_count", "fraction": 0.5}])


def make_small(dataset: Dataset) -> None:
    score(dataset, SMALL_SCORERS, LocalExecutor())
    select([dataset], SMALL, "good", LocalExecutor())


def test_an_object_store_holds_the_same_bytes(small: Path, s3_bucket: str, tmp_path: Path) -> None:
    shutil.copytree(small / "dataset", tmp_path / "disk")
    there = Dataset(f"{s3_bucket}/dataset")
    for path in (path for path in (tmp_path / "disk").rglob("*") if path.is_file()):
        there.storage.commit_bytes(path.relative_to(tmp_path / "disk").as_posix(), path.read_bytes())
    make_small(Dataset(tmp_path / "disk"))
    make_small(there)
    for name, data in there.storage.read_many(there.storage.sizes()).items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    with_name_of(tmp_path / "disk", tmp_path / "copy", there.storage.url)
    assert_same(tmp_path / "disk", tmp_path / "copy")


@pytest.mark.parametrize("part", range(2))
def test_a_run_stopped_anywhere_and_run_again_ends_with_the_same_bytes(small: Path, tmp_path: Path, part: int) -> None:
    """And meanwhile there is no selection, or a whole one: of two shards or of all three."""
    shutil.copytree(small / "dataset", tmp_path / "undisturbed")
    make_small(Dataset(tmp_path / "undisturbed"))
    shutil.copytree(small / "two shards", tmp_path / "before")
    make_small(Dataset(tmp_path / "before"))
    moment = part
    while True:
        folder = tmp_path / "dataset"
        shutil.copytree(tmp_path / "before", folder)
        shutil.copytree(small / "dataset", folder, dirs_exist_ok=True)
        if not stops_at(moment, lambda folder=folder: make_small(Dataset(folder))):  # type: ignore[misc]
            break
        assert_none_or_whole(Dataset(folder))
        make_small(Dataset(folder))
        assert_same_but_for_the_place(tmp_path / "undisturbed", folder)
        shutil.rmtree(folder)
        moment += 2
    assert moment > 40


def test_two_datasets_selected_as_one_and_stopped_anywhere_end_with_the_same_bytes(small: Path, tmp_path: Path) -> None:
    for name, source in (("a", "dataset"), ("b", "two shards")):
        shutil.copytree(small / source, tmp_path / "scored" / name)
        score(Dataset(tmp_path / "scored" / name), SMALL_SCORERS, LocalExecutor())

    def select_both(folder: Path) -> None:
        select([Dataset(folder / "a"), Dataset(folder / "b")], SMALL, "good", LocalExecutor())

    undisturbed, folder, moment = tmp_path / "undisturbed", tmp_path / "folder", 0
    shutil.copytree(tmp_path / "scored", undisturbed)
    select_both(undisturbed)
    while True:
        shutil.copytree(tmp_path / "scored", folder)
        if not stops_at(moment, lambda: select_both(folder)):
            break
        for name in ("a", "b"):
            assert_none_or_whole(Dataset(folder / name))
        select_both(folder)
        for name in ("a", "b"):
            with_name_of(undisturbed, folder / name, str(folder))
            assert_same(undisturbed / name, folder / name)
        shutil.rmtree(folder)
        moment += 1
    assert moment > 25


def assert_none_or_whole(dataset: Dataset) -> None:
    """A reader at this moment is refused, or finds what the summary tells of."""
    if not selections(dataset):
        with pytest.raises(DatasetError, match="no finished selection"):
            Selection(dataset, "good")
        return
    selection = Selection(dataset, "good")
    judged = [row["keep"] for shard in selection.shards for row in selection.read(shard).to_pylist()]
    assert (len(judged), sum(judged)) == (selection.summary["rows_in"], selection.summary["rows_out"])
