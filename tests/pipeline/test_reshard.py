"""Curated shards: what a selection keeps, byte for byte, under new keys; nothing lost, nothing done twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from filters.rules import SelectRecipe
from filters.select import select
from infra.dataset import Dataset
from infra.errors import DatasetError, FingerprintError, StepError, UsageError
from infra.executors import LocalExecutor
from infra.indexing import index_dataset
from infra.selection import Selection, selection_table
from infra.shards import IMAGE_ENDINGS, Member, ShardWriter, read_members
from infra.storage import Storage
from infra.tables import read_table, write_keyed_table, write_table
from infra.verify import Verify
from pipeline.reshard.config import ReshardConfig
from pipeline.reshard.members import GAP_BYTES, read_samples
from pipeline.reshard.run import plan_text, reshard, summary
from tests.filters.small_datasets import image_scores, make_dataset
from tests.servers.commands import assert_same, published
from tests.servers.files import FileServer, serve_folder
from tests.servers.pictures import add_captions, draw_noise, store
from tests.servers.stopping import stops_at

WIDE = [{"where": "width > 44 and width <> 48", "reason": "narrow"}]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    folder = tmp_path_factory.mktemp("pictures")
    draw_noise(folder, 14)
    with serve_folder(folder) as server:
        yield server


def make_source(url: str, web: FileServer, tmp_path: Path) -> Dataset:
    """Fourteen stored pictures and one that is gone, in four shards; eight of them selected as `wide`."""
    names = [*(f"{number}.png" for number in range(6)), "gone.png", *(f"{number}.png" for number in range(6, 14))]
    rows = [{"url": f"{web.url}/{name}", "caption": f"caption of {name}", "note": name} for name in names]
    source = Dataset(url)
    store(source, rows, tmp_path / "rows.parquet")
    select([source], SelectRecipe(rules=WIDE), "wide", LocalExecutor())
    return source


@pytest.fixture(scope="module")
def source(web: FileServer, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("source")
    return make_source(str(folder / "source"), web, folder)


def curate(source: Dataset, out: Dataset, selection: str = "wide", **values: Any) -> dict[str, Any]:
    config = ReshardConfig(**{"shard_size": 3, "shard_digits": 4, **values})
    return summary(reshard(source, out, selection, config, LocalExecutor()), out)


def samples_of(dataset: Dataset) -> list[dict[str, Any]]:
    """Every stored sample: its row, and its members by their ending."""
    found = []
    for shard in dataset.tars():
        members: dict[str, dict[str, bytes]] = {}
        with dataset.storage.open(dataset.tar(shard)) as file:
            for member, data in read_members(file):
                members.setdefault(member.key, {})[member.ending] = data
        for row in pq.read_table(dataset.storage.open(dataset.table(shard))).to_pylist():
            if row["status"] == "success":
                found.append({**row, "members": members.pop(row["key"])})
        assert not members
    return found


def kept_uids(source: Dataset, name: str) -> list[bytes]:
    selection = Selection(source, name)
    rows = [row for shard in selection.shards for row in selection.read(shard).to_pylist()]
    return list(dict.fromkeys(row["uid"] for row in rows if row["keep"]))


def judge_by_hand(source: Dataset, name: str, keep: set[tuple[bytes, str, int]]) -> None:
    """Of a selection's captions keep just these."""
    selection = Selection(source, name)
    for shard in selection.shards:
        table = selection.read(shard)
        keys = zip(*(table[column].to_pylist() for column in ("uid", "source", "n")), strict=True)
        kept = [key in keep for key in keys]
        reasons = pa.array([None if is_kept else "by_hand" for is_kept in kept], pa.string())
        table = table.set_column(3, "keep", pa.array(kept)).set_column(4, "reason", reasons)
        write_keyed_table(source.storage, selection_table(name, shard), table, keep_types=False)


def assert_whole(dataset: Dataset) -> None:
    assert [str(finding) for finding in Verify(dataset, complete=True).findings()] == []


