"""Takedowns: nothing of a removed picture is left in any file, all else stays as it was, and nothing is done again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.phash import perceptual_hash_of_bytes
from filters.rules import SelectRecipe
from filters.score import score
from filters.select import select
from filters.subset import write_subset
from infra.dataset import Dataset
from infra.errors import StepError, UsageError
from infra.executors import LocalExecutor
from infra.indexing import index_dataset
from infra.removed import OPEN, RemovedRows
from infra.selection import Selection
from infra.shards import ShardWriter, read_members
from infra.storage import Storage
from infra.tables import read_table, write_table
from infra.verify import Verify
from pipeline.download.run import download
from pipeline.remove.run import plan_text, remove
from pipeline.remove.tars import holds_any, rewrite_without
from pipeline.report import write_report
from pipeline.reshard.config import ReshardConfig
from pipeline.reshard.run import reshard
from tests.servers.commands import assert_same, published
from tests.servers.files import FileServer, serve_folder
from tests.servers.pictures import add_captions, draw_noise, settings, store
from tests.servers.stopping import stops_at, stops_before
from tests.servers.traces import telling, traces

NUM = 14
SCORERS = ["text", "image", "duplicates"]
RULES = [{"where": "width <> 47", "reason": "odd"}, {"unique": "sha256"}]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    folder = tmp_path_factory.mktemp("pictures")
    draw_noise(folder, NUM)
    shutil.copy(folder / "3.png", folder / "copy-of-3.png")
    with serve_folder(folder) as server:
        yield server


def rows_of(web: FileServer) -> list[dict[str, Any]]:
    """Pictures with a caption each; the first with two; the fourth also under another address; one that is gone."""
    rows = [{"url": f"{web.url}/{n}.png", "caption": f"words of {n:02d}", "page_url": f"http://page{n}.example/"}
            for n in range(NUM)]  # fmt: skip
    rows.insert(2, {"url": f"{web.url}/0.png", "caption": "more of 00", "page_url": "http://other.example/"})
    rows.insert(9, {"url": f"{web.url}/copy-of-3.png", "caption": "a copy", "page_url": "http://copies.example/"})
    rows.insert(5, {"url": f"{web.url}/gone.png", "caption": "words of gone", "page_url": "http://page5.example/"})
    return rows


def make_dataset(folder: Path, web: FileServer) -> Dataset:
    """Everything that a dataset may hold: found pairs and links, shards, captions, scores, a selection, a report."""
    dataset = Dataset(folder)
    pairs = pa.Table.from_pylist([{"uid": bytes([n] * 16), **row} for n, row in enumerate(rows_of(web))])
    pairs = pairs.set_column(0, "uid", pairs["uid"].cast(pa.binary(16)))
    write_table(dataset.storage, "pairs/00000.parquet", pairs)
    urls = pa.array([f"{web.url}/{n}.png" for n in range(NUM)])
    write_table(dataset.storage, "crawl/found/R00000-B00000.parquet", pairs)
    write_table(dataset.storage, "crawl/links/R00000-B00000.parquet", pa.table({"url": urls, "host": urls}))
    write_table(dataset.storage, "crawl/images/R00000-B00000.parquet", pa.table({"url": urls, "place": ["w"] * NUM}))
    write_table(dataset.storage, "ledger/pages/R00000-B00000.parquet", pa.table({"url": ["x"] * NUM, "detail": urls}))
    download_again(dataset)
    derive(dataset)
    return dataset


def download_again(dataset: Dataset) -> int:
    """Returns how many jobs had something to do."""
    results = download(dataset, settings(), [f"{dataset.storage.url}/pairs"], LocalExecutor())
    return sum(result.num_run for result in results)


def derive(dataset: Dataset) -> None:
    """Captions, scores, selections; where they are there, nothing is done."""
    if not dataset.ledger.done("captions_blip"):
        rows = stored(dataset)
        add_captions(dataset, "blip", {row["uid"]: [f"blip: {row['caption']}", "a picture"] for row in rows})
    score(dataset, SCORERS, LocalExecutor())
    score(dataset, ["text"], LocalExecutor(), name="all_texts", captions=["blip"])
    select([dataset], SelectRecipe(rules=RULES), "good", LocalExecutor())
    select([dataset], SelectRecipe(rules=RULES, captions=("blip",)), "captions", LocalExecutor())
    dataset.storage.commit_bytes("report.html", b"pictures in here")


def stored(dataset: Dataset) -> list[dict[str, Any]]:
    """Every stored sample's row, with the bytes of its image."""
    found = []
    for shard in dataset.tars():
        with dataset.storage.open(dataset.tar(shard)) as file:
            images = {member.key: data for member, data in read_members(file) if member.ending == "jpg"}
        for row in pq.read_table(dataset.storage.open(dataset.table(shard))).to_pylist():
            if row["status"] == "success":
                found.append({**row, "image": images[row["key"]]})
    return found


