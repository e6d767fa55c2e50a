"""Image tokens, made once: a table beside the shards, a row an image, from which a model trains without a picture.

tokens/NAME/SHARD.parquet: uid, codes: a binary of two bytes a token, row by row; null where no picture was read
"""

# Shapes: U units, I tokens of an image

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from infra.errors import DatasetError, UsageError
from infra.rows import as_uids
from infra.storage import Committed, Storage
from infra.tables import read_table, write_table

MADE = b"pairmill.made"  # in a table's metadata: by what
CODE = np.dtype("<u2")  # of a token; dVAEs have thousands of kinds


def check_name(name: str) -> str:
    """The name of a table. Raises UsageError where it cannot be a folder's."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UsageError(f"--name {name}: letters, digits, _, - and . alone, the first a letter or digit")
    return name


def codes_table(name: str, shard: str) -> str:
    """Name of a shard's table."""
    return f"tokens/{name}/{shard}.parquet"


def write_codes(
    storage: Storage, name: str, shard: str, uids: pa.Array, codes: list[Tensor | None], made: Mapping[str, Any]
) -> Committed:
    """Publish a shard's tokens. codes: (I,) of each image, below 65,536; None: none. made: JSON-ready, by what."""
    held = pa.array([None if one is None else one.numpy().astype(CODE).tobytes() for one in codes], pa.binary())
    table = pa.table({"uid": uids, "codes": held}).replace_schema_metadata({MADE: json.dumps(made, sort_keys=True)})
    return write_table(storage, codes_table(name, shard), table, is_checked=True)


def read_made(storage: Storage, name: str, shard: str) -> dict[str, Any]:
    """By what a shard's tokens were made: `num` of an image, `kinds`, and what its maker says. Raises DatasetError."""
    try:
        with storage.open(codes_table(name, shard)) as file:
            found: dict[str, Any] = json.loads((pq.read_schema(file).metadata or {})[MADE])
            return {**found, "num": int(found["num"]), "kinds": int(found["kinds"])}
    except (KeyError, ValueError, TypeError, OSError, pa.ArrowException) as error:
        raise _unreadable(storage, name, shard, error) from None


def read_codes(
    storage: Storage, name: str, shard: str, uids: pa.FixedSizeBinaryArray, made: Mapping[str, Any]
) -> pa.BinaryArray:
    """(U,) tokens of each image as bytes, null where there are none. made: by what all of them must have been made.

    Raises DatasetError where the table is broken, or another's.
    """
    try:
        if read_made(storage, name, shard) != made:
            raise ValueError("it was made otherwise than the first shard's")
        table = read_table(storage, codes_table(name, shard), ["uid", "codes"], is_checked=True)
        places = pc.index_in(uids, value_set=as_uids(table["uid"]).combine_chunks())
        codes = table["codes"].combine_chunks().take(places)
        kept = codes.drop_null()
        if pc.any(pc.not_equal(pc.binary_length(kept), made["num"] * CODE.itemsize)).as_py():
            raise ValueError(f"not {made['num']} tokens in every row")
        values = np.frombuffer(b"".join(kept.to_pylist()), CODE)
        if len(values) and int(values.max()) >= made["kinds"]:
            raise ValueError(f"a token beyond the {made['kinds']} kinds")
    except (KeyError, ValueError, TypeError, OSError, pa.ArrowException) as error:
        raise _unreadable(storage, name, shard, error) from None
    return codes


def as_codes(held: bytes) -> Tensor:
    """(I,) int64."""
    return torch.from_numpy(np.frombuffer(held, CODE).astype(np.int64))


def _unreadable(storage: Storage, name: str, shard: str, error: Exception) -> DatasetError:
    place = storage.file_url(codes_table(name, shard))
    return DatasetError(f"{place}: no table of image tokens ({error}); python -m training encode makes it anew")
