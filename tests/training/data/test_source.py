"""What a dataset gives through a selection is what its tables say, row by row."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.dataset import Dataset
from infra.errors import DatasetError, PairmillError
from infra.executors import LocalExecutor
from infra.indexing import index_dataset
from tests.training.shards import caption_of, make_selection, make_shards, picture, uid_of
from training.data.copies import Copies
from training.data.source import DatasetSettings, Source, Unit


def units(source: Source) -> list[tuple[bytes, list[str | None], bytes]]:
    """Every unit in order: uid, captions, encoded image."""
    copies, found = Copies("", 0), []
    for shard, size in zip(source.shards, source.sizes.tolist(), strict=True):
        view = source.view(shard)
        assert len(view.uids) == size == len(view.offsets)
        for row in range(size):
            data = copies.read(source.dataset.storage, f"{shard}.tar", int(view.offsets[row]), int(view.sizes[row]))
            assert isinstance(data, bytes)
            texts = view.texts[int(view.first[row]) : int(view.first[row + 1])].to_pylist()
            found.append((view.uids[row].as_py(), texts, data))
    return found


def source(folder: Path, unit: Unit = "image", **settings) -> Source:
    return Source(DatasetSettings(path=str(folder), **settings), unit)


def test_without_a_selection_every_stored_sample_is_a_unit_with_its_own_image(tmp_path: Path) -> None:
    make_shards(tmp_path, [3, 0, 4])
    assert units(source(tmp_path)) == [(uid_of(n), [caption_of(n)], picture(n)) for n in range(7)]


MORE = {"blip": {0: ["a dog", "two dogs"], 2: ["a cat"], 4: ["a tree"]}}


def in_order(row: tuple[int, str, int]) -> tuple[int, bool, int]:
    return row[0], row[1] != "web", row[2]


@given(kept=st.sets(st.integers(0, 8)))
def test_a_unit_has_the_captions_that_survive_and_is_absent_where_none_does(tmp_path_factory, kept) -> None:
    folder = tmp_path_factory.mktemp("any")
    dataset = make_shards(folder, [3, 2], more=MORE)
    rows = [
        (n, *key)
        for n in range(5)
        for key in [("web", 0), *(("blip", at) for at in range(len(MORE["blip"].get(n, ()))))]
    ]
    chosen = {(uid_of(n), s, k) for at, (n, s, k) in enumerate(rows) if at in kept}
    make_selection(dataset, "some", lambda *key: key in chosen, ["web", "blip"])
    text = {(n, "web", 0): caption_of(n) for n in range(5)} | {
        (n, "blip", at): words for n, texts in MORE["blip"].items() for at, words in enumerate(texts)
    }
    wanted = {n: [text[row] for at, row in enumerate(rows) if at in kept and row[0] == n] for n in range(5)}
    if not chosen:
        with pytest.raises(DatasetError, match="keeps nothing"):
            source(folder, selection="some")
        return
    assert [(uid, texts) for uid, texts, _ in units(source(folder, selection="some"))] == [
        (uid_of(n), texts) for n, texts in wanted.items() if texts
    ]
    assert [(uid, texts, data) for uid, texts, data in units(source(folder, "caption", selection="some"))] == [
        (uid_of(n), [one], picture(n)) for n, texts in wanted.items() for one in texts
    ]


def test_tables_of_captions_are_read_beside_the_web_or_instead_of_it(tmp_path: Path) -> None:
    make_shards(tmp_path, [3, 2], more=MORE)
    both = units(source(tmp_path, captions=["web", "blip"]))
    assert [texts for _, texts, _ in both] == [[caption_of(n), *MORE["blip"].get(n, [])] for n in range(5)]
    alone = units(source(tmp_path, captions=["blip"]))
    assert [(uid, texts) for uid, texts, _ in alone] == [(uid_of(n), MORE["blip"][n]) for n in (0, 2, 4)]
    assert source(tmp_path, "caption", captions=["web", "blip"]).sizes.tolist() == [6, 3]


def test_a_table_of_captions_may_hold_its_uids_as_bytes_of_any_length(tmp_path: Path) -> None:
    dataset = make_shards(tmp_path, [3, 2], more=MORE)
    fixed = units(source(tmp_path, captions=["web", "blip"]))
    for path in (tmp_path / "captions/blip").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.set_column(0, "uid", table["uid"].cast(pa.binary())), path)
    assert units(source(dataset.storage.path(), captions=["web", "blip"])) == fixed


def test_folders_without_images_or_selection_are_refused_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(PairmillError):
        source(tmp_path / "nowhere")
    make_shards(tmp_path, [2])
    with pytest.raises(DatasetError, match="filters select"):
        source(tmp_path, selection="absent")


@pytest.mark.parametrize("has_table", [True, False])
def test_a_folder_of_others_is_read_by_its_index(tmp_path: Path, has_table: bool) -> None:
    """No uid anywhere, pictures under other names, a sample without a picture, a row that failed."""
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        files = {"a.jpeg": picture(0), "a.txt": b"one", "b.txt": b"two", "c.PNG": picture(2), "c.txt": b"three"}
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if has_table:
        stored = {"a": "one", "b": "two", "x": None, "c": "three"}
        rows = [{"key": key, "url": f"http://a.test/{key}", "caption": text or "lost",
                 "status": "success" if text else "failed_to_download"} for key, text in stored.items()]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    index_dataset(Dataset(tmp_path), LocalExecutor())
    only = source(tmp_path)
    view = only.view("00000")
    assert only.sizes.tolist() == [3]
    assert view.texts.to_pylist() == ["one", "two", "three"]
    copies = Copies("", 0)
    found = [copies.read(only.dataset.storage, "00000.tar", int(at), int(size)) if size else None
             for at, size in zip(view.offsets, view.sizes, strict=True)]  # fmt: skip
    assert found == [picture(0), None, picture(2)]
