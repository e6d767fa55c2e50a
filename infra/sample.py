"""The record that every room speaks: an image, its captions, and what is known of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

UID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Caption:
    """One text of an image. `source` is "web" or a caption table's name; `n` counts within the source."""

    text: str
    source: str = "web"
    n: int = 0


@dataclass(frozen=True, slots=True)
class Pair:
    """An image with its captions.

    uid: 16 bytes, survives resharding. key: the tar member's name without its ending.
    image: encoded bytes, decoded next to whoever needs pixels. facts: width, height, page_url, licence ...
    """

    uid: bytes
    key: str
    url: str
    captions: tuple[Caption, ...]
    image: bytes | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def pair_uid(url: str, caption: str | None) -> bytes:
    """16 bytes that name a pair: blake2b-128 of url, NUL, caption. Lone surrogates are kept apart, never an error."""
    text = f"{url}\0{caption or ''}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=UID_BYTES).digest()