def test_kept_samples_are_stored_in_order_byte_for_byte(place: str, web: FileServer, tmp_path: Path) -> None:
    source, out = make_source(f"{place}/source", web, tmp_path), Dataset(f"{place}/out")
    facts = curate(source, out)
    assert (facts["rows_in"], facts["rows_out"], facts["dropped"]) == (14, 8, {"narrow": 6})
    assert out.tars() == ["0000", "0001", "0002"]
    before, after = {row["uid"]: row for row in samples_of(source)}, samples_of(out)
    assert [row["uid"] for row in after] == kept_uids(source, "wide")
    assert [row["key"] for row in after] == [f"{n // 3:04d}{n % 3}" for n in range(8)]
    for row in after:
        old = before[row["uid"]]
        assert row["members"]["jpg"] == old["members"]["jpg"]
        assert row["members"]["txt"] == old["members"]["txt"] == row["caption"].encode()
        assert (row["origin_key"], row["origin_shard"]) == (old["key"], old["key"][:5])
        assert {name: row[name] for name in old if name not in ("key", "members")}.items() <= row.items()
        facts_of = json.loads(row["members"]["json"])
        assert (facts_of["uid"], facts_of["key"], facts_of["note"]) == (row["uid"].hex(), row["key"], row["note"])
    assert_whole(out)
    assert json.loads(out.storage.read("ledger/origin.json"))["dataset"] == source.storage.url
    (told,) = source.storage.list("ledger/resharded")
    assert json.loads(source.storage.read(told)) == {"dataset": out.storage.url, "selection": "wide"}
    assert_whole(source)


def test_webdataset_reads_the_shards(source: Dataset, tmp_path: Path) -> None:
    facts = curate(source, Dataset(tmp_path / "out"))
    read = list(webdataset.WebDataset(facts["paths"], shardshuffle=False, empty_check=False).decode("pil"))
    assert [sample["jpg"].size[0] for sample in read] == [45, 46, 47, 49, 50, 51, 52, 53]
    assert json.loads((tmp_path / "out/sizes.json").read_text()) == {"0000.tar": 3, "0001.tar": 3, "0002.tar": 2}


def test_a_second_run_changes_nothing_and_other_settings_are_refused(source: Dataset, tmp_path: Path) -> None:
    out = Dataset(tmp_path / "out")
    facts, before = curate(source, out), published(tmp_path / "out")
    assert curate(source, out) == facts
    for more in ({"shard_size": 4}, {"shard_digits": 5}):
        with pytest.raises(FingerprintError, match=next(iter(more))):
            curate(source, out, **more)
    select([source], SelectRecipe(rules=[{"where": "width > 50"}]), "wider", LocalExecutor())
    with pytest.raises(FingerprintError, match="selection"):
        curate(source, out, "wider")
    assert published(tmp_path / "out") == before


