"""Progress to standard error: a live display on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from infra.ledger import Counts

LINE_EVERY_S = 5.0


class Progress:
    """Follows one step after the other: rows a second, kept, dropped by reason, time left."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._console = Console(file=self._stream)
        self._live: Live | None = None
        self._begun: set[str] = set()

    @classmethod
    def quiet(cls) -> Progress:
        """Shows nothing."""
        return _Quiet()

    def start(self, step: str, num_jobs: int, num_done: int, counts: Counts) -> None:
        """Begin a step of which `num_done` jobs were finished before, with these counts."""
        self.step, self.num_jobs, self.num_done, self.counts = step, num_jobs, num_done, counts
        self._num_done_before, self._rows_before = num_done, counts.rows_in
        self._num_quarantined = 0
        self._began = time.monotonic()
        self._said_at = self._began
        if step in self._begun:
            pass  # a further round of the same command
        elif num_done and num_done == num_jobs:
            self._say(f"{step}: all {num_jobs} jobs were done before ({counts.rows_in:,} rows)")
        elif num_done:
            self._say(f"{step}: going on, {num_done} of {num_jobs} jobs were done before")
        self._begun.add(step)
        if self._console.is_terminal and num_done < num_jobs:
            self._live = Live(self._render(), console=self._console, refresh_per_second=4, transient=True)
            self._live.start()

    def advance(self, counts: Counts) -> None:
        """One more job has ended."""
        self.num_done += 1
        self.counts += counts
        self._show()

    def quarantine(self, job: str, summary: str) -> None:
        """One more job was given up."""
        self._num_quarantined += 1
        self._say(f"{self.step}: job {job} quarantined: {summary}")
        self._show()

    def finish(self) -> None:
        """The step has ended."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self.num_done > self._num_done_before or self._num_quarantined:
            self._say(self.line())

    def line(self) -> str:
        """The state in one line."""
        took_s = max(time.monotonic() - self._began, 1e-9)
        num_rows = self.counts.rows_in - self._rows_before
        parts = [
            f"{self.step}: {self.num_done}/{self.num_jobs} jobs",
            f"{self.counts.rows_in:,} rows, {self.counts.rows_out:,} kept",
            f"{num_rows / took_s:,.0f} rows/s",
        ]
        if self.counts.dropped:
            top = sorted(self.counts.dropped.items(), key=lambda item: (-item[1], item[0]))
            more = f", {len(top) - 5} more reasons" if len(top) > 5 else ""
            parts.append("dropped " + ", ".join(f"{reason} {number:,}" for reason, number in top[:5]) + more)
        if self._num_quarantined:
            parts.append(f"{self._num_quarantined} quarantined")
        left = self._time_left_s()
        if left is not None:
            parts.append(f"about {_duration(left)} left")
        return " · ".join(parts)

    def _time_left_s(self) -> float | None:
        num_new = self.num_done - self._num_done_before
        num_left = self.num_jobs - self.num_done - self._num_quarantined
        if not num_new or num_left <= 0:
            return None
        return (time.monotonic() - self._began) / num_new * num_left

    def _show(self) -> None:
        if self._live is not None:
            self._live.update(self._render())
        elif time.monotonic() - self._said_at > LINE_EVERY_S and self.num_done < self.num_jobs:
            self._said_at = time.monotonic()
            self._say(self.line())

    def _say(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    def _render(self) -> Table:
        bar = RichProgress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} jobs")
        )
        bar.add_task(self.step, total=self.num_jobs, completed=self.num_done)
        grid = Table.grid()
        grid.add_row(bar)
        grid.add_row(self.line().partition(" · ")[2])
        return grid


class _Quiet(Progress):
    def _say(self, text: str) -> None:
        pass

    def start(self, step: str, num_jobs: int, num_done: int, counts: Counts) -> None:
        pass

    def advance(self, counts: Counts) -> None:
        pass

    def quarantine(self, job: str, summary: str) -> None:
        pass

    def finish(self) -> None:
        pass


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
