"""The report as a whole: its figures equal the tables', it shows what there is, and it tells when rows are lost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from selectolax.lexbor import LexborHTMLParser

from infra.errors import DatasetError
from infra.ledger import Counts
from pipeline.report import write_report


class Written:
    """A report, read back."""

    def __init__(self, builder: Any) -> None:
        out = Path(builder.storage.path()).parent / "report.html"
        self.facts = write_report(builder.storage.url, str(out))
        self.html = out.read_text(encoding="utf-8")
        self.page = LexborHTMLParser(self.html)

    def texts(self, selector: str) -> list[str]:
        """Texts of the nodes, white space joined."""
        return [" ".join(node.text().split()) for node in self.page.css(selector)]

    def stages(self) -> dict[str, int]:
        """The funnel: title → count."""
        numbers = [number(text) for text in self.texts(".stage .number:not(.faint)")]
        return dict(zip(self.texts(".stage .title"), numbers, strict=True))

    def table(self, selector: str) -> list[list[str]]:
        """Cells of the body rows."""
        rows = self.page.css(f"{selector} tbody tr")
        return [[" ".join(cell.text().split()) for cell in row.css("th, td")] for row in rows]


def number(text: str) -> int:
    """12,345 → 12345."""
    return int(re.sub(r"[^0-9]", "", text))


def test_funnel_reasons_hosts_and_statuses_equal_the_tables(finished: Any) -> None:
    report = Written(finished)
    rows = [
        row
        for shard in ("00000", "00001")
        for row in pq.read_table(finished.storage.path(f"{shard}.parquet")).to_pylist()
    ]
    stored = [row for row in rows if row["status"] == "success"]
    not_fetched = [row for row in rows if row["status"] == "failed_to_download"]
    assert report.stages() == {
        "Pages asked for": 40, "Pages read": 36,
        "Images on the pages": 108, "Pairs found": 72, "Distinct pairs": 64, "Rows to download": 60,
        "Images fetched": 60 - len(not_fetched), "Pairs stored": len(stored),
    }  # fmt: skip

    told = {cells[0]: number(cells[1]) for cells in report.table(".reasons") if len(cells) == 5}
    for reason in {row["reason"] for row in rows} - {None, "http_404"}:
        assert told[reason] == sum(row["reason"] == reason for row in rows)
    assert told["duplicate_pair"] == 8
    assert told["duplicate_row"] == 4

    hosts = {cells[0]: number(cells[1]) for cells in report.table("#hosts .hosts")}
    assert hosts == {"a.test": 30, "b.test": 30}
    statuses = {cells[0]: number(cells[2]) for cells in report.table("#bars table:first-child")}
    assert statuses["200 OK"] == sum(row["http_status"] == 200 for row in rows)
    assert report.facts["rows_in"] == 60
    assert report.facts["rows_out"] == len(stored) == 45
    assert sum(report.facts["dropped"].values()) == 15
    assert report.facts["faults"] == []


def test_charts_count_every_stored_pair(finished: Any) -> None:
    report = Written(finished)
    charts = report.page.css("svg.chart")
    assert len(charts) == 4
    for chart in charts:
        hints = [node.text() for node in chart.css("rect title")]
        assert sum(number(hint.rpartition(":")[2]) for hint in hints) == 45


def test_gallery_shows_stored_pairs_with_their_own_caption(finished: Any) -> None:
    report = Written(finished)
    figures = report.page.css(".gallery figure")
    assert len(figures) == 45
    assert all(figure.css_first("img").attributes["src"].startswith("data:image/jpeg;base64,") for figure in figures)
    assert len(set(report.texts(".gallery .caption"))) == 45


def test_the_same_dataset_gives_the_same_page(finished: Any) -> None:
    assert Written(finished).html == Written(finished).html


def test_page_is_small_static_and_bound_by_a_content_policy(finished: Any) -> None:
    report = Written(finished)
    assert len(report.html.encode()) == report.facts["page_bytes"] < 3 << 20
    assert not report.page.css("script, iframe, object, embed, form, link[rel=stylesheet]")
    assert "default-src 'none'" in report.page.css_first("meta[http-equiv]").attributes["content"]


def test_a_table_without_a_done_mark_is_not_read(finished: Any) -> None:
    finished.shard("00002", [{"url": "http://c.test/1.jpg", "caption": "unfinished", "size": (50, 50)}], marked=False)
    report = Written(finished)
    assert report.stages()["Pairs stored"] == 45
    assert "unfinished" not in report.texts(".caption")


def test_rows_without_a_fate_are_told_of_loudly(finished: Any) -> None:
    finished.mark("split", "00000", Counts(64, 60, {"bad_row": 1}))
    report = Written(finished)
    assert len(report.facts["faults"]) == 1
    assert "3 rows are unaccounted for" in report.texts(".fault")[0]
    assert report.texts(".state.bad") == ["rows unaccounted for"]


def test_a_ledger_that_disagrees_with_its_tables_is_told_of(finished: Any) -> None:
    mark = finished.dataset.ledger.done("download")["00001"]
    finished.mark("download", "00001", Counts(31, 23, {"dns": 8}), mark.files)
    assert "the tables hold 60 rows of which 45 stored" in Written(finished).texts(".fault")[0]


def test_a_missing_table_is_told_of(finished: Any) -> None:
    finished.storage.remove("00001.parquet")
    assert "1 published tables are missing (00001.parquet)" in Written(finished).texts(".fault")[0]


def test_an_unfinished_run_says_what_waits_and_what_was_given_up(finished: Any) -> None:
    finished.mark("duplicates", "all", Counts(164, 160, {"duplicate_row": 4}))
    finished.mark("split", "00000", Counts(164, 164))
    finished.mark("crawl_merge", "00000", Counts(172, 164, {"duplicate_pair": 8}))
    finished.storage.remove("pairs/00000.parquet")
    finished.plan("download", ["00000", "00001", "00002", "00003"])
    finished.dataset.ledger.quarantine("download", "00002", "Traceback\nOSError: <disk> full", 3)
    report = Written(finished)
    assert report.texts(".state") == ["1 job given up"]
    assert report.facts["num_quarantined"] == 1
    assert "−100 waiting" in report.texts(".fell li")
    assert "OSError: <disk> full" in report.texts("#run pre")[0]


def test_a_crawl_alone_has_its_funnel_and_no_gallery(builder: Any) -> None:
    pages = [
        {"url": f"http://a.test/{at}", "host": "a.test", "depth": at, "status": 200, "reason": "ok"} for at in range(3)
    ]
    extra = {"images": 9, "pairs": 4, "no_pair:no_caption": 5}
    table = builder.table("ledger/pages/R00000-B00001.parquet", pages)
    builder.mark("crawl_frontier", "R00000", Counts(10, 3, {"over_budget": 5, "repeated_link": 2}))
    builder.mark("crawl_live", "R00000-B00001", Counts(3, 3, {}, extra), (table,))
    report = Written(builder)
    assert report.stages() == {
        "Pages found": 8, "Pages asked for": 3, "Pages read": 3, "Images on the pages": 9, "Pairs found": 4,
    }  # fmt: skip
    assert not report.page.css("#pictures")
    assert report.facts["rows_in"] == 3


def test_an_empty_folder_says_so(builder: Any) -> None:
    report = Written(builder)
    assert report.texts(".state") == ["nothing here yet"]
    assert report.facts["rows_in"] == 0
    assert report.page.css(".nothing")


def test_a_missing_folder_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        write_report(tmp_path / "nowhere", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_broken_table_is_a_users_error(finished: Any, tmp_path: Path) -> None:
    Path(finished.storage.path("00000.parquet")).write_bytes(b"PAR1 not at all PAR1")
    with pytest.raises(DatasetError, match="verify"):
        write_report(finished.storage.url, tmp_path / "report.html")


def test_a_folder_of_img2dataset_is_read_as_it_is(builder: Any) -> None:
    import pyarrow as pa

    from infra.tables import write_table

    rows = [{"url": f"http://a.test/{at}.jpg", "caption": f"c {at}", "size": (40, 30)} for at in range(5)]
    messages = ["HTTP Error 404: Not Found", "<urlopen error [Errno -2] Name or service not known>", "timed out", "odd"]
    rows += [
        {"url": "http://b.test/x", "caption": "f", "status": "failed_to_download", "error_message": message}
        for message in messages
    ]
    builder.shard("00000", rows, marked=False, indexed=False)
    table = pq.read_table(builder.storage.path("00000.parquet"))
    foreign = table.select(["url", "caption", "key", "status", "error_message", "width", "height"])
    write_table(builder.storage, "00000.parquet", foreign.append_column("exif", pa.array(["{}"] * len(rows))))
    builder.storage.commit_bytes("00000_stats.json", b'{"count": 9, "successes": 5, "duration": 12.5}')
    report = Written(builder)
    assert report.facts["dropped"] == {"http_404": 1, "dns": 1, "timeout": 1, "failed_to_download": 1}
    assert report.stages() == {"Rows to download": 9, "Images fetched": 5, "Pairs stored": 5}
    assert len(report.page.css(".gallery img")) == 5
    assert "12 s of work" in report.texts("#run .note")[0]


def test_a_dataset_on_an_object_store_gives_the_same_page(finished: Any, tmp_path: Path) -> None:
    import fsspec

    here = tmp_path / "here.html"
    write_report(finished.storage.url, here)
    memory = fsspec.filesystem("memory")
    memory.put(finished.storage.url, "/bucket/", recursive=True)
    try:
        write_report("memory://bucket/dataset", tmp_path / "there.html")
    finally:
        memory.rm("/bucket", recursive=True)
    there = (tmp_path / "there.html").read_text(encoding="utf-8")
    assert there.replace("memory://bucket/dataset", finished.storage.url) == here.read_text(encoding="utf-8")


def test_only_the_page_is_left_behind(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    write_report(finished.storage.url, "report.html")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["report.html"]
