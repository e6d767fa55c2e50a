"""A body as it was sent, to the body that was meant: chunks joined, content encodings undone, within a cap on bytes.

Archives keep bodies as they came over the wire, or decoded with the old headers still on them; both are read.
"""

from __future__ import annotations

import io
import re
import zlib

import brotli
from fastwarc.stream_io import ZstdReader

_CHUNK_SIZE = re.compile(rb"\s*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\n]*)?\r?\n")
_PIECE = 1 << 20
_TEXT_OR_IMAGE = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|RIFF|\xef\xbb\xbf|\s*<|[\t\r\n\f -\x7e]{16}")
_MAX_MEMBERS = 16  # of one gzip body; each costs a copy of what follows it


class PayloadError(Exception):
    """`reason`: too_large or bad_encoding."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode_body(raw: bytes, transfer: str | None, encoding: str | None, max_bytes: int) -> tuple[bytes, bool]:
    """The body and whether it is whole. transfer, encoding: headers Transfer-Encoding and Content-Encoding.

    An encoding nobody knows is taken for none, as browsers do. Raises PayloadError.
    """
    is_whole = True
    if transfer and "chunked" in transfer.lower():
        raw, is_whole = join_chunks(raw)
    for name in reversed((encoding or "").lower().split(",")):
        decode = _DECODERS.get(name.strip())
        if decode is None or not raw:
            continue
        try:
            raw, ended = decode(raw, max_bytes)
        except (zlib.error, brotli.error, OSError):
            if not _TEXT_OR_IMAGE.match(raw):
                raise PayloadError("bad_encoding") from None
            continue  # decoded before it was stored, and the header kept
        is_whole = is_whole and ended
    if len(raw) > max_bytes:
        raise PayloadError("too_large")
    return raw, is_whole


def join_chunks(raw: bytes) -> tuple[bytes, bool]:
    """The body of a chunked message and whether its last chunk came; one that is not chunked stays as it is."""
    parts: list[bytes] = []
    at = 0
    while match := _CHUNK_SIZE.match(raw, at):
        size = int(match[1], 16)
        if size == 0:
            return b"".join(parts), True
        at = match.end() + size
        parts.append(raw[match.end() : at])
        if at > len(raw):
            break
    return (b"".join(parts), False) if parts else (raw, True)


def _inflate(raw: bytes, max_bytes: int) -> tuple[bytes, bool]:
    """gzip (of several members, too), zlib, or bare deflate, which some servers send as "deflate"."""
    try:
        return _inflate_as(zlib.MAX_WBITS | 32, raw, max_bytes)
    except zlib.error:
        if raw[:2] == b"\x1f\x8b":
            raise
        return _inflate_as(-zlib.MAX_WBITS, raw, max_bytes)


def _inflate_as(window_bits: int, raw: bytes, max_bytes: int) -> tuple[bytes, bool]:
    parts: list[bytes] = []
    room = max_bytes
    for _ in range(_MAX_MEMBERS):
        inflater = zlib.decompressobj(window_bits)
        parts.append(inflater.decompress(raw, room + 1))
        room -= len(parts[-1])
        if room < 0:
            raise PayloadError("too_large")
        raw = inflater.unused_data
        if not inflater.eof or raw[:2] != b"\x1f\x8b":
            return b"".join(parts), inflater.eof
    return b"".join(parts), False


def _unbrotli(raw: bytes, max_bytes: int) -> tuple[bytes, bool]:
    inflater = brotli.Decompressor()
    parts = [inflater.process(raw, output_buffer_limit=_PIECE)]
    num_bytes = len(parts[0])
    while parts[-1] and not inflater.is_finished():
        if num_bytes > max_bytes:
            raise PayloadError("too_large")
        parts.append(inflater.process(b"", output_buffer_limit=_PIECE))
        num_bytes += len(parts[-1])
    return b"".join(parts), inflater.is_finished()


def _unzstd(raw: bytes, max_bytes: int) -> tuple[bytes, bool]:
    reader = ZstdReader(io.BytesIO(raw))
    body = b""
    try:
        while piece := reader.read(_PIECE):
            body += piece
            if len(body) > max_bytes:
                raise PayloadError("too_large")
    except OSError:
        if not body:
            raise
        return body, False
    return body, True


_DECODERS = {
    "gzip": _inflate, "x-gzip": _inflate, "deflate": _inflate, "br": _unbrotli, "zstd": _unzstd,
}  # fmt: skip
