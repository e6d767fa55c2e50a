"""Text as a reader sees it: whitespace collapsed, control characters gone, of bounded length."""

from __future__ import annotations

import re

from selectolax.lexbor import LexborNode

MAX_CAPTION_CHARS = 2_000
_ROOM = 8  # times the cap: what is looked at, so that a huge text costs little

# Lone surrogates come from JSON escapes; a byte-order mark within text is a leftover of joined files.
_NOISE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff]+")
_LANG = re.compile(r"[a-z]{2,8}(?:-[a-z0-9]{1,8})*", re.ASCII)
_INLINE = frozenset((
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins",
    "kbd", "label", "mark", "nobr", "q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt",
    "u", "var", "wbr",
))  # fmt: skip
# A caption within the caption belongs to another figure.
_UNREAD = frozenset((
    "script", "style", "template", "noscript", "title", "figure", "figcaption", "textarea", "select", "svg", "math",
    "object",
))  # fmt: skip


def clean_text(text: str | None) -> str:
    """One line of at most MAX_CAPTION_CHARS characters; "" for None."""
    if not text:
        return ""
    if len(text) <= MAX_CAPTION_CHARS and text.isprintable() and "  " not in text:
        return text.strip()
    head = text.lstrip()[: _ROOM * MAX_CAPTION_CHARS]
    return " ".join(_NOISE.sub("", head).split())[:MAX_CAPTION_CHARS].rstrip()


def clean_lang(tag: str | None) -> str | None:
    """A language tag in lower case ("en", "de-at"); None where it is no such thing or names several."""
    if not tag:
        return None
    lowered = tag[:40].strip().lower().replace("_", "-")
    return lowered if _LANG.fullmatch(lowered) else None


def element_text(element: LexborNode) -> str:
    """The element's text with a space where a block begins or ends; each node is visited once."""
    parts: list[str] = []
    num_chars = 0
    end = element.mem_id
    node = element.first_child
    while node is not None and num_chars < _ROOM * MAX_CAPTION_CHARS:
        text = node.text_content
        tag = node.tag
        if text is not None:
            parts.append(text)
            num_chars += len(text)
        elif tag not in _UNREAD:
            if tag not in _INLINE:
                parts.append(" ")
            child = node.first_child
            if child is not None:
                node = child
                continue
        while (following := node.next) is None:
            node = node.parent
            if node is None or node.mem_id == end:
                return clean_text("".join(parts))
            if node.tag not in _INLINE:
                parts.append(" ")
        node = following
    return clean_text("".join(parts))
