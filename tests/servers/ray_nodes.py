"""Two Ray nodes on this machine, without a common /tmp where mount namespaces can be had."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@contextmanager
def ray_nodes() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A head and a second node without a common /tmp. Yields the address and the second node's process."""
    port = random.randint(20_000, 29_000)
    folder = tempfile.mkdtemp(prefix="ray")  # short: the paths of its sockets must fit in 107 bytes
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # nodes and driver share it
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    common = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
    head = subprocess.Popen(
        [*RAY, "start", "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}", *common],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    second = None
    try:
        _wait_for_port(port)
        join = " ".join([*RAY, "start", f"--address=127.0.0.1:{port}", *common])
        second = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none /tmp && exec {join}"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        yield f"127.0.0.1:{port}", second
    finally:
        for process in (second, head):
            if process is not None:
                kill_tree(process)
        del os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_port(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("the head node did not start")


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill -9 a process and all below it, as when a machine is lost."""
    try:
        tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    for member in tree:
        with suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGKILL)
    process.wait(timeout=20)


def can_unshare() -> bool:
    """May we make mount namespaces here?"""
    words = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /tmp"]
    return bool(shutil.which("unshare")) and subprocess.run(words, capture_output=True, check=False).returncode == 0
