"""Archives, streamed: WARC and WAT files to pages and images, every record with one fate; one record by its offset.

Memory is bounded by one page; images are only noted, with the offset at which `read_record` finds them later. An
archive may be gzip, zstd, lz4 or plain. A damaged place costs the record it lies in: reading goes on at the next one.

    not_response  request, warcinfo or metadata     revisit     says only that nothing had changed
    conversion    text of a WET file                not_http    a response of another protocol
    http_NNN      a status other than 200           not_html    neither page nor image
    clipped       cut short                         bad_record  damaged
    no_offset     an image in a compressed piece with other records, which cannot be read alone
    bad_url       an image without an http(s) address
    too_large, bad_encoding  see payload.py
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from pipeline.crawl.page import SOURCES
from pipeline.crawl.paths import archive_size, expand_paths, open_archive
from pipeline.crawl.payload import PayloadError, decode_body
from pipeline.crawl.records import ImageRecord, PageRecord, RecordError, Skipped, WatRecord
from pipeline.crawl.wat import WatError, parse_wat
from pipeline.urls import MAX_URL_CHARS, clean_url

__all__ = [
    "Found", "ImageRecord", "PageRecord", "RecordError", "Skipped", "WatRecord", "archive_size", "expand_paths",
    "open_archive", "read_archive", "read_record",
]  # fmt: skip

MAX_PAGE_BYTES = 16 << 20
MAX_WAT_BYTES = 64 << 20
MAX_HEADER_BYTES = 256 << 10
MAX_FAILURES = 1_000  # to find a next record, before the rest is given up
HTML_TYPES = frozenset(("text/html", "application/xhtml+xml"))

log = logging.getLogger(__name__)

_MAGICS = (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"WARC/")
_BEGIN = re.compile(b"|".join(map(re.escape, _MAGICS)))
_PLAIN_BEGIN = re.compile(rb"WARC/\d")
_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*+(?:<!--(?>.*?-->)\s*+)*+<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_SCAN_BYTES = 1 << 20
_FATES = {
    int(WarcRecordType.conversion): "conversion",
    int(WarcRecordType.continuation): "clipped",
}

Found = PageRecord | ImageRecord | WatRecord | Skipped


def read_archive(
    stream: IO[bytes], path: str, *, max_page_bytes: int = MAX_PAGE_BYTES, sources: Sequence[str] = SOURCES
) -> Iterator[Found]:
    """Each record of an archive, in order. stream: seekable, at its beginning. sources: of captions, for WAT pages.

    Raises what the stream raises; nothing for what is wrong in the data.
    """
    reader = _Reader(stream, max_page_bytes, sources)
    num_failures = num_damages = 0
    is_told = reader.is_empty
    while num_failures < MAX_FAILURES:
        fault = None
        try:
            yield from reader.read()
        except OSError as error:
            _raise_storage_fault(error)
            fault = error
        num_failures = 0 if reader.has_read else num_failures + 1
        is_told = is_told and not reader.has_read
        # One place, one fate, however often a next record is looked for there.
        if not is_told and (fault is not None or not reader.has_read):
            is_told = True
            num_damages += 1
            yield Skipped("clipped" if fault is None else "bad_record", max(reader.offset, reader.start))
        if not reader.skip_ahead(is_damaged=fault is not None):
            break
    if num_damages:
        gave_up = num_failures == MAX_FAILURES
        log.warning("archive=%s damages=%d last=%d gave_up=%s", path, num_damages, reader.offset, gave_up)


def read_record(
    path: str, offset: int, max_bytes: int, open_stream: Callable[[str], IO[bytes]] = open_archive
) -> tuple[str | None, bytes]:
    """Content type and decoded body of one record. Raises RecordError, and what the storage raises."""
    where = f"{path} at {offset}"
    with open_stream(path) as stream:
        stream.seek(offset)
        try:
            record = next(iter(ArchiveIterator(stream, parse_http=False, max_header_len=MAX_HEADER_BYTES)), None)
            if record is None or record.stream_pos != offset:
                raise RecordError("bad_record", f"no record in {where}")
            head = _head(record)
            if head.fault is not None or head.status not in (None, 200):
                raise RecordError(head.fault or f"http_{head.status:03d}", where)
            body, is_whole = _body(record, head, max_bytes)
        except OSError as error:
            _raise_storage_fault(error)
            raise RecordError("bad_record", f"{error} in {where}") from None
        except PayloadError as error:
            raise RecordError(error.reason, where) from None
    if not is_whole:
        raise RecordError("clipped", where)
    return head.content_type, body


@dataclass(slots=True)
class _Head:
    """A record as far as it must be read to know what it is. status and headers: of HTTP, where it is that."""

    url: str | None
    content_type: str | None = None
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    fault: str | None = None

    @property
    def media_type(self) -> str:
        return (self.content_type or "").partition(";")[0].strip().lower()

    def header(self, name: str) -> str | None:
        return ",".join(value for key, value in self.headers if key.lower() == name) or None


class _Reader:
    """Records up to the end or the next damage. offset: of the last record; start: where reading began last."""

    def __init__(self, stream: IO[bytes], max_page_bytes: int, sources: Sequence[str]) -> None:
        self.offset = -1
        self.start = 0
        self.has_read = False  # a record since `start`
        self._stream = stream
        self._max_page_bytes = max_page_bytes
        self._sources = sources
        self.is_empty = not stream.read(1)
        stream.seek(0)
        self._is_plain = self._begins_with(0, b"WARC/")
        self._block_bytes = 0  # of the last record
        self._has_offsets: bool | None = True if self._is_plain else None

    def read(self) -> Iterator[Found]:
        self.has_read = False
        for record in ArchiveIterator(self._stream, parse_http=False, max_header_len=MAX_HEADER_BYTES):
            place, before = record.stream_pos, self.offset
            self.has_read, self.offset, self._block_bytes = True, place, record.content_length
            if self._has_offsets is None and before >= 0:
                # Where the whole archive is one compressed piece, positions mean nothing.
                self._has_offsets = self._begins_with(place, *_MAGICS)
            try:
                found = self._fate(record, place > before and self._has_offsets is not False)
            except PayloadError as error:
                found = Skipped(error.reason, place, _target(record), is_page=True)
            yield found

    def skip_ahead(self, *, is_damaged: bool) -> bool:
        """Go to where a record may begin, behind the last one. False at the end.

        After damage the last record's length is not to be trusted; without, its block is no place to look.
        """
        begin = _PLAIN_BEGIN if self._is_plain else _BEGIN
        at, kept = max(self.offset, self.start) + 1, b""
        if self._is_plain and not is_damaged and self.has_read:
            self._stream.seek(self.offset)
            header, _, _ = self._stream.read(MAX_HEADER_BYTES).partition(b"\r\n\r\n")
            at = self.offset + len(header) + 4 + self._block_bytes
        self._stream.seek(at)
        while block := self._stream.read(_SCAN_BYTES):
            block = kept + block
            if match := begin.search(block):
                self.start = at - len(kept) + match.start()
                self._stream.seek(self.start)
                return True
            at += len(block) - len(kept)
            kept = block[-8:]
        return False

    def _begins_with(self, offset: int, *magics: bytes) -> bool:
        at = self._stream.tell()
        self._stream.seek(offset)
        head = self._stream.read(8)
        self._stream.seek(at)
        return head.startswith(magics)

    def _fate(self, record: WarcRecord, can_be_found: bool) -> Found:
        kind, offset = record.record_type, record.stream_pos
        if "Content-Length" not in record.headers:  # cut within the headers
            return Skipped("clipped", offset, _target(record))
        if kind == WarcRecordType.metadata and "json" in (record.headers.get("Content-Type") or ""):
            return self._wat(record)
        if kind not in (WarcRecordType.response, WarcRecordType.resource, WarcRecordType.revisit):
            return _passed(record, Skipped(_FATES.get(int(kind), "not_response"), offset, _target(record)))
        head = _head(record)
        is_page = head.media_type in HTML_TYPES
        skipped = Skipped(head.fault or "not_html", offset, head.url, head.status, is_page)
        if kind == WarcRecordType.revisit:
            return replace(skipped, reason="revisit")
        if head.fault is not None:
            return _passed(record, skipped)
        if head.status not in (None, 200):
            return _passed(record, replace(skipped, reason=f"http_{head.status:03d}"))
        if head.media_type.startswith("image/"):
            return _image(record, head, skipped, can_be_found)
        if head.media_type and not is_page:
            return _passed(record, skipped)
        body, is_whole = _body(record, head, self._max_page_bytes)
        if not is_page and not _HTML.match(body):
            return skipped
        if head.url is None:
            return replace(skipped, reason="bad_record")
        return PageRecord(head.url, offset, body, head.content_type, head.status, head.headers, not is_whole)

    def _wat(self, record: WarcRecord) -> Found:
        url, offset = _target(record), record.stream_pos
        data = record.reader.read(MAX_WAT_BYTES + 1)
        try:
            if len(data) > MAX_WAT_BYTES:
                raise WatError("too_large")
            if len(data) < record.content_length:
                raise WatError("clipped")
            page, status, headers = parse_wat(data, url=url or "", sources=self._sources)
        except WatError as error:
            return Skipped(error.reason, offset, url, error.status, error.status is not None)
        return WatRecord(url or "", offset, page, status, headers)


def _target(record: WarcRecord) -> str | None:
    """The record's address; some writers put it in angle brackets."""
    target = (record.headers.get("WARC-Target-URI") or "").strip().removeprefix("<").removesuffix(">")
    return clean_url(target, target) or target[:MAX_URL_CHARS] or None


