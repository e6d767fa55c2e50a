"""Captions and their verdicts: how they were made is told, what is done stays, and no kill changes a byte."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from filters.capfilt import Itm
from filters.score import score
from infra.dataset import Dataset
from infra.errors import FingerprintError
from infra.executors import LocalExecutor
from infra.jobs import RunOptions
from infra.tables import open_table, read_table
from tests.filters.stored_shards import Sample, picture, store
from tests.servers.commands import assert_same, published, run, start
from tests.servers.ray_nodes import kill_tree
from tests.servers.stopping import stops_at, stops_before
from tests.training.models.blips import CLIP, SIZES, blip
from tests.training.untrained import checkpoint_of
from training.models.clip import ClipSettings
from training.models.clip_spec import build

KILLS_A_RUN = 5
NUM_RUNS = max(1, int(os.environ.get("PAIRMILL_CHAOS", "5")) // KILLS_A_RUN)
ALONE = {"OMP_NUM_THREADS": "1"}  # as many threads as a worker of Ray has: another number sums in another order
ENTRIES = {"captioner": "blip.caption", "other": "blip.caption", "filter": "blip.retrieval"}
SMALL = {
    "00000": [Sample(f"image {n}", f"a photo, number {n}", picture(n)) for n in range(4)],
    "00001": [Sample("cut", "a dog", picture(0)[:400]), Sample("last", None, picture(9))],
}
BOTH = ("caption", "itm")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, entry) in enumerate(ENTRIES.items()):
        checkpoint_of(blip(entry, seed, 3.0, **SIZES), folder / name, entry)
    checkpoint_of(build(ClipSettings(arch=CLIP)), folder / "clip", "clip")  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def small(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards that nobody has scored, and beside them the same with captions and verdicts."""
    folder = tmp_path_factory.mktemp("small")
    store(folder / "pristine", SMALL)
    shutil.copytree(folder / "pristine", folder / "done")
    make(Dataset(folder / "done"), models)
    return folder


@pytest.fixture
def pristine(small: Path, tmp_path: Path) -> Dataset:
    return Dataset(shutil.copytree(small / "pristine", tmp_path / "dataset"))


@pytest.fixture
def done(small: Path, tmp_path: Path) -> Dataset:
    return Dataset(shutil.copytree(small / "done", tmp_path / "done"))


def settings_of(models: Path, captioner: str = "captioner") -> list[str]:
    """Words for --set."""
    places = {"caption": captioner, "itm": "filter"}
    chosen = [f"{name}.checkpoint={models}/{place}/step-0000000003" for name, place in places.items()]
    return [*chosen, "caption.num=2"]


def make(
    dataset: Dataset, models: Path, *scorers: str, captioner: str = "captioner", more: Any = (), **others: Any
) -> None:  # fmt: skip
    """What the command does, in this process."""
    names = scorers or BOTH
    settings = [word for word in settings_of(models, captioner) if word.partition(".")[0] in names]
    score(dataset, names, LocalExecutor(), settings=[*settings, *more], **others)


def tables_of(dataset: Dataset | Path) -> dict[str, bytes]:
    folder = Path(dataset.storage.url) if isinstance(dataset, Dataset) else dataset
    return {name: data for name, data in published(folder).items() if name.startswith(("captions/", "scores/"))}


def changed(dataset: Dataset, before: dict[str, str]) -> set[str]:
    """Tables that were written since."""
    stamps = dataset.storage.stamps()
    return {name for name in tables_of(dataset) if stamps[name] != before.get(name)}


# How they were made.


def test_a_caption_table_says_by_what_weights_and_how_and_nothing_of_where(small, models) -> None:
    dataset = Dataset(small / "done")
    for shard in SMALL:
        metadata = open_table(dataset.storage, f"captions/blip/{shard}.parquet").schema_arrow.metadata
        told = json.loads(metadata[b"pairmill.made"])["by"]
        assert told["scorer"] == "filters.capfilt:Captions"
        assert len(told["weights"]) == 32
        how = {"method": "sample", "num": 2, "top_p": 0.9, "seed": 0, "repetition_penalty": 1.1}
        assert how.items() <= told.items()
        assert told["prompt"] == "a picture of "
        assert told["ops"] == "decode|squash(32)|normalize(clip)"
        assert not {"checkpoint", "vocab", "device", "batch", "threads", "num_gpus"} & set(told)
        assert str(models).encode() not in metadata[b"pairmill.made"]
    assert not [name for name, data in published(small / "done").items() if str(models).encode() in data]


