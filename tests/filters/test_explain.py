"""One row's whole life: what explain says is what the tables hold, for every row, kept, dropped or never stored."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from filters.base import Batch, Scorer, column
from filters.decide import decision_file
from filters.explain import as_json, explain, life_lines
from filters.rules import SelectRecipe
from filters.score import score
from filters.select import select
from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.executors import LocalExecutor
from infra.ledger import Counts
from infra.removed import SCHEMA, TOMBSTONES
from infra.sample import UID_BYTES
from infra.selection import Selection, rules_told, summary_file
from infra.tables import write_table
from pipeline.download.config import DownloadConfig
from pipeline.download.run import download
from tests.filters.small_datasets import caption_scores, image_scores, make_dataset, rows_table, uid_of
from tests.servers.files import serve_folder

RULES = ({"where": "letters > 2", "reason": "too_short"}, {"unique": "red"}, {"top": "letters", "count": 3})


class Toy(Scorer):
    """Letters of a caption; none for one that begins with "?"."""

    name = "toy"
    per = "caption"
    columns = pa.schema([column("letters", pa.int32(), "letters")])

    def score(self, batch: Batch) -> pa.Table:
        return pa.table({"letters": [None if text.startswith("?") else len(text) for text in batch.texts]})


class Red(Scorer):
    """The red of the first pixel."""

    name = "tone"
    per = "image"
    needs_image = True
    columns = pa.schema([column("red", pa.int32(), "0 to 255")])

    def score(self, batch: Batch) -> pa.Table:
        return pa.table({"red": [None if found is None else int(found[0, 0, 0]) for found in batch.pixels]})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("explained")
    for number in range(8):
        Image.new("RGB", (40, 40), (number // 2 * 60, 0, 0)).save(folder / f"{number}.png")
    captions = ["a", "four", "five5", "sixsix", "seven77", "?", "nine99999", "ten1010101"]
    with serve_folder(folder) as server:
        rows = [{"url": f"{server.url}/{number}.png", "caption": text, "page_url": "http://page.example/"}
                for number, text in enumerate(captions)]  # fmt: skip
        rows.append({"url": f"{server.url}/gone.png", "caption": "gone", "page_url": "http://page.example/"})
        pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
        found = Dataset(folder / "data")
        config = DownloadConfig(
            allow_network=("127.0.0.0/8",), shard_size=4, attempts=1, resize_mode="no", encode_format="png"
        )
        download(found, config, [str(folder / "rows.parquet")], LocalExecutor())
    score(found, ["tests.filters.test_explain:Toy", "tests.filters.test_explain:Red"], LocalExecutor())
    select([found], SelectRecipe(rules=RULES), "toy", LocalExecutor())
    return found


def test_every_row_of_the_tables_has_a_life_that_agrees_with_them(dataset: Dataset) -> None:
    selection = Selection(dataset, "toy")
    told = {row["uid"]: row for shard in selection.shards for row in selection.read(shard).to_pylist()}
    num_stored = 0
    for shard in dataset.shards():
        for row in pq.read_table(dataset.storage.path(dataset.table(shard))).to_pylist():
            (life,) = explain(dataset, row["uid"].hex())
            assert (life.uid, life.place) == (row["uid"].hex(), shard)
            if row["status"] != "success":
                assert life.fate == row["reason"]
                assert not life.scores
                continue
            num_stored += 1
            (kept,) = life.selected["toy"]
            assert (kept["keep"], kept["reason"]) == (told[row["uid"]]["keep"], told[row["uid"]]["reason"])
            failing = [one.verdict for one in life.verdicts["toy"] if one.verdict != "passed"]
            assert (failing[:1] or [None])[0] == kept["reason"]  # the first rule that fails is the reason
            assert life.stored_in == [dataset.storage.path(dataset.tar(shard))]
    assert num_stored == 8


def test_a_duplicate_names_the_row_that_was_kept(dataset: Dataset) -> None:
    lives = [life for row in explain(dataset, "http://page.example/") for life in explain(dataset, row.uid)]
    fallen = [life for life in lives if life.selected and life.selected["toy"][0]["reason"] == "duplicate_red"]
    assert fallen
    for life in fallen:
        (lead,) = [one.because_of for one in life.verdicts["toy"] if one.verdict == "duplicate_red"]
        (kept,) = explain(dataset, str(lead))
        assert kept.scores["tone"][0]["red"] == life.scores["tone"][0]["red"]


def test_the_lines_say_it_in_words_and_hold_no_control_characters(dataset: Dataset) -> None:
    for life in explain(dataset, "http://page.example/"):
        lines = list(life_lines(life))
        assert lines[0] == f"uid        {life.uid}"
        assert all(line.isprintable() for line in lines)
        json.dumps(as_json(life))
    stored = next(life for life in explain(dataset, "http://page.example/") if life.fate == "stored")
    said = "\n".join(life_lines(stored))
    assert "selection  toy: " in said
    assert "letters = " in said


def test_json_has_no_word_for_what_is_not_finite_and_gives_all_else_as_text(tmp_path: Path) -> None:
    url, seen = "http://h.test/1", datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
    times = {"seen": pa.array([seen]), "day": pa.array([1], pa.timestamp("ns"))}
    own = {"url": [url], "caption": ["x"], "part": [float("nan")], "price": [Decimal("1.5")], "raw": [b"\xff"], **times}
    scores = {"at": pa.array([seen]), "score": [float("inf")], "list": [[1.5, float("nan")]]}
    uids = [uid_of("a")]
    found = make_dataset(tmp_path, {"00000": rows_table(uids, **own)}, {"s": {"00000": image_scores(uids, **scores)}})
    (life,) = explain(found, url)
    told = json.loads(json.dumps(as_json(life), allow_nan=False))
    assert told["row"]["part"] is None
    assert (told["row"]["seen"][:10], told["row"]["day"][:10]) == ("2020-01-02", "1970-01-01")
    assert (told["row"]["price"], told["row"]["raw"]) == ("1.5", "ff")
    (score,) = told["scores"]["s"]
    assert (score["score"], score["list"], score["at"][:10]) == (None, [1.5, None], "2020-01-02")
    assert all(line.isprintable() for line in life_lines(life))


def test_a_copy_is_judged_by_its_own_decisions(dataset: Dataset, tmp_path: Path) -> None:
    copy = Dataset(shutil.copytree(dataset.storage.url, tmp_path / "copy"))
    number = next(number for number, rule in enumerate(RULES) if "top" in rule)
    name = decision_file("toy", number)
    copy.storage.commit_bytes(name, json.dumps({"threshold": 1000.0}).encode())
    (here,), (there,) = (
        explain(one, Selection(dataset, "toy").read("00001")["uid"][3].as_py().hex()) for one in (dataset, copy)
    )
    assert [life.verdicts["toy"][number].verdict for life in (here, there)] == ["passed", "below_top_letters"]


def test_what_a_removal_has_taken_out_moves_no_verdict_to_another_row(tmp_path: Path) -> None:
    uids = [uid_of(word) for word in "abcd"]
    keys = {"key": list("0123"), "url": list("uvwx"), "caption": list("1234")}
    rows = {"00000": rows_table(uids, **keys, status=["success"] * 4)}
    found = make_dataset(tmp_path, rows, {"s": {"00000": image_scores(uids, tone=[1, 2, 2, 3])}})
    select([found], SelectRecipe.parse({"rules": [{"unique": "tone"}]}, "r"), "s", LocalExecutor())
    gone = rows_table(uids, **keys, status=["failed_to_download", *["success"] * 3])
    make_dataset(tmp_path, {"00000": gone}, {"s": {"00000": image_scores(uids[1:], tone=[2, 2, 3])}})
    dead = [pa.array(uids[:1], pa.binary(UID_BYTES)), ["uid"], pa.array([None], pa.binary(UID_BYTES))]
    write_table(found.storage, TOMBSTONES, pa.table(dead, schema=SCHEMA))
    summary = Selection(found, "s").summary
    after = rules_told(summary["rules"], Counts(4, 2, {"duplicate_tone": 1, "removed": 1}))
    found.storage.commit_bytes(summary_file("s"), json.dumps(summary | {"rules": after}).encode())
    told = [[one.verdict for one in explain(found, uid.hex())[0].verdicts["s"]] for uid in uids[1:]]
    assert told == [["passed"], ["duplicate_tone"], ["passed"]]
    # Rows that went in another way leave the places of all others in doubt.
    make_dataset(tmp_path, {"00000": gone.slice(2)})
    (life,) = explain(found, uids[3].hex())
    assert "select again" in life.verdicts["s"][0].verdict


def test_a_rule_that_chooses_among_rows_does_not_ask_those_that_have_fallen(tmp_path: Path) -> None:
    uid = uid_of("a")
    keys = [(uid, "web", 0), (uid, "blip", 0)]
    captions = pa.table({"uid": pa.array([uid], pa.binary(UID_BYTES)), "source": ["blip"],
                         "n": pa.array([0], pa.int32()), "text": ["b"]})  # fmt: skip
    found = make_dataset(
        tmp_path, {"00000": rows_table([uid], url=["u"], caption=["w"])},
        {"s": {"00000": caption_scores(keys, fit=[0.9, 0.5], words=[1, 9])}}, {"blip": {"00000": captions}},
    )  # fmt: skip
    rules = [{"where": "words > 2", "reason": "short"}, {"best_caption": "fit"}]
    recipe = SelectRecipe.parse({"rules": rules, "captions": ["blip"]}, "r")
    select([found], recipe, "s", LocalExecutor())
    (life,) = explain(found, uid.hex())
    assert [row["reason"] for row in life.selected["s"]] == ["short", None]
    assert [one.verdict for one in life.verdicts["s"]] == ["short", "passed", "not asked", "passed"]


def test_a_table_that_came_later_makes_no_rule_of_before_ambiguous(tmp_path: Path) -> None:
    uids = [uid_of("a")]
    rows = {"00000": rows_table(uids, url=["u"], caption=["x"], width=[9])}
    found = make_dataset(tmp_path, rows, {"s": {"00000": image_scores(uids, words=[1])}})
    rules = [{"where": "words > 2", "reason": "short"}, {"where": "width > 5"}]
    select([found], SelectRecipe.parse({"rules": rules}, "r"), "s", LocalExecutor())
    make_dataset(tmp_path, {}, {"t": {"00000": image_scores(uids, words=[9], width=[1])}})
    (life,) = explain(found, uids[0].hex())
    assert [(one.verdict, one.values) for one in life.verdicts["s"]] == [
        ("short", {"words": 1}),
        ("passed", {"width": 9}),
    ]


def test_what_is_not_there_is_an_error_that_says_what_to_give(dataset: Dataset, tmp_path: Path) -> None:
    for what in ("http://nowhere.example/", "00" * 16, "zz"):
        with pytest.raises(DatasetError, match="32 hex digits"):
            explain(dataset, what)
