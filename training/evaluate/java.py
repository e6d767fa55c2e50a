"""A Java program beside us: lines in, lines out, in bounded time; none outlives us, and none of its trace is shown."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from queue import Empty, Queue
from threading import Thread
from typing import Any

from infra.errors import PairmillError, UsageError

ANSWER_S = 120.0  # longest wait for one line; METEOR needs 6 s to start
JAVA_MEND = "install Java 8 or newer; on Debian: apt-get install default-jre-headless"


class JavaError(PairmillError):
    """A Java program died, hung, or said what is no answer."""


class Java:
    """A Java program: lines in, lines out. Killed at the end; where we are killed it ends by itself, with its input."""

    def __init__(self, name: str, *command: str) -> None:
        self._name = name
        self._threads: list[Thread] = []
        self._answers: Queue[bytes | None] = Queue()
        self._told = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        try:
            # The encoding is said: under LANG=C a Java of 2021 would read every letter beyond ASCII as "?".
            self._process = subprocess.Popen(
                ["java", "-Dfile.encoding=UTF-8", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self._told, process_group=0,
            )  # fmt: skip
        except OSError as error:
            self._told.close()
            raise UsageError(f"{name} needs Java, and it cannot be started here ({error}); {JAVA_MEND}") from error

    def __enter__(self) -> Java:
        self._start(self._read)
        return self

    def __exit__(self, *what: object) -> None:
        # First, for a thread that waits to write holds the pipe until then; and the group, for java may be a script.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self._process.stdin, self._process.stdout, self._told):
            with suppress(OSError):  # what a dead program has not read
                pipe.close()  # type: ignore[union-attr]

    def ask(self, lines: Iterable[str], num_answers: int, *, is_last: bool = False) -> list[str]:
        """Its next lines. is_last: its input ends. Raises JavaError where one is late, or does not come at all."""
        self._start(self._write, lines, is_last)
        return [self._answer() for _ in range(num_answers)]

    def _start(self, work: Any, *args: Any) -> None:
        self._threads.append(Thread(target=work, args=args, daemon=True))
        self._threads[-1].start()

    def _write(self, lines: Iterable[str], is_last: bool) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with suppress(OSError):  # it died: the reader tells
            pipe.writelines(f"{line}\n".encode() for line in lines)
            pipe.flush()
            if is_last:
                pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _answer(self) -> str:
        try:
            line = self._answers.get(timeout=ANSWER_S)
        except Empty:
            raise JavaError(f"{self._name}: Java was silent for {ANSWER_S:g} s; is the machine overloaded?") from None
        if line is None or line.startswith(b"Error:"):
            raise JavaError(f"{self._name}: Java failed: {self._last_words(line)}; {JAVA_MEND}, with 2 GB of memory")
        return line.decode("utf-8", "replace").rstrip("\n")

    def _last_words(self, line: bytes | None) -> str:
        self._told.seek(0)
        told = (line or self._told.read()).decode("utf-8", "replace").splitlines()
        heads = [each.strip() for each in told if each.strip() and not each.startswith("\t")]  # tabs: Java's trace
        return heads[-1][:200] if heads else "it said nothing"