def test_a_checkpoint_that_was_moved_writes_the_same_bytes(small, pristine, models, tmp_path, monkeypatch) -> None:
    shutil.copytree(models, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    make(pristine, Path("moved"))
    assert tables_of(pristine) == tables_of(small / "done")


def test_another_checkpoint_is_refused_under_the_same_name_and_has_its_own_under_another(done, models) -> None:
    before = published(Path(done.storage.url))
    with pytest.raises(FingerprintError, match=r"captions_blip was done here.*weights: .* then, .* Give another --as"):
        make(done, models, captioner="other")
    assert published(Path(done.storage.url)) == before
    make(done, models, "caption", captioner="other", name="second")
    rows = [row for name in done.tables("captions/second") for row in read_table(done.storage, name).to_pylist()]
    assert {row["source"] for row in rows} == {"second"}
    first = read_table(done.storage, "captions/blip/00000.parquet")["text"].to_pylist()
    assert {row["text"] for row in rows}.isdisjoint(first)
    with pytest.raises(FingerprintError, match=r"captions: \['blip'\] then, \['blip', 'second'\] now"):
        make(done, models, "itm", captions=["blip", "second"])
    make(done, models, "itm", captions=["blip", "second"], name="of_both")
    judged = read_table(done.storage, "scores/of_both/00000.parquet")
    assert judged["source"].to_pylist() == ["web", "blip", "blip", "second", "second"] * len(SMALL["00000"])


@pytest.mark.parametrize("word", ["caption.seed=1", "caption.top_p=0.5", "caption.prompt=a", "itm.dtype=bfloat16"])
def test_what_changes_a_caption_or_a_verdict_is_refused_under_the_same_name(done, models, word) -> None:
    before = done.storage.stamps()
    with pytest.raises(FingerprintError, match=word.partition(".")[2].partition("=")[0]):
        make(done, models, more=[word])
    assert done.storage.stamps() == before


# What is done.


def test_a_second_run_writes_nothing_and_where_and_how_fast_it_runs_is_no_other_run(done, models) -> None:
    before = done.storage.stamps()
    make(done, models)
    given = [f"{name}.{option}" for name in BOTH for option in ("batch=3", "threads=2", "device=cpu", "num_gpus=0.5")]
    make(done, models, more=given)
    make(done, models, "itm", captions=["blip"])
    assert done.storage.stamps() == before


def test_captions_first_and_verdicts_later_are_those_of_one_command(small, pristine, models) -> None:
    make(pristine, models, "caption")
    make(pristine, models, "itm", captions=["blip"])
    assert_same(small / "done", Path(pristine.storage.url))


def test_captions_that_the_command_writes_may_be_named(small, pristine, models) -> None:
    make(pristine, models, captions=["blip"])
    assert_same(small / "done", Path(pristine.storage.url))


def test_a_limited_run_is_gone_on_with_shard_by_shard(small, pristine, models) -> None:
    make(pristine, models, options=RunOptions(limit=1))
    assert set(tables_of(pristine)) == {"captions/blip/00000.parquet", "scores/itm/00000.parquet"}
    make(pristine, models)
    assert_same(small / "done", Path(pristine.storage.url))


def test_a_shard_whose_rows_changed_is_captioned_and_judged_anew_and_only_that(done, models) -> None:
    before = done.storage.stamps()
    store(done.storage.url, {"00001": [Sample("new", "a cat", picture(20)), *SMALL["00001"]]})
    make(done, models)
    assert changed(done, before) == {"captions/blip/00001.parquet", "scores/itm/00001.parquet"}
    assert read_table(done.storage, "scores/itm/00001.parquet").num_rows == 3 + 2 * 2  # one of the three is cut


def test_captions_that_were_made_anew_are_judged_anew(done, models) -> None:
    before = done.storage.stamps()
    for name in ("captions/blip/00000.parquet", "ledger/done/captions_blip/00000.json"):
        done.storage.remove(name)
    make(done, models, "caption", captioner="captioner")
    make(done, models)
    assert changed(done, before) == {"captions/blip/00000.parquet"}  # the same bytes: nothing to judge


# Kills.


@pytest.mark.parametrize("part", range(2))
def test_a_run_stopped_anywhere_and_run_again_ends_with_the_same_bytes(small, models, tmp_path, part) -> None:
    moment = part
    while True:
        folder = shutil.copytree(small / "pristine", tmp_path / f"{moment}")
        if not stops_at(moment, lambda folder=folder: make(Dataset(folder), models)):  # type: ignore[misc]
            break
        make(Dataset(folder), models)
        assert_same(small / "done", folder)
        moment += 2
    assert moment > 20


def test_a_scorer_left_alone_by_a_kill_sees_the_batches_that_it_would_have_seen(pristine, models, monkeypatch) -> None:
    """Else its numbers would differ from those of an undisturbed run, by rounding."""
    sizes: list[int] = []
    answer = Itm.answer

    def telling(self: Itm, batch: Any, *others: Any) -> Any:
        sizes.append(len(batch.pairs))
        return answer(self, batch, *others)

    monkeypatch.setattr(Itm, "answer", telling)
    monkeypatch.setattr("filters.score_steps.BATCH", 1)
    given = ["itm.batch=1", "clip_score.batch=3", f"clip_score.model={models}/clip/step-0000000003"]

    def both() -> None:
        make(pristine, models, "clip_score", "itm", more=given)

    assert stops_before("ledger/done/score_itm/00000.json", both)
    undisturbed = sizes.copy()
    sizes.clear()
    both()
    assert sizes[: len(undisturbed)] == undisturbed == [3, 1]


@pytest.fixture(scope="module")
def large(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve shards that nobody has scored, and beside them the same after one undisturbed command."""
    folder = tmp_path_factory.mktemp("large")
    shards: dict[str, list[Sample]] = {}
    for s in range(12):
        shards[f"{s:05d}"] = [Sample(f"{s} {n}", f"a photo of {n} dogs", picture(20 * s + n)) for n in range(20)]
        shards[f"{s:05d}"][3] = Sample(f"cut {s}", "a dog", picture(3)[:400])
    store(folder / "pristine", shards)
    shutil.copytree(folder / "pristine", folder / "done")
    facts = run(*command(folder / "done", models), "--local", **ALONE)
    assert facts["dropped"] == {"unreadable_image": 8 * len(shards)}
    return folder


@pytest.fixture
def folder(large: Path, tmp_path: Path) -> Path:
    return shutil.copytree(large / "pristine", tmp_path / "dataset")


def command(folder: Path, models: Path) -> tuple[str, ...]:
    settings = [part for word in [*settings_of(models), "caption.num=8"] for part in ("--set", word)]
    return ("filters", "score", str(folder), "--scorers", "caption,itm", *settings)


def num_tables(folder: Path) -> int:
    return sum(len(list(folder.glob(f"{name}/*/*.parquet"))) for name in ("captions", "scores"))


def disturb(process: Any, folder: Path, number: int, delay_s: float, kill: Callable[[Any], None]) -> bool:
    """Kill when so many tables are there, and a moment more. Was it still at work?"""
    while process.poll() is None and num_tables(folder) < number:
        time.sleep(0.002)
    time.sleep(delay_s)
    is_running = process.poll() is None
    if is_running:
        kill(process)
    return is_running


def kill_group(process: Any) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def kill_worker(process: Any) -> None:
    """The process of a worker, which holds the model."""
    children = psutil.Process(process.pid).children(recursive=True)
    next(child for child in children if "ray::_Worker" in " ".join(child.cmdline())).kill()


def assert_ends_alike(large: Path, folder: Path) -> None:
    assert not list((folder / ".tmp").glob("*"))
    assert tables_of(folder) == tables_of(large / "done")
    assert_same(large / "done", folder)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(NUM_RUNS))
def test_killed_commands_end_with_the_same_bytes(large, folder, models, seed) -> None:
    rng = random.Random(seed)
    killed = []
    for _ in range(KILLS_A_RUN):
        number = num_tables(folder) + rng.randint(1, 3)  # of 24
        process = start(*command(folder, models), "--local", **ALONE)
        killed.append(disturb(process, folder, number, rng.uniform(0, 0.05), kill_group))
        process.communicate()
    assert sum(killed) >= 4, "the moments came too late to disturb anything"
    run(*command(folder, models), "--local", **ALONE)
    assert_ends_alike(large, folder)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [1, 13])  # while captions are written, and while they are judged
def test_a_run_on_ray_that_loses_a_worker_and_its_model_ends_with_the_same_bytes(large, folder, models, number) -> None:
    process = start(*command(folder, models), "--json", **ALONE)
    try:
        assert disturb(process, folder, number, 0, kill_worker), "the run was over too soon"
        out, err = process.communicate(timeout=240)
    finally:
        kill_tree(process)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["quarantined"] == []
    assert_ends_alike(large, folder)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_run_on_ray_that_loses_its_driver_is_gone_on_with_to_the_same_bytes(large, folder, models) -> None:
    """Its workers may live on for a while, and write."""
    process = start(*command(folder, models), **ALONE)
    left: list[psutil.Process] = []

    def kill_driver(process: Any) -> None:
        left.extend(psutil.Process(process.pid).children(recursive=True))
        process.kill()

    try:
        assert disturb(process, folder, 3, 0, kill_driver), "the run was over too soon"
        process.wait(timeout=60)
        run(*command(folder, models), "--local", **ALONE)
    finally:
        for child in left:
            with suppress(psutil.NoSuchProcess):
                child.kill()
    assert_ends_alike(large, folder)