@pytest.fixture(scope="module")
def made(web: FileServer, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("made") / "dataset", web)


@pytest.fixture
def dataset(made: Dataset, tmp_path: Path) -> Dataset:
    shutil.copytree(made.storage.url, tmp_path / "dataset")
    return Dataset(tmp_path / "dataset")


def listing(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "list.txt"
    path.write_text("# a comment\n" + "\n".join(lines) + "\n")
    return str(path)


def findings(dataset: Dataset) -> list[str]:
    return [str(finding) for finding in Verify(dataset).findings() if finding.is_problem]


def take_down(dataset: Dataset, tmp_path: Path, *lines: str) -> dict[str, Any]:
    return remove(dataset, listing(tmp_path, *lines), LocalExecutor())


# Each kind of line: the lines, made from the web and the rows, and the pictures that go by them.
KINDS: dict[str, tuple[Callable[[FileServer, dict[str, Any]], list[str]], set[str]]] = {
    "url": (lambda web, row: [f"url:{row['url']}"], {"6.png"}),
    "uid": (lambda web, row: [f"uid:{row['uid'].hex()}"], {"6.png"}),
    "sha256": (lambda web, row: [f"sha256:{row['sha256']}"], {"6.png"}),
    "phash": (lambda web, row: [f"phash:{perceptual_hash_of_bytes(row['image']):016x}/0"], {"6.png"}),
    "page_domain": (lambda web, row: ["domain:page6.example", "domain:nowhere.example"], {"6.png"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_removed_leaves_no_trace_in_any_file(dataset, web, tmp_path, kind) -> None:
    before = {row["url"].rpartition("/")[2]: row for row in stored(dataset)}
    lines, gone = KINDS[kind]
    facts = take_down(dataset, tmp_path, *lines(web, before["6.png"]))
    assert facts["by_match"] == {kind: 1}
    assert (facts["rows_in"], facts["rows_out"], facts["dropped"]) == (16, 15, {"removed": 1})
    assert {row["url"].rpartition("/")[2] for row in stored(dataset)} == set(before) - gone
    assert_gone(dataset, [before[name] for name in gone], [before[name] for name in set(before) - gone])


def assert_gone(dataset: Dataset, gone: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    runs = telling([row["image"] for row in gone], [row["image"] for row in others])
    assert len(runs) > 500 * len({row["image"] for row in gone})
    assert (
        traces(Path(dataset.storage.url), runs, [text for row in gone for text in (row["url"], row["caption"])]) == []
    )
    assert findings(dataset) == []


def test_the_search_finds_what_it_looks_for(made: Dataset) -> None:
    row, *others = stored(made)
    runs = telling([row["image"]], [other["image"] for other in others if other["image"] != row["image"]])
    found = traces(Path(made.storage.url), runs, [row["url"], row["caption"]])
    holders = {name.partition(": ")[0] for name in found}
    assert {"00000.tar", "00000.parquet", "inputs/00000.parquet", "pairs/00000.parquet"} <= holders
    assert {"captions/blip/00000.parquet", "crawl/links/R00000-B00000.parquet"} <= holders
    assert {"crawl/images/R00000-B00000.parquet", "ledger/pages/R00000-B00000.parquet"} <= holders


def test_one_image_goes_under_all_its_addresses_and_captions(dataset, web, tmp_path) -> None:
    rows = stored(dataset)
    third = next(row for row in rows if row["url"].endswith("/3.png"))
    facts = take_down(dataset, tmp_path, f"uid:{third['uid'].hex()}")
    assert facts["by_match"] == {"same_image": 1, "uid": 1}  # the copy has its bytes, and another address
    first = next(row for row in rows if row["url"].endswith("/0.png"))
    facts = take_down(dataset, tmp_path, f"uid:{first['uid'].hex()}")
    assert facts["by_match"] == {"same_image": 1, "uid": 1}
    gone = [row for row in rows if row["sha256"] in (first["sha256"], third["sha256"])]
    assert len(gone) == 4
    assert_gone(dataset, gone, [row for row in rows if row not in gone])


def test_a_row_that_failed_is_blanked_and_keeps_its_reason(dataset, web, tmp_path) -> None:
    facts = take_down(dataset, tmp_path, f"url:{web.url}/gone.png")
    assert (facts["removed"], facts["rows_in"], facts["rows_out"]) == (1, 16, 16)
    (row,) = [row for shard in dataset.shards() for row in read_table(dataset.storage, f"{shard}.parquet").to_pylist()
              if row["status"] != "success"]  # fmt: skip
    assert (row["reason"], row["url"], row["caption"], row["key"] is not None) == ("http_404", None, None, True)
    assert traces(Path(dataset.storage.url), set(), [f"{web.url}/gone.png", "words of gone"]) == []
    assert findings(dataset) == []


def test_a_tombstone_says_what_was_removed_and_by_what(dataset, web, tmp_path) -> None:
    row = next(row for row in stored(dataset) if row["url"].endswith("/6.png"))
    take_down(dataset, tmp_path, f"url:{row['url']}")
    (tombstone,) = RemovedRows.of(dataset.storage).table.to_pylist()
    assert (tombstone["uid"], tombstone["why"]) == (row["uid"], "url")
    shard = row["key"][:5]
    (left,) = [
        left for left in read_table(dataset.storage, f"{shard}.parquet").to_pylist() if left["uid"] == row["uid"]
    ]
    kept = {name: value for name, value in left.items() if value is not None}
    assert kept == {"uid": row["uid"], "key": row["key"], "status": "failed_to_download", "reason": "removed"}


def test_what_stays_is_as_if_the_rest_had_never_been_stored(dataset, web, tmp_path) -> None:
    before = {row["uid"]: row for row in stored(dataset)}
    row = next(row for row in before.values() if row["url"].endswith("/6.png"))
    take_down(dataset, tmp_path, f"url:{row['url']}")
    assert {left["uid"]: left for left in stored(dataset)} == {uid: it for uid, it in before.items() if it != row}
    assert sum(dataset.read_sizes().values()) == 15
    for name in ("text", "image", "duplicates"):
        score(dataset, [name], LocalExecutor(), name=f"{name}_anew")
        for shard in dataset.shards():
            old, new = (f"scores/{table}/{shard}.parquet" for table in (name, f"{name}_anew"))
            assert dataset.storage.read(old) == dataset.storage.read(new)
    stats = json.loads(dataset.storage.read(f"{row['key'][:5]}_stats.json"))
    assert (stats["count"], stats["successes"], stats["status_dict"]["removed"]) == (
        4,
        4 - 1 - stats["failed_to_download"] + 1,
        1,
    )


def test_selections_say_what_they_lost_and_add_up(dataset, web, tmp_path) -> None:
    rows = {row["url"].rpartition("/")[2]: row for row in stored(dataset)}
    gone = [rows["6.png"]["uid"], rows["7.png"]["uid"]]
    before = {name: Selection(dataset, name).summary for name in ("good", "captions")}
    facts = take_down(dataset, tmp_path, *(f"uid:{uid.hex()}" for uid in gone))
    assert facts["selections"] == {"captions": 3, "good": 1}  # of one picture all captions had fallen, as odd
    for name, told in before.items():
        selection = Selection(dataset, name)
        judged = [row for shard in selection.shards for row in selection.read(shard).to_pylist()]
        assert len(judged) == told["rows_in"] == selection.summary["rows_in"]
        assert not any(row["keep"] for row in judged if row["uid"] in gone)
        fell = [row["reason"] for row in judged if not row["keep"]]
        assert selection.summary["rows_out"] == told["rows_out"] - facts["selections"][name]
        assert selection.summary["dropped"] == {word: fell.count(word) for word in sorted(set(fell))}
        assert selection.summary["dropped"]["removed"] == facts["selections"][name]
        assert_funnel(selection.summary, told["rules"])
    take_down(dataset, tmp_path, f"uid:{rows['8.png']['uid'].hex()}")  # one more is told in the same line
    assert_funnel(Selection(dataset, "good").summary, before["good"]["rules"])
    assert Selection(dataset, "good").summary["rules"][-1]["dropped"] == {"removed": 2}


def assert_funnel(summary: dict[str, Any], rules: list[dict[str, Any]]) -> None:
    """The rules say what they said; a line behind them tells of what was taken down, and ends at the rows kept."""
    *before, last = summary["rules"]
    assert before == rules
    assert last["rule"] == last["reason"] == "removed"
    assert (last["rows_in"], last["rows_out"]) == (before[-1]["rows_out"], summary["rows_out"])
    assert last["dropped"] == {"removed": last["rows_in"] - last["rows_out"]}


def test_nothing_is_done_again_after_a_removal(dataset, web, tmp_path) -> None:
    derive(dataset)  # a summary tells where its dataset lies
    take_down(dataset, tmp_path, f"url:{web.url}/6.png", f"url:{web.url}/gone.png")
    dataset.storage.remove("report.html")
    before = published(Path(dataset.storage.url))
    web.requests.clear()
    assert download_again(dataset) == 0
    derive(dataset)
    dataset.storage.remove("report.html")
    assert not web.requests
    assert published(Path(dataset.storage.url)) == before


def test_shards_that_are_still_to_come_never_fetch_a_removed_row(web, tmp_path) -> None:
    dataset, table = Dataset(tmp_path / "dataset"), str(tmp_path / "rows.parquet")
    pq.write_table(pa.Table.from_pylist(rows_of(web)), table)
    download(dataset, settings(), [table], LocalExecutor(), fetch=False)
    facts = take_down(dataset, tmp_path, f"url:{web.url}/6.png", f"url:{web.url}/gone.png")
    assert facts["by_match"] == {"url": 2}
    web.requests.clear()
    results = download(dataset, settings(), [table], LocalExecutor())
    assert results[-1].counts.dropped == {"removed": 2}
    assert not set(web.requests) & {"/6.png", "/gone.png"}
    download(dataset, settings(), [table], LocalExecutor(), retry=["removed"])
    assert not set(web.requests) & {"/6.png", "/gone.png"}
    assert traces(tmp_path / "dataset", set(), [f"{web.url}/6.png", "words of 06", "words of gone"]) == []
    assert findings(dataset) == []


def test_a_removed_address_that_comes_again_is_refused_and_purged_by_the_next_removal(dataset, web, tmp_path) -> None:
    take_down(dataset, tmp_path, f"url:{web.url}/6.png")
    web.requests.clear()
    store(dataset, [{"url": f"{web.url}/6.png", "caption": "new words"}], tmp_path / "more.parquet")
    assert not web.requests
    assert findings(dataset) == []
    facts = take_down(dataset, tmp_path, "url:http://nowhere.example/")
    assert facts["by_match"] == {"same_url": 1}
    assert traces(Path(dataset.storage.url), set(), [f"{web.url}/6.png", "new words"]) == []
    assert take_down(dataset, tmp_path, "url:http://nowhere.example/")["by_match"] == {}
    assert findings(dataset) == []


def test_a_dataset_of_which_all_goes_is_empty_and_whole(dataset, web, tmp_path) -> None:
    rows = stored(dataset)
    facts = take_down(dataset, tmp_path, "domain:127.0.0.1")
    assert (facts["rows_out"], facts["by_match"]) == (0, {"domain": 17})
    assert_gone(dataset, rows, [])
    write_report(dataset.storage.url, str(tmp_path / "report.html"))


LISTED = ("6.png", "3.png", "gone.png")  # the second has a copy


def lines_of(web: FileServer) -> list[str]:
    return [f"url:{web.url}/{name}" for name in LISTED]


@pytest.fixture(scope="module")
def removed(made: Dataset, web: FileServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset after a removal that nobody disturbed."""
    folder = tmp_path_factory.mktemp("removed")
    shutil.copytree(made.storage.url, folder / "dataset")
    take_down(Dataset(folder / "dataset"), folder, *lines_of(web))
    return folder / "dataset"


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_a_removal_stopped_anywhere_is_finished_by_the_same_command(made, web, removed, tmp_path) -> None:
    stride = max(1, 99 // int(os.environ.get("PAIRMILL_CHAOS", "5")))  # `make chaos` stops it at every write
    path, moment = listing(tmp_path, *lines_of(web)), 0
    while True:
        folder = tmp_path / f"{moment}"
        shutil.copytree(made.storage.url, folder)
        if not stops_at(moment, lambda folder=folder: remove(Dataset(folder), path, LocalExecutor())):
            break
        dataset = Dataset(folder)
        assert not dataset.storage.exists(OPEN) or any("removal" in finding for finding in findings(dataset))
        remove(dataset, path, LocalExecutor())
        assert_same(removed, folder)
        shutil.rmtree(folder)
        moment += stride
    assert moment > 200


def test_a_removal_that_was_cut_off_is_finished_before_another_list_is_taken_up(dataset, web, tmp_path) -> None:
    path = listing(tmp_path, *lines_of(web))
    rows = stored(dataset)
    assert stops_before("00002.tar", lambda: remove(dataset, path, LocalExecutor()))
    assert dataset.storage.exists("ledger/removing/found.parquet")
    facts = take_down(dataset, tmp_path, f"url:{web.url}/12.png")
    assert facts["by_match"] == {"url": 1}
    gone = [row for row in rows if row["url"].rpartition("/")[2] in (*LISTED, "copy-of-3.png", "12.png")]
    assert_gone(dataset, gone, [row for row in rows if row not in gone])


def test_what_was_damaged_before_is_not_taken_for_the_removals_own_work(dataset, web, tmp_path) -> None:
    name = next(name for name in dataset.tables("scores/text") if name.endswith("00001.parquet"))
    table = read_table(dataset.storage, name)
    write_table(dataset.storage, name, table.slice(1))
    with pytest.raises(StepError, match="has changed since it was written"):
        take_down(dataset, tmp_path, *lines_of(web))
    assert any(name in finding for finding in findings(dataset))
    assert any("removal is not finished" in finding for finding in findings(dataset))


def test_half_written_files_and_reports_go_with_the_rest(dataset, web, tmp_path) -> None:
    folder = Path(dataset.storage.url)
    (folder / ".tmp").mkdir(exist_ok=True)
    (folder / ".tmp" / f"elsewhere~{2**22 + 1}~0~00001.tar").write_bytes(b"half a tar")
    facts = take_down(dataset, tmp_path, *lines_of(web))
    assert facts["deleted"] == ["report.html"]
    assert not (folder / ".tmp").exists()
    assert not (folder / "report.html").exists()
    assert not (folder / "ledger" / "removing").exists()


def test_datasets_that_were_made_of_it_are_named_and_later_ones_lack_what_was_removed(dataset, web, tmp_path) -> None:
    config = ReshardConfig(shard_size=5)
    out = Dataset(tmp_path / "out")
    reshard(dataset, out, "good", config, LocalExecutor())
    rows, before = stored(out), published(tmp_path / "out")
    facts = take_down(dataset, tmp_path, *lines_of(web))
    (told,) = facts["resharded"]
    assert (told["dataset"], told["selection"]) == (out.storage.url, "good")
    assert out.storage.url in told["run"]
    assert published(tmp_path / "out") == before
    later = Dataset(tmp_path / "later")
    reshard(dataset, later, "good", config, LocalExecutor())
    gone = [row for row in rows if row["uid"] not in {left["uid"] for left in stored(later)}]
    assert {row["url"].rpartition("/")[2] for row in gone} == {"6.png", "3.png"}  # of two copies one was selected
    reshard(dataset, out, "good", config, LocalExecutor())
    assert published(tmp_path / "out") == before
    take_down(out, tmp_path, *lines_of(web))
    assert_gone(out, gone, [row for row in rows if row not in gone])


def test_a_resharding_that_was_under_way_leaves_out_what_was_removed_since(dataset, web, tmp_path) -> None:
    config, out = ReshardConfig(shard_size=5), Dataset(tmp_path / "out")
    assert stops_before("00000.tar", lambda: reshard(dataset, out, "good", config, LocalExecutor()))
    assert out.tables("inputs")
    take_down(dataset, tmp_path, *lines_of(web))
    results = reshard(dataset, out, "good", config, LocalExecutor())
    assert results[1].counts.dropped == {"removed": 2}
    assert findings(out) == []


def test_a_dry_run_says_what_would_go_and_writes_nothing(dataset, web, tmp_path) -> None:
    before = published(Path(dataset.storage.url))
    lines = plan_text(dataset, listing(tmp_path, *lines_of(web)))
    assert lines[0] == "remove: 4 rows (same_image 1, url 3)"
    assert "3 stored samples" in lines[1]
    assert any("selection good: 2 rows" in line for line in lines)
    assert published(Path(dataset.storage.url)) == before


def test_a_list_that_names_nothing_or_cannot_be_read_is_refused(dataset, tmp_path) -> None:
    for lines, said in (((), "names nothing"), (("uid:12",), "list.txt:2"), (("picture:1",), "cannot read")):
        with pytest.raises(UsageError, match=said):
            take_down(dataset, tmp_path, *lines)
    with pytest.raises(UsageError, match="--list"):
        remove(dataset, str(tmp_path / "nothing.txt"), LocalExecutor())


def test_a_list_that_matches_nothing_changes_nothing(dataset, tmp_path) -> None:
    before = published(Path(dataset.storage.url))
    facts = take_down(dataset, tmp_path, "url:http://nowhere.example/", f"sha256:{'0' * 64}")
    assert (facts["removed"], facts["dropped"], facts["deleted"]) == (0, {}, [])
    assert facts["unmatched"] == ["url:http://nowhere.example/", f"sha256:{'0' * 64}"]
    assert published(Path(dataset.storage.url)) == before


def test_lines_that_match_nothing_are_told(dataset, web, tmp_path) -> None:
    row = next(row for row in stored(dataset) if row["url"].endswith("/6.png"))
    phash = perceptual_hash_of_bytes(row["image"])
    of_the_row = [
        f"uid:{row['uid'].hex()}",
        f"url:{row['url'].replace('http', 'HTTP').replace('/6.png', '/%36.png')}#top",
        "domain:page6.example",
        f"sha256:{row['sha256']}",
        f"phash:{phash:016x}/0",
    ]
    of_none = [
        "url:http://nowhere.example/",
        "domain:nowhere.example",
        f"uid:{'f' * 32}",
        f"phash:{~phash & 2**64 - 1:016x}",
    ]
    path = listing(tmp_path, *of_the_row, *of_none)
    lines = plan_text(dataset, path)
    assert any(f"4 lines of the list match nothing that is still here: {', '.join(of_none)}" in line for line in lines)
    with mock.patch("pipeline.remove.run.log") as log:
        assert stops_before("00002.tar", lambda: remove(dataset, path, LocalExecutor()))
        facts = remove(dataset, path, LocalExecutor())  # told by the run that ends it
    assert (facts["by_match"], facts["unmatched"]) == ({"uid": 1}, of_none)
    assert of_none[0] in log.warning.call_args.args[-1]


def test_subset_files_that_still_list_a_removed_row_are_named(dataset, web, tmp_path) -> None:
    rows = {row["url"].rpartition("/")[2]: row["uid"] for row in stored(dataset)}
    held, apart = sorted([rows["6.png"], rows["7.png"]]), [rows["8.png"]]
    for name, uids in (("good.npy", held), ("subsets/apart.npy", apart), ("empty.npy", [])):
        url = dataset.storage.file_url(name)
        Path(url).parent.mkdir(exist_ok=True)
        write_subset(url, len(uids), [pa.chunked_array([pa.array(uids, pa.binary(16))])])
    np.save(dataset.storage.file_url("embeddings.npy"), np.zeros((4, 2)))
    lines = plan_text(dataset, listing(tmp_path, f"url:{web.url}/6.png"))
    assert [line.split(": ")[0].rpartition("/")[2] for line in lines if "npy" in line] == ["good.npy"]
    assert take_down(dataset, tmp_path, f"url:{web.url}/6.png")["subsets"] == ["good.npy"]
    assert take_down(dataset, tmp_path, "url:http://nowhere.example/")["subsets"] == ["good.npy"]


@pytest.mark.ray
def test_ray_leaves_the_same_bytes(dataset, web, removed, tmp_path, ray_here) -> None:
    remove(dataset, listing(tmp_path, *lines_of(web)), ray_here)
    assert_same(removed, Path(dataset.storage.url))


def test_an_object_store_is_purged_as_a_disk_is(s3_bucket, web, tmp_path) -> None:
    dataset = Dataset(f"{s3_bucket}/dataset")
    store(dataset, rows_of(web), tmp_path / "rows.parquet")
    score(dataset, ["text"], LocalExecutor())
    rows = stored(dataset)
    take_down(dataset, tmp_path, *lines_of(web))
    copy = tmp_path / "copy"
    for name in dataset.storage.sizes():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(dataset.storage.read(name))
    gone = [row for row in rows if row["url"].rpartition("/")[2] in (*LISTED, "copy-of-3.png")]
    assert_gone(Dataset(copy), gone, [row for row in rows if row not in gone])
    assert not [name for name in dataset.storage.sizes() if "removing" in name]


def make_foreign(folder: Path, columns: tuple[str, ...] | None) -> Dataset:
    """Two tars as others write them; with tables of these columns beside them, or without."""
    folder.mkdir()
    for shard in ("train-0", "train-1"):
        rows = []
        with ShardWriter(folder / f"{shard}.tar") as writer:
            for number in range(4):
                key, url = f"{shard}/{number}", f"http://site{number}.example/{shard}.png"
                parts = {"png": f"image {key} {url}".encode() * 50, "json": json.dumps({"url": url}).encode()}
                writer.write(b"", key, parts)
                row = {"key": key, "url": url, "caption": f"words of {key}", "status": "success", "error_message": None}
                rows.append({name: row[name] for name in columns or row})
        if columns:
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard}.parquet")
    index_dataset(Dataset(folder), LocalExecutor())
    return Dataset(folder)


@pytest.mark.parametrize(
    "columns", [None, ("key", "url", "caption"), ("key", "url", "caption", "status", "error_message")]
)
@pytest.mark.parametrize("line", ["url:http://site2.example/train-1.png", "sha256"])
def test_tars_of_others_are_purged_too(tmp_path, columns, line) -> None:
    dataset = make_foreign(tmp_path / "foreign", columns)
    key, url = "train-1/2", "http://site2.example/train-1.png"
    image = f"image {key} {url}".encode() * 50
    line = f"sha256:{hashlib.sha256(image).hexdigest()}" if line == "sha256" else line
    untouched = (tmp_path / "foreign" / "train-0.tar").read_bytes()
    facts = take_down(dataset, tmp_path, line)
    assert (facts["rows_in"], facts["rows_out"]) == (8, 7)
    assert traces(tmp_path / "foreign", telling([image], []), [url, f"words of {key}"]) == []
    assert (tmp_path / "foreign" / "train-0.tar").read_bytes() == untouched
    assert dataset.read_sizes() == {"train-0.tar": 4, "train-1.tar": 3}
    assert findings(dataset) == []
    index_dataset(dataset, LocalExecutor())
    assert findings(dataset) == []


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.binary(max_size=1500)), max_size=8))
def test_a_tar_loses_just_the_samples_that_it_should(tmp_path_factory, samples) -> None:
    """Whatever kinds of headers stand before them."""
    folder = tmp_path_factory.mktemp("tar")
    with tarfile.open(folder / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number, (_, has_long_name, data) in enumerate(samples):
            info = tarfile.TarInfo(f"{'folder/' * 30 if has_long_name else ''}{number}.png")
            info.size, info.mtime = len(data), 1_700_000_000.5
            tar.addfile(info, io.BytesIO(data))
    storage = Storage(folder)
    with storage.open("x.tar") as file:
        before = {member.key: data for member, data in read_members(file)}
    gone = {key for key, (goes, _, _) in zip(before, samples, strict=True) if goes}
    assert holds_any(storage, "x.tar", gone) == bool(gone)
    rewrite_without(storage, "x.tar", gone)
    with storage.open("x.tar") as file:
        assert {member.key: data for member, data in read_members(file)} == {
            key: data for key, data in before.items() if key not in gone
        }
    assert (folder / "x.tar").stat().st_size % 10240 == 0
