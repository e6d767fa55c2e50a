"""A headless Chromium spoken to by pipe: what a person would see of a page, without a port and without a driver.

A conftest.py that wants the fixture imports it: `from tests.servers.browser import browser`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest


class Browser:
    """Headless Chromium behind its debugging pipe: NUL-ended JSON on descriptors 3 and 4, no port and no driver."""

    def __init__(self, program: str, profile: str) -> None:
        to_child, self._out = os.pipe()
        self._in, from_child = os.pipe()
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
            "--disable-component-update", "--disable-background-networking", f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
        ]  # fmt: skip
        # The launcher moves the pipe to the two numbers that Chromium expects; pytest may hold them itself.
        launcher = "import os, sys; os.dup2({0}, 3); os.dup2({1}, 4); os.execvp(sys.argv[1], sys.argv[1:])"
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_child, from_child)]
        command = [sys.executable, "-c", launcher.format(*ends), program, *flags]
        self.child = subprocess.Popen(
            command, pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )  # fmt: skip
        for end in ends:
            os.close(end)
        os.close(to_child)
        os.close(from_child)
        self._buffer = b""
        self._serial = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events on the way are kept."""
        self._serial += 1
        message = {"id": self._serial, "method": method, "params": parameters}
        os.write(
            self._out, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while True:
            answer = self._next()
            if answer.get("id") == self._serial:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, url: str) -> None:
        """Navigate and wait until the page has loaded."""
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + 60
        while self.evaluate("document.readyState") != "complete":
            assert time.monotonic() < deadline, "the page did not load"
            time.sleep(0.05)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page, promises awaited."""
        return self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)["result"].get(
            "value"
        )

    def of(self, method: str) -> list[dict[str, Any]]:
        """Events of one kind so far."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def close(self) -> None:
        """End it and wait."""
        os.close(self._out)
        os.close(self._in)
        self.child.terminate()
        self.child.wait(20)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            block = os.read(self._in, 1 << 16)
            assert block, "Chromium ended"
            self._buffer += block
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@pytest.fixture
def browser() -> Iterator[Browser]:
    """A fresh headless Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            yield browser
        finally:
            browser.close()
