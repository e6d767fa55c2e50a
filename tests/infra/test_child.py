"""A child process: what it ends with is told, asking it to leave reaches it, and it never outlives its starter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.child import run_child

ROOT = Path(__file__).resolve().parents[2]


def starter(command: list[str]) -> subprocess.Popen[str]:
    """A process that runs the command as its child, and exits as that did."""
    # A shell has what it runs in the background ignore SIGINT; whoever started these tests may have been one.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from infra.child import run_child; sys.exit(run_child(sys.argv[1:])[0])"
    )
    return subprocess.Popen([sys.executable, "-c", program, *command], cwd=ROOT, text=True, process_group=0)


def until(is_so: Callable[[], bool], within_s: float = 20.0) -> bool:
    deadline = time.monotonic() + within_s
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_so()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("code", [0, 3, 75])
def test_its_exit_code_and_output_are_told(code: int) -> None:
    assert run_child(["bash", "-c", f"echo one; echo two; exit {code}"]) == (code, "one\ntwo\n")


def test_a_signal_that_ended_it_is_told_as_shells_do() -> None:
    assert run_child(["bash", "-c", "kill -9 $$"])[0] == 128 + signal.SIGKILL


def test_it_finds_the_rooms_wherever_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = run_child([sys.executable, "-c", "import infra, os; print(os.getcwd()); print(infra.__file__)"])
    assert (code, output.splitlines()) == (0, [str(tmp_path), str(ROOT / "infra/__init__.py")])


def test_variables_are_its_own_where_this_process_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "as it was")
    code, output = run_child(["bash", "-c", "echo $KEPT, $GIVEN"], {"KEPT": "another", "GIVEN": "given"})
    assert (code, output) == (0, "as it was, given\n")
    assert "GIVEN" not in os.environ


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asking_its_starter_to_leave_asks_it(tmp_path: Path, number: signal.Signals) -> None:
    ready = tmp_path / "ready"
    started = starter(["bash", "-c", f"trap 'exit 75' TERM; touch {ready}; while :; do sleep 0.05; done"])
    assert until(ready.exists)
    started.send_signal(number)
    assert started.wait(20) == 75


@pytest.mark.parametrize("send", [os.kill, os.killpg])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_it_and_what_it_started_end_with_their_starter(
    tmp_path: Path, number: signal.Signals, send: Callable[[int, int], None]
) -> None:
    pids = tmp_path / "pids"
    started = starter(
        ["bash", "-c", f"trap '' TERM INT; sleep 600 & echo $$ $! > {pids}.part; mv {pids}.part {pids}; wait"]
    )
    assert until(pids.exists)
    both = [int(word) for word in pids.read_text().split()]
    assert all(map(is_alive, both))
    send(started.pid, number)
    started.wait(20)
    assert until(lambda: not any(map(is_alive, both)))
