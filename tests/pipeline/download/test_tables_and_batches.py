"""What becomes of tables as they are given, refused, appended and tried again: nothing lost, nothing stuck."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infra.dataset import Dataset
from infra.errors import FingerprintError, RecipeError, UsageError
from infra.executors import LocalExecutor
from infra.jobs import RunOptions
from infra.verify import Verify
from pipeline.download.config import DownloadConfig
from pipeline.download.run import download, summary
from tests.servers.files import FileServer, serve_folder

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    folder = tmp_path_factory.mktemp("images")
    for number in range(4):
        Image.new("RGB", (40 + number, 30), (number * 60, 90, 128)).save(folder / f"{number}.png")
    with serve_folder(folder) as running:
        yield running


def write(path: Path, rows: Rows) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def rows_of(server: FileServer, *names: str, **more: Any) -> Rows:
    return [{"url": f"{server.url}/{name}", "caption": name, **more} for name in names]


def run(out: Path, *tables: str, retry: tuple[str, ...] = (), limit: int | None = None, **values: Any) -> Any:
    base = {"allow_network": ("127.0.0.0/8",), "shard_size": 2, "attempts": 1, "timeout_s": 5}
    config = DownloadConfig.parse({**base, **values}, "test")
    dataset = Dataset(out)
    options = RunOptions(limit=limit, attempts=1)
    results = download(dataset, config, tables, LocalExecutor(), retry=retry, options=options)
    if limit is None:
        assert [str(finding) for finding in Verify(dataset, complete=True).findings()] == []
    return summary(results, dataset)


def test_rows_that_fail_again_can_be_tried_again(server, tmp_path):
    table = write(tmp_path / "rows.parquet", rows_of(server, "gone", "0.png"))
    run(tmp_path / "out", table)
    for num_tries in (1, 2, 3):
        facts = run(tmp_path / "out", table, retry=("http_404",))
        assert len(Dataset(tmp_path / "out").shards()) == 1 + num_tries
        assert (facts["rows_in"], facts["rows_out"], facts["dropped"]) == (2, 1, {"http_404": 1})


def test_a_table_with_names_of_its_own_can_be_tried_again(server, tmp_path):
    rows = [{"URL": f"{server.url}/gone", "TEXT": "a"}]
    names = {"url_col": "URL", "caption_col": "TEXT"}
    table = write(tmp_path / "rows.parquet", rows)
    run(tmp_path / "out", table, **names)
    assert run(tmp_path / "out", table, retry=("404",), **names)["dropped"] == {"http_404": 1}
    assert len(Dataset(tmp_path / "out").shards()) == 2


def test_a_table_that_cannot_be_used_leaves_the_dataset_as_it_was(server, tmp_path):
    good = write(tmp_path / "good.parquet", rows_of(server, "0.png"))
    bad = write(tmp_path / "bad.parquet", [{"nothing": 1}])
    run(tmp_path / "out", good)
    with pytest.raises(UsageError, match="which column"):
        run(tmp_path / "out", good, bad)
    assert run(tmp_path / "out", good)["rows_in"] == 1


@pytest.mark.parametrize("shard_size", [1, 4])
def test_a_refused_table_can_be_given_again(server, tmp_path, shard_size):
    first = write(tmp_path / "first.parquet", rows_of(server, "0.png"))
    second = write(tmp_path / "second.parquet", rows_of(server, "1.png", "2.png", "3.png"))
    run(tmp_path / "out", first)
    with pytest.raises(FingerprintError, match="shard_size"):
        run(tmp_path / "out", second, shard_size=shard_size)
    facts = run(tmp_path / "out", first, second)
    assert (facts["rows_in"], facts["rows_out"]) == (4, 4)
    assert Dataset(tmp_path / "out").shards() == ["00000", "00001", "00002"]


def test_a_table_of_the_dataset_may_grow(server, tmp_path):
    (tmp_path / "out" / "pairs").mkdir(parents=True)
    inside = tmp_path / "out" / "pairs" / "00000.parquet"
    run(tmp_path / "out", write(inside, rows_of(server, "0.png")))
    facts = run(tmp_path / "out", write(inside, rows_of(server, "0.png", "1.png")))
    assert (facts["rows_out"], facts["dropped"]) == (2, {"duplicate_row": 1})


def test_rows_of_shards_that_a_limit_left_out_are_told(server, tmp_path):
    table = write(tmp_path / "rows.parquet", rows_of(server, "0.png", "1.png", "2.png"))
    facts = run(tmp_path / "out", table, limit=1)
    assert (facts["rows_in"], facts["rows_out"], facts["dropped"]) == (3, 2, {"waiting": 1})


@pytest.mark.parametrize("name", ["bbox_col", "hash_col"])
def test_a_named_column_that_is_missing_is_wrong_usage(server, tmp_path, name):
    table = write(tmp_path / "rows.parquet", rows_of(server, "0.png"))
    more = {"verify_hash": "md5"} if name == "hash_col" else {}
    with pytest.raises(UsageError, match="no column faces"):
        run(tmp_path / "out", table, **{name: "faces"}, **more)


def test_without_boxes_nothing_is_stored_unblurred(server, tmp_path):
    rows = [*rows_of(server, "0.png", faces=None), *rows_of(server, "1.png", faces=[]),
            *rows_of(server, "2.png", faces=[[0.1, 0.1, 0.5, 0.5]])]  # fmt: skip
    facts = run(tmp_path / "out", write(tmp_path / "rows.parquet", rows), bbox_col="faces")
    assert (facts["rows_out"], facts["dropped"]) == (2, {"bad_boxes": 1})


def test_settings_that_do_not_fit_are_refused():
    for values in ({"verify_hash": "md5"}, {"hash_col": "md5"}, {"engine": "img2dataset", "deny": "list.txt"}):
        with pytest.raises(RecipeError):
            DownloadConfig.parse(values, "test")


def test_columns_with_names_that_duckdb_adds_are_kept_apart(server, tmp_path):
    rows = rows_of(server, "0.png", "1.png", filename="a.jpg", file_row_number=7)
    assert run(tmp_path / "out", write(tmp_path / "rows.parquet", rows))["rows_out"] == 2
    assert "input_filename" in pq.read_table(tmp_path / "out" / "00000.parquet").column_names


def test_text_that_is_no_utf8_is_mended(server, tmp_path):
    captions = pa.array([b"good", b"\xff\xfe bad"])
    text = pa.Array.from_buffers(pa.string(), 2, captions.buffers())
    urls = [f"{server.url}/0.png", f"{server.url}/1.png"]
    pq.write_table(pa.table({"url": urls, "caption": text, "note": text}), tmp_path / "rows.parquet")
    assert run(tmp_path / "out", str(tmp_path / "rows.parquet"))["rows_out"] == 2
    stored = pq.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    assert [row["note"] for row in stored] == ["good", "\ufffd\ufffd bad"]


@pytest.mark.parametrize("path", ["/", "/nowhere.warc.gz"])
def test_a_row_whose_archive_is_none_is_one_row_lost(server, tmp_path, path):
    rows = [*rows_of(server, "0.png", warc_path=None, warc_offset=None),
            *rows_of(server, "1.png", warc_path=path, warc_offset=3)]  # fmt: skip
    facts = run(tmp_path / "out", write(tmp_path / "rows.parquet", rows), allow_archive=("/",))
    assert (facts["rows_out"], facts["dropped"]) == (1, {"no_archive": 1})


def test_a_null_uid_is_wrong_usage(server, tmp_path):
    table = pa.table({"uid": pa.array([None], pa.binary(16)), "url": [f"{server.url}/0.png"]})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(UsageError, match="uid column"):
        run(tmp_path / "out", str(tmp_path / "rows.parquet"))
