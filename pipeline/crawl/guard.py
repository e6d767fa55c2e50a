"""Would this page's tree be out of proportion? Bounds on nesting, attributes, errors, checked before the parser runs.

Building a tree is quadratic in three things that only a hostile or broken page has much of: open elements, open
formatting elements (which every new block opens anew) and attributes of one tag. And the parser lists every error, in
an array that it enlarges by a system call for each few of them. It cannot be stopped once it runs, so a page is weighed
first; the estimates err upwards. Not bounded but by the page's size: errors inside a tag, such as stray quotes.
"""

from __future__ import annotations

import re

import numpy as np

MAX_TAGS = 500_000  # an element takes some 200 bytes
MAX_ATTRIBUTES = 500  # of one tag
MAX_STEPS = 2e8  # tags x open elements: about 1 s
MAX_ERRORS = 1_000_000  # NULs, and "<" without a tag: some 3,600 system calls
MAX_REOPENED = 1e6  # tags x open formatting elements: about 0.3 s and 360 MB
FEW_TAGS = 2_000  # a page with fewer cannot take long, whatever they are
SMALL_PAGE = 96 << 10  # bytes; the attributes of a smaller page cannot take long

_MANY_ATTRIBUTES = re.compile(
    rb"<[a-zA-Z][^\s/>]*+(?:[\s/]*+[^\s/>][^\s/>=]*+(?:\s*+=\s*+(?:\"[^\"]*+\"|'[^']*+'|[^\s>]*+))?+){%d}"
    % MAX_ATTRIBUTES
)
# Of b, big, code, em, font, i, nobr, s, small, strike, strong, tt, u: name and attributes, lower case.
_FORMATTING_TAG = re.compile(rb"<[bcefinstu](?:ig|ode|m|ont|obr|mall|trike|trong|t)?(?=[\s/>])[^>]*+")
_NAME_BYTES = 8  # of a tag's name that are told apart: enough for every name below and the byte behind it


def _keys(names: bytes) -> frozenset[int]:
    return frozenset(int.from_bytes(name.ljust(_NAME_BYTES, b"\0"), "little") for name in names.split())


# These nest only through others: void, or closed by the next of their kind.
_FLAT = _keys(b"area base basefont bgsound br col embed frame hr img image input keygen link meta param source track "
              b"wbr p li dt dd td th tr option optgroup tbody thead tfoot colgroup rt rp rb rtc")  # fmt: skip
_FORMATTING = _keys(b"b big code em font i nobr s small strike strong tt u")
# An end tag inside one of these does not reach a formatting element outside.
_SCOPES = _keys(b"td th caption object applet marquee template")


def is_too_complex(body: bytes) -> bool:
    """Refuse to build this page's tree? `body`: UTF-8 HTML."""
    if len(body) > SMALL_PAGE and _MANY_ATTRIBUTES.search(body):
        return True
    if len(body) <= 3 * FEW_TAGS:
        return False
    page = np.frombuffer(body, np.uint8)
    num_nulls = len(page) - int(np.count_nonzero(page))
    is_open = page == ord("<")
    if num_nulls + np.count_nonzero(is_open) > 2 * MAX_TAGS + MAX_ERRORS:
        return True
    opens = np.flatnonzero(is_open)
    if len(opens) <= FEW_TAGS:
        return num_nulls > MAX_ERRORS
    tags, is_end = _tags(page, opens)
    if num_nulls + len(opens) - len(tags) > MAX_ERRORS:
        return True
    if len(tags) > 2 * MAX_TAGS or np.count_nonzero(is_end) < len(tags) - MAX_TAGS:
        return True
    heights, numbers = _heights(tags, is_end)
    if len(tags) * sum(height for name, height in heights.items() if name not in _FLAT) > MAX_STEPS:
        return True
    formatting = _FORMATTING & heights.keys()
    num_open = sum(numbers[name] for name in formatting)
    if len(tags) * num_open > MAX_REOPENED:
        if _SCOPES.isdisjoint(heights):
            num_open = sum(heights[name] for name in formatting)
        else:
            # At most three with the same attributes are opened anew, however many there are.
            num_open = 3 * len(set(_FORMATTING_TAG.findall(body.lower())))
    return len(tags) * num_open > MAX_REOPENED


def _tags(page: np.ndarray, opens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each "<" that begins a tag: its name as a number, and whether it is an end tag."""
    padded = np.concatenate([page, np.zeros(_NAME_BYTES + 2, np.uint8)])
    is_end = padded[opens + 1] == ord("/")
    starts = opens + 1 + is_end
    first = padded[starts] | 0x20
    is_tag = (first >= ord("a")) & (first <= ord("z"))
    starts, is_end = starts[is_tag], is_end[is_tag]
    letters = np.lib.stride_tricks.sliding_window_view(padded, _NAME_BYTES)[starts]
    ended = (letters <= ord(" ")) | (letters == ord("/")) | (letters == ord(">"))
    for at in range(1, _NAME_BYTES):
        ended[:, at] |= ended[:, at - 1]
    letters = np.where(ended, 0, letters | 0x20)  # lower case
    return letters.view(np.uint64).ravel(), is_end


def _heights(tags: np.ndarray, is_end: np.ndarray) -> tuple[dict[int, int], dict[int, int]]:
    """By name: how many elements are open at most, and how many tags there are."""
    if not len(tags):
        return {}, {}
    order = np.argsort(tags, kind="stable")
    tags, steps = tags[order], np.where(is_end[order], -1, 1)
    first = np.concatenate([[0], np.flatnonzero(np.diff(tags)) + 1])
    numbers = np.diff(np.append(first, len(tags)))
    group = np.repeat(np.arange(len(first)), numbers)
    height = np.cumsum(steps)
    height -= (height[first] - steps[first])[group]
    # An end tag without a start tag closes nothing: measured from the lowest so far. Each group lies far below the
    # last, so that the running minimum starts anew with it.
    below = group * (2 * len(tags) + 1)
    lowest = np.minimum.accumulate(np.minimum(height, 0) - below) + below
    names = tags[first].tolist()
    highest = np.maximum.reduceat(height - lowest, first)
    return dict(zip(names, highest.tolist(), strict=True)), dict(zip(names, numbers.tolist(), strict=True))
