"""A file is published whole or not at all, on a disk and on an object store."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.storage import TEMPORARY, Draft, Storage, digest_bytes

# Publishes versions of one file, each a line repeated many times, so that half a version is recognised.
WRITER = """
import sys
from infra.storage import Storage
storage = Storage(sys.argv[1])
print("ready", flush=True)
version = 0
while True:
    version += 1
    with storage.commit("file") as draft, draft.path.open("wb") as file:
        for _ in range(200):
            file.write(b"%09d\\n" % version * 20)
"""


def start_writer(folder: Path) -> subprocess.Popen[bytes]:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    return writer


def fail_in_mid_commit(storage: Storage, name: str) -> Draft:
    with suppress(ZeroDivisionError), storage.commit(name) as draft:
        draft.path.write_bytes(b"half")
        raise ZeroDivisionError
    return draft


def is_whole(data: bytes) -> bool:
    lines = data.splitlines()
    return len(lines) == 4000 and len(set(lines)) == 1


def test_a_commit_publishes_what_was_written_with_its_size_and_digest(place: str) -> None:
    storage = Storage(place)
    with storage.commit("a/b/file.bin") as draft:
        draft.path.write_bytes(b"content")
        assert not storage.exists("a/b/file.bin")
    committed = draft.result()
    assert storage.read("a/b/file.bin") == b"content"
    assert (committed.name, committed.size, committed.digest) == ("a/b/file.bin", 7, digest_bytes(b"content"))
    assert storage.digest("a/b/file.bin") == committed.digest
    assert storage.size("a/b/file.bin") == 7


def test_a_commit_that_raises_publishes_nothing_and_leaves_the_old_version(place: str) -> None:
    storage = Storage(place)
    storage.commit_bytes("old", b"old")
    for name in ("old", "new"):
        draft = fail_in_mid_commit(storage, name)
        assert not draft.path.exists()
    assert storage.sizes() == {"old": 3}
    assert storage.read("old") == b"old"


def test_a_draft_that_was_never_written_is_an_empty_file(place: str) -> None:
    storage = Storage(place)
    with storage.commit("empty") as draft:
        pass
    assert draft.result().size == 0
    assert storage.read("empty") == b""


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 1000])
def test_small_files_come_back_as_they_went_in(place: str, data: bytes) -> None:
    storage = Storage(place)
    committed = storage.commit_bytes("file", data)
    assert storage.read("file") == data
    assert (committed.size, committed.digest) == (len(data), digest_bytes(data))
    with storage.open("file") as file:
        assert file.read() == data


def test_ranges_and_many_files_are_read_as_asked(place: str) -> None:
    storage = Storage(place)
    names = ["a", "folder/b", "folder/with space é.bin"]
    for name in names:
        storage.commit_bytes(name, name.encode() * 3)
    assert storage.read("folder/b", 2, 9) == b"folder/bfolder/bfolder/b"[2:9]
    assert storage.read_many(names) == {name: name.encode() * 3 for name in names}
    assert storage.read_many(names[:1]) == {"a": b"aaa"}
    assert storage.read_many([]) == {}


def test_listings_are_sorted_and_show_what_was_just_published(place: str) -> None:
    storage = Storage(place)
    assert storage.list() == []
    assert storage.list("absent") == []
    assert storage.sizes() == {}
    for name in ("b.tar", "a.tar", "a.parquet", "ledger/x.json", ".hidden"):
        storage.commit_bytes(name, b"12")
        Storage(place).exists(name)
    assert storage.list() == ["a.parquet", "a.tar", "b.tar"]
    assert storage.list("", ".tar") == ["a.tar", "b.tar"]
    assert storage.list("ledger") == ["ledger/x.json"]
    assert list(storage.sizes()) == sorted(["b.tar", "a.tar", "a.parquet", "ledger/x.json", ".hidden"])
    assert set(storage.sizes().values()) == {2}


def test_a_stamp_changes_when_a_file_is_written_anew(place: str) -> None:
    storage = Storage(place)
    storage.commit_bytes("a", b"one")
    storage.commit_bytes("b", b"one")
    before = storage.stamps()
    time.sleep(0.02)  # a disk's clock ticks every 4 ms
    storage.commit_bytes("b", b"two")
    after = storage.stamps()
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]


def test_an_absent_file_is_told_apart(place: str) -> None:
    storage = Storage(place)
    storage.remove("absent")
    assert not storage.exists("absent")
    with pytest.raises(FileNotFoundError):
        storage.read("absent")
    with pytest.raises(FileNotFoundError):
        storage.size("absent")
    storage.commit_bytes("file", b"x")
    storage.remove("file")
    assert not storage.exists("file")
    assert storage.list() == []


def test_a_storage_survives_pickling_and_names_its_files(place: str) -> None:
    storage = pickle.loads(pickle.dumps(Storage(place + "/")))
    assert storage.url == place
    storage.commit_bytes("a/file", b"x")
    url = storage.file_url("a/file")
    assert url == f"{place}/a/file"
    assert storage.inside(url) == "a/file"
    assert storage.inside(place.replace("place", "elsewhere") + "/a/file") is None


def test_a_relative_path_means_the_same_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage("data")
    monkeypatch.chdir("/")
    assert storage.url == str(tmp_path / "data")
    assert Storage(f"file://{tmp_path}/data").url == storage.url


@settings(max_examples=40, deadline=None)
@given(versions=st.lists(st.binary(max_size=2000), min_size=1, max_size=4))
def test_the_last_commit_wins_whole(tmp_path_factory: pytest.TempPathFactory, versions: list[bytes]) -> None:
    storage = Storage(tmp_path_factory.mktemp("storage"))
    for data in versions:
        committed = storage.commit_bytes("file", data)
    assert storage.read("file") == versions[-1]
    assert committed.digest == digest_bytes(versions[-1])
    assert storage.sizes() == {"file": len(versions[-1])}


def test_a_writer_killed_at_any_moment_leaves_a_whole_version_and_an_orphan_that_is_swept(tmp_path: Path) -> None:
    chance = random.Random(0)
    storage = Storage(tmp_path)
    num_read = num_orphans = 0
    for _ in range(6):
        writer = start_writer(tmp_path)
        end = time.monotonic() + chance.uniform(0.02, 0.2)
        while time.monotonic() < end:
            if storage.exists("file"):
                assert is_whole(storage.read("file"))
                num_read += 1
        writer.kill()
        writer.wait()
        assert storage.exists("file")
        assert is_whole(storage.read("file"))
        num_orphans += storage.sweep()
        assert not (tmp_path / TEMPORARY).exists()
    assert num_read > 0
    assert num_orphans > 0, "no writer was killed in mid-commit: the test shows nothing"


def test_the_sweep_leaves_what_a_live_process_is_writing(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    writer = start_writer(tmp_path)
    try:
        with storage.commit("ours") as draft:
            draft.path.write_bytes(b"half")
            for _ in range(50):
                assert storage.sweep() == 0
                time.sleep(0.002)
            draft.path.write_bytes(b"whole")
        assert storage.read("ours") == b"whole"
        writer.send_signal(signal.SIGSTOP)
        assert storage.sweep() == 0
        writer.send_signal(signal.SIGCONT)
    finally:
        writer.kill()
        writer.wait()


def test_another_machines_orphan_is_swept_after_a_day(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    folder = tmp_path / TEMPORARY
    folder.mkdir()
    young, old = folder / "other-host~1~0~file", folder / "other-host~2~0~file"
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 100_000,) * 2)
    assert storage.sweep() == 1
    assert young.exists()
    assert storage.sizes() == {}


def test_sweeping_and_committing_at_once_disturbs_no_commit(tmp_path: Path) -> None:
    storage, stop = Storage(tmp_path), threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            storage.sweep()

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for number in range(150):
            storage.commit_bytes("file", b"%d" % number)
    finally:
        stop.set()
        sweeper.join()
    assert storage.read("file") == b"149"
