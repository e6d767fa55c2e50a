"""DataComp's subset files: a sorted .npy of 128-bit uids, dtype "u8,u8", as its resharder reads them."""

from __future__ import annotations

from collections.abc import Iterable

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.errors import RecipeError
from infra.storage import Storage

DTYPE = np.dtype("u8,u8")


def write_subset(path: str, num_uids: int, parts: Iterable[pa.ChunkedArray]) -> None:
    """Publish a subset file of `num_uids` distinct uids, which come sorted, in parts of any size."""
    storage, name = Storage.of_file(path)
    with storage.commit(name) as draft, draft.path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(DTYPE), "fortran_order": False, "shape": (num_uids,)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            for chunk in part.chunks:
                halves = np.frombuffer(chunk.buffers()[1], ">u8")[2 * chunk.offset : 2 * (chunk.offset + len(chunk))]
                file.write(halves.astype("<u8").tobytes())


def read_subset(path: str) -> npt.NDArray[np.uint64]:
    """(N, 2) halves of a subset file's uids, sorted; on a disk they stay there. Raises RecipeError for another file."""
    check_subset(path)
    try:
        if "://" not in path:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with fsspec.open(path, "rb") as file:
                found = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: a broken subset file: {error}") from None
    halves = found.view("u8").reshape(-1, 2)
    in_order = (halves[1:, 0] > halves[:-1, 0]) | (
        (halves[1:, 0] == halves[:-1, 0]) & (halves[1:, 1] >= halves[:-1, 1])
    )
    return halves if in_order.all() else halves[np.lexsort((halves[:, 1], halves[:, 0]))]


def check_subset(path: str) -> None:
    """Raise RecipeError where a file does not begin as a subset file does."""
    try:
        with fsspec.open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror or error}") from None
    except ValueError:
        raise RecipeError(f"{path}: no .npy file of uids, as DataComp's subset files are") from None
    if dtype != DTYPE or len(shape) != 1:
        raise RecipeError(f"{path}: a subset file is one row of u8,u8, not {dtype} of shape {shape}")
