"""Tars: the same samples give the same bytes, any reader reads them, the index is exact, damage is told."""

from __future__ import annotations

import io
import json
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from infra.errors import DatasetError
from infra.sample import pair_uid
from infra.shards import (
    BLOCK,
    INDEX_SCHEMA,
    RECORD,
    Member,
    ShardWriter,
    list_members,
    read_at,
    read_members,
    sample_json,
    walk_members,
)

Samples = list[tuple[bytes, str, dict[str, bytes]]]

# Sizes around tar's blocks, and names in any letters.
payloads = st.one_of(
    st.binary(max_size=40), st.sampled_from([0, 1, 511, 512, 513, 1024, 9728, 10240]).map(lambda size: b"\xff" * size)
)
keys = st.text(st.characters(exclude_characters="./\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
parts = st.dictionaries(st.sampled_from(["jpg", "png", "txt", "json", "seg.png"]), payloads, min_size=1, max_size=4)
samples = st.lists(
    st.tuples(st.binary(min_size=16, max_size=16), keys, parts), max_size=6, unique_by=lambda one: one[1]
)


def written(path: Path, some: Samples) -> list[dict[str, object]]:
    with ShardWriter(path) as writer:
        for uid, key, files in some:
            writer.write(uid, key, files)
    assert writer.index().schema == INDEX_SCHEMA
    return writer.index().to_pylist()


def example_tar(tmp_path: Path, num: int = 3) -> bytes:
    path = tmp_path / "00000.tar"
    written(
        path, [(pair_uid("u", str(n)), f"{n:09d}", {"jpg": b"\xff\xd8" * 300, "txt": b"a cat"}) for n in range(num)]
    )
    return path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@settings(deadline=None)
@given(some=samples)
@example(some=[])
def test_any_reader_finds_what_was_written_where_the_index_says(folder: Path, some: Samples) -> None:
    path = folder / "any.tar"
    index = written(path, some)
    expected = [(f"{key}.{ending}", data) for _, key, files in some for ending, data in files.items()]
    assert path.stat().st_size % RECORD == 0
    with tarfile.open(path) as tar:
        assert [(info.name, tar.extractfile(info).read()) for info in tar] == expected  # type: ignore[union-attr]
    with path.open("rb") as file:
        assert [(row["member"], read_at(file, row["offset"], row["size"])) for row in index] == expected  # type: ignore[arg-type]
        file.seek(0)
        assert [(member.name, data) for member, data in read_members(file)] == expected
        members = list_members(file)
    assert [(row["member"], row["offset"], row["size"], row["key"]) for row in index] == [
        (member.name, member.offset, member.size, member.key) for member in members
    ]
    assert [row["uid"] for row in index] == [uid for uid, _, files in some for _ in files]


@settings(deadline=None, max_examples=30)
@given(some=samples)
def test_the_same_samples_give_the_same_bytes(folder: Path, some: Samples) -> None:
    one, other = folder / "one.tar", folder / "other.tar"
    written(one, some)
    written(other, some)
    assert one.read_bytes() == other.read_bytes()


def test_webdatasets_own_reader_reads_our_samples(tmp_path: Path) -> None:
    import webdataset

    some: Samples = [
        (pair_uid("u", str(n)), f"{n:09d}", {"jpg": b"\xff%d" % n, "txt": "é".encode(), "json": b'{"n": 1}'})
        for n in range(5)
    ]
    written(tmp_path / "00000.tar", some)
    read = list(webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False))
    assert [(one["__key__"], one["jpg"], one["txt"], one["json"]) for one in read] == [
        (key, files["jpg"], files["txt"], files["json"]) for _, key, files in some
    ]


@given(st.text(st.sampled_from("aB0./é-"), min_size=1, max_size=12))
def test_keys_are_webdatasets_keys(name: str) -> None:
    from webdataset.tariterators import base_plus_ext

    key, ending = base_plus_ext(name)
    assume(key is not None)
    member = Member(name, 0, 0)
    assert (member.key, member.ending) == (key, ending.lower())


FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CONTTYPE])
names = st.one_of(
    keys, st.integers(90, 160).map("x".__mul__), st.integers(95, 200).map(lambda num: "folder/" + "é" * num)
)


