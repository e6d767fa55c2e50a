"""Archives are named by paths, globs and listings; what matches nothing is said at once."""

from __future__ import annotations

import gzip
from pathlib import Path

import fsspec
import pytest

from infra.errors import UsageError
from pipeline.crawl.paths import archive_size, expand_paths, open_archive


def test_globs_paths_and_listings_meet_in_one_sorted_list(tmp_path: Path) -> None:
    for name in ("b.warc.gz", "a.warc.gz", "[odd].warc"):
        (tmp_path / name).write_bytes(b"x")
    listing = tmp_path / "warc.paths.gz"
    listing.write_bytes(gzip.compress(b"crawl-data/1.warc.gz\n/crawl-data/0.warc.gz\ns3://other/2.warc.gz\n"))
    found = expand_paths([f"{tmp_path}/*.warc.gz", f"{tmp_path}/a.warc.gz", f"{tmp_path}/[odd].warc", str(listing)])
    assert found == sorted(
        [f"{tmp_path}/a.warc.gz", f"{tmp_path}/b.warc.gz", f"{tmp_path}/[odd].warc", "s3://other/2.warc.gz",
         "https://data.commoncrawl.org/crawl-data/0.warc.gz", "https://data.commoncrawl.org/crawl-data/1.warc.gz"]
    )  # fmt: skip
    plain = tmp_path / "wat.paths"
    plain.write_text("x.warc.wat.gz\n")
    assert expand_paths([str(plain)], prefix="file:///mirror") == ["file:///mirror/x.warc.wat.gz"]


def test_urls_of_fsspec_keep_their_protocol() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/archives/a.warc", b"abc")
    try:
        assert expand_paths(["memory://archives/*.warc"]) == ["memory:///archives/a.warc"]
        assert archive_size("memory:///archives/a.warc") == 3
        with open_archive("memory:///archives/a.warc") as stream:
            assert stream.read() == b"abc"
    finally:
        memory.rm("/archives", recursive=True)


@pytest.mark.parametrize("pattern", ["none.warc", "*.warc", "nothing://x/y.warc", "."])
def test_what_matches_nothing_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--warc"):
        expand_paths([pattern])


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b broken", b"\xff\xfe\xff"])
def test_a_listing_that_is_none_is_a_usage_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.paths.gz").write_bytes(data)
    with pytest.raises(UsageError, match="listing"):
        expand_paths([str(tmp_path / "x.paths.gz")])