def _head(record: WarcRecord) -> _Head:
    """Read HTTP headers, where there are any. Raises OSError for damaged data."""
    head = _Head(_target(record), record.headers.get("Content-Type"))
    if not head.media_type.startswith("application/http"):
        if record.record_type == WarcRecordType.response and head.media_type:
            head.fault = "not_http"
        return head
    record.parse_http("none", max_header_len=MAX_HEADER_BYTES, quirks_mode=True)
    http = record.http_headers
    if http is None or http.status_code is None:
        return replace(head, content_type=None, fault="bad_record")
    headers = http.to_tuples()
    return replace(head, content_type=http.get("Content-Type"), status=http.status_code, headers=headers)


def _passed(record: WarcRecord, skipped: Skipped) -> Skipped:
    """Read past a record that gives nothing: clipped, if the archive ends in it."""
    record.reader.consume()
    return replace(skipped, reason="clipped") if _is_short(record) else skipped


def _is_short(record: WarcRecord) -> bool:
    return record.reader.tell() < record.content_length or bool(record.headers.get("WARC-Truncated"))


def _image(record: WarcRecord, head: _Head, skipped: Skipped, can_be_found: bool) -> Found:
    record.reader.consume()
    if _is_short(record):
        return replace(skipped, reason="clipped")
    if head.url is None or clean_url(head.url, head.url) is None:
        return replace(skipped, reason="bad_url")
    if not can_be_found:
        return replace(skipped, reason="no_offset")
    return ImageRecord(head.url, record.stream_pos, head.media_type, record.content_length, head.headers)


def _body(record: WarcRecord, head: _Head, max_bytes: int) -> tuple[bytes, bool]:
    """The decoded body, and whether it is whole. Raises PayloadError, and OSError for damaged data."""
    raw = record.reader.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise PayloadError("too_large")
    body, is_whole = decode_body(raw, head.header("transfer-encoding"), head.header("content-encoding"), max_bytes)
    return body, is_whole and not _is_short(record)


def _raise_storage_fault(error: OSError) -> None:
    """fastwarc tells of damaged data by a bare OSError; any other error is the storage's, and not ours to judge."""
    if type(error) is not OSError or error.errno is not None:
        raise error
