"""Archives made on the spot, and the shared real ones where they lie beside the checkout."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

Record = Callable[..., bytes]


def make_record(
    block: bytes,
    kind: str = "response",
    url: str = "http://e.example/",
    content_type: str = "application/http; msgtype=response",
    extra: Iterable[str] = (),
    length: int | None = None,
) -> bytes:
    """A WARC record. `length`: what it claims, where that is not what it has."""
    lines = [
        "WARC/1.0", f"WARC-Type: {kind}", f"WARC-Target-URI: {url}", "WARC-Date: 2024-01-01T00:00:00Z",
        f"Content-Type: {content_type}", f"Content-Length: {len(block) if length is None else length}", *extra,
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + block + b"\r\n\r\n"


def make_response(
    body: bytes, content_type: str = "text/html", status: int = 200, headers: Iterable[str] = ()
) -> bytes:
    """An HTTP message."""
    lines = [f"HTTP/1.1 {status} Word", *([f"Content-Type: {content_type}"] if content_type else []), *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture(scope="session")
def warc_record() -> Record:
    """See make_record."""
    return make_record


@pytest.fixture(scope="session")
def http_response() -> Callable[..., bytes]:
    """See make_response."""
    return make_response


@pytest.fixture(scope="session")
def gzipped() -> Callable[[Iterable[bytes]], bytes]:
    """Records, each in a gzip member of its own."""
    return lambda records: b"".join(gzip.compress(record, mtime=0) for record in records)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared test material."""
    folder = Path(__file__).resolve().parents[4] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared test material (../shared/data) is not beside this checkout")
    return folder
