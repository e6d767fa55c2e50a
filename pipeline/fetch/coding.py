"""Content encodings undone piece by piece: gzip, deflate, br; never more bytes than the cap, however few they were."""

from __future__ import annotations

import zlib
from typing import Protocol

import brotli

ACCEPT_ENCODING = "gzip, deflate, br"

_GZIP_MAGIC = b"\x1f\x8b"
_MAX_NESTED = 2
# Registered, and not undone here. Any other word (none, utf-8, image/jpeg …) is no encoding: browsers ignore it too.
_UNKNOWN_TO_US = frozenset({"compress", "x-compress", "zstd", "dcb", "dcz", "exi", "pack200-gzip", "lzma", "xz"})


class CodingError(Exception):
    """The body is not what its Content-Encoding says, or in an encoding that is not undone here."""


class Decoder(Protocol):
    """Undoes one encoding."""

    def feed(self, data: bytes, max_bytes: int) -> bytes:
        """Decode a piece; stops soon after max_bytes of output (the rest is lost: the caller gives up then)."""

    def finish(self) -> None:
        """The body has ended. Raises CodingError where the encoding had not."""


def decoders(content_encoding: str) -> list[Decoder]:
    """What undoes a Content-Encoding header, in the order to apply. Raises CodingError."""
    words = [word.strip().lower() for word in content_encoding.split(",")]
    unknown = [word for word in words if word in _UNKNOWN_TO_US]
    makers = [_MAKERS[word] for word in reversed(words) if word in _MAKERS]
    if unknown or len(makers) > _MAX_NESTED:
        raise CodingError(f"Content-Encoding: {content_encoding[:80]}")
    return [make() for make in makers]


class _Gzip:
    """RFC 1952; several members one after the other count as one; what follows the last is ignored."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._held = b""

    def feed(self, data: bytes, max_bytes: int) -> bytes:
        data, self._held = self._held + data, b""
        pieces: list[bytes] = []
        while data and max_bytes > 0:
            if self._member.eof:
                if len(data) < len(_GZIP_MAGIC):
                    self._held = data
                    break
                if not data.startswith(_GZIP_MAGIC):
                    break
                self._member = zlib.decompressobj(wbits=31)
            piece = _inflate(self._member, data, max_bytes)
            data = self._member.unused_data
            max_bytes -= len(piece)
            pieces.append(piece)
            if not self._member.eof:
                break
        return b"".join(pieces)

    def finish(self) -> None:
        if not self._member.eof:
            raise CodingError("gzip stream cut short")


class _Deflate:
    """RFC 1950, or the bare RFC 1951 stream that some servers send under the same name."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj()
        self._begun = False

    def feed(self, data: bytes, max_bytes: int) -> bytes:
        if not self._begun:
            self._begun = True
            # The low four bits of a zlib stream's first byte are 8; a bare stream's first block never has them so.
            if data[0] & 0x0F != 8:
                self._stream = zlib.decompressobj(wbits=-15)
        return b"" if self._stream.eof else _inflate(self._stream, data, max_bytes)

    def finish(self) -> None:
        if not self._stream.eof:
            raise CodingError("deflate stream cut short")


class _Brotli:
    """RFC 7932."""

    def __init__(self) -> None:
        self._stream = brotli.Decompressor()

    def feed(self, data: bytes, max_bytes: int) -> bytes:
        try:
            if self._stream.is_finished():
                return b""
            pieces = [self._stream.process(data, output_buffer_limit=max_bytes)]
            while (max_bytes := max_bytes - len(pieces[-1])) > 0 and not self._stream.can_accept_more_data():
                pieces.append(self._stream.process(b"", output_buffer_limit=max_bytes))
        except brotli.error as error:
            raise CodingError(f"br: {error}") from None
        return b"".join(pieces)

    def finish(self) -> None:
        if not self._stream.is_finished():
            raise CodingError("br stream cut short")


def _inflate(stream: zlib._Decompress, data: bytes, max_bytes: int) -> bytes:
    try:
        return stream.decompress(data, max_bytes)
    except zlib.error as error:
        raise CodingError(str(error)) from None


_MAKERS: dict[str, type[Decoder]] = {
    "gzip": _Gzip,
    "x-gzip": _Gzip,
    "deflate": _Deflate,
    "br": _Brotli,
}
