"""Content encodings undone as the body arrives, never past the cap: a bomb costs its cap, not its promise."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import brotli

from pipeline.fetch.errors import FetchError

ACCEPTED = "gzip, deflate, br"
MAX_ENCODINGS = 2
STEP = 1 << 18  # bytes given out by a decoder at once


class Body:
    """Collects chunks of a body, decoded, up to `max_bytes`. Raises FetchError too_large or bad_encoding."""

    def __init__(self, encodings: str, max_bytes: int) -> None:
        names = [name.strip().lower() for name in encodings.split(",")]
        names = [name for name in names if name not in ("", "identity")]
        if len(names) > MAX_ENCODINGS:
            raise FetchError("bad_encoding", "more than two content encodings")
        self._decoders = [_decoder(name) for name in reversed(names)]
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self._num_bytes = 0

    def feed(self, chunk: bytes) -> None:
        """Take what has arrived."""
        self._pass(chunk, 0)

    def finish(self) -> bytes:
        """The whole body. Raises FetchError where an encoding ends too early."""
        if any(not decoder.is_whole for decoder in self._decoders) and self._num_bytes + len(self._decoders):
            raise FetchError("bad_encoding", "the content encoding ends too early")
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

    def _pass(self, chunk: bytes, at: int) -> None:
        if at == len(self._decoders):
            self._num_bytes += len(chunk)
            if self._num_bytes > self._max_bytes:
                raise FetchError("too_large", f"more than {self._max_bytes} bytes")
            self._chunks.append(chunk)
            return
        try:
            self._decoders[at].decode(chunk, lambda data: self._pass(data, at + 1))
        except (zlib.error, brotli.error):
            raise FetchError("bad_encoding", "the content encoding is broken") from None


class _Zlib:
    """gzip (several members too) or deflate (with or without its zlib header)."""

    def __init__(self, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        self._stream: Any = zlib.decompressobj(31) if is_gzip else None
        self.is_whole = False

    def decode(self, chunk: bytes, give: Callable[[bytes], None]) -> None:
        if not chunk:
            return
        if self._stream is None:
            # Servers send raw deflate for "deflate" about as often as zlib.
            self._stream = zlib.decompressobj(15 if chunk[0] & 0x0F == 8 else -15)
        while chunk:
            if self._stream.eof:
                if not self._is_gzip or not chunk.startswith(b"\x1f"):
                    return  # padding behind the end
                self._stream = zlib.decompressobj(31)
            give(self._stream.decompress(chunk, STEP))
            chunk = self._stream.unconsumed_tail or (self._stream.unused_data if self._stream.eof else b"")
        self.is_whole = self._stream.eof


class _Brotli:
    def __init__(self) -> None:
        self._stream = brotli.Decompressor()

    @property
    def is_whole(self) -> bool:
        return bool(self._stream.is_finished())

    def decode(self, chunk: bytes, give: Callable[[bytes], None]) -> None:
        data = self._stream.process(chunk, output_buffer_limit=STEP)
        give(data)
        while not self._stream.can_accept_more_data():
            give(self._stream.process(b"", output_buffer_limit=STEP))


def _decoder(name: str) -> Any:
    if name in ("gzip", "x-gzip"):
        return _Zlib(is_gzip=True)
    if name == "deflate":
        return _Zlib(is_gzip=False)
    if name == "br":
        return _Brotli()
    raise FetchError("bad_encoding", f"unknown content encoding {name[:40]}")
