"""Does a page or image ask not to be used? X-Robots-Tag, meta robots, and the TDM Reservation Protocol.

noai, noimageai, noindex and noimageindex each refuse a page's pairs. The first two speak of training in so many words;
the other two ask that the page, or its images, appear in no index, and a public table of pairs is one. "none" is
short for noindex and nofollow. All of it concerns what is taken from the page: its links are still followed, unless it
says nofollow. What is addressed to another agent ("googlebot: noindex") is not for us; what is addressed to our
agent's product token, or to nobody in particular, is. Other directives (nosnippet, unavailable_after …) are ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

REFUSALS = ("noai", "noimageai", "noindex", "noimageindex", "none")
MAX_TDM_BYTES = 1 << 20
MAX_TDM_RULES = 10_000

_NAMED = re.compile(r"\s*([\w.+*-]+)\s*:\s*(.*)", re.DOTALL)
# These have a value behind a colon, so the colon does not make them an agent's name.
_WITH_VALUE = frozenset(("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"))

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


def page_opt_out(headers: Headers, meta: Iterable[tuple[str, str]], agent: str) -> str | None:
    """Why a page's pairs may not be taken ("X-Robots-Tag: noai"), or None.

    headers: of the HTTP response. meta: (name, content) of the page's meta tags. agent: our product token.
    """
    pairs = _pairs(headers)
    refused = image_opt_out((value for name, value in pairs if name == "x-robots-tag"), agent)
    if refused is not None:
        return refused
    if any(name == "tdm-reservation" and _is_reserved(value) for name, value in pairs):
        return "tdm-reservation: 1"
    for name, content in meta:
        if name == "tdm-reservation" and _is_reserved(content):
            return "meta tdm-reservation: 1"
        word = next((word for word in REFUSALS if word in _meta_words(name, content, agent)), None)
        if word is not None:
            return f"meta {name}: {word}"
    return None


def image_opt_out(header_values: Iterable[str], agent: str) -> str | None:
    """Why an image may not be taken, by its X-Robots-Tag headers, or None."""
    words = {word for value in header_values for word in _header_words(value, agent)}
    return next((f"X-Robots-Tag: {word}" for word in REFUSALS if word in words), None)


def links_refused(headers: Headers, meta: Iterable[tuple[str, str]], agent: str) -> bool:
    """Does the page ask that its links be left alone (nofollow, none)?"""
    words = {word for name, value in _pairs(headers) if name == "x-robots-tag" for word in _header_words(value, agent)}
    words.update(word for name, content in meta for word in _meta_words(name, content, agent))
    return "nofollow" in words or "none" in words


@dataclass(frozen=True, slots=True)
class TdmRules:
    """A site's /.well-known/tdmrep.json: (location pattern, reserved), the most specific first."""

    rules: tuple[tuple[str, bool], ...]


def tdm_rules(data: bytes) -> TdmRules | None:
    """Rules of a tdmrep.json; None where the file is none."""
    try:
        entries = json.loads(data[:MAX_TDM_BYTES])
    except (ValueError, RecursionError):
        return None
    if not isinstance(entries, list):
        return None
    rules = [
        (entry["location"], _is_reserved(entry.get("tdm-reservation")))
        for entry in entries[:MAX_TDM_RULES]
        if isinstance(entry, dict) and isinstance(entry.get("location"), str)
    ]
    return TdmRules(tuple(sorted(rules, key=lambda rule: (-len(rule[0]), not rule[1]))))


def tdm_reserved(rules: TdmRules, path: str) -> bool:
    """Is a path of the site reserved? The longest pattern that matches decides, as in robots.txt; of equals, yes."""
    return next((is_reserved for pattern, is_reserved in rules.rules if _matches(pattern, path or "/")), False)


def _matches(pattern: str, path: str) -> bool:
    """Does a path begin with the pattern? "*" stands for anything, "$" at the end for the path's end. Linear time."""
    is_whole = pattern.endswith("$")
    first, *rest = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    for part in rest:
        found = path.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    if not is_whole or at == len(path):
        return True
    return bool(rest) and path.endswith(rest[-1])


def _pairs(headers: Headers) -> list[tuple[str, str]]:
    items = headers.items() if isinstance(headers, Mapping) else headers
    return [(name.lower(), value) for name, value in items]


def _header_words(value: str, agent: str) -> Iterable[str]:
    """Directives of one X-Robots-Tag header that are for us. An agent's name holds until the next one."""
    is_ours = True
    for part in value.lower().split(","):
        match = _NAMED.fullmatch(part)
        if match and match[1] not in _WITH_VALUE:
            is_ours = match[1] in ("*", agent.lower())
            part = match[2]
        if is_ours:
            yield part.strip()


def _meta_words(name: str, content: str, agent: str) -> Iterable[str]:
    if name == "x-robots-tag":  # by http-equiv
        return _header_words(content, agent)
    return content.lower().replace(",", " ").split() if name in ("robots", agent.lower()) else ()


def _is_reserved(value: object) -> bool:
    return str(value).strip() in ("1", "true", "True")
