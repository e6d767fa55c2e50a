"""The most memory that this process has held. getrusage's figure is no help: a child inherits it from its parent."""

from __future__ import annotations

from pathlib import Path


def forget_peak() -> None:
    """From now on, the peak is that of what comes."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Peak of resident memory since `forget_peak`, or since the process began; MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