@settings(deadline=None)
@given(st.lists(st.tuples(FORMATS, KINDS, names, payloads, st.sampled_from([0, 7, 1.5, 2**40])), max_size=6))
def test_tars_of_others_are_listed_as_tarfile_lists_them(
    folder: Path, entries: list[tuple[int, bytes, str, bytes, float]]
) -> None:
    buffer = io.BytesIO()
    for kind_of_tar, kind, name, data, mtime in entries:
        info = tarfile.TarInfo(name)
        info.type, info.mtime, info.linkname = kind, mtime, "x" if kind == tarfile.SYMTYPE else ""
        info.size = len(data) if kind in tarfile.REGULAR_TYPES else 0
        try:
            buffer.write(info.tobuf(kind_of_tar))
        except ValueError:  # too long a name, too late a time for the format
            continue
        buffer.write(data[: info.size] + bytes(-info.size % BLOCK))
    buffer.write(bytes(2 * BLOCK))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar if info.isfile()]
    assert [(member.name, member.offset, member.size) for member in list_members(buffer)] == expected


def test_the_caller_may_read_elsewhere_while_walking(tmp_path: Path) -> None:
    file = io.BytesIO(example_tar(tmp_path))
    expected = list_members(io.BytesIO(file.getvalue()))
    found = []
    for member in walk_members(file):
        found.append(member)
        assert len(read_at(file, member.offset, member.size)) == member.size
        file.seek(0)
    assert found == expected


def all_readers(data: bytes) -> list[list[str]]:
    return [
        [member.name for member in list_members(io.BytesIO(data))],
        [member.name for member, _ in read_members(io.BytesIO(data))],
    ]


def test_a_tar_cut_anywhere_before_its_end_mark_is_an_error(tmp_path: Path) -> None:
    data = example_tar(tmp_path)
    last = list_members(io.BytesIO(data))[-1]
    end = last.offset + BLOCK  # its 5 bytes and their padding
    for length in [*range(0, end, 97), *range(0, end + 1, BLOCK)]:
        for reader in (
            list_members,
            lambda file: list(read_members(file)),
        ):
            with pytest.raises(DatasetError, match="broken tar"):
                reader(io.BytesIO(data[:length]))
    assert all(len(names) == 6 for names in all_readers(data[: end + BLOCK]))


def test_a_damaged_header_is_an_error_and_never_the_end(tmp_path: Path) -> None:
    data = example_tar(tmp_path)
    names = all_readers(data)[0]
    num_errors = 0
    for member in list_members(io.BytesIO(data)):
        for at in range(0, BLOCK, 7):
            bad = bytearray(data)
            bad[member.offset - BLOCK + at] ^= 0x41
            try:
                assert all(found == names for found in all_readers(bytes(bad)))
            except DatasetError:
                num_errors += 1
    assert num_errors > 400


@settings(deadline=None)
@given(st.data())
def test_whatever_the_bytes_there_are_members_or_a_dataset_error(folder: Path, data: st.DataObject) -> None:
    base = bytearray(example_tar(folder))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(base) - 1))
        base[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
        block = at // BLOCK * BLOCK
        if data.draw(st.booleans()) and block + BLOCK <= len(base):  # mend the checksum, so that the damage is believed
            head = base[block : block + 148] + b" " * 8 + base[block + 156 : block + BLOCK]
            base[block + 148 : block + 156] = b"%06o\0 " % sum(head)
    try:
        all_readers(bytes(base))
    except DatasetError:
        return


def test_an_index_row_beyond_the_tar_is_an_error() -> None:
    with pytest.raises(DatasetError, match="rebuild its index"):
        read_at(io.BytesIO(b"short"), 3, 9)


def test_a_block_that_raises_leaves_no_end_mark(tmp_path: Path) -> None:
    path = tmp_path / "00000.tar"
    with suppress(ZeroDivisionError), ShardWriter(path) as writer:
        writer.write(b"0" * 16, "0", {"jpg": b"1"})
        raise ZeroDivisionError
    with path.open("rb") as file, pytest.raises(DatasetError, match="broken tar"):
        list_members(file)


@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.binary(max_size=20)))
def test_a_samples_json_is_json_in_the_given_order(facts: dict[str, object]) -> None:
    read = json.loads(sample_json(facts))
    assert list(read) == list(facts)
    for name, value in facts.items():
        assert read[name] == (value.hex() if isinstance(value, bytes) else value)


def test_lone_surrogates_do_not_stop_a_samples_json() -> None:
    assert json.loads(sample_json({"caption": "a\ud800b"})) == {"caption": "a?b"}
