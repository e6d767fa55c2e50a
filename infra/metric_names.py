"""What a metric's name says of it: is the least the best, and is it told in per cent?"""

from __future__ import annotations

import re

_LOWER_IS_BETTER = ("loss", "rank", "error", "perplexity", "frechet", "kernel", "fid")
_NO_PERCENT = ("rank", "perplexity", "frechet", "kernel", "fid", "inception")


def is_lower_better(metric: str) -> bool:
    """Is the least the best? Of losses, ranks, distances and errors; of all others, the most."""
    return _has(metric, _LOWER_IS_BETTER)


def in_percent(metric: str) -> bool:
    """Is it a share, or a mean that papers print times 100?"""
    return not _has(metric, _NO_PERCENT)


def _has(metric: str, words: tuple[str, ...]) -> bool:
    """generation/clip_frechet@16/blur2 is a clip_frechet, whole words alone: what is reranked is no rank."""
    name = metric.partition("@")[0].rpartition("/")[2]
    return any(word in words for word in re.split(r"[^a-z]+", name.lower()))
