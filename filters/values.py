"""Columns as rules see them: numbers with NaN for what is missing, hashes, and no not-a-number beside null."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def values_of(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """A numeric column as float64, NaN where it is missing. Raises ArrowInvalid for text."""
    return np.asarray(column.cast(pa.float64(), safe=False).fill_null(float("nan")).to_numpy(), np.float64)


def as_hashes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """64-bit hashes as uint64, also where they were stored as signed numbers. Raises ArrowException for no hashes."""
    if not pa.types.is_signed_integer(column.type):
        return column.cast(pa.uint64())
    return pa.chunked_array([chunk.view(pa.uint64()) for chunk in column.cast(pa.int64()).chunks], pa.uint64())


def nan_as_null(column: pa.ChunkedArray) -> Any:
    """Not-a-number is a missing value; DuckDB would take it for the largest."""
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)


def readable(field: pa.Field) -> str:
    """A column as rules see it: bytes, such as a sha256, are hex digits."""
    is_bytes = pa.types.is_binary(field.type) or pa.types.is_fixed_size_binary(field.type)
    return f"lower(hex({field.name})) AS {field.name}" if is_bytes else field.name
