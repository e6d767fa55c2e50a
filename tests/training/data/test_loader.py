"""The loader's laws: each unit once, and the same sequence from any number of ranks, workers and restarts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from torch import Tensor

from infra.errors import DatasetError, FingerprintError, RecipeError
from tests.training.shards import make_selection, make_shards, uid_of
from training.data.loader import DataSettings, Loader
from training.ranks import Ranks
from training.spec import Batch

ROOT = Path(__file__).resolve().parents[3]

BATCH = 12  # divides among 1, 2, 3 and 4 ranks
NUM = 155
OPS = "decode|random_resized_crop(8, 0.3)|flip|normalize(clip)"


class Numbers:
    """The number at the end of a caption."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[int(text.rpartition(" ")[2] or -1)] if text else [-1] for text in texts])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    dataset = make_shards(folder, [30, 1, 0, 64, 60])
    make_selection(dataset, "few", lambda uid, *_: uid in {uid_of(5), uid_of(33)})
    return folder


def loader(folder: Path, ranks: Ranks = Ranks(), num_micro: int = 1, **settings: Any) -> Loader:
    datasets = settings.pop("datasets", [{"path": str(folder), "selection": settings.pop("selection", None)}])
    seed = settings.pop("seed", 3)
    values = {"batch": BATCH, "lanes": BATCH, "window": 7, "workers": 0, **settings}
    return Loader(DataSettings(datasets=datasets, **values), OPS, Numbers(), seed, ranks=ranks, num_micro=num_micro)


def rows(batches: Generator[Batch], num_steps: int, num_micro: int = 1) -> list[list[tuple[bytes, int, bytes]]]:
    """Of each step: uid, token and pixels of every row."""
    parts = islice(batches, num_steps * num_micro)
    told = [
        [(uid, int(batch["text"][row]), batch["image"][row].numpy().tobytes()) for row, uid in enumerate(batch.uids)]
        for batch in parts
    ]
    batches.close()
    return [list(chain(*told[at : at + num_micro])) for at in range(0, len(told), num_micro)]


def all_ranks(
    folder: Path, num: int, num_steps: int, start: int = 0, **settings: Any
) -> list[list[tuple[bytes, int, bytes]]]:
    """Steps as all ranks see them, laid side by side."""
    each = [rows(loader(folder, Ranks(num, rank), **settings).batches(start), num_steps) for rank in range(num)]
    return [list(chain(*(of_rank[step] for of_rank in each))) for step in range(num_steps)]


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[list[tuple[bytes, int, bytes]]]:
    """Two epochs and more, by one rank that decodes by itself."""
    return all_ranks(folder, 1, 2 * NUM // BATCH + 2)


def test_each_pair_comes_once_an_epoch_with_its_own_caption_and_picture(folder: Path, alone) -> None:
    samples = [sample for part in islice(loader(folder).plan(0), len(alone)) for sample in part]
    assert [sample.uid for sample in samples] == [row[0] for step in alone for row in step]
    for epoch in (0, 1):
        assert Counter(sample.uid for sample in samples if sample.epoch == epoch) == dict.fromkeys(
            map(uid_of, range(NUM)), 1
        )
    assert all(uid == uid_of(number) for step in alone for uid, number, _ in step)


@pytest.mark.slow
@pytest.mark.parametrize("workers", range(4))
@pytest.mark.parametrize("num", range(1, 5))
def test_any_number_of_ranks_and_workers_gives_the_same_steps(folder: Path, alone, num: int, workers: int) -> None:
    assert all_ranks(folder, num, 6, workers=workers) == alone[:6]


@limits(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 20), st.sampled_from([1, 2, 3, 4]))
def test_a_run_that_stops_anywhere_goes_on_with_any_number_of_ranks(folder: Path, alone, step: int, num: int) -> None:
    state = loader(folder).state(step * BATCH)
    start = {loader(folder, Ranks(num, rank)).resume(state) for rank in range(num)}
    assert start == {step * BATCH}
    assert all_ranks(folder, num, 3, start.pop()) == alone[step : step + 3]


def test_a_selection_of_one_percent_obeys_the_same_laws(folder: Path) -> None:
    whole = all_ranks(folder, 1, 5, selection="few")
    for num in (2, 3, 4):
        assert all_ranks(folder, num, 5, selection="few") == whole
        assert all_ranks(folder, num, 2, 3 * BATCH, selection="few") == whole[3:]
    seen = Counter(row[0] for step in whole for row in step)
    assert seen == {uid_of(5): 30, uid_of(33): 30}


def test_micro_batches_are_parts_of_the_same_step(folder: Path, alone) -> None:
    for num_micro in (2, 3):
        told = rows(loader(folder, num_micro=num_micro).batches(), 4, num_micro)
        assert told == alone[:4]


def test_other_seeds_give_other_orders_and_epochs_other_pictures(folder: Path, alone) -> None:
    other = all_ranks(folder, 1, 2, seed=4)
    assert [[row[0] for row in step] for step in other] != [[row[0] for row in step] for step in alone[:2]]
    pictures: dict[bytes, set[bytes]] = {}
    for step in alone:
        for uid, _, image in step:
            pictures.setdefault(uid, set()).add(image)
    assert max(map(len, pictures.values())) == 1  # of one colour each: no crop changes them


