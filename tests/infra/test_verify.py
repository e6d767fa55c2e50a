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
from infra.removed import SCHEMA as REMOVED_SCHEMA
from infra.removed import TOMBSTONES
from infra.sample import UID_BYTES, pair_uid
from infra.selection import SCHEMA, selection_table, summary_file
from infra.shards import ShardWriter, index_table, sample_json
from infra.storage import Committed
from infra.tables import KEYS, keys_digests, read_table, write_keyed_table, write_table
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


# Tables made from shards: scores and selections.


class Scored(Maker):
    """A dataset with what a scorer of images, one of captions (the web's and further ones) and a selection leave."""

    def make(self) -> Dataset:
        dataset = super().make()
        tables = {name: {shard: self.keyed(name, shard) for shard in self.shards} for name in SCORES}
        judged = {shard: self.judged(shard) for shard in self.shards}
        for name, of_shards in tables.items():
            for shard, table in of_shards.items():
                self.publish(f"score_{name}", shard, f"scores/{name}/{shard}.parquet", table, Counts(6, 6))
        fell = {"blurred": 6, "no_words": 3}
        for shard, table in judged.items():
            dropped = {word: number // 3 for word, number in fell.items()}
            self.publish("select_good", shard, selection_table("good", shard), table, Counts(6, 3, dropped))
        rules = [
            {"rows_in": 18, "rows_out": 12, "dropped": {"blurred": 6}},
            {"rows_in": 12, "rows_out": 9, "dropped": {"no_words": 3}},
        ]
        self.write_summary({"rows_in": 18, "rows_out": 9, "dropped": fell, "rules": rules})
        return dataset

    def keyed(self, name: str, shard: str) -> pa.Table:
        rows: list[dict[str, Any]] = []
        for at, uid in enumerate(stored_uids(self.dataset, shard)):
            own = {"uid": uid, "source": None, "n": None} if name == "image" else {"uid": uid, "source": "web", "n": 0}
            further = [{"uid": uid, "source": "blip", "n": n} for n in range(at % 3)] if name == "texts" else []
            rows += [own, *further]
        return pa.Table.from_pylist(
            [{**row, "value": 0.5} for row in rows], pa.schema([*KEYS, ("value", pa.float32())])
        )

    def judged(self, shard: str) -> pa.Table:
        reasons = ["blurred", None, "no_words", None, "blurred", None]
        rows = [{"uid": uid, "source": "web", "n": 0, "keep": reason is None, "reason": reason}
                for uid, reason in zip(stored_uids(self.dataset, shard), reasons, strict=True)]  # fmt: skip
        return pa.Table.from_pylist(rows, SCHEMA)

    def publish(self, step: str, shard: str, name: str, table: pa.Table, counts: Counts, digests: Any = None) -> None:
        is_score = step.startswith("score_")
        file = write_keyed_table(self.dataset.storage, name, table, keep_types=is_score, digests=digests)
        self.dataset.ledger.write_plan(step, "f" * 32, self.shards)
        self.dataset.ledger.mark_done(DoneMark(step, shard, "f" * 32, counts, (file,), {}))

    def write_summary(self, summary: Any) -> None:
        self.dataset.storage.commit_bytes(summary_file("good"), json.dumps(summary).encode())


SCORES = ("image", "text", "texts")


def stored_uids(dataset: Dataset, shard: str) -> list[bytes]:
    rows = read_table(dataset.storage, dataset.table(shard)).to_pylist()
    return [row["uid"] for row in rows if row["status"] == "success"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored") / "data"
    Scored(str(folder)).make()
    return folder


@pytest.fixture
def maker(scored: Path, tmp_path: Path) -> Scored:
    shutil.copytree(scored, tmp_path / "data")
    return Scored(str(tmp_path / "data"))


def told(dataset: Dataset, **options: Any) -> list[str]:
    """Findings without the mend."""
    return [str(finding).rpartition("; ")[0] for finding in look(dataset, **options)]


def test_a_scored_dataset_is_silent(place: str) -> None:
    dataset = Scored(place).make()
    for options in ({}, {"quick": True}, {"complete": True}, {"threads": 3}):
        assert look(dataset, **options) == []


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", SCORES)
def test_a_score_table_of_another_shard_is_found(maker: Scored, name: str, quick: bool) -> None:
    maker.publish(f"score_{name}", "00001", f"scores/{name}/00001.parquet", maker.keyed(name, "00002"), Counts(6, 6))
    assert told(maker.dataset, quick=quick) == [
        f"problem: score_{name} 00001: scores/{name}/00001.parquet does not hold the rows that shard 00001 stores, "
        "in their order"
    ]


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.slice(1),
        lambda table: table.filter(pa.compute.not_equal(table["uid"], table["uid"][-1])),
        lambda table: table.slice(0, 0),
        lambda table: pa.concat_tables([table, table.slice(0, 1)]),
        lambda table: table.take([3, 1, 2, 0, *range(4, table.num_rows)]),
    ],
    ids=["first", "last", "all", "one more", "order"],
)
def test_a_score_table_that_lacks_a_row_or_has_another_order_is_found(maker: Scored, name: str, change: Any) -> None:
    table = change(maker.keyed(name, "00001"))
    maker.publish(f"score_{name}", "00001", f"scores/{name}/00001.parquet", table, Counts(6, 6))
    found = told(maker.dataset)
    assert any(f"scores/{name}/00001.parquet does not hold the rows" in line for line in found), found


