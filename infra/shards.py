"""WebDataset tars: written with fixed headers so that the same samples give the same bytes, read at random by index.

A sample is consecutive members that share a key: `000000012.jpg`, `000000012.txt`, `000000012.json`.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import pyarrow as pa

from infra.errors import DatasetError
from infra.sample import UID_BYTES

BLOCK = 512
RECORD = 20 * BLOCK  # tar's own padding of the whole file
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "avif", "bmp", "tif", "tiff")

INDEX_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.binary(UID_BYTES)),
        pa.field("key", pa.string()),
        pa.field("member", pa.string()),
        pa.field("offset", pa.int64()),  # of the member's first byte in the tar
        pa.field("size", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a tar: where its bytes lie."""

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """WebDataset's key: the path up to the first dot of its last part."""
        folder, slash, base = self.name.rpartition("/")
        return folder + slash + base.partition(".")[0]

    @property
    def ending(self) -> str:
        """All after that dot, lower-cased."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()


class ShardWriter:
    """Writes one tar in the order of the calls; nothing of the clock or the machine enters it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._offset = 0
        self._rows: list[tuple[bytes, str, str, int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self._file.write(b"\0" * (2 * BLOCK))
            self._file.write(b"\0" * (-(self._offset + 2 * BLOCK) % RECORD))
        self._file.close()

    def write(self, uid: bytes, key: str, parts: Mapping[str, bytes]) -> None:
        """Append one sample; parts: ending → bytes, written in this order."""
        for ending, data in parts.items():
            name = f"{key}.{ending}"
            self._file.write(_header(name, len(data)))
            self._rows.append((uid, key, name, self._offset + BLOCK, len(data)))
            self._file.write(data)
            padding = -len(data) % BLOCK
            self._file.write(b"\0" * padding)
            self._offset += BLOCK + len(data) + padding

    def index(self) -> pa.Table:
        """The index of what was written: a row per member, in order."""
        return index_table(self._rows)


def index_table(rows: Sequence[tuple[bytes | None, str, str, int, int]]) -> pa.Table:
    """An index from (uid, key, member, offset, size) rows."""
    columns = [pa.array([row[at] for row in rows], field.type) for at, field in enumerate(INDEX_SCHEMA)]
    return pa.Table.from_arrays(columns, schema=INDEX_SCHEMA)


def read_members(file: IO[bytes]) -> Iterator[tuple[Member, bytes]]:
    """Members of a tar with their bytes, streamed. Raises DatasetError where the tar is broken."""
    with _open_tar(file, "r|") as tar:
        for info in _files(tar):
            content = tar.extractfile(info)
            assert content is not None
            yield Member(info.name, info.offset_data, info.size), content.read()


def walk_members(file: IO[bytes]) -> Iterator[Member]:
    """Members of a seekable tar, one at a time, their bytes passed over; the caller may read elsewhere in between.

    Raises DatasetError where the tar is broken or cut short.
    """
    num_bytes = file.seek(0, 2)
    offset = 0
    while True:
        file.seek(offset)
        plain = _plain_header(file.read(BLOCK))
        if plain is None or offset + BLOCK + plain[1] > num_bytes:
            break
        name, size = plain
        yield Member(name, offset + BLOCK, size)
        offset += BLOCK + size + -size % BLOCK
    # The end, other kinds of headers, and every kind of damage: tarfile knows them all, at ten times the cost.
    file.seek(offset)
    with _open_tar(file, "r:") as tar:
        for info in _files(tar):
            yield Member(info.name, info.offset_data, info.size)


def list_members(file: IO[bytes]) -> list[Member]:
    """Members of a seekable tar, without reading their bytes. Raises DatasetError where the tar is broken."""
    return list(walk_members(file))


@contextmanager
def _open_tar(file: IO[bytes], mode: Any) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(fileobj=file, mode=mode, tarinfo=_StrictInfo) as tar:
            yield tar
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise DatasetError(f"{getattr(file, 'name', 'tar')}: broken tar: {error}") from None


def _plain_header(block: bytes) -> tuple[str, int] | None:
    """(name, size) of a regular file with a short name, as we and most others write it; None for all else."""
    size, checksum = block[124:136].strip(b" \0"), block[148:156].strip(b" \0")
    is_plain = block[257:262] == b"ustar" and block[156:157] in (b"0", b"\0") and block[345:346] == b"\0"
    if not (is_plain and len(block) == BLOCK and size.isdigit() and checksum.isdigit()):
        return None
    try:
        name, num_bytes = block[:100].partition(b"\0")[0].decode(), int(size, 8)
        if int(checksum, 8) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
            return None
    except ValueError:  # no octal number, no UTF-8
        return None
    return (name, num_bytes) if name and not name.endswith("/") else None


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    return (info for info in tar if info.isfile() and not info.issparse())


class _StrictInfo(tarfile.TarInfo):
    """tarfile takes a damaged header in the middle, and a file cut between members, for the end of the tar."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # the two blocks of zeros
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"at byte {tar.offset}: {error}") from None


def read_at(file: IO[bytes], offset: int, size: int) -> bytes:
    """One member's bytes by its index row. Raises DatasetError where the tar ends before them."""
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise DatasetError(f"{getattr(file, 'name', 'tar')}: ends before byte {offset + size}; rebuild its index")
    return data


def sample_json(facts: Mapping[str, Any]) -> bytes:
    """A sample's `.json` member: keys in the given order, bytes as hex."""
    ready = {name: value.hex() if isinstance(value, bytes) else value for name, value in facts.items()}
    return json.dumps(ready, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _header(name: str, size: int) -> bytes:
    # ustar: mode 0644, owner 0, mtime 0, regular file. Built by hand: tarfile's takes 30 us, this 2.
    encoded = name.encode()
    assert len(encoded) <= 100, f"member name too long: {name}"
    assert size < 8**11, "a member of 8 GiB or more does not fit a ustar header"
    head = b"%s0000644\x000000000\x000000000\x00%011o\x0000000000000\x00        0%s%s" % (
        encoded.ljust(100, b"\0"),
        size,
        b"\0" * 100,
        b"ustar\x0000",
    )
    block = head.ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\x00 " % sum(block) + block[156:]
