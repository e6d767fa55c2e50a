"""Bodies of the hostile server: right images, encodings of them, and small bytes that stand for very large ones."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from functools import cache

import brotli
import numpy as np
from PIL import Image

_PIECE = bytes(1 << 20)
EMPTY_GZIP = gzip.compress(b"", mtime=0)


@cache
def jpeg() -> bytes:
    """A right image, 64 × 48."""
    out = io.BytesIO()
    pixels = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
    Image.fromarray(np.stack([pixels, pixels * 2, pixels * 3], axis=-1)).save(out, "JPEG")
    return out.getvalue()


def encoded(data: bytes) -> dict[str, bytes]:
    """`coded_` and the content encodings, in the order applied, with "_" between them."""
    return {
        "coded_gzip": gzip.compress(data, mtime=0),
        "coded_deflate": zlib.compress(data),
        "coded_br": brotli.compress(data),
        "coded_br_gzip": gzip.compress(brotli.compress(data), mtime=0),
    }


def raw_deflate(data: bytes) -> bytes:
    """Without zlib's header, as some servers send "deflate"."""
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


def gzip_members(data: bytes) -> bytes:
    """Several members one after the other, and padding."""
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(b"") + gzip.compress(data[half:]) + bytes(100)


def damaged_gzip(data: bytes) -> bytes:
    """One bit of the checksum is wrong."""
    body = bytearray(gzip.compress(data))
    body[-6] ^= 1
    return bytes(body)


def chunked(data: bytes) -> bytes:
    """In three chunks."""
    third = len(data) // 3
    pieces = [data[:third], data[third : 2 * third], data[2 * third :]]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@cache
def gzip_bomb(num_mib: int = 1024) -> bytes:
    """One member of zeros. Full flushes make the compressed pieces equal, so one is made and repeated."""
    stream = zlib.compressobj(9, wbits=-15)
    piece = stream.compress(_PIECE) + stream.flush(zlib.Z_FULL_FLUSH)
    return EMPTY_GZIP[:10] + piece * num_mib


@cache
def gzip_bomb_of_members(num_mib: int = 1024) -> bytes:
    """Many members of zeros."""
    return gzip.compress(_PIECE, mtime=0) * num_mib


@cache
def nested_bomb() -> bytes:
    """A bomb of bombs: some kB for 1 GiB."""
    return gzip.compress(gzip_bomb(), mtime=0)


@cache
def brotli_bomb(num_mib: int = 256) -> bytes:
    """Zeros, some hundred bytes of them."""
    stream = brotli.Compressor(quality=1)
    return b"".join(stream.process(_PIECE) for _ in range(num_mib)) + stream.finish()


@cache
def png_of_zeros(side: int) -> bytes:
    """A right PNG, `side` × `side`, 8 bits of grey: 30,000 of them are 900 MB of pixels."""
    stream = zlib.compressobj(9)
    row = bytes(1 + side)
    data = b"".join(stream.compress(row) for _ in range(side)) + stream.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
