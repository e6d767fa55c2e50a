"""A subset file is DataComp's: sorted 128-bit uids that plain numpy reads, and that rules take for a list."""

from __future__ import annotations

import io
import pickle
import random
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.listed import Listed
from filters.rules import NotIn, SelectRecipe, parse_rule
from filters.select import select
from filters.subset import read_subset, write_subset
from infra.errors import RecipeError
from infra.executors import LocalExecutor
from tests.filters.small_datasets import make_dataset, rows_table, uid_of, verdicts

U8U8 = np.dtype("u8,u8")
UID = pa.binary(16)
EDGES = [  # of the whole number, of its halves, and of their signs
    bytes(16), b"\xff" * 16, b"\x80" + bytes(15), b"\x7f" + b"\xff" * 15, bytes(8) + b"\x80" + bytes(7),
    bytes(8) + b"\xff" * 8, b"\xff" * 8 + bytes(8), bytes(7) + b"\x01" + bytes(8), bytes(15) + b"\x01",
    bytes(8) + b"\x01" + bytes(7),
]  # fmt: skip
ONE_UID = st.sampled_from(EDGES) | st.binary(min_size=16, max_size=16)
UIDS = st.lists(ONE_UID, max_size=12, unique=True)


def halves_of(uids: Sequence[bytes]) -> list[tuple[int, int]]:
    """DataComp's definition: the upper and the lower sixteen hex digits, each as a number."""
    return [(int(uid.hex()[:16], 16), int(uid.hex()[16:], 16)) for uid in uids]


def saved(uids: Sequence[bytes]) -> bytes:
    """A subset file as DataComp's own tools write it, in the order given."""
    file = io.BytesIO()
    np.save(file, np.array(halves_of(uids), U8U8))
    return file.getvalue()


def parts_of(uids: Sequence[bytes], cuts: Sequence[int]) -> list[pa.ChunkedArray]:
    """The uids cut into parts; each is a slice of all of them, so that it has an offset."""
    whole = pa.array(uids, UID)
    edges = [0, *sorted(min(cut, len(uids)) for cut in cuts), len(uids)]
    return [pa.chunked_array([whole[start:stop]], UID) for start, stop in pairwise(edges)]


def listed(path: Path | str) -> Listed:
    rule = parse_rule({"in": str(path)}, "test")
    assert isinstance(rule, NotIn)
    return Listed(rule)


def as_rows(halves: Sequence[tuple[int, int]]) -> npt.NDArray[np.uint64]:
    return np.array(halves, np.uint64).reshape(-1, 2)


@settings(max_examples=50)
@given(uids=UIDS, cuts=st.lists(st.integers(0, 12), max_size=3))
def test_plain_numpy_reads_what_is_written_and_finds_datacomps_numbers_sorted(
    uids: list[bytes], cuts: list[int]
) -> None:
    uids = sorted(uids)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kept.npy")
        write_subset(str(path), len(uids), parts_of(uids, cuts))
        found = np.load(path, allow_pickle=False)
        assert path.read_bytes() == saved(uids)  # to the byte, however the uids came
        assert np.array_equal(read_subset(str(path)), as_rows(halves_of(uids)))
    assert found.dtype == U8U8
    assert found.tolist() == sorted(halves_of(uids))
    assert [f"{upper:016x}{lower:016x}" for upper, lower in found.tolist()] == [uid.hex() for uid in uids]
    assert np.array_equal(np.sort(found), found)


@given(uids=st.lists(ONE_UID, max_size=12), data=st.data())
def test_a_file_of_others_in_any_order_and_with_repetitions_is_read_sorted(
    uids: list[bytes], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "theirs.npy")
        path.write_bytes(saved(uids))
        found = read_subset(str(path))
        assert np.array_equal(found, as_rows(sorted(halves_of(uids))))
        asked = data.draw(st.lists(st.sampled_from([*uids, *EDGES]) | ONE_UID, max_size=12))
        assert listed(path).holds_uids(as_rows(halves_of(asked))).tolist() == [uid in uids for uid in asked]


def test_many_uids_with_the_same_upper_half_are_told_apart(tmp_path: Path) -> None:
    uids = [bytes([high]) * 8 + low.to_bytes(8, "big") for high in (0, 128, 255) for low in range(50)]
    (tmp_path / "even.npy").write_bytes(saved(uids[::2]))
    found = listed(tmp_path / "even.npy").holds_uids(as_rows(halves_of(uids)))
    assert found.tolist() == [True, False] * 75


def test_a_subset_file_lies_on_an_object_store_as_on_a_disk(place: str) -> None:
    uids = sorted([*EDGES, uid_of("a")])
    write_subset(f"{place}/kept.npy", len(uids), parts_of(uids, []))
    with fsspec.open(f"{place}/kept.npy", "rb") as file:
        assert file.read() == saved(uids)
    assert np.array_equal(read_subset(f"{place}/kept.npy"), as_rows(halves_of(uids)))
    assert listed(f"{place}/kept.npy").holds_uids(as_rows(halves_of([uids[3], uid_of("b")]))).tolist() == [True, False]


