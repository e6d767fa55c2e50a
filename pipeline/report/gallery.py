"""Thumbnails of sampled pairs: random access into the tars, decoded under caps, small JPEGs in data: URIs."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from filters.safety import are_doubtful
from infra.errors import DatasetError
from infra.shards import IMAGE_ENDINGS, Member, list_members, read_at
from infra.tables import urls
from pipeline.report.gather import stored_samples
from pipeline.report.source import Source

SIDE = 160  # pixels
QUALITY = 72
MAX_BYTES = 64 << 20  # of one stored image
MAX_PIXELS = 100_000_000
MAX_UNINDEXED_TARS = 4  # without an index a tar's headers must all be walked

Place = tuple[str, str]  # shard, key


@dataclass(frozen=True, slots=True)
class Picture:
    """One stored pair as the gallery shows it; without a thumbnail `fault` says why."""

    row: dict[str, Any]
    thumbnail: str | None
    fault: str | None = None
    is_blurred: bool = False


def stored_pictures(source: Source, seed: int, limit: int) -> list[Picture]:
    """A sample of stored pairs with their thumbnails, in the sample's order."""
    is_indexed = bool(source.dataset.tables("index"))
    rows = stored_samples(source, seed, limit, None if is_indexed else source.shard_names[:MAX_UNINDEXED_TARS])
    return pictures_of(source, rows)


def pictures_of(source: Source, rows: Sequence[dict[str, Any]]) -> list[Picture]:
    """Stored rows with their thumbnails; doubtful pictures are blurred before they reach the page."""
    places = _places(source, rows)
    return [
        _picture(source, row, places.get((row["shard"], row["key"])), is_doubtful)
        for row, is_doubtful in zip(rows, are_doubtful(source.dataset, rows), strict=True)
    ]


def thumbnail(data: bytes, is_blurred: bool = False) -> str:
    """A data: URI of a JPEG of at most 160 x 160 pixels. Raises ValueError that says what is wrong with the bytes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings on odd files; our own cap stands below
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels, too many to show")
                image.draft("RGB", (2 * SIDE, 2 * SIDE))
                small = _on_white(ImageOps.exif_transpose(image))
                small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
                if is_blurred:
                    small = small.filter(ImageFilter.GaussianBlur(SIDE / 10))
                written = io.BytesIO()
                small.save(written, "JPEG", quality=QUALITY, optimize=True)
    except UnidentifiedImageError:  # its message holds a memory address, and the page is to be the same each time
        raise ValueError("not an image that can be read") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be decoded: {error}") from None
    return "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode()


def _picture(source: Source, row: dict[str, Any], member: Member | str | None, is_blurred: bool) -> Picture:
    if member is None:
        return Picture(row, None, "not in the index")
    if isinstance(member, str):
        return Picture(row, None, member)
    if member.size > MAX_BYTES:
        return Picture(row, None, "too many bytes to show")
    try:
        with source.storage.open(source.dataset.tar(row["shard"])) as file:
            return Picture(row, thumbnail(read_at(file, member.offset, member.size), is_blurred), None, is_blurred)
    except FileNotFoundError:
        return Picture(row, None, "its tar is missing")
    except (DatasetError, ValueError) as error:
        return Picture(row, None, str(error))


def _places(source: Source, rows: Sequence[dict[str, Any]]) -> dict[Place, Member | str]:
    """Where each row's image lies, or what is wrong with the index."""
    uids = {(row["shard"], row["key"]): row["uid"] for row in rows}
    shards = sorted({row["shard"] for row in rows})
    published = set(source.dataset.tables("index"))
    indexed = [shard for shard in shards if source.dataset.index(shard) in published]
    places: dict[Place, Member | str] = {}
    for place, uid, member in _from_index(source, indexed, [row["key"] for row in rows]):
        if place in uids and member.ending in IMAGE_ENDINGS:
            # The uid is checked, never the key or position trusted.
            agrees = uid is None or uids[place] is None or uid == uids[place]
            places[place] = member if agrees else "the index disagrees about its uid"
    for shard in set(shards).difference(indexed):
        places |= _from_tar(source, shard, uids)
    return places


def _from_index(source: Source, shards: Sequence[str], keys: Sequence[str]) -> list[tuple[Place, bytes | None, Member]]:
    if not shards:
        return []
    found = source.query(
        """
        SELECT regexp_extract(filename, '([^/]+)\\.parquet$', 1) AS shard, key, uid, member, "offset", size
        FROM read_parquet($files, filename = true) WHERE list_contains($keys, key)""",
        {"files": urls(source.storage, [source.dataset.index(shard) for shard in shards]), "keys": list(keys)},
    )
    return [
        ((row["shard"], row["key"]), row["uid"], Member(row["member"], row["offset"], row["size"])) for row in found
    ]


def _from_tar(source: Source, shard: str, uids: Mapping[Place, Any]) -> dict[Place, Member | str]:
    try:
        with source.storage.open(source.dataset.tar(shard)) as file:
            members = list_members(file)
    except (FileNotFoundError, DatasetError):
        return {place: "its tar is missing or broken" for place in uids if place[0] == shard}
    images = [member for member in members if member.ending in IMAGE_ENDINGS]
    return {(shard, member.key): member for member in images if (shard, member.key) in uids}


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        ground.alpha_composite(layer)
        return ground.convert("RGB")
    return image.convert("RGB")
