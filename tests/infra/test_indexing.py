"""Foreign folders get an index: every member at its place, and the uid that the folder itself gives, if any."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.__main__ import run_main
from infra.dataset import Dataset
from infra.errors import UsageError
from infra.executors import LocalExecutor, RayExecutor
from infra.indexing import index_dataset
from infra.sample import pair_uid
from infra.shards import INDEX_SCHEMA, read_at
from infra.tables import read_table, write_table
from infra.verify import Verify

UID = "00112233445566778899aabbccddeeff"


def write_tar(dataset: Dataset, shard: str, members: dict[str, bytes]) -> None:
    """As others write them: by tarfile, with owners and clocks."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(data), 1_600_000_000, "someone"
            tar.addfile(info, io.BytesIO(data))
    dataset.storage.commit_bytes(f"{shard}.tar", buffer.getvalue())


def sample(key: str, text: bytes = b"a cat", facts: Any = None) -> dict[str, bytes]:
    return {
        f"{key}.jpg": b"\xff\xd8" + key.encode() * 99,
        f"{key}.txt": text,
        f"{key}.json": json.dumps(facts or {}).encode(),
    }


def index_rows(dataset: Dataset, shard: str = "00000") -> list[dict[str, Any]]:
    table = read_table(dataset.storage, f"index/{shard}.parquet")
    assert table.schema == INDEX_SCHEMA
    return table.to_pylist()


def index_here(dataset: Dataset, **more: Any) -> Any:
    return index_dataset(dataset, LocalExecutor(), **more)


def test_every_member_is_found_at_its_place(place: str) -> None:
    dataset = Dataset(place)
    members = {**sample("000000000"), **sample("000000001"), "000000002.cls": b"3", "000000002.webp": b"RIFF"}
    write_tar(dataset, "00000", members)
    result = index_here(dataset)
    with dataset.storage.open("00000.tar") as file:
        found = {row["member"]: read_at(file, row["offset"], row["size"]) for row in index_rows(dataset)}
    assert found == members
    assert result.counts.rows_out == 3
    assert json.loads(dataset.storage.read("sizes.json")) == {"00000.tar": 3}
    assert list(Verify(dataset).findings()) == []


@pytest.mark.parametrize(
    ("facts", "row", "expected", "origin"),
    [
        ({"uid": UID, "url": "u"}, {"uid": "f" * 32}, bytes.fromhex(UID), "json"),  # DataComp
        ({"url": "u"}, {"uid": UID}, bytes.fromhex(UID), "table"),
        ({"uid": "17"}, {"uid": bytes.fromhex(UID)}, bytes.fromhex(UID), "table"),
        ({"url": "u", "caption": "c"}, {}, pair_uid("u", "c"), "made"),  # img2dataset
        ({"url": "u"}, {"url": "other"}, pair_uid("u", "a cat"), "made"),
        ({}, {"url": "u", "caption": "c"}, pair_uid("u", "c"), "made"),
        ({}, {}, pair_uid("00000.tar#0", "a cat"), "made"),  # CLIP_benchmark
        ({"uid": 7, "url": ["no url"], "caption": {}}, {}, pair_uid("00000.tar#0", "a cat"), "made"),
        ([1, 2], {}, pair_uid("00000.tar#0", "a cat"), "made"),
    ],
)
def test_a_uid_is_the_samples_own_then_the_tables_then_made(
    tmp_path: Path, facts: Any, row: dict[str, Any], expected: bytes, origin: str
) -> None:
    dataset = Dataset(tmp_path)
    write_tar(dataset, "00000", sample("0", facts=facts))
    if row:
        write_table(dataset.storage, "00000.parquet", pa.Table.from_pylist([{"key": "0", **row}]))
    result = index_here(dataset)
    assert {one["uid"] for one in index_rows(dataset)} == {expected}
    assert result.counts.extra[f"uid_from_{origin}"] == 1