def test_a_unit_of_captions_has_every_caption_once_and_of_images_one_of_them(tmp_path: Path) -> None:
    texts = {number: [f"again {1000 + number}", f"again {2000 + number}"] for number in range(0, 24, 2)}
    make_shards(tmp_path, [24], more={"blip": texts})
    both = [{"path": str(tmp_path), "captions": ["web", "blip"]}]
    every = [row for step in all_ranks(tmp_path, 1, 4, datasets=both, unit="caption") for row in step]
    assert sorted(number for _, number, _ in every) == sorted(
        [*range(24), *(n + 1000 for n in texts), *(n + 2000 for n in texts)]
    )
    drawn = [row for step in all_ranks(tmp_path, 1, 40, datasets=both) for row in step]
    told: dict[bytes, Counter[int]] = {}
    for uid, number, _ in drawn:
        told.setdefault(uid, Counter())[number] += 1
    assert {sum(counts.values()) for counts in told.values()} == {20}  # forty steps are twenty epochs
    for number in range(24):
        assert set(told[uid_of(number)]) == {number, *((1000 + number, 2000 + number) if number in texts else ())}


def test_what_is_broken_keeps_its_place_as_a_masked_row_and_is_counted(tmp_path: Path, folder: Path) -> None:
    sound = make_shards(tmp_path / "sound", [20, 20])
    broken = make_shards(tmp_path / "broken", [20, 20], images={3: b"no picture", 9: b"\x89PNG\r\n\x1a\n"})
    tar = Path(broken.storage.url) / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:6000])
    uids = [[row[0] for row in step] for step in all_ranks(tmp_path / "sound", 1, 3)]
    made = loader(tmp_path / "broken")
    batches = list(islice(made.batches(), 3))
    assert [batch.uids for batch in batches] == uids
    masked = {
        uid
        for batch in batches
        for uid, is_valid in zip(batch.uids, batch["valid"].tolist(), strict=True)
        if not is_valid
    }
    seen = {uid for step in uids for uid in step}
    assert {uid_of(3), uid_of(9)} & seen <= masked
    assert not masked & {uid_of(number) for number in range(20)} - {uid_of(3), uid_of(9)}
    assert masked - {uid_of(3), uid_of(9)}
    assert sum(made.broken.values()) == len(masked)
    assert made.broken["tar_cut_short"] == len(masked - {uid_of(3), uid_of(9)})
    (Path(sound.storage.url) / "00000.tar").unlink()
    gone = loader(tmp_path / "sound")
    list(islice(gone.batches(), 3))
    assert gone.broken == {"no_tar": sum(uid in {uid_of(n) for n in range(20)} for step in uids for uid in step)}


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_worker_that_dies_is_an_error_and_no_hang(folder: Path) -> None:
    made = loader(folder, workers=1)
    made._reader._tokenizer = die
    with pytest.raises(RuntimeError, match="worker"):
        next(made.batches())


def test_workers_end_with_a_trainer_that_is_killed(folder: Path) -> None:
    program = (
        "import multiprocessing, sys, time\nfrom pathlib import Path\n"
        "from tests.training.data.test_loader import loader\n"
        "batches = loader(Path(sys.argv[1]), workers=2).batches()\nnext(batches)\n"
        "print(*(each.pid for each in multiprocessing.active_children()), flush=True)\ntime.sleep(60)\n"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdout is not None
    workers = [Path("/proc", pid) for pid in trainer.stdout.readline().split()]
    assert len(workers) == 2
    assert all(worker.exists() for worker in workers)
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    deadline = time.monotonic() + 20
    while any(worker.exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(worker.exists() for worker in workers)


def die(texts: Sequence[str]) -> Tensor:
    """As the kernel ends a process that takes too much memory."""
    os._exit(9)


def sleep(texts: Sequence[str]) -> Tensor:
    """As a storage that does not answer."""
    time.sleep(60)
    raise AssertionError


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_worker_that_hangs_is_told_after_the_timeout(folder: Path) -> None:
    made = loader(folder, workers=1, timeout_s=5)
    made._reader._tokenizer = sleep
    with pytest.raises(DatasetError, match="no batch came"):
        next(made.batches())


def test_datasets_are_mixed_by_weight(tmp_path: Path) -> None:
    for name, first in (("a", 40), ("b", 40)):
        make_shards(tmp_path / name, [10] * (first // 10))
    two = [{"path": str(tmp_path / "a"), "weight": 3.0}, {"path": str(tmp_path / "b"), "weight": 1.0}]
    with pytest.raises(RecipeError, match="replacement"):
        loader(tmp_path, datasets=two)
    made = loader(tmp_path, datasets=two, replacement=True)
    drawn = Counter(sample.source for batch in islice(made.plan(0), 300) for sample in batch)
    assert 0.70 < drawn[0] / drawn.total() < 0.80  # 3,600 draws, in shards of ten


@pytest.mark.parametrize(
    ("settings", "num", "words"),
    [
        ({"batch": 10, "lanes": 12}, 1, "data.batch=10"),
        ({"lanes": 6}, 4, "lanes=6"),
        ({"num_micro": 5}, 1, "micro-batches 5"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_numbers(folder: Path, settings, num: int, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        loader(folder, Ranks(num, 0), **settings)


def test_a_state_of_other_data_or_another_order_is_refused(folder: Path, tmp_path: Path) -> None:
    state = loader(folder).state(24)
    assert loader(folder, Ranks(3, 1), workers=2).resume(state) == 24
    make_shards(tmp_path, [30, 1, 0, 64, 59])
    others = [loader(folder, seed=4), loader(folder, window=8), loader(folder, selection="few"), loader(tmp_path),
              loader(folder, lanes=6), loader(folder, unit="caption")]  # fmt: skip
    for other in others:
        with pytest.raises(FingerprintError, match="another order"):
            other.resume(state)