def test_what_cannot_be_done_is_refused_before_anything_is_written(
    source: Dataset, web: FileServer, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="dataset itself"):
        curate(source, source)
    with pytest.raises(DatasetError, match="no finished selection"):
        curate(source, Dataset(tmp_path / "out"), "nothing")
    other = Dataset(tmp_path / "other")
    store(other, [{"url": f"{web.url}/1.png", "caption": "one"}], tmp_path / "one.parquet")
    with pytest.raises(FingerprintError, match="another --out"):
        curate(source, other)
    select([other], SelectRecipe(rules=WIDE), "wide", LocalExecutor())
    store(other, [{"url": f"{web.url}/2.png", "caption": "two"}], tmp_path / "two.parquet")
    with pytest.raises(DatasetError, match="00001"):
        curate(other, Dataset(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["0000.tar", "photos.tar", "0000.parquet", "inputs/0000.parquet", "index/x.parquet"])
def test_what_somebody_else_keeps_there_is_never_written_over(place: str, source: Dataset, name: str) -> None:
    out = Dataset(f"{place}/theirs")
    out.storage.commit_bytes(name, b"not ours")
    for attempt in (lambda: curate(source, out), lambda: plan_text(source, out, "wide", ReshardConfig())):
        with pytest.raises(FingerprintError, match=name):
            attempt()
    assert out.storage.sizes() == {name: 8}


def test_a_folder_with_other_files_is_written_into(source: Dataset, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about this dataset")
    assert curate(source, Dataset(tmp_path))["rows_out"] == 8


def test_dataset_and_curated_dataset_lie_apart(source: Dataset, tmp_path: Path) -> None:
    before = published(Path(source.storage.url))
    (tmp_path / "link").symlink_to(source.storage.url)
    (tmp_path / "around").symlink_to(Path(source.storage.url).parent)
    for out in (tmp_path / "link", tmp_path / "link" / "inside", tmp_path / "around", Path(source.storage.url).parent):
        with pytest.raises(UsageError, match="--out"):
            curate(source, Dataset(out))
    assert published(Path(source.storage.url)) == before
    beside = Dataset(f"{source.storage.url}-more")  # a name that begins alike is another folder
    assert curate(source, beside)["rows_out"] == 8


@pytest.mark.slow
def test_a_run_stopped_anywhere_and_run_again_ends_with_the_same_bytes(source: Dataset, tmp_path: Path) -> None:
    curate(source, Dataset(tmp_path / "undisturbed"))
    out, moment = tmp_path / "out", 0
    while stops_at(moment, lambda: curate(source, Dataset(out))):
        curate(source, Dataset(out))
        assert_same(tmp_path / "undisturbed", out)
        shutil.rmtree(out)
        moment += 1
    assert moment > 40


@pytest.mark.ray
def test_ray_gives_the_same_bytes(source: Dataset, tmp_path: Path, ray_here: Any) -> None:
    curate(source, Dataset(tmp_path / "local"))
    reshard(source, Dataset(tmp_path / "ray"), "wide", ReshardConfig(shard_size=3, shard_digits=4), ray_here)
    assert_same(tmp_path / "local", tmp_path / "ray")


def test_an_image_is_stored_with_its_first_kept_caption_and_the_others_keep_their_names(
    web: FileServer, tmp_path: Path
) -> None:
    source = make_source(str(tmp_path / "source"), web, tmp_path)
    uids = [row["uid"] for row in samples_of(source)]
    texts = {uids[0]: ["a long one", "a long one too"], uids[5]: ["a long one"], uids[9]: ["short", "a long one"]}
    add_captions(source, "blip", texts)
    select([source], SelectRecipe(rules=WIDE, captions=("blip",)), "some", LocalExecutor())
    judge_by_hand(
        source,
        "some",
        {(uids[0], "web", 0), (uids[0], "blip", 0), (uids[0], "blip", 1), (uids[5], "blip", 0)},
    )
    out = Dataset(tmp_path / "out")
    facts = curate(source, out, "some")
    stored = {row["uid"]: row for row in samples_of(out)}
    assert set(stored) == {uids[0], uids[5]}
    first, second = stored[uids[0]], stored[uids[5]]
    assert (first["caption"], first["caption_source"], first["caption_n"]) == ("caption of 0.png", "web", 0)
    assert (second["caption"], second["caption_source"], second["caption_n"]) == ("a long one", "blip", 0)
    assert second["members"]["txt"] == b"a long one"
    tables = [pq.read_table(tmp_path / f"out/captions/blip/{shard}.parquet") for shard in out.shards()]
    captions = [row for table in tables for row in table.to_pylist()]
    assert [(row["uid"], row["source"], row["n"], row["text"], row["model"]) for row in captions] == [
        (uids[0], "blip", 0, "a long one", "tiny"),
        (uids[0], "blip", 1, "a long one too", "tiny"),
        (uids[5], "blip", 0, "a long one", "tiny"),
    ]
    told = Selection(source, "some").summary
    assert facts["rows_in"] == told["rows_in"] == facts["rows_out"] + sum(facts["dropped"].values())
    assert facts["dropped"]["further_caption"] == 2
    assert_whole(out)


def make_foreign(folder: Path, with_tables: bool) -> Dataset:
    """Two tars as others write them: keys in folders, pictures of two kinds, classes, and a uid that comes twice."""
    dataset = Dataset(folder)
    folder.mkdir()
    for shard in ("train-0", "train-1"):
        rows = []
        with ShardWriter(folder / f"{shard}.tar") as writer:
            for number in range(5):
                ending, key = ("png", "webp")[number % 2], f"{shard}/{number}"
                facts = {
                    "url": f"http://a.example/{number if number == 3 else key}",
                    "licence": "by",
                    "caption": "same",
                }
                parts = {ending: f"image {key}".encode() * 50, "cls": b"7", "json": json.dumps(facts).encode()}
                writer.write(b"", key, parts)
                rows.append({"key": key, "url": facts["url"], "caption": "same", "status": "success", "width": number})
        if with_tables:
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard}.parquet")
    index_dataset(dataset, LocalExecutor())
    return dataset


@pytest.mark.parametrize("with_tables", [True, False])
def test_tars_of_others_are_resharded_with_all_their_members(tmp_path: Path, with_tables: bool) -> None:
    source, out = make_foreign(tmp_path / "source", with_tables), Dataset(tmp_path / "out")
    select([source], SelectRecipe(rules=[{"where": "key not like '%/0'", "reason": "first"}]), "wide", LocalExecutor())
    facts = curate(source, out)
    assert (facts["rows_in"], facts["rows_out"], facts["dropped"]) == (10, 7, {"first": 2, "duplicate_row": 1})
    stored = samples_of(out)
    assert [row["origin_key"] for row in stored] == [
        *(f"train-0/{n}" for n in range(1, 5)), "train-1/1", "train-1/2", "train-1/4"
    ]  # fmt: skip
    for row in stored:
        (ending,) = set(row["members"]) & set(IMAGE_ENDINGS)
        assert row["members"][ending] == f"image {row['origin_key']}".encode() * 50
        assert row["members"]["cls"] == b"7"
        told = json.loads(row["members"]["json"])
        assert (told["licence"], told["key"]) == ("by", row["key"])
        assert told["url"].startswith("http://a.example/")
    assert_whole(out)


def test_shards_that_were_cut_before_tell_where_they_first_came_from(source: Dataset, tmp_path: Path) -> None:
    first, second = Dataset(tmp_path / "first"), Dataset(tmp_path / "second")
    curate(source, first)
    select([first], SelectRecipe(rules=[{"where": "width > 46", "reason": "narrow"}]), "wide", LocalExecutor())
    curate(first, second, shard_size=100)
    origins = {row["uid"]: (row["origin_shard"], row["origin_key"]) for row in samples_of(first)}
    assert {
        row["uid"]: (row["origin_shard"], row["origin_key"]) for row in samples_of(second)
    }.items() <= origins.items()
    assert len(samples_of(second)) == 6
    assert_whole(second)


def test_a_sample_that_its_shard_lacks_is_a_counted_loss(web: FileServer, tmp_path: Path) -> None:
    source, out = make_source(str(tmp_path / "source"), web, tmp_path), Dataset(tmp_path / "out")
    lost = kept_uids(source, "wide")[2]
    for shard in source.shards():
        index = read_table(source.storage, source.index(shard))
        write_table(source.storage, source.index(shard), index.filter(pa.compute.not_equal(index["uid"], lost)))
    facts = curate(source, out)
    assert (facts["rows_out"], facts["dropped"]) == (7, {"missing_image": 1, "narrow": 6})
    assert lost not in {row["uid"] for row in samples_of(out)}
    assert_whole(out)


def test_a_tar_that_is_cut_short_stops_its_shards_and_no_other(source: Dataset, tmp_path: Path) -> None:
    broken, out = Dataset(tmp_path / "source"), Dataset(tmp_path / "out")
    shutil.copytree(source.storage.url, broken.storage.url)
    tar = tmp_path / "source" / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:600])
    with pytest.raises(StepError, match="ends before its index"):
        curate(broken, out)
    assert out.tars() == ["0001", "0002"]
    assert out.read_sizes() == {"0001.tar": 3, "0002.tar": 2}


