"""Scoring drops nothing and keeps the order; what cannot be told is null; one decoding of an image serves all."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import filters.base
from filters.__main__ import SPREAD, main
from filters.base import description
from filters.score import plan_text, score, summary
from infra.cli import run_main
from infra.dataset import Dataset
from infra.errors import DatasetError, FingerprintError, RecipeError, StepError, UsageError
from infra.executors import LocalExecutor
from infra.tables import CAPTIONS_DIGEST, KEYS, UIDS_DIGEST, keys_digests, open_table, read_table, write_table
from tests.filters.small_datasets import caption_scores, make_dataset, uid_of
from tests.filters.stored_shards import Sample, picture, store
from tests.servers.commands import published

ALL = ["text", "language", "image", "duplicates", "recurrence"]
PER_IMAGE = ("image", "duplicates")


BROKEN = {
    "cut": picture(0)[:400],
    "garbage": b"\xff\xd8\xff\xe0 but no picture at all",
    "text": b"<html>404</html>",
    "empty": b"",
}
SHARDS = {
    "00000": [Sample(f"good {n}", f"a photo of a dog, number {n}", picture(n)) for n in range(4)],
    "00001": [
        Sample("no caption", None, picture(9)),
        Sample("empty caption", "", picture(10)),
        *(Sample(word, "ein Hund auf der Wiese", data) for word, data in BROKEN.items()),
        Sample("controls", "\x00\x07\u200f\ufeff\U000e0001", picture(11)),
        Sample("endless", "dog " * 20_000, picture(12)),
        Sample("not stored", "a cat", None),
        Sample("last", "a photo of a dog, number 0", picture(3)),
    ],
    "00002": [Sample("nothing stored here", "a cat", None)],
}


def stored_uids(shard: str) -> list[bytes]:
    return [sample.uid for sample in SHARDS[shard] if sample.image is not None]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored, and scored by nobody."""
    folder = tmp_path_factory.mktemp("pristine") / "dataset"
    store(folder, SHARDS)
    return folder