def test_a_footer_that_tells_of_other_rows_is_found(maker: Scored) -> None:
    table = maker.keyed("text", "00001")
    digests = keys_digests(maker.keyed("text", "00002"))
    maker.publish("score_text", "00001", "scores/text/00001.parquet", table, Counts(6, 6), digests)
    assert told(maker.dataset) == [
        "problem: score_text 00001: scores/text/00001.parquet: its footer tells of other rows than it holds"
    ]


def test_a_further_caption_away_from_its_image_is_found(maker: Scored) -> None:
    table = maker.keyed("texts", "00001")
    assert table["source"].to_pylist()[:4] == ["web", "web", "blip", "web"]
    table = table.take([0, 2, 1, *range(3, table.num_rows)])
    maker.publish("score_texts", "00001", "scores/texts/00001.parquet", table, Counts(6, 6))
    assert told(maker.dataset) == [
        "problem: score_texts 00001: scores/texts/00001.parquet: 1 further captions do not lie behind that of their "
        "image"
    ]


def test_score_tables_of_others_may_be_in_any_order(maker: Scored) -> None:
    name, table = "scores/text/00001.parquet", maker.keyed("text", "00001")
    file = write_table(maker.dataset.storage, name, table.take([5, 0, 2]))
    change_mark(maker.dataset, "score_text", "00001", lambda mark: replace(mark, files=(file,)))
    assert look(maker.dataset) == []


def test_scores_of_urls_are_no_fault_of_the_shards_that_were_stored_since(maker: Scored) -> None:
    asked = read_table(maker.dataset.storage, "inputs/00001.parquet")["uid"].to_pylist()[1:]  # the first is repeated
    rows = [{"uid": uid, "source": "web", "n": 0, "value": 0.5} for uid in asked]
    table = pa.Table.from_pylist(rows, maker.keyed("text", "00001").schema)
    maker.publish("score_text", "00001", "scores/text/00001.parquet", table, Counts(7, 7))
    assert told(maker.dataset) == [
        "warning: score_text 00001: scores/text/00001.parquet is of the url table 00001, from before shard 00001 was "
        "stored"
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.pop(), "does not hold the rows"),
        (lambda rows: rows.reverse(), "does not hold the rows"),
        (lambda rows: rows[0].update(uid=b"?" * 16), "does not hold the rows"),
        (lambda rows: rows[0].update(reason="odd"), "dropped as blurred: 1 in its tables, 2 in the done-mark"),
        (lambda rows: rows[1].update(keep=False, reason="odd"), "its tables keep 2 rows, the done-mark says 3"),
        (lambda rows: rows[1].update(keep=False), "1 rows are kept and have a reason, or neither"),
        (lambda rows: rows[0].update(keep=True), "1 rows are kept and have a reason, or neither"),
    ],
)
@pytest.mark.parametrize("quick", [False, True])
def test_a_selections_table_that_does_not_fit_is_found(
    maker: Scored, change: Callable[[Any], Any], words: str, quick: bool
) -> None:
    rows = maker.judged("00001").to_pylist()
    change(rows)
    table, counts = pa.Table.from_pylist(rows, SCHEMA), Counts(6, 3, {"blurred": 2, "no_words": 1})
    maker.publish("select_good", "00001", selection_table("good", "00001"), table, counts)
    assert any(words in line and "select_good 00001" in line for line in problems(maker.dataset, quick=quick))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows_in": 19}, "it says 19 rows_in, the done-marks 18"),
        ({"rows_out": 8}, "it says 8 rows_out, the done-marks 9"),
        ({"dropped": {"blurred": 5, "no_words": 4}}, "dropped as blurred: 5 in the summary, 6 in the done-marks"),
        ({"dropped": {"blurred": 6}}, "dropped as no_words: 0 in the summary, 3 in the done-marks"),
        ({"rules": []}, "dropped as blurred: 6 in the summary, 0 in its rules together"),
        ({"rules": [{"rows_in": 18, "rows_out": 9, "dropped": {"blurred": 6, "no_words": 3}}] * 2}, "rule 2 takes 18"),
        ({"dropped": None}, "it is no summary of a selection"),
        (None, "it is no summary of a selection"),
    ],
)
def test_a_summary_that_does_not_add_up_is_found(maker: Scored, change: dict[str, Any] | None, words: str) -> None:
    summary = json.loads(maker.dataset.storage.read(summary_file("good")))
    maker.write_summary(None if change is None else summary | change)
    assert any(f"select_good: selections/good/summary.json: {words}" in line for line in problems(maker.dataset))