def test_a_file_is_written_where_no_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_subset("kept.npy", 1, parts_of([EDGES[1]], []))
    assert Path("kept.npy").read_bytes() == saved([EDGES[1]])


@settings(max_examples=3)
@given(uids=st.lists(ONE_UID, min_size=1, max_size=8, unique=True), strangers=UIDS, data=st.data())
def test_in_keeps_just_the_listed_rows_and_not_in_just_the_others(
    uids: list[bytes], strangers: list[bytes], data: st.DataObject
) -> None:
    names = data.draw(st.lists(st.sampled_from(uids), unique=True)) + strangers
    edge = data.draw(st.integers(0, len(uids)))
    with tempfile.TemporaryDirectory() as folder:
        npy = Path(folder, "subset.npy")
        npy.write_bytes(saved(data.draw(st.permutations(names))))
        shards = {"00000": rows_table(uids[:edge]), "00001": rows_table(uids[edge:])}
        dataset = make_dataset(Path(folder, "data"), shards)
        for key, reason in (("in", "not_listed"), ("not_in", "listed")):
            again = f"{folder}/{key}.npy"
            select([dataset], SelectRecipe.parse({"rules": [{key: str(npy)}]}, key), key, LocalExecutor(), npy=again)
            kept = {uid for uid in uids if (uid in names) == (key == "in")}
            told = {uid: word for uid, _, _, word in verdicts(dataset, key)}
            assert told == {uid: None if uid in kept else reason for uid in uids}
            assert Path(again).read_bytes() == saved(sorted(kept))


def test_a_published_subset_is_a_list_that_selects_the_same_again(tmp_path: Path) -> None:
    uids = [uid_of(number) for number in range(20)]
    dataset = make_dataset(tmp_path / "data", {"00000": rows_table(uids, width=list(range(20)))})
    npy = str(tmp_path / "wide.npy")
    wide = SelectRecipe.parse({"rules": [{"where": "width >= 12"}]}, "wide")
    select([dataset], wide, "wide", LocalExecutor(), npy=npy)
    (told,) = select([dataset], SelectRecipe.parse({"rules": [{"in": npy}]}, "again"), "again", LocalExecutor())
    assert (told["rows_out"], told["dropped"]) == (8, {"not_listed": 12})
    assert [row[3] is None for row in verdicts(dataset, "again")] == [
        row[3] is None for row in verdicts(dataset, "wide")
    ]


def array_file(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize(
    "content",
    [
        b"0123456789abcdef0123456789abcdef\n", pickle.dumps([1, 2]), saved(EDGES)[:-8], saved(EDGES)[:40],
        array_file(np.array([(1, 2), "x"], object)), array_file(np.zeros(4, "u8")), array_file(np.zeros((2, 2), "u8")),
        array_file(np.zeros((2, 2), U8U8)), array_file(np.zeros((), U8U8)), array_file(np.zeros(2, "i8,i8")),
        array_file(np.zeros(2, ">u8,>u8")), array_file(np.zeros(2, "u8,u8,u8")), array_file(np.zeros(2, "S16")),
    ],
    ids=["text", "a pickle", "cut short", "a torn head", "objects", "one half", "columns", "a table of uids",
         "a single one", "signed", "big-endian", "three parts", "bytes"],
)  # fmt: skip
@pytest.mark.parametrize("remote", [False, True], ids=["disk", "store"])
def test_what_is_no_subset_file_is_refused_by_name(content: bytes, remote: bool, tmp_path: Path) -> None:
    path = f"memory://{tmp_path.name}/given.npy" if remote else f"{tmp_path}/given.npy"
    with fsspec.open(path, "wb") as file:
        file.write(content)
    with pytest.raises(RecipeError, match=r"given\.npy: .*subset file"):
        read_subset(path)


def test_nothing_of_a_pickle_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    path = tmp_path / "given.npy"
    for content in (array_file(np.array([Trap(str(trap))], object)), pickle.dumps(Trap(str(trap)))):
        path.write_bytes(content)
        with pytest.raises(RecipeError):
            read_subset(str(path))
        assert not trap.exists()
    with path.open("rb") as file:  # the trap is one
        pickle.load(file).close()
    assert trap.exists()


@pytest.mark.parametrize("key", ["in", "not_in"])
def test_a_selection_by_what_is_no_subset_file_is_refused_and_none_is_made(key: str, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", {"00000": rows_table([uid_of(1)])})
    (tmp_path / "given.npy").write_bytes(array_file(np.array([random.Random(0)], object)))
    for name in ("given", "missing"):
        recipe = SelectRecipe.parse({"rules": [{key: str(tmp_path / f"{name}.npy")}]}, "test")
        with pytest.raises(RecipeError, match=rf"{name}\.npy"):
            select([dataset], recipe, name, LocalExecutor())
        assert not dataset.storage.exists(f"selections/{name}/summary.json")
