"""Rows are found by uid and by address in whatever tables and tars a folder holds, ours or those of others."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filters.explain import explain, life_lines
from filters.lookup import STORED, WAITING, find_rows
from filters.rules import SelectRecipe
from filters.select import select
from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.executors import LocalExecutor
from infra.indexing import index_dataset
from infra.removed import SCHEMA, TOMBSTONES, url_digests
from infra.sample import pair_uid
from infra.tables import write_table
from tests.filters.small_datasets import make_dataset, rows_table, uid_of

URLS = [f"http://h.test/{at}.jpg" for at in range(3)]
TEXTS = ["a cat", "a dog", "a car"]
UIDS = [pair_uid(url, text) for url, text in zip(URLS, TEXTS, strict=True)]


def write_tar(folder: Path, shard: str, texts: dict[str, str]) -> None:
    with tarfile.open(folder / f"{shard}.tar", "w") as tar:
        for key, text in texts.items():
            for name, data in ((f"{key}.jpg", b"x"), (f"{key}.txt", text.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def img2dataset_folder(folder: Path, **more: Any) -> Dataset:
    """A shard as img2dataset leaves it: two rows are stored, the third was not found."""
    write_tar(folder, "00000", {"000000": TEXTS[0], "000001": TEXTS[1]})
    table = {"key": ["000000", "000001", "000002"], "url": URLS, "caption": TEXTS,
             "status": ["success", "success", "failed_to_download"], **more}  # fmt: skip
    pq.write_table(pa.table(table), folder / "00000.parquet")
    index_dataset(Dataset(folder), LocalExecutor())
    return Dataset(folder)


@pytest.mark.parametrize(
    "more",
    [{}, {"uid": [uid.hex() for uid in UIDS]}, {"uid": pa.array(UIDS, pa.binary())}],
    ids=["none", "hex", "bytes"],
)
def test_rows_of_img2dataset_are_found_by_uid_and_url_whatever_their_uids_are(tmp_path: Path, more: Any) -> None:
    dataset = img2dataset_folder(tmp_path, **more)
    for at in (0, 1):
        for what in (UIDS[at].hex(), UIDS[at].hex().upper(), URLS[at]):
            (found,) = find_rows(dataset, what)
            assert (found.uid, found.shard, found.fate) == (UIDS[at], "00000", STORED)
            assert (found.row["url"], found.row["caption"], found.row["key"]) == (URLS[at], TEXTS[at], f"00000{at}")
    (lost,) = find_rows(dataset, URLS[2])
    assert (lost.uid, lost.fate) == (UIDS[2], "failed_to_download")
    (life,) = explain(dataset, URLS[0])
    assert life.stored_in == [dataset.storage.path("00000.tar")]


def test_tars_without_tables_are_asked_by_uid(tmp_path: Path) -> None:
    write_tar(tmp_path, "cats", {"a": TEXTS[0], "b": TEXTS[1]})
    index_dataset(Dataset(tmp_path), LocalExecutor())
    dataset = Dataset(tmp_path)
    index = pq.read_table(tmp_path / "index/cats.parquet").to_pylist()
    for uid, key, text in {(row["uid"], row["key"], TEXTS["ab".index(row["key"])]) for row in index}:
        (found,) = find_rows(dataset, uid.hex())
        assert (found.uid, found.row["key"], found.row["caption"], found.fate) == (uid, key, text, STORED)


@pytest.mark.parametrize("url", ["url", "URL", "image_url"])
@pytest.mark.parametrize("text", ["text", "TEXT", "caption"])
def test_url_tables_are_asked_by_the_names_that_others_give(tmp_path: Path, url: str, text: str) -> None:
    pq.write_table(pa.table({url: URLS, text: TEXTS}), tmp_path / "part.parquet")
    for what in (URLS[1], UIDS[1].hex()):  # the uid is made: no table has it
        (found,) = find_rows(Dataset(tmp_path), what)
        assert (found.uid, found.shard, found.fate) == (UIDS[1], "part", WAITING)
        assert (found.row["url"], found.row["caption"]) == (URLS[1], TEXTS[1])


def test_rows_of_datacomp_s_metadata_tell_what_selections_say_of_them(tmp_path: Path) -> None:
    uids = [uid.hex() for uid in UIDS]
    pq.write_table(
        pa.table({"uid": uids, "url": URLS, "text": TEXTS, "score": [0.1, 0.2, 0.3]}), tmp_path / "m.parquet"
    )
    dataset = Dataset(tmp_path)
    select([dataset], SelectRecipe.parse({"rules": [{"top": "score", "count": 1}]}, "r"), "s", LocalExecutor())
    for at, verdict in ((1, "below_top_score"), (2, "passed")):
        (life,) = explain(dataset, uids[at])
        assert (life.fate, life.selected["s"][0]["keep"]) == (WAITING, verdict == "passed")
        assert [one.verdict for one in life.verdicts["s"]] == [verdict]
        assert any("waiting" in line for line in life_lines(life))


def test_a_table_that_names_its_file_or_quotes_is_no_trouble(tmp_path: Path) -> None:
    folder = tmp_path / "it's"
    folder.mkdir()
    pq.write_table(pa.table({"url": ["http://h.test/'"], "filename": ["x"], "caption": [None]}), folder / "a.parquet")
    (found,) = find_rows(Dataset(folder), "http://h.test/'")
    assert (found.shard, found.row["filename"]) == ("a", "x")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no dataset there"):
        explain(Dataset(tmp_path / "lost"), "http://h.test/")


def test_a_removed_row_is_told_as_such_wherever_it_was(tmp_path: Path) -> None:
    a, b, c = (uid_of(word) for word in "abc")
    rows = rows_table([a, b], url=[None, URLS[1]], caption=[None, "x"], key=["0", "1"],
                      status=["failed_to_download", "success"], reason=["http_404", None])  # fmt: skip
    dataset = make_dataset(tmp_path, {"00000": rows})
    digests = url_digests(pa.chunked_array([[URLS[0], URLS[2]]]))
    tombstones = [pa.array([a, c], pa.binary(16)), ["url", "url"], digests]
    write_table(dataset.storage, TOMBSTONES, pa.table(tombstones, schema=SCHEMA))
    for what, uid in ((a.hex(), a), (c.hex(), c), (URLS[0], a), (URLS[2], c)):
        (life,) = explain(dataset, what)
        assert (life.uid, life.fate) == (uid.hex(), "removed")
        assert any("on request" in line for line in life_lines(life))
    assert [life.fate for life in explain(dataset, b.hex())] == [STORED]
