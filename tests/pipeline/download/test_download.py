"""Url tables to shards: every row one fate, images shared by rows fetched once, tables append, failures tried again."""

from __future__ import annotations

import hashlib
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.dataset import Dataset
from infra.errors import FingerprintError, UsageError
from infra.executors import LocalExecutor
from infra.miniweb.paint import draw
from infra.miniweb.scenes import random_scene
from infra.sample import pair_uid
from infra.verify import Verify
from pipeline.download.config import DownloadConfig
from pipeline.download.run import download, summary
from tests.servers.files import FileServer, serve_folder

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, FileServer]]:
    """Sixteen small pictures, each of one colour and a band, on a loopback server."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(16):
        image = Image.new("RGB", (60 + number, 40), (number * 15, 255 - number * 15, 128))
        image.paste((255, 255, 255), (number * 3, 0, number * 3 + 8, 40))
        image.save(folder / f"{number}.png")
    with serve_folder(folder) as server:
        yield folder, server


def settings_of(**values: Any) -> DownloadConfig:
    base = {"allow_network": ("127.0.0.0/8",), "shard_size": 4, "attempts": 1, "timeout_s": 5, "backoff_s": 0.01}
    return DownloadConfig(**{**base, **values})


def store(out: Path, rows: Rows, name: str = "rows.parquet", **values: Any) -> dict[str, Any]:
    table = out.parent / name
    pq.write_table(pa.Table.from_pylist(rows), table)
    dataset = Dataset(out)
    return summary(download(dataset, settings_of(**values), [str(table)], LocalExecutor()), dataset)


def rows_of(out: Path) -> Rows:
    return [row for shard in Dataset(out).shards() for row in pq.read_table(out / f"{shard}.parquet").to_pylist()]


def assert_whole(out: Path) -> None:
    assert [str(finding) for finding in Verify(Dataset(out), complete=True).findings()] == []


def test_the_layout_is_img2datasets_and_webdataset_reads_it(images, tmp_path):
    rows = [{"url": f"{images[1].url}/{number}.png", "caption": f"näme {number}"} for number in range(10)]
    facts = store(tmp_path / "out", rows)
    assert (facts["rows_in"], facts["rows_out"], facts["dropped"]) == (10, 10, {})
    assert [Path(path).name for path in facts["paths"]] == ["00000.tar", "00001.tar", "00002.tar"]
    with tarfile.open(tmp_path / "out/00001.tar") as tar:
        assert tar.getnames() == [f"00001{row}.{ending}" for row in range(4) for ending in ("jpg", "txt", "json")]
        assert {member.mtime for member in tar} == {0}
    read = list(webdataset.WebDataset(facts["paths"], shardshuffle=False, empty_check=False).decode("pil"))
    assert [sample["txt"] for sample in read] == [f"näme {number}" for number in range(10)]
    assert [sample["jpg"].size for sample in read] == [(60 + number, 40) for number in range(10)]
    assert all(sample["json"]["uid"] == pair_uid(sample["json"]["url"], sample["txt"]).hex() for sample in read)
    stats = json.loads((tmp_path / "out/00000_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["status_dict"]) == (4, 4, {"success": 4})
    assert json.loads((tmp_path / "out/sizes.json").read_text()) == {"00000.tar": 4, "00001.tar": 4, "00002.tar": 2}
    assert_whole(tmp_path / "out")


def test_an_image_wanted_by_several_rows_is_fetched_once_and_stored_with_each(images, tmp_path):
    images[1].requests.clear()
    url = f"{images[1].url}/3.png"
    facts = store(tmp_path / "out", [{"url": url, "caption": f"caption {n}"} for n in range(4)])
    assert facts["rows_out"] == 4
    assert images[1].requests["/3.png"] == 1
    assert len({row["sha256"] for row in rows_of(tmp_path / "out")}) == 1


def test_a_repeated_uid_is_one_fate_before_any_download(images, tmp_path):
    images[1].requests.clear()
    row = {"url": f"{images[1].url}/5.png", "caption": "the same"}
    facts = store(tmp_path / "out", [row] * 9 + [{"url": f"{images[1].url}/6.png", "caption": "other"}])
    assert (facts["rows_in"], facts["rows_out"], facts["dropped"]) == (10, 2, {"duplicate_row": 8})
    assert images[1].requests["/5.png"] == 1
    again = store(tmp_path / "out", [row, {"url": f"{images[1].url}/7.png", "caption": "new"}], "more.parquet")
    assert (again["rows_in"], again["rows_out"], again["dropped"]) == (12, 3, {"duplicate_row": 9})
    assert_whole(tmp_path / "out")


@settings(max_examples=12, deadline=None)
@given(
    picks=st.lists(st.tuples(st.integers(-3, 15), st.one_of(st.none(), st.text(max_size=5))), max_size=14),
    shard_size=st.integers(1, 6),
)
def test_every_row_of_any_table_has_one_fate(images, tmp_path_factory, picks, shard_size):
    odd = {-1: "", -2: "http://10.0.0.1/x.png", -3: "nonsense"}
    rows = [
        {"url": odd.get(number, f"{images[1].url}/{number}.png"), "caption": caption, "nth": at}
        for at, (number, caption) in enumerate(picks)
    ] or [{"url": "", "caption": None, "nth": 0}]
    out = tmp_path_factory.mktemp("wild") / "out"
    facts = store(out, rows, shard_size=shard_size)
    assert facts["rows_in"] == len(rows) == facts["rows_out"] + sum(facts["dropped"].values())
    stored = rows_of(out)
    assert len(stored) == len({row["uid"] for row in stored}) == len(rows) - facts["dropped"].get("duplicate_row", 0)
    for row in stored:
        assert (row["status"] == "success") == (row["reason"] is None)
        assert row["caption"] == rows[row["nth"]]["caption"]
    assert_whole(out)


def test_an_inputs_own_uid_is_kept(images, tmp_path):
    uids = [f"{number:032x}" for number in (7, 8)]
    rows = [{"uid": uid, "url": f"{images[1].url}/{n}.png", "caption": "x"} for n, uid in enumerate(uids)]
    store(tmp_path / "out", rows)
    assert [row["uid"].hex() for row in rows_of(tmp_path / "out")] == uids
    with pytest.raises(UsageError, match="uid column"):
        store(tmp_path / "other", [{"uid": "short", "url": "http://a.test/", "caption": "x"}], "bad.parquet")


def test_failed_rows_are_tried_again_by_reason_into_new_shards(images, tmp_path):
    folder, server = images
    late = folder / "late.png"
    late.unlink(missing_ok=True)
    rows = [{"url": f"{server.url}/{name}", "caption": name} for name in ("1.png", "late.png", "2.png", "never.png")]
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    dataset = Dataset(tmp_path / "out")

    def run(*retry: str) -> dict[str, Any]:
        results = download(dataset, settings_of(), [str(table)], LocalExecutor(), retry=retry)
        return summary(results, dataset)

    assert run()["dropped"] == {"http_404": 2}
    (folder / "1.png").rename(late)
    try:
        assert run("timeout", "5xx")["dropped"] == {"http_404": 2}, "no row failed so"
        facts = run("404")
    finally:
        late.rename(folder / "1.png")
    assert (facts["rows_in"], facts["rows_out"], facts["dropped"]) == (4, 3, {"http_404": 1})
    last = {row["uid"]: row["status"] for row in rows_of(tmp_path / "out")}  # later shards win
    assert sorted(last.values()) == ["failed_to_download", "success", "success", "success"]
    assert_whole(tmp_path / "out")


def test_a_word_of_retry_that_is_no_reason_is_refused(images, tmp_path):
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"url": f"{images[1].url}/1.png", "caption": "x"}]), table)
    with pytest.raises(UsageError, match="did you mean timeout"):
        download(Dataset(tmp_path / "out"), settings_of(), [str(table)], LocalExecutor(), retry=["timout"])


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "{folder}/../secret.warc", "file:///etc/passwd", "zip://x::{folder}/a"]
)
def test_a_strangers_table_opens_no_file(images, tmp_path, path):
    warc_path = path.format(folder=tmp_path / "archives")
    rows = [{"url": f"{images[1].url}/1.png", "caption": "x", "warc_path": warc_path, "warc_offset": 0}]
    facts = store(tmp_path / "out", rows, allow_archive=(str(tmp_path / "archives"),))
    assert facts["rows_out"] == 1, "fetched by its url"
    assert [row["warc_path"] for row in rows_of(tmp_path / "out")] == [None]


def test_other_settings_or_a_changed_table_are_refused_before_anything_runs(images, tmp_path):
    rows = [{"url": f"{images[1].url}/{number}.png", "caption": str(number)} for number in range(5)]
    store(tmp_path / "out", rows)
    before = Dataset(tmp_path / "out").storage.sizes()
    for change in ({"shard_size": 3}, {"image_size": 32}, {"encode_format": "webp"}):
        with pytest.raises(FingerprintError, match=next(iter(change))):
            store(tmp_path / "out", rows, **change)
    with pytest.raises(FingerprintError, match="content has changed"):
        store(tmp_path / "out", rows[:4])
    assert Dataset(tmp_path / "out").storage.sizes() == before
    store(tmp_path / "out", rows, connections=3, timeout_s=9)  # what changes no byte is no other setting


def test_what_is_denied_is_never_stored(images, tmp_path):
    folder, server = images
    sha256 = hashlib.sha256((folder / "2.png").read_bytes()).hexdigest()
    other = server.url.replace("127.0.0.1", "localhost")
    deny = tmp_path / "deny.txt"
    deny.write_text(f"# what must not be stored\nurl:{server.url}/1.png\nsha256:{sha256}\ndomain:localhost\n")
    names = ("0", "1", "2", "3")
    rows = [{"url": f"{server.url}/{name}.png", "caption": name} for name in names]
    rows.append({"url": f"{other}/4.png", "caption": "by domain"})
    server.requests.clear()
    facts = store(tmp_path / "out", rows, deny=str(deny))
    assert facts["dropped"] == {"denied_domain": 1, "denied_sha256": 1, "denied_url": 1}
    assert (server.requests["/1.png"], server.requests["/4.png"]) == (0, 0), "not even asked for"
    stored = b"".join(path.read_bytes() for path in (tmp_path / "out").glob("*.tar"))
    assert (folder / "2.png").read_bytes() not in stored
    deny.write_text("sha512:00\n")
    with pytest.raises(UsageError, match=r"deny\.txt:1"):
        store(tmp_path / "other", rows, deny=str(deny))


def test_a_near_copy_of_a_denied_picture_is_denied_by_sight(tmp_path):
    from filters.phash import perceptual_hash_of_bytes

    folder = tmp_path / "pictures"
    folder.mkdir()
    picture = draw(random_scene(random.Random(4)), 200, 160)
    picture.save(folder / "a.png")
    picture.resize((150, 120)).save(folder / "b.jpg", quality=60)
    picture.rotate(180).save(folder / "c.png")
    deny = tmp_path / "deny.txt"
    deny.write_text(f"phash:{perceptual_hash_of_bytes((folder / 'a.png').read_bytes()):016x}/6\n")
    with serve_folder(folder) as server:
        rows = [{"url": f"{server.url}/{name}", "caption": name} for name in ("a.png", "b.jpg", "c.png")]
        facts = store(tmp_path / "out", rows, deny=str(deny))
    assert (facts["rows_out"], facts["dropped"]) == (1, {"denied_phash": 2})


def test_a_hash_that_differs_is_a_reason(images, tmp_path):
    folder, server = images
    right = hashlib.md5((folder / "1.png").read_bytes()).hexdigest()
    rows = [
        {"url": f"{server.url}/1.png", "caption": name, "md5": value} for name, value in (("a", right), ("b", "00"))
    ]
    facts = store(tmp_path / "out", rows, hash_col="md5", verify_hash="md5")
    assert (facts["rows_out"], facts["dropped"]) == (1, {"hash_mismatch": 1})
    assert [row["md5"] for row in rows_of(tmp_path / "out")] == [right, "00"]


def as_csv(rows: Rows, sign: str = ",") -> str:
    quoted = [[f'"{value}"' for value in row.values()] for row in rows]
    return "\n".join(sign.join(cells) for cells in ([*rows[0]], *quoted)) + "\n"


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.csv", as_csv),
        ("t.tsv", lambda rows: as_csv(rows, "\t")),
        ("t.jsonl", lambda rows: "".join(json.dumps(row) + "\n" for row in rows)),
    ],
)
def test_text_tables_give_the_same_rows_as_parquet(images, tmp_path, name: str, write: Callable[[Rows], str]):
    rows = [{"URL": f"{images[1].url}/{number}.png", "TEXT": f"007, null\n{number}"} for number in range(5)]
    (tmp_path / name).write_text(write(rows))
    dataset = Dataset(tmp_path / "text")
    download(dataset, settings_of(), [str(tmp_path / name)], LocalExecutor())
    store(tmp_path / "parquet", rows)
    one, other = rows_of(tmp_path / "text"), rows_of(tmp_path / "parquet")
    assert one == other
    assert [row["caption"] for row in one] == [row["TEXT"] for row in rows]


def test_lines_that_cannot_be_read_are_counted(images, tmp_path):
    url = f"{images[1].url}/1.png"
    (tmp_path / "t.csv").write_bytes(
        b"url,caption\n" + f"{url},fine\n{url},one,too,many\n{url},".encode() + b"bad \xff utf-8\n"
    )
    dataset = Dataset(tmp_path / "out")
    facts = summary(download(dataset, settings_of(), [str(tmp_path / "t.csv")], LocalExecutor()), dataset)
    assert (facts["rows_in"], facts["rows_out"], facts["dropped"]) == (3, 2, {"bad_row": 1})
    assert [row["caption"] for row in rows_of(tmp_path / "out")] == ["fine", "bad \ufffd utf-8"]


@pytest.mark.slow
def test_the_real_img2dataset_runs_inside_the_accounted_step(images, tmp_path):
    rows = [{"url": f"{images[1].url}/{number}.png", "caption": str(number)} for number in (*range(5), 99)]
    facts = store(tmp_path / "out", rows, engine="img2dataset", image_size=32)
    assert (facts["rows_in"], facts["rows_out"], facts["dropped"]) == (6, 5, {"http_404": 1})
    with tarfile.open(tmp_path / "out/00001.tar") as tar:
        assert tar.getnames() == [f"000010.{ending}" for ending in ("jpg", "txt", "json")]
    assert_whole(tmp_path / "out")
