"""What a page says: its images with their texts, its links, what it asks of robots."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

SOURCES = ("alt", "figcaption", "title")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image with one text. `others`: further addresses of the same picture (srcset, src), best first."""

    url: str
    caption: str
    caption_from: str
    lang_hint: str | None = None
    licence: str | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a page says. `fault`: why nothing was read of it (too_complex, parse_error), else None."""

    candidates: list[Candidate] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> img tags without a candidate
    links: list[str] = field(default_factory=list)  # absolute http(s), no fragment, distinct, in document order
    num_nofollow: int = 0  # links left out for rel=nofollow
    title: str | None = None
    lang: str | None = None
    meta_robots: tuple[tuple[str, str], ...] = ()  # every named meta: (name in lower case, content)
    licence: str | None = None  # of the whole page: its first rel=license
    canonical_url: str | None = None
    num_img: int = 0
    num_img_with_alt: int = 0
    fault: str | None = None