def test_bad_members_do_not_stop_an_index(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    write_tar(
        dataset, "00000", {"0.json": b"{", "0.txt": b"\xff\xfe", "0.jpg": b"", "1.json": b"[" * 100_000, "1.txt": b""}
    )
    result = index_here(dataset)
    assert [row["member"] for row in index_rows(dataset)] == ["0.json", "0.txt", "0.jpg", "1.json", "1.txt"]
    assert result.counts.extra["without_image"] == 1


def test_samples_of_one_class_without_urls_are_told_apart(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    for shard in ("0", "1"):
        write_tar(dataset, shard, {"s0.cls": b"1", "s0.webp": b"x", "s1.cls": b"1", "s1.webp": b"y"})
    index_here(dataset)
    assert len({row["uid"] for shard in ("0", "1") for row in index_rows(dataset, shard)}) == 4


def test_a_broken_tar_is_quarantined_and_the_others_are_indexed(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    for shard in ("00000", "00001", "00002"):
        write_tar(dataset, shard, sample(shard))
    whole = dataset.storage.read("00001.tar")
    dataset.storage.commit_bytes("00001.tar", whole[:700])
    assert run_main(["index", str(tmp_path), "--local", "--shard-attempts", "1"]) == 1
    assert dataset.tables("index") == ["index/00000.parquet", "index/00002.parquet"]
    assert run_main(["index", str(tmp_path), "--local", "--max-quarantined", "0.5"]) == 0
    dataset.storage.commit_bytes("00001.tar", whole)
    result = index_here(dataset)
    assert result.num_run == 1
    assert list(Verify(dataset, complete=True).findings()) == []


def test_an_index_is_resumed_and_a_changed_tar_indexed_anew(tmp_path: Path) -> None:
    from infra.jobs import RunOptions

    dataset = Dataset(tmp_path)
    for shard in ("00000", "00001", "00002"):
        write_tar(dataset, shard, sample(shard))
    dataset.storage.commit_bytes("sizes.json", b'{"00002.tar": 1}')
    assert index_here(dataset, options=RunOptions(limit=2)).num_run == 2
    assert json.loads(dataset.storage.read("sizes.json")) == {"00000.tar": 1, "00001.tar": 1, "00002.tar": 1}
    assert index_here(dataset).num_run == 1
    assert index_here(dataset).num_run == 0
    write_tar(dataset, "00001", {**sample("new"), **sample("newer")})
    assert index_here(dataset).num_run == 1
    assert json.loads(dataset.storage.read("sizes.json"))["00001.tar"] == 2


def test_a_sidecar_leaves_the_dataset_as_it_is(place: str) -> None:
    dataset, sidecar = Dataset(f"{place}/data"), Dataset(f"{place}-index")
    write_tar(dataset, "00000", sample("0"))
    before = dataset.storage.stamps()
    index_here(dataset, target=sidecar)
    assert dataset.storage.stamps() == before
    assert {"index/00000.parquet", "sizes.json"} <= set(sidecar.storage.sizes())


def test_our_own_datasets_and_empty_folders_are_refused(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    with pytest.raises(UsageError, match=r"no \.tar files"):
        index_here(dataset)
    write_tar(dataset, "00000", sample("0"))
    dataset.ledger.write_plan("download", "", [])
    with pytest.raises(UsageError, match="verify"):
        index_here(dataset)


@pytest.mark.ray
def test_ray_writes_the_same_index(tmp_path: Path, ray_here: RayExecutor) -> None:
    one, other = Dataset(tmp_path), Dataset(tmp_path / "side")
    for shard in ("00000", "00001"):
        write_tar(one, shard, sample(shard))
    index_dataset(one, ray_here, target=other)
    index_here(one)
    for name in one.tables("index"):
        assert other.storage.read(name) == one.storage.read(name)


def test_the_command_speaks_json_and_plans(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_tar(Dataset(tmp_path), "00000", sample("0"))
    assert run_main(["index", str(tmp_path), "--dry-run"]) == 0
    assert "1 tars" in capfd.readouterr().out
    assert not Dataset(tmp_path).tables("index")
    assert run_main(["index", str(tmp_path), "--local", "--json"]) == 0
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (told["rows_in"], told["rows_out"], told["dropped"]) == (1, 1, {})
    assert told["paths"] == [f"{tmp_path}/index/00000.parquet"]
    assert run_main(["index", str(tmp_path / "absent"), "--local"]) == 2
    assert run_main(["index", str(tmp_path), "--local", "--ray", "here:1"]) == 2
