"""Content encodings undone piece by piece: gzip, deflate, br. A few bytes may stand for very many, so out they come
in small pieces, and whoever counts them can stop at any.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import brotli

ACCEPT_ENCODING = "gzip, deflate, br"
PIECE_BYTES = 1 << 18

_GZIP_MAGIC = b"\x1f\x8b"
_MAX_NESTED = 2
_MAX_MEMBERS = 1_000  # a body of empty members costs time and yields nothing
# Registered, and not undone here. Any other word (none, utf-8, image/jpeg …) is no encoding: browsers ignore it too.
_UNKNOWN_TO_US = frozenset({"compress", "x-compress", "zstd", "dcb", "dcz", "exi", "pack200-gzip", "lzma", "xz"})


class CodingError(Exception):
    """The body is not what its Content-Encoding says, or in an encoding that is not undone here."""


class Decoder(Protocol):
    """Undoes one encoding, or several."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` stands for, in pieces of at most 2 × PIECE_BYTES; use it up or give it up. Raises CodingError."""

    def finish(self) -> None:
        """The body has ended. Raises CodingError where the encoding had not."""


def decoder(content_encoding: str) -> Decoder:
    """What undoes a Content-Encoding header. Raises CodingError."""
    words = [word.strip().lower() for word in content_encoding.split(",")]
    unknown = [word for word in words if word in _UNKNOWN_TO_US]
    makers = [_MAKERS[word] for word in reversed(words) if word in _MAKERS]
    if unknown or len(makers) > _MAX_NESTED:
        raise CodingError(f"Content-Encoding: {content_encoding[:80]}")
    return _Chain([make() for make in makers])


class _Chain:
    """Encodings one in the other, the outermost first."""

    def __init__(self, decoders: Sequence[Decoder]) -> None:
        self._decoders = decoders
        self._has_begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._has_begun = self._has_begun or bool(data)
        return self._feed(data, 0)

    def finish(self) -> None:
        # Servers name an encoding over an empty body, too.
        if self._has_begun:
            for each in self._decoders:
                each.finish()

    def _feed(self, data: bytes, at: int) -> Iterator[bytes]:
        if at == len(self._decoders):
            yield data
            return
        for piece in self._decoders[at].feed(data):
            yield from self._feed(piece, at + 1)


class _Gzip:
    """RFC 1952; several members one after the other count as one; what follows the last is ignored."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._num_members = 1
        self._held = b""
        self._is_over = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        data, self._held = self._held + data, b""
        while data and not self._is_over:
            if self._member.eof:
                if data == _GZIP_MAGIC[:1]:
                    self._held = data
                    return
                if not data.startswith(_GZIP_MAGIC):
                    self._is_over = True
                    return
                self._num_members += 1
                if self._num_members > _MAX_MEMBERS:
                    raise CodingError(f"more than {_MAX_MEMBERS} gzip members")
                self._member = zlib.decompressobj(wbits=31)
            yield from _inflate(self._member, data)
            data = self._member.unused_data

    def finish(self) -> None:
        if not self._member.eof:
            raise CodingError("gzip stream cut short")


class _Deflate:
    """RFC 1950, or the bare RFC 1951 stream that some servers send under the same name."""

    def __init__(self) -> None:
        self._stream: zlib._Decompress | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._stream is None and data:
            # The low four bits of a zlib stream's first byte are 8; a bare stream's first block never has them so.
            self._stream = zlib.decompressobj(wbits=15 if data[0] & 0x0F == 8 else -15)
        if self._stream is not None and not self._stream.eof:
            yield from _inflate(self._stream, data)

    def finish(self) -> None:
        if self._stream is None or not self._stream.eof:
            raise CodingError("deflate stream cut short")


class _Brotli:
    """RFC 7932; what follows the stream is ignored."""

    def __init__(self) -> None:
        self._stream = brotli.Decompressor()

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            while not self._stream.is_finished():
                piece = self._stream.process(data, output_buffer_limit=PIECE_BYTES)
                if piece:
                    yield piece
                if self._stream.can_accept_more_data():
                    return
                data = b""
        except brotli.error:
            raise CodingError("broken br stream") from None

    def finish(self) -> None:
        if not self._stream.is_finished():
            raise CodingError("br stream cut short")


def _inflate(stream: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    try:
        while data and not stream.eof:
            if piece := stream.decompress(data, PIECE_BYTES):
                yield piece
            data = stream.unconsumed_tail
            if not data and len(piece) == PIECE_BYTES:
                # Output may be left inside without input to show for it.
                yield from _rest(stream)
    except zlib.error as error:
        raise CodingError(str(error)) from None


def _rest(stream: zlib._Decompress) -> Iterator[bytes]:
    while not stream.eof and (piece := stream.decompress(b"", PIECE_BYTES)):
        yield piece


_MAKERS: dict[str, type[Decoder]] = {
    "gzip": _Gzip,
    "x-gzip": _Gzip,
    "deflate": _Deflate,
    "br": _Brotli,
}
