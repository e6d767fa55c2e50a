"""Which address does an img tag's picture have? src, srcset, sources of its picture element, lazy-loading attributes.

A browser picks what fits its screen; we want the largest, and keep the others, since an archive may hold any of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

MAX_ADDRESSES = 8  # of one picture
MAX_ENTRIES = 64  # of one srcset
MAX_SRCSET_CHARS = 1 << 16

# Where scripts that load images late keep the address until then.
LAZY_SRC = (
    "data-src", "data-original", "data-lazy-src", "data-lazy", "data-actualsrc", "data-real-src", "data-original-src",
    "data-echo", "data-url", "data-image", "data-img-src", "nitro-lazy-src", "data-hi-res-src",
)  # fmt: skip
LAZY_SRCSET = ("data-srcset", "data-lazy-srcset", "data-original-set", "nitro-lazy-srcset")
_LAZY = frozenset(LAZY_SRC + LAZY_SRCSET)

# Formats that can be decoded; a source without a type may hold anything.
_USABLE_TYPES = frozenset((
    "image/jpeg", "image/jpg", "image/pjpeg", "image/png", "image/x-png", "image/apng", "image/webp", "image/gif",
    "image/avif", "image/bmp", "image/x-ms-bmp", "image/tiff", "image/x-icon",
))  # fmt: skip
# What stands in for an image that a script will load.
_STAND_IN = re.compile(
    r"(?:blank|spacer|placeholder|transparent|pixel|lazy|load(?:ing|er)|1x1|empty|dummy|gr[ae]y|clear|preload)[^/]*$",
    re.IGNORECASE,
)
# A run of non-spaces is an address; with a comma at its end it has no descriptor, else that runs to the next comma.
_SRCSET = re.compile(r"([^\s,]\S*+(?<!,))([^,]*+)|([^\s,]\S*+)")
_DESCRIPTOR = re.compile(r"(\d{1,6}|\d{0,4}\.\d{1,6})([wx])", re.ASCII)

Attributes = Mapping[str, str | None]


def parse_srcset(text: str) -> list[tuple[str, float, str]]:
    """(address, number, "w" | "x") of each entry, in order; an entry without a descriptor has 1, "x"."""
    entries = []
    for match in _SRCSET.finditer(text[:MAX_SRCSET_CHARS]):
        address = match[1] or match[3].rstrip(",")
        descriptor = _DESCRIPTOR.search(match[2] or "")
        number, unit = (float(descriptor[1]), descriptor[2]) if descriptor else (1.0, "x")
        entries.append((address, number, unit))
        if len(entries) == MAX_ENTRIES:
            break
    return entries


def addresses(img: Attributes, sources: Sequence[Attributes] = ()) -> list[str]:
    """References of the picture as written, the one to take first. Empty where the tag names none but data urls.

    img: attributes of the tag. sources: attributes of the source elements before it in its picture element. The largest
    width wins (w), else the highest density (x, where src counts as 1x); the first of equals.
    """
    is_lazy = not _LAZY.isdisjoint(img)
    if not is_lazy and not sources and not img.get("srcset"):
        src = (img.get("src") or "").strip()
        return [] if _is_nothing(src) else [src]
    return _all_addresses(img, sources)


def has_data_url(img: Attributes) -> bool:
    """Is the picture written into the tag itself?"""
    return any(str(value)[:16].lstrip()[:5].lower() == "data:" for value in img.values() if value)


def _all_addresses(img: Attributes, sources: Sequence[Attributes]) -> list[str]:
    src = (img.get("src") or "").strip()
    late = _first(img, LAZY_SRC)
    if late is not None and (_is_nothing(src) or _STAND_IN.search(src)):
        src = late
    entries: list[tuple[str, float, str]] = []
    for tag in (*sources, img):
        kind = (tag.get("type") or "").partition(";")[0].strip().lower()
        if tag is img or not kind or kind in _USABLE_TYPES:
            entries += _entries(tag)
    if any(unit == "w" for _, _, unit in entries):
        entries = sorted((entry for entry in entries if entry[2] == "w"), key=lambda entry: -entry[1])
        ranked = [address for address, _, _ in entries]
        ranked.append(src)
    else:
        entries.append((src, 1.0, "x"))
        ranked = [address for address, _, _ in sorted(entries, key=lambda entry: -entry[1])]
    return list(dict.fromkeys(address for address in ranked if not _is_nothing(address)))[:MAX_ADDRESSES]


def _entries(tag: Attributes) -> Iterable[tuple[str, float, str]]:
    for value in (tag.get("srcset"), _first(tag, LAZY_SRCSET)):
        if value and (entries := [entry for entry in parse_srcset(value) if not _is_nothing(entry[0])]):
            return entries
    return ()


def _first(tag: Attributes, names: Sequence[str]) -> str | None:
    for name in names:
        value = (tag.get(name) or "").strip()
        if value and not _is_nothing(value):
            return value
    return None


def _is_nothing(reference: str) -> bool:
    return not reference or reference[:5].lower() == "data:" or reference == "about:blank" or reference[0] == "#"
