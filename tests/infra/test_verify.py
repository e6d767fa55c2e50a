"""Every planted fault is found and told with its place; a clean dataset is silent. Made by the real writers."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.__main__ import run_main
from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.ledger import Counts, DoneMark
from infra.sample import UID_BYTES, pair_uid
from infra.shards import ShardWriter, index_table, sample_json
from infra.storage import Committed
from infra.tables import read_table, write_table
from infra.verify import Finding, Verify

ROWS = 8  # of a shard's input table; the first repeats an earlier row, except in shard 0; every fourth is not stored


class Maker:
    """Writes a dataset as the pipeline does: inputs, repeated rows, shards, marks, sizes."""

    def __init__(self, url: str, shards: int = 3) -> None:
        self.dataset = Dataset(url)
        self.shards = [f"{number:05d}" for number in range(shards)]

    def make(self) -> Dataset:
        split, repeats = [], []
        for shard in self.shards:
            table, duplicates = self.input_rows(shard)
            split.append(write_table(self.dataset.storage, f"inputs/{shard}.parquet", table))
            if duplicates.num_rows:
                repeats.append(write_table(self.dataset.storage, f"inputs/duplicates/{shard}.parquet", duplicates))
        num, num_repeated = ROWS * len(self.shards), len(repeats)
        dropped = {"duplicate_row": num_repeated} if num_repeated else {}
        self.finish("split", {"00000": (Counts(num, num), tuple(split))})
        self.finish("duplicates", {"00000": (Counts(num, num - num_repeated, dropped), tuple(repeats))})
        self.finish("download", {shard: self.write_shard(shard) for shard in self.shards})
        marks = self.dataset.ledger.done("download")
        self.dataset.write_sizes({f"{shard}.tar": mark.counts.rows_out for shard, mark in marks.items()})
        return self.dataset

    def input_rows(self, shard: str) -> tuple[pa.Table, pa.Table]:
        captions = [f"{shard} {row}" for row in range(ROWS)]
        repeated = [] if shard == "00000" else [0]
        if repeated:
            captions[0] = "00000 1"
        uids = [pair_uid("https://a.example/", caption) for caption in captions]
        table = pa.table({"uid": pa.array(uids, pa.binary(UID_BYTES)), "caption": captions})
        rows = pa.table(
            {"uid": table["uid"].take(pa.array(repeated, pa.int64())), "row": pa.array(repeated, pa.int64())}
        )
        return table, rows

    def write_shard(self, shard: str) -> tuple[Counts, tuple[Committed, ...]]:
        storage, names = self.dataset.storage, self.dataset
        table, duplicates = self.input_rows(shard)
        rows = [row for at, row in enumerate(table.to_pylist()) if at not in duplicates["row"].to_pylist()]
        for at, row in enumerate(rows):
            row["key"] = f"{shard}{at:03d}"
            row["reason"] = "dns" if at % 4 == 3 else None
            row["status"] = "failed_to_download" if row["reason"] else "success"
        with storage.commit(names.tar(shard)) as draft, ShardWriter(draft.path) as writer:
            for row in rows:
                if row["status"] == "success":
                    image = random.Random(row["key"]).randbytes(700)
                    writer.write(
                        row["uid"], row["key"], {"jpg": image, "txt": row["caption"].encode(), "json": sample_json(row)}
                    )
        schema = pa.schema(
            [("uid", pa.binary(UID_BYTES)), *[(name, pa.string()) for name in ("key", "caption", "status", "reason")]]
        )
        files = (
            draft.result(),
            write_table(storage, names.table(shard), pa.Table.from_pylist(rows, schema)),
            write_table(storage, names.index(shard), writer.index()),
        )
        storage.commit_bytes(names.stats(shard), b"{}")
        dropped = Counter(row["reason"] for row in rows if row["reason"])
        return Counts(len(rows), len(rows) - dropped.total(), dropped), files

    def finish(self, step: str, jobs: Mapping[str, tuple[Counts, tuple[Committed, ...]]]) -> None:
        self.dataset.ledger.write_plan(step, "f" * 32, list(jobs))
        for job, (counts, files) in jobs.items():
            self.dataset.ledger.mark_done(DoneMark(step, job, "f" * 32, counts, files, {}))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "data"
    Maker(str(folder)).make()
    return folder


@pytest.fixture
def dataset(clean: Path, tmp_path: Path) -> Dataset:
    shutil.copytree(clean, tmp_path / "data")
    return Dataset(tmp_path / "data")


def look(dataset: Dataset, **options: Any) -> list[Finding]:
    return list(Verify(dataset, **options).findings())


def problems(dataset: Dataset, **options: Any) -> list[str]:
    return [str(finding) for finding in look(dataset, **options) if finding.is_problem]


def file_of(dataset: Dataset, name: str) -> Path:
    return Path(dataset.storage.url) / name


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def change_mark(dataset: Dataset, step: str, job: str, change: Callable[[DoneMark], DoneMark]) -> None:
    dataset.ledger.mark_done(change(dataset.ledger.done(step)[job]))


def replace_file(dataset: Dataset, shard: str, committed: Committed) -> None:
    """Another content under the same name, with a mark that believes in it."""

    def change(mark: DoneMark) -> DoneMark:
        return replace(mark, files=tuple(committed if file.name == committed.name else file for file in mark.files))

    change_mark(dataset, "download", shard, change)  # fmt: skip


def change_table(dataset: Dataset, name: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    table = read_table(dataset.storage, name)
    rows = table.to_pylist()
    change(rows)
    shard = name.rpartition("/")[2].removesuffix(".parquet")
    replace_file(dataset, shard, write_table(dataset.storage, name, pa.Table.from_pylist(rows, table.schema)))


def test_a_clean_dataset_is_silent(place: str) -> None:
    dataset = Maker(place).make()
    for options in ({}, {"quick": True}, {"complete": True}, {"threads": 1}):
        verify = Verify(dataset, **options)
        assert list(verify.findings()) == []
        assert verify.verdict.samples == {"00000.tar": 6, "00001.tar": 6, "00002.tar": 6}
        assert verify.verdict.steps["download"] == Counts(22, 18, {"dns": 4})


def test_no_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is the path right"):
        look(Dataset(tmp_path))


@pytest.mark.parametrize("name", ["00001.tar", "00001.parquet", "index/00001.parquet", "inputs/00001.parquet"])
def test_a_flipped_byte_anywhere_is_found(dataset: Dataset, name: str) -> None:
    path = file_of(dataset, name)
    original = path.read_bytes()
    chance = random.Random(name)
    for at in [0, len(original) - 1, *(chance.randrange(len(original)) for _ in range(25))]:
        flip(path, at)
        found = problems(dataset)
        assert any(name in line and ("digest differs" in line or "broken" in line) for line in found), (at, found)
        assert all("download 00001" in line or "split 00000" in line for line in found), found
        path.write_bytes(original)


def test_a_flipped_byte_passes_a_quick_look_only_where_nothing_but_the_digest_tells(dataset: Dataset) -> None:
    index = read_table(dataset.storage, "index/00001.parquet").to_pylist()
    flip(file_of(dataset, "00001.tar"), index[0]["offset"] + 5)
    assert problems(dataset, quick=True) == []
    assert len(problems(dataset)) == 1


def test_a_file_found_on_an_object_store_is_checked_like_on_a_disk(s3_bucket: str) -> None:
    dataset = Maker(f"{s3_bucket}/data").make()
    data = bytearray(dataset.storage.read("00002.tar"))
    data[700] ^= 1
    dataset.storage.commit_bytes("00002.tar", bytes(data))
    dataset.storage.remove("index/00001.parquet")
    assert [line.partition(";")[0] for line in problems(dataset)] == [
        "problem: download 00001: index/00001.parquet is gone",
        "problem: download 00002: 00002.tar has changed since it was written: its digest differs",
    ]


@pytest.mark.parametrize(
    "name", ["00001.tar", "00001.parquet", "index/00001.parquet", "inputs/duplicates/00001.parquet"]
)
@pytest.mark.parametrize("quick", [False, True])
def test_a_lost_file_is_found(dataset: Dataset, name: str, quick: bool) -> None:
    file_of(dataset, name).unlink()
    assert any(f"{name} is gone" in line for line in problems(dataset, quick=quick))


@pytest.mark.parametrize("quick", [False, True])
def test_a_truncated_tar_is_found(dataset: Dataset, quick: bool) -> None:
    path = file_of(dataset, "00001.tar")
    path.write_bytes(path.read_bytes()[:3000])
    found = problems(dataset, quick=quick)
    assert any("has 3000 bytes" in line for line in found)
    assert any("broken tar" in line for line in found)


@pytest.mark.parametrize("ending", ["jpg", "txt", "json"])
@pytest.mark.parametrize("believed", [False, True], ids=["changed", "believed"])
def test_a_missing_member_is_found(dataset: Dataset, ending: str, believed: bool) -> None:
    index = read_table(dataset.storage, "index/00001.parquet").to_pylist()
    data = dataset.storage.read("00001.tar")
    lost = f"{index[3]['key']}.{ending}"
    with dataset.storage.commit("00001.tar") as draft, ShardWriter(draft.path) as writer:
        for row in index:
            if row["member"] != lost:
                part = {row["member"].partition(".")[2]: data[row["offset"] : row["offset"] + row["size"]]}
                writer.write(row["uid"], row["key"], part)
    if believed:
        replace_file(dataset, "00001", draft.result())
    found = problems(dataset, quick=True)
    assert any(f"member {lost} that the tar lacks" in line for line in found)
    if believed:  # the index agrees with the tar, too: only the sample tells
        replace_file(dataset, "00001", write_table(dataset.storage, "index/00001.parquet", writer.index()))
        without = "without an image" if ending == "jpg" else f"without a .{ending} member"
        assert [line for line in problems(dataset) if f"sample {index[3]['key']} {without}" in line]


@pytest.mark.parametrize("believed", [False, True], ids=["changed", "believed"])
@pytest.mark.parametrize("quick", [False, True])
def test_the_index_of_another_tar_is_stale(dataset: Dataset, believed: bool, quick: bool) -> None:
    committed = dataset.storage.commit_bytes("index/00001.parquet", dataset.storage.read("index/00002.parquet"))
    if believed:
        replace_file(dataset, "00001", committed)
    found = problems(dataset, quick=quick)
    assert any("download 00001: the index names" in line and "that the tar lacks" in line for line in found)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("column", ["offset", "size", "uid", "key"])
def test_an_index_that_is_wrong_in_one_cell_is_stale(dataset: Dataset, column: str, quick: bool) -> None:
    values = {"offset": 0, "size": 3, "uid": b"?" * 16, "key": "other"}
    change_table(dataset, "index/00001.parquet", lambda rows: rows[4].update({column: values[column]}))
    words = {"offset": "stale", "size": "stale", "key": "stale", "uid": "no uid, or more than one"}
    assert any(words[column] in line and "download 00001" in line for line in problems(dataset, quick=quick))


def test_an_index_without_its_columns_is_told(dataset: Dataset) -> None:
    name = "index/00001.parquet"
    table = read_table(dataset.storage, name).drop_columns(["offset"])
    replace_file(dataset, "00001", write_table(dataset.storage, name, table))
    assert any("the index lacks columns" in line for line in problems(dataset))


def test_a_table_whose_uids_disagree_with_the_index_is_found(dataset: Dataset) -> None:
    change_table(dataset, "00001.parquet", lambda rows: rows[0].update(uid=b"?" * 16))
    assert any("different uids" in line and "00001000" in line for line in problems(dataset))


def test_a_uid_stored_twice_in_a_shard_is_found(dataset: Dataset) -> None:
    change_table(dataset, "00001.parquet", lambda rows: rows[1].update(uid=rows[0]["uid"]))
    assert any("the table stores uid" in line and "more than once" in line for line in problems(dataset))


def test_a_uid_stored_by_two_shards_is_found(dataset: Dataset) -> None:
    uid = read_table(dataset.storage, "00000.parquet")["uid"][0].as_py()
    change_table(dataset, "00002.parquet", lambda rows: rows[0].update(uid=uid))
    assert any(
        f"shards 00000 and 00002: uid {uid.hex()} is stored more than once" in line for line in problems(dataset)
    )


def test_a_row_that_failed_before_may_be_stored_later(dataset: Dataset) -> None:
    failed = read_table(dataset.storage, "00000.parquet").to_pylist()[3]
    assert failed["reason"] == "dns"
    change_table(dataset, "00002.parquet", lambda rows: rows[3].update(uid=failed["uid"]))
    assert problems(dataset) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.pop(), "the table has 6 rows, the done-mark says 7 in"),
        (lambda rows: rows[3].update(reason="timeout"), "dropped as dns: 0 rows in the table, 1 in the done-mark"),
        (lambda rows: rows[3].update(reason=None), "or neither"),
        (lambda rows: rows[0].update(reason="dns"), "1 rows are stored and have a reason"),
        (
            lambda rows: rows[3].update(status="success", reason=None),
            "the table calls 7 rows stored, the done-mark says 6",
        ),
        (
            lambda rows: rows[3].update(status="success", reason=None),
            "the table calls row 00001003 stored that the tar lacks",
        ),
        (lambda rows: rows[0].update(status="failed_to_resize", reason="dns"), "that the table does not call stored"),
    ],
)
def test_rows_that_do_not_conserve_are_found(dataset: Dataset, change: Callable[[Any], Any], words: str) -> None:
    change_table(dataset, "00001.parquet", change)
    assert any(words in line and "download 00001" in line for line in problems(dataset))


def test_a_mark_whose_counts_do_not_conserve_is_found(dataset: Dataset) -> None:
    change_mark(dataset, "split", "00000", lambda mark: replace(mark, counts=Counts(24, 23)))
    found = problems(dataset)
    assert any("split 00000: 24 rows in, but 23 out + 0 dropped" in line for line in found)
    assert any("split gave 23 rows out, duplicates took 24 in" in line for line in found)


def test_a_step_that_takes_other_rows_than_the_one_before_gave_is_found(dataset: Dataset) -> None:
    change_mark(dataset, "duplicates", "00000", lambda mark: replace(mark, counts=Counts(24, 20, {"duplicate_row": 4})))
    assert any("duplicates gave 20 rows out, download took 22 in" in line for line in problems(dataset))


def test_a_shard_that_took_other_rows_than_its_input_table_has_is_found(dataset: Dataset) -> None:
    name = "inputs/00001.parquet"
    write_table(dataset.storage, name, read_table(dataset.storage, name).slice(1))
    assert any("7 rows in; its input table has 7, 1 of them repeated" in line for line in problems(dataset, quick=True))


@pytest.mark.parametrize(
    "text",
    [b"no json", b"[]", b'{"00000.tar": 6, "00001.tar": 6, "00002.tar": 5}', b'{"00000.tar": 6, "00001.tar": 6}',
     b'{"00000.tar": 6, "00001.tar": 6, "00002.tar": 6, "00003.tar": 1}', None],
)  # fmt: skip
def test_wrong_sizes_are_found(dataset: Dataset, text: bytes | None) -> None:
    file_of(dataset, "sizes.json").unlink()
    if text is not None:
        file_of(dataset, "sizes.json").write_bytes(text)
    assert [line for line in problems(dataset) if line.startswith("problem: sizes.json: ")]


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"step": "download"}', b'{"counts": null}', b"\xff\xfe"])
def test_a_broken_mark_or_plan_is_told_and_the_rest_is_looked_at(dataset: Dataset, text: bytes) -> None:
    file_of(dataset, "ledger/done/download/00001.json").write_bytes(text)
    file_of(dataset, "ledger/plan/split.json").write_bytes(text)
    file_of(dataset, "00002.tar").unlink()
    found = problems(dataset)
    assert any("download 00001: its done-mark is not readable" in line for line in found)
    assert any("ledger/plan/split.json is not readable" in line for line in found)
    assert any("00002.tar is gone" in line for line in found)


def test_the_mark_of_another_job_is_found(dataset: Dataset) -> None:
    shutil.copy(
        file_of(dataset, "ledger/done/download/00002.json"), file_of(dataset, "ledger/done/download/00001.json")
    )
    assert any("its done-mark is that of download 00002" in line for line in problems(dataset))


def test_files_of_no_one_are_a_warning_and_peoples_own_files_are_none(dataset: Dataset) -> None:
    for name in ("00007.tar", "index/00007.parquet", "README.md", "report.html", "ledger/inputs.json"):
        dataset.storage.commit_bytes(name, b"[]")
    found = look(dataset)
    assert [(finding.where, finding.is_problem) for finding in found] == [
        ("00007.tar", False),
        ("index/00007.parquet", False),
    ]


def test_url_tables_that_lie_in_the_dataset_are_known(dataset: Dataset) -> None:
    dataset.storage.commit_bytes("inputs/retry/00001.parquet", b"")
    assert len(look(dataset)) == 1
    dataset.storage.commit_bytes("ledger/inputs.json", json.dumps([{"path": "./inputs/retry/00001.parquet"}]).encode())
    assert look(dataset) == []


def test_unfinished_and_quarantined_jobs_are_problems_only_where_all_must_be_done(dataset: Dataset) -> None:
    for shard in ("00001", "00002"):
        file_of(dataset, f"ledger/done/download/{shard}.json").unlink()
    dataset.ledger.quarantine("download", "00002", "ValueError", 3)
    dataset.write_sizes({"00000.tar": 6})
    told = [str(finding) for finding in look(dataset) if finding.where == "download"]
    assert told == [
        "warning: download: 2 of 3 jobs unfinished, 1 of them quarantined (first 00002); "
        "run the same command again to go on"
    ]
    assert problems(dataset) == []
    assert len(problems(dataset, complete=True)) == 1


# Foreign folders: what img2dataset leaves, without ledger, uid or index.


def make_foreign(folder: Path, shards: int = 2) -> Dataset:
    dataset = Dataset(folder)
    for number in range(shards):
        shard = f"{number:05d}"
        keys = [f"{shard}{row:04d}" for row in range(5)]
        table = pa.table(
            {"key": keys, "url": keys, "caption": keys, "status": ["success"] * 4 + ["failed_to_download"]}
        )
        write_table(dataset.storage, f"{shard}.parquet", table)
        with dataset.storage.commit(f"{shard}.tar") as draft, ShardWriter(draft.path) as writer:
            for key in keys[:4]:
                writer.write(
                    b"", key, {"jpg": b"\xff\xd8" + key.encode(), "json": b'{"url": "%s"}' % key.encode(), "txt": b"x"}
                )
    return dataset


def index_foreign(dataset: Dataset, *more: str) -> int:
    return run_main(["index", dataset.storage.url, "--local", *more])


def test_a_foreign_folder_fits_or_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset = make_foreign(tmp_path / "foreign")
    assert {(finding.what, finding.is_problem) for finding in look(dataset)} == {
        ("it has no index yet", False), ("it is absent", False),
    }  # fmt: skip
    assert index_foreign(dataset) == 0
    assert look(dataset) == []
    flip(file_of(dataset, "00001.tar"), 5)
    assert any("shard 00001" in line and "broken tar" in line for line in problems(dataset))


def test_a_foreign_tar_that_lacks_a_sample_of_its_table_is_found(tmp_path: Path) -> None:
    dataset = make_foreign(tmp_path / "foreign")
    table = read_table(dataset.storage, "00001.parquet").to_pylist()
    table[4]["status"] = "success"
    write_table(dataset.storage, "00001.parquet", pa.Table.from_pylist(table))
    assert any("shard 00001" in line and "that the tar lacks" in line for line in problems(dataset))


def test_the_stale_index_of_a_foreign_tar_is_found(tmp_path: Path) -> None:
    dataset = make_foreign(tmp_path / "foreign")
    assert index_foreign(dataset) == 0
    with dataset.storage.commit("00000.tar") as draft, ShardWriter(draft.path) as writer:
        for row in range(4):
            writer.write(b"", f"00000{row:04d}", {"jpg": b"\xff\xd8 more than before" * 50, "json": b"{}", "txt": b"x"})
    found = problems(dataset)
    assert any("shard 00000: the index is stale" in line and "infra index" in line for line in found)
    assert index_foreign(dataset) == 0
    assert problems(dataset) == []


def test_a_foreign_folder_is_verified_with_its_sidecar(tmp_path: Path) -> None:
    dataset, sidecar = make_foreign(tmp_path / "foreign"), Dataset(tmp_path / "side")
    before = dataset.storage.sizes()
    assert index_foreign(dataset, "--sidecar", sidecar.storage.url) == 0
    assert dataset.storage.sizes() == before
    assert look(dataset, sidecar=sidecar) == []
    write_table(sidecar.storage, "index/00000.parquet", index_table([]))
    assert problems(dataset, sidecar=sidecar)


# The command.


def test_the_command_tells_a_line_a_finding_and_exits_with_1(
    dataset: Dataset, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_main(["verify", dataset.storage.url]) == 0
    assert capfd.readouterr().out == "3 shards, 18 stored samples, 14 files of the ledger: 0 problems, 0 warnings\n"
    file_of(dataset, "00001.tar").unlink()
    assert run_main(["verify", dataset.storage.url]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("problem: download 00001: 00001.tar is gone; remove ledger/done/download/00001.json")
    assert lines[-1].endswith("1 problems, 0 warnings")


def test_the_command_speaks_json(dataset: Dataset, capfd: pytest.CaptureFixture[str]) -> None:
    file_of(dataset, "sizes.json").unlink()
    assert run_main(["verify", dataset.storage.url, "--json", "--quick"]) == 1
    told = json.loads(capfd.readouterr().out)
    assert (told["ok"], told["problems"], told["samples"]) == (False, 1, 18)
    assert told["findings"][0]["where"] == "sizes.json"


def test_the_command_refuses_what_is_no_dataset_and_what_is_no_flag(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_main(["verify", str(tmp_path / "absent")]) == 1
    assert "is the path right" in capfd.readouterr().err
    assert run_main(["verify", str(tmp_path), "--fast"]) == 2
    assert run_main(["verify"]) == 2
