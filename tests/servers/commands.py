"""The product's commands as a person starts them, in processes of their own; and what a dataset folder holds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
SHARED = CHECKOUT.parent / "shared" / "data"


def start(*words: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start `python -m …` at the root of the checkout, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, words)],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*words: str | Path, code: int = 0, timeout_s: float = 240, **environment: str) -> dict[str, Any]:
    """Run a command with --json. Returns its facts; asserts its exit code, showing what it said."""
    process = start(*words, "--json", **environment)
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    facts: dict[str, Any] = json.loads(out.strip().splitlines()[-1]) if code == 0 else {"error": err}
    return facts


def watched(process: subprocess.Popen[str], timeout_s: float = 240) -> tuple[str, str, int]:
    """Wait for a process; its output, its errors, and its peak memory in MiB.

    Read from the process itself: what the system accounts to a child begins with the size of the one that forked it.
    """
    peak_mib = [0]

    def watch() -> None:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            if found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text()):
                peak_mib[0] = int(found[1]) // 1024
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate(timeout=timeout_s)
    watcher.join()
    return out, err, peak_mib[0]


def published(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset but the statistics, with the clocks of its done-marks taken out."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or name.endswith("_stats.json"):
            continue
        data = path.read_bytes()
        if name.startswith("ledger/done/"):
            mark = json.loads(data)
            del mark["clock"]
            data = json.dumps(mark, sort_keys=True).encode()
        files[name] = data
    return files


def assert_same(one: Path, other: Path) -> None:
    """Two dataset folders hold the same bytes, clocks aside."""
    left, right = published(one), published(other)
    assert sorted(left) == sorted(right)
    different = [name for name in left if left[name] != right[name]]
    assert not different, different