def test_a_selection_without_its_summary_is_not_finished(maker: Scored) -> None:
    maker.dataset.storage.remove(summary_file("good"))
    assert problems(maker.dataset) == []
    assert told(maker.dataset) == ["warning: select_good: selections/good/summary.json is not written yet"]
    assert len(problems(maker.dataset, complete=True)) == 1


def test_a_removed_row_keeps_its_place_in_a_selection_and_in_no_score_table(maker: Scored) -> None:
    dataset = maker.dataset
    judged, scores = maker.judged("00001").to_pylist(), {name: maker.keyed(name, "00001") for name in SCORES}
    gone = judged[1]["uid"]
    tombstone = {"uid": [gone], "why": ["uid"], "url": [None]}
    write_table(dataset.storage, TOMBSTONES, pa.table(tombstone, REMOVED_SCHEMA))
    change_table(dataset, "00001.parquet", lambda rows: rows[1].update(status="failed_to_download", reason="removed"))
    assert {line.split()[1] for line in told(dataset) if "does not hold" in line} == {f"score_{n}" for n in SCORES}
    for name, table in scores.items():
        left = table.filter(pa.compute.not_equal(table["uid"], gone))
        maker.publish(f"score_{name}", "00001", f"scores/{name}/00001.parquet", left, Counts(6, 6))
    assert not [line for line in told(dataset) if "score_" in line or "select_" in line]
    judged[1].update(keep=False, reason="removed")
    counts = Counts(6, 2, {"blurred": 2, "no_words": 1, "removed": 1})
    table = pa.Table.from_pylist(judged, SCHEMA)
    maker.publish("select_good", "00001", selection_table("good", "00001"), table, counts)
    summary = json.loads(dataset.storage.read(summary_file("good")))
    maker.write_summary(summary | {"rows_out": 8, "dropped": {**summary["dropped"], "removed": 1}})
    assert not [line for line in told(dataset) if "score_" in line or "select_" in line]


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


def test_a_foreign_folder_that_was_scored_fits_as_before(tmp_path: Path) -> None:
    dataset = make_foreign(tmp_path / "foreign")
    assert index_foreign(dataset) == 0
    uids = list(dict.fromkeys(read_table(dataset.storage, "index/00000.parquet")["uid"].to_pylist()))
    rows = [{"uid": uid, "source": None, "n": None, "value": 0.5} for uid in uids]
    table = pa.Table.from_pylist(rows, pa.schema([*KEYS, ("value", pa.float32())]))
    file = write_keyed_table(dataset.storage, "scores/image/00000.parquet", table)
    dataset.ledger.write_plan("score_image", "", ["00000"])
    dataset.ledger.mark_done(DoneMark("score_image", "00000", "", Counts(4, 4), (file,), {}))
    assert look(dataset) == []
    flip(file_of(dataset, "00001.tar"), 5)
    flip(file_of(dataset, "scores/image/00000.parquet"), 40)
    assert [line.split(": ")[1] for line in problems(dataset)] == ["score_image 00000", "shard 00001", "sizes.json"]


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
