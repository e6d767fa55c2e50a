"""A run that ends at a chosen moment, as if its process had been killed there: before or after a file's publication."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from infra.storage import Storage

ACTS = ("_publish", "remove", "remove_folder")  # of Storage: what changes a dataset


class Stopped(BaseException):
    """Not an Exception: no step catches it, as none survives a kill."""


@contextmanager
def stopping(after: int, halfway: bool = False) -> Iterator[None]:
    """Stop before the act number `after` (from 0), or with `halfway` just behind it, before anyone knows of it."""
    num_acts = 0

    def counted(act: Callable[..., Any]) -> Callable[..., Any]:
        def perform(*values: Any) -> Any:
            nonlocal num_acts
            num_acts += 1
            if num_acts <= after:
                return act(*values)
            if halfway and num_acts == after + 1:
                act(*values)
            raise Stopped

        return perform

    with mock.patch.multiple(Storage, **{name: counted(getattr(Storage, name)) for name in ACTS}):
        yield


def stops_at(moment: int, run: Callable[[], Any]) -> bool:
    """Run until a moment: even ones lie before an act, odd ones behind it. False where the run had ended before."""
    try:
        with stopping(moment // 2, halfway=moment % 2 == 1):
            run()
    except Stopped:
        return True
    return False


def stops_before(name: str, run: Callable[[], Any]) -> bool:
    """Run until a file of this name (or one that ends so) would be published. False where none ever was."""
    publish = Storage._publish

    def perform(storage: Storage, temporary: Any, published: str) -> None:
        if published.endswith(name):
            raise Stopped
        publish(storage, temporary, published)

    with mock.patch.object(Storage, "_publish", perform):
        try:
            run()
        except Stopped:
            return True
    return False