def test_a_dry_run_says_what_would_be_stored_and_writes_nothing(source: Dataset, tmp_path: Path) -> None:
    lines = plan_text(source, Dataset(tmp_path / "out"), "wide", ReshardConfig(shard_size=3))
    assert "8 of 14 rows" in lines[0]
    assert "3 shards of 3" in lines[0]
    assert not (tmp_path / "out").exists()


@given(
    sizes=st.lists(st.tuples(st.integers(0, GAP_BYTES * 2), st.integers(0, 200)), max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_samples_are_read_whole_in_whatever_order_they_are_asked_for(tmp_path_factory, sizes, order) -> None:
    folder = tmp_path_factory.mktemp("tar")
    data, samples = bytearray(), []
    for gap, size in sizes:
        data += bytes(gap)
        sample = [Member("a.jpg", len(data), size), Member("a.txt", len(data) + size + 10, 3)]
        data += order.randbytes(size) + bytes(10) + b"abc"
        samples.append((sample, bytes(data[sample[0].offset :][:size])))
    (folder / "x.tar").write_bytes(data)
    order.shuffle(samples)
    found = list(read_samples(Storage(folder), "x.tar", [sample for sample, _ in samples]))
    assert found == [{"jpg": image, "txt": b"abc"} for _, image in samples]


def test_a_selection_of_scores_that_have_changed_since_is_refused(source: Dataset, tmp_path: Path) -> None:
    shutil.copytree(source.storage.url, tmp_path / "source")
    dataset = Dataset(tmp_path / "source")

    def score(value: float) -> None:
        tables = {}
        for shard in dataset.tars():
            rows = pq.read_table(tmp_path / f"source/{shard}.parquet").filter(pc.field("status") == "success")
            tables[shard] = image_scores(rows["uid"].to_pylist(), s=[value] * rows.num_rows)
        make_dataset(tmp_path / "source", {}, {"own": tables})

    score(1.0)
    select([dataset], SelectRecipe.parse({"rules": [{"where": "s > 0"}]}, "test"), "own", LocalExecutor())
    score(-1.0)
    with pytest.raises(DatasetError, match="other rows or scores"):
        curate(Dataset(dataset.storage.url), Dataset(tmp_path / "out"), "own")
    assert not (tmp_path / "out").exists()
