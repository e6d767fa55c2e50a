"""Logging: one line a shard, key=value, to standard error. Urls may hold secrets: log hosts, not queries."""

from __future__ import annotations

import logging
import os


def get_logger(name: str) -> logging.Logger:
    """A logger below "pairmill"."""
    return logging.getLogger(f"pairmill.{name}")


def one_line(text: str) -> str:
    """Text of another's making, fit for a terminal: one line, control characters as question marks."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))


def configure(verbose: bool = False) -> None:
    """Send our loggers to standard error; called once by each `__main__` and each worker."""
    level = os.environ.get("PAIRMILL_LOG", "DEBUG" if verbose else "WARNING").upper()
    logger = logging.getLogger("pairmill")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
