"""Kill -9 at random moments, run again: the same bytes as a run that nobody disturbed.

The driver, one worker of Ray, or driver and Ray all at once are killed (a node of two: test_object_store.py).
PAIRMILL_CHAOS says how often drivers are killed (5 in `make test`, 50 in `make chaos`); the seed names the moments.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.miniweb import MiniwebConfig, RunningWeb, running
from tests.servers.commands import assert_same, run, start

KILLS_A_RUN = 5
NUM_RUNS = max(1, int(os.environ.get("PAIRMILL_CHAOS", "5")) // KILLS_A_RUN)
WEB = ("--timeout-s", "2", "--total-timeout-s", "5", "--backoff-s", "0.2", "--attempts", "2")

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def web() -> Iterator[RunningWeb]:
    with running(MiniwebConfig(pages=60, port=0, dns_port=0)) as small_web:
        yield small_web


def crawl_words(web: RunningWeb, out: Path, *more: str) -> tuple[str, ...]:
    reach = ("--allow-network", "127.0.0.0/8", "--dns", web.dns)
    return ("pipeline", "crawl", *(word for seed in web.seeds for word in ("--seed", seed)), "--out", str(out),
            "--delay-s", "0.005", "--buckets", "4", "--host-pages-per-round", "20", *reach, *WEB, *more)  # fmt: skip


def download_words(web: RunningWeb, out: Path, *more: str) -> tuple[str, ...]:
    reach = ("--allow-network", "127.0.0.0/8", "--dns", web.dns)
    return ("pipeline", "download", str(out / "pairs"), "--out", str(out), "--image-size", "128", "--shard-size", "32",
            *reach, *WEB, *more)  # fmt: skip


@pytest.fixture(scope="module")
def crawled(web: RunningWeb, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("crawled") / "dataset"
    run(*crawl_words(web, out, "--local"))
    return out


@pytest.fixture(scope="module")
def undisturbed(web: RunningWeb, crawled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "dataset"
    shutil.copytree(crawled, out)
    facts = run(*download_words(web, out, "--local"))
    assert facts["rows_out"] > 50
    return out


def kill_at(words: tuple[str, ...], moment_s: float, victim: str, rng: random.Random) -> bool:
    """Start a command, kill -9 at a moment. Returns whether there was still something to kill."""
    process = start(*words)
    time.sleep(moment_s)
    workers = _workers(process) if victim == "worker" else []
    if process.poll() is not None:
        process.communicate()
        return False
    if victim == "worker":
        rng.choice(workers).kill()
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err  # the run heals by itself
        return True
    tree = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in tree:
        if victim == "machine":  # all at once, as when the power fails
            child.kill()
    process.communicate()
    psutil.wait_procs(tree, timeout=20)
    for child in tree:
        if child.is_running():
            child.kill()
    return True


def _workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Ray's actors at work for a command; waits for the first of them, or for the command's end."""
    while process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        if workers := [child for child in children if _is_worker(child)]:
            return workers
        time.sleep(0.05)
    return []


def _is_worker(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[0].startswith("ray::_Worker")  # our actor, none of Ray's own
    except (psutil.Error, IndexError):
        return False


@pytest.mark.parametrize("seed", range(NUM_RUNS))
def test_a_killed_local_run_ends_with_the_same_bytes(web, undisturbed, tmp_path, seed):
    rng = random.Random(seed)
    num_kills = 0
    for words, wanted in ((crawl_words(web, tmp_path, "--local"), 2), (download_words(web, tmp_path, "--local"), 5)):
        for _ in range(4):
            if num_kills < wanted:
                num_kills += kill_at(words, rng.uniform(0.6, 3.0), "driver", rng)
        run(*words)
    assert num_kills >= 2, "the moments came too late to disturb anything"
    assert_same(undisturbed, tmp_path)


@pytest.mark.ray
@pytest.mark.parametrize("seed", range(NUM_RUNS))
@pytest.mark.parametrize("victim", ["driver", "worker", "machine"])
def test_a_run_on_ray_that_loses_a_process_ends_with_the_same_bytes(web, crawled, undisturbed, tmp_path, victim, seed):
    rng = random.Random(f"{victim}{seed}")
    shutil.copytree(crawled, tmp_path, dirs_exist_ok=True)
    words = download_words(web, tmp_path)
    assert kill_at(words, rng.uniform(6.0, 10.0), victim, rng), "the run was over before it could be disturbed"
    run(*words)
    assert_same(undisturbed, tmp_path)


def test_other_settings_are_refused_and_change_nothing(web, undisturbed):
    from tests.servers.commands import published

    before = published(undisturbed)
    for more in (("--shard-size", "16"), ("--image-size", "64"), ("--encode-quality", "80"), ("--min-image-size", "9")):
        facts = run(*download_words(web, undisturbed, "--local", *more), code=1)
        assert more[0][2:].replace("-", "_") in facts["error"], "the error names the setting that differs"
    assert published(undisturbed) == before


@pytest.mark.ray
def test_another_number_of_workers_gives_the_same_bytes(web, undisturbed, tmp_path):
    run(*crawl_words(web, tmp_path))
    run(*download_words(web, tmp_path, "--cpus-per-worker", "0.5", "--connections", "7"))
    assert_same(undisturbed, tmp_path)
