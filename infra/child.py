"""A command that does not outlive the process that started it, however that one ends.

Between the two stands a guard, `python -m infra.child COMMAND…`. Its standard input is a pipe whose other end the
starter alone holds, so the kernel tells it of the starter's end, kill -9 included; it then kills the command with all
that the command has started. It is in no group with its starter, or a kill -9 of that whole group would end it first. A
signal that asks to leave is handed on, and the command may take its time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import FrameType, MappingProxyType

import infra
from infra.preemption import SIGNALS, Preemption


def run_child(command: Sequence[str], variables: Mapping[str, str] = MappingProxyType({})) -> tuple[int, str]:
    """Run a command to its end. Returns its exit code (128 + N where signal N ended it) and its standard output.

    variables: of its environment, where this process has none of that name. It finds the rooms of this checkout
    wherever it runs. Standard error is this process's own. SIGTERM and SIGUSR1 to this process go to the command
    instead. Only in a process's main thread.
    """
    root = str(Path(infra.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    mine, its = os.pipe()[::-1]
    try:
        guard = subprocess.Popen(
            [sys.executable, "-m", "infra.child", *command], stdin=its, stdout=subprocess.PIPE, text=True,
            process_group=0, env={**variables, **os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        os.close(its)
        with Preemption().watched(lambda: guard.send_signal(signal.SIGTERM)):
            output, _ = guard.communicate()
    finally:
        os.close(mine)
    return guard.returncode, output


def main(command: Sequence[str]) -> int:
    """The guard. Returns the command's exit code."""
    asked: list[int] = []  # what came before there was a child
    started: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for one in started:
            one.send_signal(number)

    for number in SIGNALS:
        signal.signal(number, hand_on)
    signal.signal(signal.SIGINT, lambda number, frame: None)  # Ctrl-C ends the starter, and that is seen below
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    started.append(child)
    for early in asked:  # one that came just now is sent twice: better than not at all
        child.send_signal(early)
    Thread(target=_kill_without_starter, args=(child.pid,), daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _kill_without_starter(group: int) -> None:
    os.read(0, 1)  # nothing ever comes but the end
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
