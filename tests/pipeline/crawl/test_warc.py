"""Every record of an archive has one fate, damaged or not, and an image is found again by its offset."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import brotli
import pytest
from fastwarc.stream_io import Lz4Writer, ZstdWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.crawl.html import parse_page
from pipeline.crawl.warc import (
    ImageRecord,
    PageRecord,
    RecordError,
    Skipped,
    WatRecord,
    read_archive,
    read_record,
)

HTML = b"<!doctype html><p><img src=a.jpg alt=x>"
IMAGE = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4
Found = PageRecord | ImageRecord | WatRecord | Skipped


def read(data: bytes, **options: int) -> list[Found]:
    return list(read_archive(io.BytesIO(data), "test.warc", **options))  # type: ignore[arg-type]


def fate(record: Found) -> str:
    return record.reason if isinstance(record, Skipped) else type(record).__name__


def opener(data: bytes) -> Callable[[str], io.BytesIO]:
    return lambda path: io.BytesIO(data)


@pytest.fixture
def records(warc_record: Callable[..., bytes], http_response: Callable[..., bytes]) -> dict[str, bytes]:
    """Records by the fate that each should have."""
    return {
        "not_response": warc_record(b"software: test", "warcinfo", content_type="application/warc-fields"),
        "PageRecord": warc_record(http_response(HTML)),
        "ImageRecord": warc_record(http_response(IMAGE, "image/jpeg"), url="<http://e.example/a.jpg>"),
        "http_404": warc_record(http_response(b"gone", status=404)),
        "revisit": warc_record(http_response(b""), "revisit"),
        "not_html": warc_record(http_response(b"{}", "application/json")),
        "not_http": warc_record(b"20240101 e.example A", content_type="text/dns"),
        "conversion": warc_record(b"text", "conversion", content_type="text/plain"),
        "bad_record": warc_record(b"no http at all"),
        "bad_url": warc_record(IMAGE, "resource", url="urn:x", content_type="image/png"),
    }


def test_every_record_has_its_fate(records: dict[str, bytes], gzipped: Callable[[Iterable[bytes]], bytes]) -> None:
    for data in (b"".join(records.values()), gzipped(records.values())):
        assert [fate(record) for record in read(data)] == list(records)


def test_resources_are_pages_and_images_without_http(warc_record: Callable[..., bytes]) -> None:
    data = warc_record(HTML, "resource", content_type="text/html; charset=utf-8")
    data += warc_record(IMAGE, "resource", content_type="image/jpeg")
    page, image = read(data)
    assert isinstance(page, PageRecord)
    assert (page.body, page.status, page.headers) == (HTML, None, ())
    assert isinstance(image, ImageRecord)
    assert read_record("x", image.offset, 10_000, opener(data)) == ("image/jpeg", IMAGE)


@pytest.mark.parametrize("codec", ["plain", "gzip", "lz4", "zstd"])
def test_an_image_is_read_again_by_its_offset(records: dict[str, bytes], codec: str) -> None:
    out = io.BytesIO()
    for record in records.values():
        if codec == "plain":
            out.write(record)
        elif codec == "gzip":
            out.write(gzip.compress(record))
        else:
            writer = (Lz4Writer if codec == "lz4" else ZstdWriter)(out)
            writer.write(record)
            writer.finish()
            writer.flush()
    data = out.getvalue()
    (image,) = [record for record in read(data) if isinstance(record, ImageRecord)]
    assert (image.url, image.num_bytes) == ("http://e.example/a.jpg", len(IMAGE))
    assert read_record("x", image.offset, len(IMAGE), opener(data)) == ("image/jpeg", IMAGE)
    with pytest.raises(RecordError, match="too_large"):
        read_record("x", image.offset, len(IMAGE) - 1, opener(data))
    with pytest.raises(RecordError, match="bad_record"):
        read_record("x", image.offset + 1, len(IMAGE), opener(data))


def test_in_one_compressed_piece_images_have_no_offset(records: dict[str, bytes]) -> None:
    found = Counter(fate(record) for record in read(gzip.compress(b"".join(records.values()))))
    assert found["no_offset"] == 1
    assert found["ImageRecord"] == 0
    assert found.total() == len(records)


@pytest.mark.parametrize(
    ("headers", "encode"),
    [
        (["Content-Encoding: gzip"], gzip.compress),
        (["Content-Encoding: br"], brotli.compress),
        (["Transfer-Encoding: chunked"], lambda body: b"%x;a=b\r\n%s\r\n0\r\n\r\n" % (len(body), body)),
        (["Transfer-Encoding: chunked", "Content-Encoding: gzip"], lambda body: b"%x\r\n%s\r\n0\r\n\r\n" % (
            len(gzip.compress(body)), gzip.compress(body))),
        (["Content-Encoding: gzip"], bytes),  # decoded by the archiver, header kept
        (["Content-Encoding: utf-8"], bytes),
    ],
)  # fmt: skip
def test_encodings_are_undone(
    headers: list[str],
    encode: Callable[[bytes], bytes],
    warc_record: Callable[..., bytes],
    http_response: Callable[..., bytes],
) -> None:
    data = warc_record(http_response(encode(HTML), headers=headers))
    (page,) = read(data)
    assert isinstance(page, PageRecord)
    assert page.body == HTML
    assert not page.is_clipped


def test_a_bomb_is_too_large(warc_record: Callable[..., bytes], http_response: Callable[..., bytes]) -> None:
    bomb = b"<html>" + bytes(50_000_000)
    for name, encode in (("gzip", gzip.compress), ("br", lambda body: brotli.compress(body, quality=1))):
        data = warc_record(http_response(encode(bomb), headers=[f"Content-Encoding: {name}"]))
        assert [fate(record) for record in read(data, max_page_bytes=1_000_000)] == ["too_large"]
    assert [fate(record) for record in read(warc_record(http_response(HTML)), max_page_bytes=5)] == ["too_large"]


def test_a_page_without_a_type_is_known_by_its_beginning(
    warc_record: Callable[..., bytes], http_response: Callable[..., bytes]
) -> None:
    bodies = (b" <!-- c --> <HTML lang=en>", b"%PDF-1.4 <html>")
    data = b"".join(warc_record(http_response(body, content_type="")) for body in bodies)
    assert [fate(record) for record in read(data)] == ["PageRecord", "not_html"]


def test_reading_goes_on_behind_damage(records: dict[str, bytes], gzipped: Callable[[Iterable[bytes]], bytes]) -> None:
    page, other = records["PageRecord"], records["http_404"]
    broken = bytearray(gzip.compress(page))
    broken[40:60] = b"\xff" * 20
    assert [fate(record) for record in read(gzipped([other]) + bytes(broken) + gzipped([other]))] == [
        "http_404", "bad_record", "http_404",
    ]  # fmt: skip
    for garbage in (b"garbage " * 99, bytes(5_000), b"\x1f\x8b\x08 no gzip"):
        mixed = read(gzipped([page]) + garbage + gzipped([other, page]))
        assert [fate(record) for record in mixed if fate(record) != "bad_record"] == [
            "PageRecord",
            "http_404",
            "PageRecord",
        ]
        assert any(fate(record) == "bad_record" for record in mixed)
        plain = read(page + garbage + other)
        assert [fate(record) for record in plain if fate(record) != "bad_record"] == ["PageRecord", "http_404"]
    assert {fate(record) for record in read(b"\xff\xd8" * 1_000)} == {"bad_record"}
    assert read(b"") == []


def test_a_wrong_length_costs_no_more_than_the_next_record(
    records: dict[str, bytes], warc_record: Callable[..., bytes], http_response: Callable[..., bytes]
) -> None:
    liar = warc_record(http_response(HTML), length=len(http_response(HTML)) + 150)
    found = [fate(record) for record in read(liar + records["http_404"] + records["PageRecord"])]
    assert found[-1] == "PageRecord"


@pytest.mark.parametrize("codec", ["plain", "gzip"])
def test_what_comes_before_a_cut_is_kept(records: dict[str, bytes], codec: str) -> None:
    parts = [record if codec == "plain" else gzip.compress(record, mtime=0) for record in records.values()]
    ends = [sum(map(len, parts[: at + 1])) for at in range(len(parts))]
    data = b"".join(parts)
    for cut in range(0, len(data), 7):
        num_whole = sum(end <= cut for end in ends)
        found = [fate(record) for record in read(data[:cut])]
        assert found[:num_whole] == list(records)[:num_whole]
        assert len(found) <= num_whole + 1


def test_a_cut_page_is_kept_as_clipped_and_a_cut_image_is_not(records: dict[str, bytes]) -> None:
    (page,) = read(records["PageRecord"][:-10])
    assert isinstance(page, PageRecord)
    assert page.is_clipped
    assert page.body == HTML[:-6]
    assert [fate(record) for record in read(records["ImageRecord"][:-10])] == ["clipped"]
    assert [fate(record) for record in read(records["not_response"] + records["PageRecord"][:40])][1:] == ["clipped"]
    with pytest.raises(RecordError, match="clipped"):
        read_record("x", 0, 10_000, opener(records["ImageRecord"][:-10]))


def test_the_storage_s_own_faults_are_not_taken_for_damage(records: dict[str, bytes]) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 100:
                raise TimeoutError("the network is gone")
            return super().read(size)

    data = gzip.compress(records["PageRecord"]) * 9_000
    with pytest.raises(TimeoutError):
        list(read_archive(Broken(data), "x"))
    with pytest.raises(TimeoutError):
        read_record("x", 200, 10_000, lambda path: Broken(data))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_flipped_bytes_raise(data: st.DataObject) -> None:
    clean = gzip.compress(
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://e.example/\r\nWARC-Date: never\r\n"
        b"Content-Type: application/http\r\nContent-Length: 80\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + HTML[:37] + b"\r\n\r\n",
        compresslevel=data.draw(st.sampled_from([0, 9])), mtime=0,
    )  # fmt: skip
    archive = bytearray(clean * 3)
    for at in data.draw(st.lists(st.integers(0, len(archive) - 1), max_size=6)):
        archive[at] = data.draw(st.integers(0, 255))
    for record in read(bytes(archive)):
        if isinstance(record, PageRecord):
            parse_page(record.body, url=record.url, content_type=record.content_type)


def wat(**metadata: object) -> bytes:
    return json.dumps({"Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": metadata}}}).encode()


def test_a_wat_page_equals_its_html_page(
    warc_record: Callable[..., bytes], http_response: Callable[..., bytes]
) -> None:
    html = (
        "<head><title>T</title><base href='/b/'><meta name=robots content=noai><link rel=license href=/l></head>"
        "<img src=a.jpg alt=' One  two ' title=Three><img src=b.jpg><img src='data:,' alt=x>"
    )
    described = wat(
        **{
            "Response-Message": {"Status": "200"},
            "Headers": {"Content-Type": "text/html", "X-Robots-Tag": ["noai", "noindex"]},
            "HTML-Metadata": {
                "Head": {"Title": "T", "Base": "/b/",
                         "Metas": [{"name": "robots", "content": "noai"}, {"charset": "x"}],
                         "Link": [{"path": "LINK@/href", "url": "/l", "rel": "license"}]},
                "Links": [{"path": "IMG@/src", "url": "a.jpg", "alt": " One  two ", "title": "Three"},
                          {"path": "A@/href", "url": "x"}, {"path": "IMG@/src", "url": "b.jpg"},
                          {"path": "IMG@/src", "url": "data:,", "alt": "x"}, "rubbish"],
            },
        }
    )  # fmt: skip
    page_record, wat_record = read(
        warc_record(http_response(html.encode()), url="http://e.example/p")
        + warc_record(described, "metadata", url="http://e.example/p", content_type="application/json")
    )
    assert isinstance(page_record, PageRecord)
    assert isinstance(wat_record, WatRecord)
    assert wat_record.page == parse_page(page_record.body, url=page_record.url)
    assert [pair for pair in wat_record.headers if pair[0] == "X-Robots-Tag"] == [
        ("X-Robots-Tag", "noai"), ("X-Robots-Tag", "noindex"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (b"{", "bad_record"), (b"[]", "bad_record"), (b"[" * 100_000, "bad_record"), (wat(), "not_response"),
        (wat(**{"Response-Message": {"Status": 200}}), "not_html"),
        (wat(**{"Response-Message": {"Status": "x"}}), "bad_record"),
        (wat(**{"Response-Message": {"Status": "404"}}), "http_404"),
        (b'{"Envelope": {"Payload-Metadata": {"HTTP-Request-Metadata": {}}}}', "not_response"),
    ],
)  # fmt: skip
def test_a_wat_record_without_a_page_has_its_reason(
    block: bytes, reason: str, warc_record: Callable[..., bytes]
) -> None:
    assert [fate(record) for record in read(warc_record(block, "metadata", content_type="application/json"))] == [
        reason
    ]


ARCHIVES = [
    "mona-lisa.warc.gz", "resiliparse-warcfile.warc.gz", "clipped.warc.gz", "whirlwind.warc.gz",
    "whirlwind.warc.wat.gz", "whirlwind.warc.wet.gz", "example-revisit.warc.gz", "truncated_datetime.warc",
    "transfer_compression_brotli.warc.gz",
]  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_real_archives_give_the_known_counts(shared: Path, name: str) -> None:
    """warc.tsv counts a redirect and a revisit as html records when their headers say HTML: here both are of no use."""
    with (shared / "warc.tsv").open(newline="") as file:
        (known,) = [row for row in csv.DictReader(file, delimiter="\t") if row["file"] == f"warc/{name}"]
    path = str(shared / "warc" / name)
    with open(path, "rb") as stream:
        records = list(read_archive(stream, path))
    assert len(records) == sum(json.loads(known["records"]).values())
    images = {record.url: record.offset for record in records if isinstance(record, ImageRecord)}
    pages = [
        parse_page(record.body, url=record.url, content_type=record.content_type)
        for record in records
        if isinstance(record, PageRecord)
    ]
    num_html = len(pages) + sum(isinstance(record, Skipped) and record.is_page for record in records)
    assert num_html == int(known["html_records"])
    assert len(images) == int(known["image_records"])
    assert sum(page.num_img for page in pages) == int(known["img_tags"])
    assert sum(page.num_img_with_alt for page in pages) == int(known["img_with_alt"])
    # The pages name src and larger ones; the archive holds what was shown then: src. Pages stored twice count twice.
    inside = [
        pair
        for page in pages
        for pair in page.candidates
        if pair.caption_from == "alt" and not images.keys().isdisjoint((pair.url, *pair.others))
    ]
    assert len(inside) == int(known["alt_pairs_whose_image_is_in_the_file"])
    for offset in images.values():
        content_type, _ = read_record(path, offset, 1 << 24)
        assert (content_type or "").startswith("image/")
