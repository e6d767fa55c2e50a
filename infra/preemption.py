"""Does somebody want this machine back? SIGTERM and SIGUSR1, as queues send them before they kill."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
ASKED_TO_LEAVE = 75  # EX_TEMPFAIL of sysexits.h, "try again": queues start such a job anew


@dataclass
class Preemption:
    """Was this process asked to leave?"""

    is_asked: bool = False

    @contextmanager
    def watched(self, tell: Callable[[], object] = lambda: None) -> Iterator[Preemption]:
        """Note signals while the block runs, in place of dying, and tell it. Only in a process's main thread."""

        def note(number: int, frame: FrameType | None) -> None:
            self.is_asked = True
            tell()

        before = {number: signal.signal(number, note) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
