"""Bodies are decoded within a cap, and what is broken is said to be."""

from __future__ import annotations

import gzip
import io
import time
import zlib
from collections.abc import Callable

import brotli
import pytest
from fastwarc.stream_io import ZstdWriter
from hypothesis import given
from hypothesis import strategies as st

from pipeline.crawl.payload import PayloadError, decode_body, join_chunks


def zstd(data: bytes) -> bytes:
    out = io.BytesIO()
    writer = ZstdWriter(out)
    writer.write(data)
    writer.finish()
    writer.flush()
    return out.getvalue()


def bare_deflate(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


CODECS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "members": ("x-gzip", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
    "zlib": ("deflate", zlib.compress),
    "deflate": ("Deflate", bare_deflate),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstd),
    "twice": ("gzip, br", lambda data: brotli.compress(gzip.compress(data))),
}


@pytest.mark.parametrize("name", CODECS)
def test_an_encoding_is_undone_within_its_cap(name: str) -> None:
    encoding, encode = CODECS[name]
    body = b"<html>" + bytes(range(256)) * 40
    assert decode_body(encode(body), None, encoding, len(body)) == (body, True)
    with pytest.raises(PayloadError, match="too_large"):
        decode_body(encode(body), None, encoding, len(body) - 1)


@pytest.mark.parametrize("name", CODECS)
def test_a_cut_body_is_not_whole(name: str) -> None:
    encoding, encode = CODECS[name]
    raw = encode(b"<html>" + bytes(range(256)) * 40)
    try:
        body, is_whole = decode_body(raw[: len(raw) // 2], None, encoding, 1 << 20)
    except PayloadError as error:
        assert error.reason == "bad_encoding"  # noqa: PT017 - one of two right answers
    else:
        assert not is_whole
        assert len(body) < 256 * 40


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd"])
def test_a_body_decoded_before_it_was_stored_is_taken_as_it_is(encoding: str) -> None:
    for body in (b"<!doctype html><p>", b"\xff\xd8\xff\xe0 a jpeg"):
        assert decode_body(body, "chunked", encoding, 100) == (body, True)
    with pytest.raises(PayloadError, match="bad_encoding"):
        decode_body(b"\x01\x02\x03\x04 neither" * 9, None, encoding, 1_000)


def test_many_tiny_members_take_bounded_time() -> None:
    start = time.process_time()
    body, is_whole = decode_body(gzip.compress(b"x") * 500_000, None, "gzip", 1 << 24)
    assert time.process_time() - start < 2
    assert not is_whole
    assert set(body) == {ord("x")}


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=6), st.integers(0, 300))
def test_chunks_are_joined_and_a_missing_end_is_seen(chunks: list[bytes], cut: int) -> None:
    raw = b"".join(b"%X;x=y\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    assert join_chunks(raw) == (b"".join(chunks), True)
    body, is_whole = join_chunks(raw[:cut])
    if body != raw[:cut]:
        assert b"".join(chunks).startswith(body)
        assert not is_whole or body == b"".join(chunks)


@given(st.binary(max_size=200), st.sampled_from(["gzip", "br", "deflate", "zstd", "gzip,br", "x", ""]), st.booleans())
def test_no_bytes_raise_anything_else(raw: bytes, encoding: str, is_chunked: bool) -> None:
    try:
        body, _ = decode_body(raw, "chunked" if is_chunked else None, encoding, 1_000)
    except PayloadError as error:
        assert error.reason in ("too_large", "bad_encoding")  # noqa: PT017 - may or may not raise
    else:
        assert len(body) <= 1_000
