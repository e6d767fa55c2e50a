"""Which pictures may be unfit to be seen: by columns of safety scores, whoever made them."""

from __future__ import annotations

import re
from typing import Any

_COLUMN = re.compile(r"unsafe|nsfw|porn|explicit", re.IGNORECASE)
SAFE_WORDS = {"unlikely", "safe", "sfw", "neutral", "no", "false", "0"}  # LAION's column NSFW says UNLIKELY
THRESHOLD = 0.5  # of a probability


def is_safety_column(name: str) -> bool:
    """Does a column of this name say how likely a picture is unfit to be seen?"""
    return _COLUMN.search(name) is not None


def is_doubtful(value: Any) -> bool:
    """Does a value of such a column say that the picture may be unfit, or say nothing of it?"""
    if isinstance(value, str):
        return value.strip().lower() not in SAFE_WORDS
    return value is None or value > THRESHOLD
