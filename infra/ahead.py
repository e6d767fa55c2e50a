"""Work begun ahead: what threads do next is begun before what they have done is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def begun_ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items; the next `depth` are begun (taken from `items`) before one is given."""
    held: deque[T] = deque()
    for item in items:
        held.append(item)
        if len(held) > depth:
            yield held.popleft()
    yield from held