@pytest.fixture(scope="module")
def scored(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """All scorers in one command."""
    folder = tmp_path_factory.mktemp("scored") / "dataset"
    shutil.copytree(pristine, folder)
    run(Dataset(folder), ALL)
    return Dataset(folder)


@pytest.fixture
def dataset(pristine: Path, tmp_path: Path) -> Dataset:
    shutil.copytree(pristine, tmp_path / "dataset")
    return Dataset(tmp_path / "dataset")


@pytest.fixture
def copy(scored: Dataset, tmp_path: Path) -> Dataset:
    """Scored, and to be changed."""
    shutil.copytree(scored.storage.url, tmp_path / "copy")
    return Dataset(tmp_path / "copy")


def run(dataset: Dataset, scorers: Sequence[str], **options: Any) -> dict[str, Any]:
    return summary(score(dataset, scorers, LocalExecutor(), **options), dataset)


def table_of(dataset: Dataset, name: str, shard: str) -> pa.Table:
    return read_table(dataset.storage, f"scores/{name}/{shard}.parquet")


def by_word(dataset: Dataset, name: str, column: str) -> dict[str, Any]:
    """word of a sample → its value."""
    words = {sample.uid: sample.word for samples in SHARDS.values() for sample in samples}
    tables = [table_of(dataset, name, shard) for shard in SHARDS]
    return {words[row["uid"]]: row[column] for table in tables for row in table.to_pylist()}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shard", SHARDS)
def test_a_table_has_the_shards_stored_samples_in_its_order(scored: Dataset, name: str, shard: str) -> None:
    table = table_of(scored, name, shard)
    uids = stored_uids(shard)
    assert table["uid"].to_pylist() == uids
    source, n = (None, None) if name in PER_IMAGE else ("web", 0)
    assert (table["source"].to_pylist(), table["n"].to_pylist()) == ([source] * len(uids), [n] * len(uids))
    assert table.schema.names[:3] == KEYS.names
    assert [table.schema.field(key).type for key in KEYS.names] == KEYS.types


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shard", SHARDS)
def test_a_tables_footer_names_its_keys_and_its_columns_say_what_they_are(scored, name, shard) -> None:
    table, schema = table_of(scored, name, shard), open_table(scored.storage, f"scores/{name}/{shard}.parquet")
    metadata = schema.schema_arrow.metadata
    assert (metadata[UIDS_DIGEST], metadata[CAPTIONS_DIGEST]) == keys_digests(table)
    assert all(description(schema.schema_arrow.field(column)) for column in table.column_names[3:])


def test_rows_in_are_rows_out_and_what_is_not_known_is_counted(scored: Dataset) -> None:
    facts = run(scored, ALL)
    num_stored = sum(len(stored_uids(shard)) for shard in SHARDS)
    assert set(facts["tables"]) == set(ALL)
    for name, told in facts["tables"].items():
        assert (told["rows_in"], told["rows_out"], told["dropped"]) == (num_stored, num_stored, {})
        tables = [table_of(scored, name, shard) for shard in SHARDS]
        nulls = {f"no_{c}": sum(t[c].null_count for t in tables) for c in tables[0].column_names[3:]}
        assert told["unknown"] == {word: number for word, number in nulls.items() if number}
    assert facts["rows_in"] == facts["rows_out"] == num_stored * len(ALL)


def test_a_broken_image_gives_nulls_and_leaves_its_neighbours_alone(scored: Dataset) -> None:
    for name, column in (("image", "width"), ("image", "uniform"), ("duplicates", "phash")):
        unknown = {word for word, value in by_word(scored, name, column).items() if value is None}
        assert unknown == set(BROKEN)
    assert None not in by_word(scored, "duplicates", "sha256").values()
    assert None not in by_word(scored, "text", "words").values()


def test_a_missing_image_gives_nulls(dataset: Dataset) -> None:
    index = read_table(dataset.storage, dataset.index("00000"))
    lost = SHARDS["00000"][2]
    write_table(dataset.storage, dataset.index("00000"), index.filter(pa.compute.not_equal(index["uid"], lost.uid)))
    run(dataset, ["image", "duplicates"])
    assert [row["width"] is None for row in table_of(dataset, "image", "00000").to_pylist()] == [0, 0, 1, 0]
    assert [row["sha256"] is None for row in table_of(dataset, "duplicates", "00000").to_pylist()] == [0, 0, 1, 0]


def test_a_broken_caption_is_scored_or_null_and_never_a_crash(scored: Dataset) -> None:
    words, language = by_word(scored, "text", "words"), by_word(scored, "language", "language")
    assert (words["no caption"], words["empty caption"], words["endless"]) == (0, 0, 20_000)
    assert (language["no caption"], language["empty caption"], language["endless"]) == (None, None, "en")
    assert by_word(scored, "recurrence", "caption_count")["no caption"] == 2  # an absent one is the empty one


def test_an_image_is_decoded_once_for_all_scorers(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: Counter[bytes] = Counter()
    decode = filters.base.decode

    def counting(data: bytes) -> Any:
        decoded[data] += 1
        return decode(data)

    monkeypatch.setattr(filters.base, "decode", counting)
    run(dataset, ["text", "language", "recurrence"])
    assert not decoded  # nobody asked for pixels
    run(dataset, ALL)
    assert decoded == Counter(
        sample.image for samples in SHARDS.values() for sample in samples if sample.image is not None
    )


def test_scores_made_together_are_those_made_one_by_one(scored: Dataset, dataset: Dataset) -> None:
    for name in reversed(ALL):
        run(dataset, [name])
    assert tables_and_marks(dataset) == tables_and_marks(scored)


@pytest.mark.parametrize("size", [1, 3])
def test_how_many_rows_are_scored_at_once_changes_no_byte(scored, dataset, monkeypatch, size) -> None:
    monkeypatch.setattr("filters.score_steps.BATCH", size)
    run(dataset, ALL)
    assert tables_and_marks(dataset) == tables_and_marks(scored)


def tables_and_marks(dataset: Dataset) -> dict[str, bytes]:
    return {name: data for name, data in published(Path(dataset.storage.url)).items() if "score" in name}


def test_a_second_run_writes_nothing(copy: Dataset) -> None:
    before = copy.storage.stamps()
    facts = run(copy, ALL)
    assert copy.storage.stamps() == before
    assert facts["rows_out"] == run(copy, ALL[:1])["rows_out"] * len(ALL)


def test_new_shards_are_scored_and_the_others_left_alone(copy: Dataset) -> None:
    before = {name: stamp for name, stamp in copy.storage.stamps().items() if name.startswith("scores/")}
    store(copy.storage.url, {"00003": [Sample("new", "a photo of a dog, number 1", picture(20))]})
    facts = run(copy, ALL)
    assert {told["rows_out"] for told in facts["tables"].values()} == {14}
    assert table_of(copy, "image", "00003")["uid"].to_pylist() == [uid_of("new")]
    changed = {name for name, stamp in copy.storage.stamps().items() if before.get(name, stamp) != stamp}
    assert changed == {f"scores/recurrence/{shard}.parquet" for shard in SHARDS}  # it counts over all shards
    assert by_word(copy, "recurrence", "caption_count")["good 1"] == 2


def test_a_limited_run_is_gone_on_with(scored: Dataset, dataset: Dataset) -> None:
    from infra.jobs import RunOptions

    assert run(dataset, ["text", "image"], options=RunOptions(limit=1))["rows_out"] == 2 * len(SHARDS["00000"])
    run(dataset, ALL)
    assert tables_and_marks(dataset) == tables_and_marks(scored)


# Names.


def test_a_table_is_named_by_as(scored: Dataset, dataset: Dataset) -> None:
    facts = run(dataset, ["text"], name="words_2")
    assert list(facts["tables"]) == ["words_2"]
    assert facts["paths"] == [f"{dataset.storage.url}/scores/words_2"]
    assert not dataset.tables("scores/text")
    for shard in SHARDS:
        assert dataset.storage.read(f"scores/words_2/{shard}.parquet") == scored.storage.read(
            f"scores/text/{shard}.parquet"
        )


@pytest.mark.parametrize("name", ["Words", "a.b", "a/b", "../x", "row", "a b", "ä"])
def test_a_name_that_rules_could_not_hold_is_refused(dataset: Dataset, name: str) -> None:
    before = published(Path(dataset.storage.url))
    with pytest.raises(UsageError, match="small letters"):
        run(dataset, ["text"], name=name)
    assert published(Path(dataset.storage.url)) == before


def test_what_is_wrong_with_the_command_is_said_before_anything_is_scored(dataset: Dataset) -> None:
    before = published(Path(dataset.storage.url))
    for scorers, options, said in (
        ([], {}, "give --scorers"),
        (["text", "image"], {"name": "both"}, "names one table"),
        (["txet"], {}, "did you mean text"),
        (["text"], {"settings": ["language.model=x"]}, "no such scorer in this run"),
        (["text"], {"settings": ["text.language=en"]}, "unknown key language"),
        (["text"], {"settings": ["text"]}, "write it as"),
    ):
        for act in (run, plan_text):
            with pytest.raises((UsageError, RecipeError, FingerprintError), match=said):
                act(dataset, scorers, **options)
    assert published(Path(dataset.storage.url)) == before


def test_images_are_asked_for_where_there_are_none(tmp_path: Path) -> None:
    write_table(Dataset(tmp_path).storage, "a.parquet", pa.table({"url": ["http://a.example/"], "caption": ["a dog"]}))
    dataset = Dataset(tmp_path)
    with pytest.raises(UsageError, match="image needs images"):
        run(dataset, ["text", "image"])
    assert run(dataset, ["text", "language", "recurrence"])["rows_out"] == 3


# Other settings under the same name.


def test_another_scorer_under_the_same_name_is_refused_and_changes_nothing(copy: Dataset) -> None:
    before = copy.storage.stamps()
    with pytest.raises(FingerprintError, match=r"scorer: 'filters.text:Text' then, 'filters.language:Language' now"):
        run(copy, ["language"], name="text")
    with pytest.raises(FingerprintError, match="score_recurrence"):
        run(copy, ["text"], name="recurrence")
    assert copy.storage.stamps() == before


def test_captions_beside_the_webs_are_scored_with_their_names_behind_it(tmp_path: Path) -> None:
    store(tmp_path, {"00000": SHARDS["00000"]})
    first, *_, last = stored_uids("00000")
    keys = [(first, "blip", 0), (first, "blip", 1), (last, "blip", 0), (uid_of("a stranger"), "blip", 0)]
    texts = caption_scores(keys, text=["one", "one two", None, "nobody's"])
    dataset = make_dataset(tmp_path, {}, captions={"blip": {"00000": texts}})
    run(dataset, ["text"], captions=["blip"])
    rows = [(row["uid"], row["source"], row["n"]) for row in table_of(dataset, "text", "00000").to_pylist()]
    web = [(uid, "web", 0) for uid in stored_uids("00000")]
    assert rows == [web[0], keys[0], keys[1], *web[1:], keys[2]]
    assert table_of(dataset, "text", "00000")["words"].to_pylist()[:3] == [7, 1, 2]
    with pytest.raises(FingerprintError, match="captions"):
        run(dataset, ["text"])


def test_captions_that_are_not_there_are_named(dataset: Dataset) -> None:
    with pytest.raises((UsageError, DatasetError), match="blip"):
        run(dataset, ["text"], captions=["blip"])


def with_captions(folder: Path, text: str) -> Dataset:
    """A shard with a further caption of each image."""
    uids = stored_uids("00000")
    texts = caption_scores([(uid, "blip", 0) for uid in uids], text=[text] * len(uids))
    return make_dataset(folder, {}, captions={"blip": {"00000": texts}})


@pytest.mark.parametrize("order", [["text", "image"], ["image", "text"]])
def test_scores_of_further_captions_made_beside_others_are_those_made_alone(tmp_path: Path, order: list[str]) -> None:
    store(tmp_path / "together", {"00000": SHARDS["00000"]})
    shutil.copytree(tmp_path / "together", tmp_path / "alone")
    together, alone = (with_captions(tmp_path / name, "a dog") for name in ("together", "alone"))
    run(together, order, captions=["blip"])
    run(alone, ["text"], captions=["blip"])
    run(alone, ["image"])
    assert tables_and_marks(together) == tables_and_marks(alone)


def test_captions_that_have_changed_are_scored_anew(tmp_path: Path) -> None:
    store(tmp_path, {"00000": SHARDS["00000"]})
    run(with_captions(tmp_path, "a dog"), ["image", "text"], captions=["blip"])
    dataset = with_captions(tmp_path, "another dog altogether")
    run(dataset, ["image", "text"], captions=["blip"])
    assert table_of(dataset, "text", "00000")["words"].to_pylist() == [7, 3] * 4


# Scorers from outside.


OUTSIDE = '''
import pyarrow as pa
from filters.base import Batch, Scorer, column
from infra.recipe import Config


class Settings(Config):
    """What can be set."""

    times: int = 2


class Length(Scorer):
    """Characters of the caption, some times over."""

    name = "length"
    per = "caption"
    columns = pa.schema([column("length", pa.int64(), "characters, some times over")])
    Settings = Settings

    def score(self, batch: Batch) -> pa.Table:
        return pa.table({"length": [len(text) * self.settings.times for text in batch.texts]})


class TooFew(Length):
    name = "too_few"

    def score(self, batch: Batch) -> pa.Table:
        return super().score(batch).slice(1)


class NoColumn(Length):
    name = "no_column"

    def score(self, batch: Batch) -> pa.Table:
        return pa.table({"other": batch.texts})


def no_class(batch):
    return batch
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of somebody else's; its name."""
    (tmp_path / "outside_scorers.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    return "outside_scorers"


def command(dataset: Dataset, *words: str) -> int:
    return run_main(main, "python -m filters", ["score", dataset.storage.url, "--local", *words], SPREAD)


def test_a_scorer_from_outside_is_one_of_ours(dataset: Dataset, outside: str) -> None:
    given = ("--scorers", f"text,{outside}:Length")
    assert command(dataset, *given, "--set", "length.times=3") == 0
    lengths = by_word(dataset, "length", "length")
    assert {lengths[s.word] for s in SHARDS["00000"]} == {3 * len("a photo of a dog, number 0")}
    assert description(open_table(dataset.storage, "scores/length/00000.parquet").schema_arrow.field("length"))
    before = dataset.storage.stamps()
    assert command(dataset, *given, "--set", "length.times=3") == 0
    assert dataset.storage.stamps() == before


def test_other_settings_are_refused_by_name_and_change_nothing(dataset, outside, capsys) -> None:
    scorer = f"{outside}:Length"
    assert command(dataset, "--scorers", scorer) == 0
    before = dataset.storage.stamps()
    assert command(dataset, "--scorers", scorer, "--set", f"{scorer}.times=5") == 1
    said = capsys.readouterr().err
    assert "score_length was done here with other settings (times: 2 then, 5 now)" in said
    assert "Give another --as" in said
    assert dataset.storage.stamps() == before
    assert command(dataset, "--scorers", scorer, "--as", "five", "--set", "length.times=5") == 0
    assert by_word(dataset, "five", "length")["last"] == 5 * len("a photo of a dog, number 0")


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        ("no_such_package.scores:Mine", "no_such_package"),
        ("{outside}:Mine", "has no Mine"),
        ("{outside}:no_class", "not a Scorer"),
        ("{outside}:Settings", "not a Scorer"),
        ("{outside}.Length", "From outside: my_package.module:Name"),
        ("{outside}:", "write it as"),
    ],
)
def test_what_is_no_scorer_is_named_and_nothing_is_written(dataset, outside, capsys, scorer, said) -> None:
    before = published(Path(dataset.storage.url))
    assert command(dataset, "--scorers", scorer.format(outside=outside)) == 2
    assert said in capsys.readouterr().err
    assert published(Path(dataset.storage.url)) == before


@pytest.mark.parametrize(("kind", "said"), [("TooFew", "too_few: 3 scores for 4 rows"), ("NoColumn", "length")])
def test_a_scorer_that_breaks_its_word_is_told_and_publishes_nothing(dataset, outside, kind, said) -> None:
    with pytest.raises(StepError, match=said) as error:
        run(dataset, [f"{outside}:{kind}", "text"])
    assert "first 00000" in str(error.value)
    assert not [name for name in dataset.tables("scores/too_few") if "00000" in name or "00001" in name]
