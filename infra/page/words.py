"""Values as people read them, and hostile text made harmless to the eye; escaping is the template's work."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from urllib.parse import urlsplit

_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SHOWN_AS = {"Cc": " ", "Zl": " ", "Zp": " ", "Cs": "\ufffd"}  # by Unicode category
MAX_LINK = 1000  # characters of an address that is still made a link


def count_text(number: int | None) -> str:
    """12,345; a dash where it is not known."""
    return "–" if number is None else f"{number:,}"


def compact(number: float) -> str:
    """A count in few letters: 950, 12k, 3.4M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"


def share_text(share: float) -> str:
    """A share in [0, 1] as per cent; a little is never shown as nothing, nor almost all as all."""
    percent = 100 * share
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.1f} %" if 0 < percent < 100 else f"{percent:.0f} %"


def size_text(size: float | None) -> str:
    """Bytes, in powers of 1024: 512 B, 12.5 KB, 3.1 GB."""
    if size is None:
        return "–"
    for letter in ("B", "KB", "MB", "GB", "TB"):
        if size < 1024 or letter == "TB":
            break
        size /= 1024
    return f"{size:.0f} {letter}" if letter == "B" or size >= 100 else f"{size:.3g} {letter}"


def duration_text(seconds: float | None) -> str:
    """0.8 s, 42 s, 3 min 20 s, 5 h 12 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def time_text(timestamp: float | None) -> str:
    """Seconds since 1970 as a UTC date and minute."""
    return "–" if timestamp is None else datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M UTC")


def plain(text: str | None, limit: int = 300) -> str:
    """One line of at most `limit` characters, without control signs and those that turn the writing direction."""
    if not text:
        return ""
    head = text[: 4 * limit]
    line = " ".join(
        "".join(_SHOWN_AS.get(unicodedata.category(sign), sign) for sign in head if sign not in _TURNING).split()
    )
    is_whole = len(line) <= limit and len(head) == len(text)
    return line if is_whole else line[: limit - 1].rstrip() + "…"


def link(url: str | None) -> str | None:
    """The address where it may be a link: http or https, of bearable length; None otherwise."""
    if not url or len(url) > MAX_LINK or any(ord(sign) <= 32 for sign in url):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and parts.netloc else None
