"""Progress: plain lines without a terminal, a live display on one, nothing when quiet; the figures are right."""

from __future__ import annotations

import io
import re

import pytest

from infra import progress as module
from infra.ledger import Counts
from infra.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_without_a_terminal_there_is_a_line_now_and_then_and_one_at_the_end(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.start("download", num_jobs=20, num_done=0, counts=Counts())
    for _ in range(20):
        clock.now += 1.0
        progress.advance(Counts(100, 90, {"dns": 10}))
    progress.finish()
    lines = stream.getvalue().splitlines()
    assert 3 <= len(lines) <= 5
    assert lines[-1] == "download: 20/20 jobs · 2,000 rows, 1,800 kept · 100 rows/s · dropped dns 200"
    assert "\x1b" not in stream.getvalue()


def test_the_time_left_is_reckoned_from_the_jobs_of_this_run(clock: Clock) -> None:
    progress = Progress(io.StringIO())
    progress.start("download", num_jobs=100, num_done=50, counts=Counts(5000, 5000))
    clock.now += 60.0
    for _ in range(10):
        progress.advance(Counts(100, 100))
    assert "60/100 jobs" in progress.line()
    assert "6,000 rows" in progress.line()
    assert "17 rows/s" in progress.line()
    assert "about 4 min 00 s left" in progress.line()


def test_what_was_done_before_is_said(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.start("split", num_jobs=3, num_done=3, counts=Counts(10, 10))
    progress.finish()
    progress.start("download", num_jobs=3, num_done=1, counts=Counts(10, 10))
    progress.finish()
    assert stream.getvalue().splitlines() == [
        "split: all 3 jobs were done before (10 rows)",
        "download: going on, 1 of 3 jobs were done before",
    ]


def test_a_quarantined_job_is_said_at_once_and_counted(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.start("download", num_jobs=2, num_done=0, counts=Counts())
    progress.quarantine("00001", "ValueError: [red]no markup[/red] 100%")
    clock.now += 1
    progress.finish()
    assert stream.getvalue().splitlines()[0] == "download: job 00001 quarantined: ValueError: [red]no markup[/red] 100%"
    assert "1 quarantined" in stream.getvalue().splitlines()[1]


def test_the_five_greatest_reasons_are_named(clock: Clock) -> None:
    progress = Progress(io.StringIO())
    progress.start("download", num_jobs=1, num_done=0, counts=Counts())
    clock.now += 1
    progress.advance(Counts(28, 0, {f"r{n}": n for n in range(1, 8)}))
    assert "dropped r7 7, r6 6, r5 5, r4 4, r3 3, 2 more reasons" in progress.line()


def test_on_a_terminal_a_live_display_comes_and_goes() -> None:
    stream = Terminal()
    progress = Progress(stream)
    progress.start("download", num_jobs=2, num_done=0, counts=Counts())
    progress.advance(Counts(10, 9, {"dns": 1}))
    progress.quarantine("00001", "ValueError: [red]no markup[/red]")
    progress.finish()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "2 jobs" in text
    assert "[red]no markup[/red]" in text
    assert "9 kept" in text.splitlines()[-1]


def test_quiet_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    progress = Progress.quiet()
    progress.start("download", num_jobs=1, num_done=0, counts=Counts())
    progress.advance(Counts(1, 1))
    progress.quarantine("0", "x")
    progress.finish()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.7, "1 h 00 min"), (90_000, "25 h 00 min")],
)
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert module._duration(seconds) == words
