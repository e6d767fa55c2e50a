"""Scores and captions made elsewhere: joined as a direct reading joins them, whatever their format, order and holes."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.foreign import clean_names
from filters.imports import import_table, make_step
from filters.rules import SelectRecipe
from filters.score import score as score_with
from filters.select import select
from infra.dataset import Dataset
from infra.errors import FingerprintError, UsageError
from infra.executors import LocalExecutor
from infra.jobs import StepResult
from infra.selection import Selection
from infra.storage import Storage
from infra.tables import KEYS, read_table, write_table
from tests.servers.commands import run

UIDS = [uuid.UUID(int=at * 0x1234567890ABCDEF1234567 + at) for at in range(12)]
ROWS = [(at, f"http://x.test/{at % 4}.jpg", f"{at:09d}") for at in range(6)]  # urls repeat


def make_dataset(place: str, shards: tuple[int, ...] = (4, 2)) -> Dataset:
    """Rows with uid, key and url; two shards."""
    rows = iter(ROWS)
    for number, size in enumerate(shards):
        own = [next(rows) for _ in range(size)]
        table = pa.table(
            {
                "uid": pa.array([UIDS[at].bytes for at, _, _ in own], pa.binary(16)),
                "url": [url for _, url, _ in own],
                "key": [key for _, _, key in own],
                "caption": ["a cat"] * size,
            }
        )
        write_table(Storage(place), f"{number:05d}.parquet", table)
    return Dataset(place)


def imported(dataset: Dataset, name: str, folder: str = "scores") -> pa.Table:
    names = dataset.tables(f"{folder}/{name}")
    return pa.concat_tables(read_table(dataset.storage, table) for table in names)


def bring(dataset: Dataset, table: Any, name: str = "given", **options: Any) -> StepResult:
    return import_table(dataset, [str(table)], name, LocalExecutor(), **options)


def write_as(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format that the file's name says."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]), delimiter="\t" if kind == "tsv" else ",", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = out.getvalue()
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


@settings(max_examples=12)
@given(
    st.lists(
        st.tuples(st.sampled_from([*range(12), None]), st.one_of(st.none(), st.floats(allow_nan=False))),
        min_size=1, max_size=30,
    ),
    st.sampled_from(["hex", "HEX", "bytes", "uuid"]),
    st.booleans(),
)  # fmt: skip
def test_a_join_by_uid_is_what_a_direct_reading_gives(
    rows: list[tuple[int | None, float | None]], form: str, two_files: bool
) -> None:
    forms = {"hex": lambda u: u.hex, "HEX": lambda u: u.hex.upper(), "bytes": lambda u: u.bytes, "uuid": str}
    kind = pa.binary() if form == "bytes" else pa.string()
    uids = pa.array([None if at is None else forms[form](UIDS[at]) for at, _ in rows], kind)
    table = pa.table({"uid": uids, "CLIP score": pa.array([score for _, score in rows], pa.float64())})
    first: dict[int, float | None] = {}
    for at, score in rows:
        if at is not None:
            first.setdefault(at, score)
    matched = [at for at, _ in rows if at is not None and at < len(ROWS)]
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(f"{folder}/data")
        Path(folder, "t").mkdir()
        half = len(rows) // 2 if two_files else 0
        pq.write_table(table.slice(0, half), f"{folder}/t/a.parquet")
        pq.write_table(table.slice(half), f"{folder}/t/b.parquet")
        if not matched:
            with pytest.raises(UsageError, match="no row there belongs"):
                bring(dataset, f"{folder}/t")
            return
        result = bring(dataset, f"{folder}/t")
        found = imported(dataset, "given")
    assert found["uid"].to_pylist() == [UIDS[at].bytes for at, _, _ in ROWS]
    assert found["clip_score"].to_pylist() == [first.get(at) for at, _, _ in ROWS]
    assert set(zip(found["source"].to_pylist(), found["n"].to_pylist(), strict=True)) == {("web", 0)}
    assert result.counts.rows_in == result.counts.rows_out == len(ROWS)
    extra = {
        "missing": len(ROWS) - len(set(matched)),
        "unmatched": len(rows) - len(matched),
        "duplicates": len(matched) - len(set(matched)),
    }
    assert result.counts.extra == {word: number for word, number in extra.items() if number}


def test_rows_that_share_a_url_all_get_its_scores(place: str, tmp_path: Path) -> None:
    dataset = make_dataset(place)
    rows = [{"URL": f"http://x.test/{at}.jpg", "TEXT": "…", "similarity": at / 10} for at in (3, 0, 9)]
    result = bring(dataset, write_as(tmp_path / "laion.parquet", rows))
    found = imported(dataset, "given")
    assert found.column_names == [*KEYS.names, "similarity"]  # url and text, the row has
    assert found["similarity"].to_pylist() == [0.0, None, None, 0.3, 0.0, None]
    assert result.counts.extra == {"missing": 3, "unmatched": 1}


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.tsv", "t.jsonl", "t.csv.gz", "t.jsonl.gz"])
def test_every_format_gives_the_same_scores(tmp_path: Path, name: str) -> None:
    dataset = make_dataset(f"{tmp_path}/data")
    # Keys of digits alone, and one that looks like a number with an exponent, are words all the same.
    rows = [{"key": key, "score": at / 4, "word": ["x, y", 'say "so"', "café\t画像"][at % 3]} for at, _, key in ROWS]
    bring(dataset, write_as(tmp_path / name, [*rows, {"key": "12e4", "score": 9.5, "word": "#"}]), on="key")
    found = imported(dataset, "given").to_pylist()
    assert [(row["score"], row["word"]) for row in found] == [(row["score"], row["word"]) for row in rows]


def test_hex_uids_that_look_like_numbers_stay_words(tmp_path: Path) -> None:
    dataset = Dataset(f"{tmp_path}/data")
    uids = ["0" * 31 + "1", "1" * 15 + "e" + "1" * 16, "9" * 32]
    table = pa.table({"uid": uids, "url": ["a", "b", "c"], "text": ["a", "b", "c"]})
    write_table(dataset.storage, "00000.parquet", table)
    bring(dataset, write_as(tmp_path / "t.csv", [{"uid": uid, "score": at} for at, uid in enumerate(uids)]))
    assert imported(dataset, "given")["score"].to_pylist() == [0, 1, 2]


def test_rows_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    dataset = make_dataset(f"{tmp_path}/data")
    path = tmp_path / "t.csv"
    path.write_bytes(f"key,score\n{ROWS[0][2]},1\n{ROWS[1][2]},2\n".encode() + b"caf\xe9,3\n")
    result = bring(dataset, path)
    assert imported(dataset, "given")["score"].to_pylist() == [1, 2, None, None, None, None]
    assert result.counts.extra == {"missing": 4, "unreadable": 1}


def test_nested_and_empty_values_come_through(tmp_path: Path) -> None:
    dataset = make_dataset(f"{tmp_path}/data")
    boxes = [[[0.1, 0.2, 0.3, 0.4]], [], None]
    kind = pa.list_(pa.list_(pa.float64()))
    table = pa.table({"uid": [UIDS[at].hex for at in range(3)], "face_bboxes": pa.array(boxes, kind)})
    pq.write_table(table, tmp_path / "t.parquet")
    bring(dataset, tmp_path / "t.parquet")
    assert imported(dataset, "given")["face_bboxes"].to_pylist() == [*boxes, None, None, None]


def test_captions_of_a_row_are_counted_in_the_order_of_the_table(place: str, tmp_path: Path) -> None:
    dataset = make_dataset(place)
    uid = [UIDS[at].hex for at in range(12)]
    rows = [
        {"uid": uid[5], "text": "five", "score": 0.5},
        {"uid": uid[0], "text": "first", "score": 0.1},
        {"uid": uid[0], "text": None, "score": 0.2},
        {"uid": uid[9], "text": "of no row", "score": 0.3},
        {"uid": uid[0], "text": "second", "score": 0.4},
    ]
    result = bring(dataset, write_as(tmp_path / "t.parquet", rows), "blip", caption_col="text")
    found = imported(dataset, "blip", "captions")
    assert found.drop_columns(["uid"]).to_pylist() == [
        {"source": "blip", "n": 0, "text": "first", "score": 0.1},
        {"source": "blip", "n": 1, "text": "second", "score": 0.4},
        {"source": "blip", "n": 0, "text": "five", "score": 0.5},
    ]
    assert found["uid"].to_pylist() == [UIDS[0].bytes, UIDS[0].bytes, UIDS[5].bytes]
    assert result.counts.rows_in == 4
    assert result.counts.rows_out == 3
    assert result.counts.dropped == {"no_text": 1}
    assert result.counts.extra == {"missing": 4, "unmatched": 1}
    assert len(dataset.tables("captions/blip")) == 2


def test_scores_of_images_are_those_of_all_their_captions(tmp_path: Path) -> None:
    dataset = make_dataset(f"{tmp_path}/data")
    rows = [{"uid": uid.hex, "aesthetic": at / 2, "text": "made"} for at, uid in enumerate(UIDS)]
    table = write_as(tmp_path / "t.parquet", rows)
    bring(dataset, table, "aesthetic", per="image")
    bring(dataset, table, "blip", caption_col="text")
    recipe = SelectRecipe(captions=("blip",), rules=({"where": "aesthetic.aesthetic >= 2", "reason": "ugly"},))
    (told,) = select([dataset], recipe, "fine", LocalExecutor())
    assert told["rows_in"] == 12
    assert told["dropped"] == {"ugly": 8}


def test_a_rule_reads_imported_scores_and_a_missing_one_is_a_reason(tmp_path: Path) -> None:
    dataset = make_dataset(f"{tmp_path}/data")
    rows = [{"uid": UIDS[at].hex, "clip_l14_similarity_score": at / 10} for at in range(1, 6)]
    bring(dataset, write_as(tmp_path / "t.parquet", rows), "datacomp")
    recipe = SelectRecipe(rules=({"top": "clip_l14_similarity_score", "count": 2},))
    (told,) = select([dataset], recipe, "best", LocalExecutor())
    assert told["dropped"] == {"no_clip_l14_similarity_score": 1, "below_top_clip_l14_similarity_score": 3}
    kept = Selection(dataset, "best").read("00001")
    assert kept["keep"].to_pylist() == [True, True]


def test_a_grown_dataset_is_joined_anew_and_a_finished_import_is_not(place: str, tmp_path: Path) -> None:
    table = write_as(tmp_path / "t.parquet", [{"uid": uid.hex, "score": at} for at, uid in enumerate(UIDS)])
    dataset = make_dataset(place, (4,))
    assert bring(dataset, table).num_run == 1
    assert bring(dataset, table).num_run == 0
    moved = table.rename(tmp_path / "moved.parquet")
    assert bring(dataset, moved).num_run == 0  # known by its content
    make_dataset(place, (4, 2))
    assert bring(dataset, moved).num_run == 1
    assert imported(dataset, "given")["score"].to_pylist() == [0, 1, 2, 3, 4, 5]


def test_a_name_keeps_what_it_was_made_of(tmp_path: Path) -> None:
    dataset = make_dataset(f"{tmp_path}/data")
    rows = [{"uid": uid.hex, "score": at} for at, uid in enumerate(UIDS)]
    bring(dataset, write_as(tmp_path / "t.parquet", rows))
    with pytest.raises(FingerprintError, match="another --as"):
        bring(dataset, write_as(tmp_path / "other.parquet", rows[::-1]))
    assert imported(dataset, "given")["score"].to_pylist() == [0, 1, 2, 3, 4, 5]


def test_tables_on_an_object_store_are_read_there(s3_bucket: str) -> None:
    dataset = make_dataset(f"{s3_bucket}/data")
    for name, half in (("a", UIDS[:3]), ("b", UIDS[2:])):
        table = pa.table({"uid": [uid.hex for uid in half], "score": [f"{name}{uid.int % 7}" for uid in half]})
        write_table(Storage(f"{s3_bucket}/tables"), f"{name}.parquet", table)
    result = bring(dataset, f"{s3_bucket}/tables/*.parquet")
    want = [f"{'a' if at < 3 else 'b'}{UIDS[at].int % 7}" for at in range(6)]
    assert imported(dataset, "given")["score"].to_pylist() == want
    assert result.counts.extra == {"duplicates": 1, "unmatched": 6}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"id": 1, "score": 2}], {}, "no column uid or url or URL or image_url or key to join by; it has id, score"),
        ([{"url": "a", "score": 2}], {"on": "uid"}, "no column uid to join by"),
        ([{"uid": "a", "url": "b"}], {}, "no scores there"),
        ([{"uid": "a", "n": 1}], {"caption_col": "text"}, "no text column text"),
        ([{"uid": "a", "n": 1}], {"caption_col": "n"}, "no text column n"),
        ([{"uid": "a", "n": 1}], {"name": "No!"}, "a table is named by"),
    ],
)
def test_a_table_that_cannot_be_joined_is_told_before_anything_runs(
    tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    dataset = make_dataset(f"{tmp_path}/data")
    with pytest.raises(UsageError, match=message):
        bring(dataset, write_as(tmp_path / "t.parquet", rows), **options)
    assert dataset.ledger.steps() == []


def test_what_is_no_table_is_told_by_name(tmp_path: Path) -> None:
    dataset = make_dataset(f"{tmp_path}/data")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    (tmp_path / "list.jsonl").write_text("[1, 2]\n")
    (tmp_path / "notes.md").write_text("hello")
    for name in ("empty", "broken.parquet", "list.jsonl", "notes.md", "none.parquet", "*.png"):
        with pytest.raises(UsageError, match=name.replace("*", r"\*").replace(".", r"\.")):
            bring(dataset, tmp_path / name)
    write_as(tmp_path / "t.csv", [{"uid": "a", "n": 1}])
    with pytest.raises(UsageError, match="several formats"):
        import_table(dataset, [str(tmp_path / "t.csv"), str(tmp_path / "broken.parquet")], "x", LocalExecutor())


@given(st.lists(st.text(), unique=True, max_size=12))
def test_every_column_gets_a_name_of_its_own_that_rules_can_say(names: list[str]) -> None:
    cleaned = clean_names(names, KEYS.names)
    assert list(cleaned) == names
    assert len(set(cleaned.values())) == len(names)
    for word in cleaned.values():
        assert word.isidentifier()
        assert word.isascii()
        assert word == word.lower()
        assert word not in KEYS.names


def test_names_say_what_they_said() -> None:
    names = ["similarity", "CLIP score (B/32)", "2nd", "source", "n", "Similarity", "—"]
    assert list(clean_names(names, KEYS.names).values()) == [
        "similarity", "clip_score_b_32", "c_2nd", "source_2", "n_2", "similarity_2", "c",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "options", "examples"),
    [
        ([{"uid": UIDS[at].hex, "score": at} for at in range(6, 12)], {}, (UIDS[6].hex, UIDS[0].hex)),
        ([{"url": "http://y.test/", "score": 1}], {}, ("http://y.test/", "http://x.test/0.jpg")),
        ([{"key": "12", "text": "a"}, {"key": None, "text": "b"}], {"caption_col": "text"}, ("12", "000000000")),
        ([{"key": None, "score": 1}], {}, ("null", "000000000")),
    ],
)
def test_a_table_of_something_else_is_refused_and_takes_no_name(
    tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], examples: tuple[str, str]
) -> None:
    dataset = make_dataset(f"{tmp_path}/data")
    with pytest.raises(UsageError, match="no row there belongs to this dataset") as raised:
        bring(dataset, write_as(tmp_path / "t.parquet", rows), **options)
    assert all(example in str(raised.value) for example in examples)
    assert dataset.ledger.steps() == []
    right = [{"uid": UIDS[5].hex, "score": 1, "text": "a"}]  # of the second shard
    assert bring(dataset, write_as(tmp_path / "right.parquet", right), **options).counts.extra["missing"] == 5


def test_the_name_of_what_was_made_otherwise_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset(f"{tmp_path}/data")
    table = write_as(tmp_path / "t.parquet", [{"uid": uid.hex, "mark": at} for at, uid in enumerate(UIDS)])
    score_with(dataset, ["text"], LocalExecutor())
    for attempt in (lambda: bring(dataset, table, "text"), lambda: make_step(dataset, [str(table)], "text")):
        with pytest.raises(UsageError, match="scores/text is a scorer's table; give another --as"):
            attempt()
    bring(dataset, table, "marks")
    with pytest.raises(UsageError, match="scores/marks was imported; give another --as"):
        score_with(dataset, ["text"], LocalExecutor(), name="marks")


def test_a_store_that_lets_nobody_in_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(UsageError, match=r"s3://nobody/t\.parquet: cannot be reached: .*credentials") as raised:
        bring(make_dataset(f"{tmp_path}/data"), "s3://nobody/t.parquet")
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_the_command_joins_and_tells(tmp_path: Path) -> None:
    make_dataset(f"{tmp_path}/data")
    table = write_as(tmp_path / "t.csv", [{"uid": uid.hex, "score": at} for at, uid in enumerate(UIDS)])
    facts = run("filters", "import", tmp_path / "data", table, "--as", "given", "--local")
    assert facts["rows_out"] == 6
    assert facts["unknown"] == {"unmatched": 6}
    assert imported(Dataset(tmp_path / "data"), "given")["score"].to_pylist() == [0, 1, 2, 3, 4, 5]
