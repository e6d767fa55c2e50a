"""What the hostile server sends: a right image, its encodings, and small bytes that stand for very large ones."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache

import brotli
import numpy as np
from PIL import Image

HTML = b"<!doctype html><title>Not found</title><p>This is no image."
_MEBIBYTE = bytes(1 << 20)


def _jpeg() -> bytes:
    """64 x 48 pixels of noise, 3 kB."""
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG", quality=80)
    return out.getvalue()


JPEG = _jpeg()


def gzip(data: bytes) -> bytes:
    """One member, the same at any time."""
    return deflate(data, wbits=31)


def deflate(data: bytes, wbits: int = 15) -> bytes:
    """A zlib stream; wbits=-15: the bare one."""
    stream = zlib.compressobj(6, wbits=wbits)
    return stream.compress(data) + stream.flush()


def broken_gzip(data: bytes) -> bytes:
    """One bit of the checksum is wrong."""
    coded = bytearray(gzip(data))
    coded[-6] ^= 1
    return bytes(coded)


@cache
def zeros_deflated(num_bytes: int) -> bytes:
    """A bare deflate stream of zeros, a thousandth of their size, made in no time: equal blocks after full flushes."""
    stream = zlib.compressobj(9, wbits=-15)
    block = stream.compress(_MEBIBYTE) + stream.flush(zlib.Z_FULL_FLUSH)
    num_blocks, num_rest = divmod(num_bytes, len(_MEBIBYTE))
    return block * num_blocks + deflate(bytes(num_rest), wbits=-15)


@cache
def gzip_bomb(num_bytes: int = 1 << 30) -> bytes:
    """1 GiB of zeros as 1 MiB of gzip; its checksum is wrong, and whoever comes that far has lost already."""
    return gzip(b"")[:10] + zeros_deflated(num_bytes) + bytes(8)


@cache
def gzip_bomb_of_members() -> bytes:
    """The same as 1,024 members of 1 MiB."""
    return gzip(_MEBIBYTE) * 1024


@cache
def nested_bomb() -> bytes:
    """Compressed once more: 1 GiB from some kilobytes."""
    return gzip(gzip_bomb())


@cache
def brotli_bomb() -> bytes:
    """256 MiB of zeros, some hundred bytes."""
    stream = brotli.Compressor(quality=1)
    return b"".join(stream.process(_MEBIBYTE) for _ in range(256)) + stream.finish()


@cache
def huge_png(side: int = 30_000) -> bytes:
    """A right black RGB image of 30,000 x 30,000 pixels: 2.6 MB as a file, 2.7 GB decoded."""
    num_bytes = side * (1 + 3 * side)
    # Adler-32 of n zeros: a stays 1, so b is n.
    data = b"\x78\xda" + zeros_deflated(num_bytes) + struct.pack(">I", (num_bytes % 65521) << 16 | 1)
    size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", size) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
