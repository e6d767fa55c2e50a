"""Content encodings: any bytes, encoded anyhow and cut anyhow, come back; damage is said; bombs stay small."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetch.coding import PIECE_BYTES, CodingError, decoder


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "gzip members": ("gzip", lambda data: gzip.compress(data[:7]) + gzip.compress(b"") + gzip.compress(data[7:])),
    "gzip padded": ("gzip", lambda data: gzip.compress(data) + bytes(9)),
    "zlib": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "stored deflate": ("deflate", lambda data: zlib.compress(data, 0)),
    "br": ("br", lambda data: brotli.compress(data, quality=4)),
    "br in gzip": ("BR , gzip", lambda data: gzip.compress(brotli.compress(data, quality=1))),
    "gzip in gzip": ("gzip,gzip", lambda data: gzip.compress(gzip.compress(data))),
    "none at all": ("identity, none", bytes),
}
WILD = st.binary(max_size=3000) | st.builds(
    lambda data, times: data * times, st.binary(min_size=1), st.integers(1, 9999)
)


def decoded(content_encoding: str, pieces: Iterable[bytes]) -> bytes:
    undo = decoder(content_encoding)
    out = []
    for data in pieces:
        for piece in undo.feed(data):
            assert len(piece) <= max(2 * PIECE_BYTES, len(data))  # brotli ends a block of its own beyond the limit
            out.append(piece)
    undo.finish()
    return b"".join(out)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The pieces in which it arrives; the last is what is left."""
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [*pieces, data[at:]]


@pytest.mark.parametrize("name", ENCODERS)
@given(data=WILD, sizes=st.lists(st.integers(0, 50), max_size=40))
def test_any_cut_of_any_encoding_of_any_bytes_gives_the_bytes_back(name: str, data: bytes, sizes: list[int]) -> None:
    word, encode = ENCODERS[name]
    assert decoded(word, cut(encode(data), sizes)) == data


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in ("none at all", "gzip padded")])
@given(data=WILD, share=st.floats(0, 1, exclude_max=True))
def test_a_stream_that_ends_early_is_broken(name: str, data: bytes, share: float) -> None:
    word, encode = ENCODERS[name]
    coded = encode(data)
    length = max(1, int(len(coded) * share))
    try:
        got = decoded(word, [coded[:length]])
    except CodingError:
        return
    # Between two members a stream may end, and nobody can tell that there was to be more.
    assert length == len(coded) or (name == "gzip members" and data.startswith(got))


@given(word=st.sampled_from(["gzip", "deflate", "br", "gzip, br", "br, gzip"]), data=st.binary(max_size=500))
def test_any_bytes_at_all_end_as_bytes_or_as_a_coding_error(word: str, data: bytes) -> None:
    with suppress(CodingError):
        decoded(word, [data[:10], data[10:]])


@given(data=st.binary(min_size=1, max_size=2000), at=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_of_gzip_never_passes_for_other_content(data: bytes, at: int, bit: int) -> None:
    coded = bytearray(gzip.compress(data, mtime=0))
    coded[at % len(coded)] ^= 1 << bit
    try:
        got = decoded("gzip", [bytes(coded)])
    except CodingError:
        return
    assert got == data  # the bit was one of the header that say nothing of the content


def test_an_empty_body_needs_no_stream() -> None:
    assert decoded("gzip", []) == b""
    assert decoded("br, gzip", [b""]) == b""


@pytest.mark.parametrize("word", ["zstd", "compress", "gzip, gzip, gzip", "br, br, br"])
def test_what_is_not_undone_here_is_refused(word: str) -> None:
    with pytest.raises(CodingError):
        decoder(word)


def test_members_without_end_are_refused() -> None:
    with pytest.raises(CodingError, match="members"):
        decoded("gzip", [gzip.compress(b"")] * 2000)


def _bombs() -> dict[str, tuple[str, bytes]]:
    mebibyte = bytes(1 << 20)
    stream = zlib.compressobj(9, wbits=-15)
    block = stream.compress(mebibyte) + stream.flush(zlib.Z_FULL_FLUSH)
    gzipped = gzip.compress(b"")[:10] + block * 512
    maker = brotli.Compressor(quality=1)
    brotlied = b"".join(maker.process(mebibyte) for _ in range(256)) + maker.finish()
    return {
        "gzip": ("gzip", gzipped),
        "nested": ("gzip, gzip", gzip.compress(gzipped)),
        "deflate": ("deflate", block * 512),
        "br": ("br", brotlied),
    }


@pytest.mark.parametrize(("word", "bomb"), _bombs().values(), ids=_bombs())
def test_a_bomb_given_up_at_a_cap_costs_no_more_than_a_few_pieces(word: str, bomb: bytes) -> None:
    tracemalloc.start()
    num_bytes = 0
    for piece in decoder(word).feed(bomb):
        num_bytes += len(piece)
        if num_bytes > 8 << 20:
            break
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_bytes > 8 << 20
    assert peak < 8 * PIECE_BYTES + 2 * len(bomb)
