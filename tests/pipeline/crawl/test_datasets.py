"""A dataset that is crawled more than once: archives added, another kind refused, every count told."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from infra.cli import run_main
from infra.dataset import Dataset
from infra.errors import FingerprintError, StepError
from infra.executors import LocalExecutor
from infra.jobs import RunOptions
from pipeline.__main__ import main
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.live import LiveRound
from pipeline.crawl.run import crawl, summary
from pipeline.status import read_status


def archive(path: Path, *records: tuple[str, str, bytes, dict[str, str]]) -> str:
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for url, kind, body, headers in records:
            head = StatusAndHeaders("200 OK", [("Content-Type", kind), *headers.items()], protocol="HTTP/1.0")
            writer.write_record(writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=head))
    return str(path)


def page(name: str) -> tuple[str, str, bytes, dict[str, str]]:
    body = f'<html><body><img src="/{name}.jpg" alt="a picture of {name}"></body></html>'
    return (f"http://example.org/{name}", "text/html", body.encode(), {})


def run(out: Path, *warcs: str) -> dict[str, Any]:
    dataset = Dataset(out)
    return summary(crawl(dataset, CrawlConfig(), LocalExecutor(), warcs=warcs), dataset)


def test_counts_hold_when_archives_are_added(tmp_path: Path) -> None:
    one, two = archive(tmp_path / "1.warc.gz", page("one")), archive(tmp_path / "2.warc.gz", page("one"), page("two"))
    run(tmp_path / "out", one)
    facts = run(tmp_path / "out", two)
    assert (facts["rows_in"], facts["rows_out"], facts["dropped"]) == (3, 2, {"duplicate_pair": 1})
    by_step = {step.step: step for step in read_status(Dataset(tmp_path / "out"))}
    assert (by_step["crawl_archive"].num_done, by_step["crawl_archive"].num_planned) == (2, 2)


def test_archives_do_not_replace_the_pairs_of_a_live_crawl(tmp_path: Path) -> None:
    run(tmp_path / "out", archive(tmp_path / "1.warc.gz", page("one")))
    with pytest.raises(FingerprintError, match="another --out"):
        crawl(Dataset(tmp_path / "out"), CrawlConfig(), LocalExecutor(), seeds=["http://127.0.0.1:9/"])


def test_a_relative_path_means_the_same_file_in_another_folder(tmp_path: Path, monkeypatch: Any) -> None:
    archive(tmp_path / ("图" * 60), page("one"))
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "out", "图" * 60)
    assert run(tmp_path / "out", str(tmp_path / ("图" * 60)))["rows_in"] == 1


def test_an_archived_image_that_opts_out_is_not_taken_from_the_archive(tmp_path: Path) -> None:
    picture = ("http://example.org/one.jpg", "image/jpeg", b"\xff\xd8\xff", {"X-Robots-Tag": "noai"})
    run(tmp_path / "out", archive(tmp_path / "1.warc.gz", page("one"), picture))
    assert pq.read_table(tmp_path / "out" / "pairs" / "00000.parquet")["warc_path"].to_pylist() == [None]


def test_a_refused_command_ends_with_one_json_object_and_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    words = ["crawl", "--seed", "ftp://example.org/", "--out", str(tmp_path / "out"), "--dry-run", "--json"]
    assert run_main(main, "python -m pipeline", words) == 2
    assert capsys.readouterr().out.splitlines()[-1].startswith('{"error": ')
    assert list(tmp_path.iterdir()) == []


def test_a_live_crawl_does_not_go_on_without_the_links_of_a_failed_job(tmp_path: Path, monkeypatch: Any) -> None:
    def fail(step: Any, job: Any) -> Any:
        raise OSError("no space left")

    def start() -> None:
        options = RunOptions(attempts=1, max_quarantined=1.0)
        config = CrawlConfig(respect_robots=False, respect_opt_out=False, attempts=1)
        crawl(Dataset(tmp_path / "out"), config, LocalExecutor(), seeds=["http://127.0.0.1:9/"], options=options)

    with monkeypatch.context() as patch:
        patch.setattr(LiveRound, "run", fail)
        with pytest.raises(StepError, match="no space left"):
            start()
    start()
