"""One row's whole life: what explain says is what the tables hold, for every row, kept, dropped or never stored."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from filters.base import Batch, Scorer, column
from filters.explain import as_json, explain, life_lines
from filters.rules import SelectRecipe
from filters.score import score
from filters.select import select
from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.executors import LocalExecutor
from infra.selection import Selection
from pipeline.download.config import DownloadConfig
from pipeline.download.run import download
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


def test_what_is_not_there_is_an_error_that_says_what_to_give(dataset: Dataset, tmp_path: Path) -> None:
    for what in ("http://nowhere.example/", "00" * 16, "zz"):
        with pytest.raises(DatasetError, match="32 hex digits"):
            explain(dataset, what)
