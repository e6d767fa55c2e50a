"""Real pages, archives and photos over real HTTP give the counts that were made apart from this code."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.dataset import Dataset
from infra.verify import Verify
from tests.servers.commands import SHARED, run
from tests.servers.files import serve_folder

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no test material at {SHARED}")
LOOPBACK = ("--allow-network", "127.0.0.0/8")


def pairs_of(dataset: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((dataset / "pairs").glob("*.parquet"))])


def test_a_live_crawl_of_a_site_finds_each_of_its_pairs_and_pages(tmp_path):
    with serve_folder(SHARED / "site") as site:
        facts = run("pipeline", "crawl", "--seed", f"{site.url}/index.html", "--out", tmp_path, "--local",
                    "--delay-s", "0", "--per-host", "8", *LOOPBACK)  # fmt: skip
    pages = pa.concat_tables(
        [pq.read_table(path) for path in (tmp_path / "ledger/pages").glob("*.parquet")]
    ).to_pylist()
    pairs = pairs_of(tmp_path).to_pylist()
    assert sum(page["reason"] == "ok" for page in pages) == 45
    assert len({(pair["url"], pair["caption"]) for pair in pairs if pair["caption_from"] == "alt"}) == 113
    assert facts["rows_in"] == facts["rows_out"] + sum(facts["dropped"].values())
    assert facts["rows_out"] == len(pairs) == len({pair["uid"] for pair in pairs})
    assert len(pages) == len({page["url"] for page in pages}), "a page has one fate"


def warc_rows() -> list[dict[str, str]]:
    if not SHARED.is_dir():
        return []
    with (SHARED / "warc.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.parametrize("row", warc_rows(), ids=lambda row: Path(row["file"]).name)
def test_an_archive_gives_the_counts_of_its_table(tmp_path, row):
    facts = run("pipeline", "crawl", "--warc", SHARED / row["file"], "--out", tmp_path, "--local", "--captions", "alt")
    tally = facts["steps"]["crawl_archive"].get("extra", {})
    pairs = pairs_of(tmp_path)
    # The one WAT file tells only of a request, so it has no page either: all its counts are 0, as in the table.
    assert tally.get("images_with_alt", 0) == int(row["img_with_alt"])
    seen_inside = sum(
        count for count, path in zip(pairs["num_seen"].to_pylist(), pairs["warc_path"].to_pylist(), strict=True) if path
    )
    assert seen_inside == int(row["alt_pairs_whose_image_is_in_the_file"])


def test_images_inside_an_archive_are_stored_without_a_download(tmp_path):
    archive = SHARED / "warc/mona-lisa.warc.gz"
    run("pipeline", "crawl", "--warc", archive, "--out", tmp_path, "--local", "--captions", "alt")
    inside = [row for row in pairs_of(tmp_path).to_pylist() if row["warc_path"]]
    table = tmp_path / "inside.parquet"
    pq.write_table(pa.Table.from_pylist(inside), table)
    words = ("pipeline", "download", table, "--local", "--image-size", "256", "--attempts", "1")
    refused = run(*words, "--out", tmp_path / "refused")
    assert refused["rows_out"] == 0, "a table from elsewhere opens no file of ours"
    facts = run(*words, "--out", tmp_path / "shards", "--allow-archive", archive.parent)
    assert facts["rows_in"] == len(inside)
    # No url of the archive can be reached from here: what is stored came from the file.
    assert facts["rows_out"] == len(inside) - sum(facts["dropped"].values()) > 0
    assert set(facts["dropped"]) <= {"not_image", "unsupported_format"}, "SVG drawings are the only ones we leave out"


def test_the_photos_are_stored_each_with_its_caption(tmp_path):
    with (SHARED / "photos.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    with serve_folder(SHARED) as server:
        table = tmp_path / "photos.jsonl"
        table.write_text(
            "".join(
                json.dumps({"url": f"{server.url}/{row['file']}", "caption": row["caption"]}) + "\n" for row in rows
            )
        )
        out = tmp_path / "out"
        facts = run(
            "pipeline",
            "download",
            table,
            "--out",
            out,
            "--local",
            "--image-size",
            "256",
            "--shard-size",
            "300",
            *LOOPBACK,
        )
    assert (facts["rows_in"], facts["rows_out"], facts["dropped"]) == (1000, 1000, {})
    stored = pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("*.parquet"))]).to_pylist()
    wanted = {f"{server.url}/{row['file']}": (row["caption"], int(row["width"]), int(row["height"])) for row in rows}
    for row in stored:
        assert wanted[row["url"]] == (row["caption"], row["original_width"], row["original_height"])
        assert max(row["width"], row["height"]) == 256
    assert not list(Verify(Dataset(out)).findings())
