"""A row's image as it is stored: read from the tar by the index, told by its first bytes, or refused with a reason."""

from __future__ import annotations

import re

import duckdb

from infra.errors import DatasetError
from infra.shards import IMAGE_ENDINGS, Member
from pipeline.explore.load import Loaded

MAX_BYTES = 32 << 20

# What a browser may decode here: by the first bytes, never by a name. SVG is no picture but a program.
_CONTENT_TYPES = (
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "image/avif"),
)


def stored_image(loaded: Loaded, row: int) -> tuple[bytes, str]:
    """The bytes and content type of a row's image. Raises DatasetError where there is none that may be shown.

    The index is read anew each time: what has been removed since the start is not shown from memory.
    """
    with loaded.connection.cursor() as cursor:
        found = cursor.execute("SELECT shard, uid FROM rows WHERE rowid = ?", [row]).fetchall()
    if not found or loaded.rows.kind != "stored":
        raise DatasetError(f"row {row} has no image")
    shard, uid = loaded.shards[found[0][0]], found[0][1]
    member = _member(loaded, shard, uid)
    tar = loaded.rows.dataset.tar(shard)
    if member.size > MAX_BYTES:
        raise DatasetError(f"{tar}: {member.name}: {member.size:,} bytes are too many to show")
    try:
        data = loaded.rows.dataset.storage.read(tar, member.offset, member.offset + member.size)
    except OSError as error:
        raise DatasetError(f"{tar}: cannot be read: {error}") from None
    kind = next((kind for pattern, kind in _CONTENT_TYPES if pattern.match(data)), None)
    if kind is None or len(data) != member.size:
        raise DatasetError(f"{tar}: {member.name} is no image that browsers show")
    return data, kind


def _member(loaded: Loaded, shard: str, uid: bytes) -> Member:
    index = loaded.rows.index
    try:
        with loaded.connection.cursor() as cursor:
            found = cursor.execute(
                'SELECT member, "offset", size FROM read_parquet(?) WHERE uid = ?',
                [index.storage.file_url(index.index(shard)), uid],
            ).fetchall()
    except duckdb.IOException:
        raise DatasetError(f"{shard}: no index that can be read; make it: python -m infra index") from None
    members = (Member(*row) for row in found)
    image = next((member for member in members if member.ending in IMAGE_ENDINGS), None)
    if image is None:
        raise DatasetError(f"{shard}: the index has no image of {uid.hex()}")
    return image
