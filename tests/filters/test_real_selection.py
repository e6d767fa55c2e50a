"""Selections over LAION's and Conceptual Captions' real captions agree with a direct reading of their rules."""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from filters.language import bundled_model
from infra.dataset import Dataset
from infra.sample import pair_uid
from tests.filters.small_datasets import verdicts
from tests.servers.commands import CHECKOUT, SHARED, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data, the real test material, is not there"),
]

Row = dict[str, Any]
Reading = tuple[tuple[str, Callable[[Row], bool]], ...]  # reason → what a row must fulfil, in the rules' order

TEXT_RULES = [
    {"where": "language = 'en'", "reason": "not_english"},
    {"where": "words > 2", "reason": "few_words"},
    {"where": "characters > 5 and characters <= 200", "reason": "length"},
    {"where": "repetition <= 0.3", "reason": "repetitive"},
    {"where": "caption_count = 1", "reason": "said_again"},
]
TEXT_READ: Reading = (
    ("not_english", lambda row: row["language"] == "en"),
    ("few_words", lambda row: len(row["text"].split()) > 2),
    ("length", lambda row: 5 < len(row["text"]) <= 200),
    ("repetitive", lambda row: repeated(row["text"].casefold().split()) <= 0.3),
    ("said_again", lambda row: row["count"] == 1),
)
BASIC_READ: Reading = (
    ("not_english", lambda row: row["language"] == "en"),
    ("few_words", lambda row: len(row["text"].split()) > 2),
    ("few_characters", lambda row: len(row["text"]) > 5),
    ("small", lambda row: min(row["original_width"], row["original_height"]) >= 200),
    ("elongated", lambda row: max(row["original_width"], row["original_height"])
     / min(row["original_width"], row["original_height"]) <= 3),
)  # fmt: skip


def languages(texts: Sequence[str]) -> list[str]:
    """What fastText's own call says of each text."""
    import fasttext

    model = fasttext.load_model(bundled_model())
    return [model.predict(text.replace("\n", " "))[0][0].removeprefix("__label__") for text in texts]


def repeated(words: Sequence[str]) -> float:
    """Share of the words that lie in a pair of neighbours which occurs more than once."""
    pairs = list(pairwise(words))
    inside = {at + step for at, pair in enumerate(pairs) if pairs.count(pair) > 1 for step in (0, 1)}
    return len(inside) / max(1, len(words))


def read_aloud(rows: Sequence[Row], rules: Reading) -> list[str | None]:
    """Of each row the first reason to fall, None where there is none."""
    return [next((reason for reason, holds in rules if not holds(row)), None) for row in rows]


def laion() -> list[tuple[str, str]]:
    table = pq.read_table(SHARED / "text/laion-1000.parquet", columns=["URL", "TEXT"])
    return list(zip(table["URL"].to_pylist(), table["TEXT"].to_pylist(), strict=True))


def cc3m() -> list[tuple[str, str]]:
    with (SHARED / "text/cc3m-validation.tsv").open(encoding="utf-8", newline="") as file:
        return [(row["url"], row["caption"]) for row in csv.DictReader(file, delimiter="\t")]


@pytest.mark.parametrize(
    ("file", "read", "want"),
    [
        ("laion-1000.parquet", laion, {"not_english": 112, "few_words": 37, "length": 9, "repetitive": 23}),
        ("cc3m-validation.tsv", cc3m, {"not_english": 22, "length": 5, "repetitive": 28, "said_again": 67}),
    ],
    ids=["laion", "cc3m"],
)
def test_captions_are_selected_before_any_download_as_their_rules_read(
    file: str, read: Callable[[], list[tuple[str, str]]], want: dict[str, int], tmp_path: Path
) -> None:
    dataset = tmp_path / "data"
    split = run("pipeline", "download", SHARED / "text" / file, "--out", dataset, "--no-fetch", "--shard-size=900",
                "--local")  # fmt: skip
    run("filters", "score", dataset, "--scorers", "text,language,recurrence", "--local")
    recipe = tmp_path / "text.yaml"
    recipe.write_text(yaml.safe_dump({"rules": TEXT_RULES}))
    facts = run("filters", "select", dataset, "--rules", recipe, "--name", "text", "--local")

    pairs = list(dict.fromkeys(read()))  # a row that is there twice is split off before
    assert facts["rows_in"] == len(pairs) == split["rows_in"]
    said = Counter(" ".join(text.casefold().split()) for _, text in pairs)
    rows = [{"text": text, "language": language, "count": said[" ".join(text.casefold().split())]}
            for (_, text), language in zip(pairs, languages([text for _, text in pairs]), strict=True)]  # fmt: skip
    read_reasons = read_aloud(rows, TEXT_READ)
    told = {uid: reason for uid, _, _, reason in verdicts(Dataset(dataset), "text")}
    assert told == {pair_uid(*pair): reason for pair, reason in zip(pairs, read_reasons, strict=True)}
    assert facts["rows_in"] == facts["rows_out"] + sum(facts["dropped"].values())
    assert facts["dropped"] == want  # the model is bundled, so these are the same everywhere


def metadata(folder: Path) -> list[Row]:
    """A folder as DataComp publishes its metadata: LAION's captions, sizes and scores by chance. Returns its rows."""
    rng = random.Random(7)
    rows = [
        {"uid": f"{rng.getrandbits(128):032x}", "url": url, "text": text,
         "original_width": rng.choice([90, 199, 200, 640, 1200]), "original_height": rng.choice([150, 200, 400, 900]),
         "clip_l14_similarity_score": round(rng.gauss(0.2, 0.05), 3)}  # three digits: there are ties
        for url, text in laion()
    ]  # fmt: skip
    folder.mkdir()
    for part in (rows[:600], rows[600:]):
        pq.write_table(pa.Table.from_pylist(part), folder / f"{rng.getrandbits(128):032x}.parquet")
    return rows


def subset(uids: Sequence[str]) -> np.ndarray[Any, Any]:
    """DataComp's subset file of uids, as its own tools make it."""
    return np.sort(np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids], np.dtype("u8,u8")))


def test_datacomps_metadata_gives_the_subset_files_that_its_definitions_give(tmp_path: Path) -> None:
    dataset = tmp_path / "metadata"
    rows = metadata(dataset)
    run("filters", "score", dataset, "--scorers", "text,language", "--local")
    for row, language in zip(rows, languages([row["text"] for row in rows]), strict=True):
        row["language"] = language
    basic = read_aloud(rows, BASIC_READ)
    scores = np.array([row["clip_l14_similarity_score"] for row in rows])
    threshold = np.sort(scores)[::-1][int(len(scores) * 0.3)]
    wanted = {
        "datacomp_basic": [row["uid"] for row, reason in zip(rows, basic, strict=True) if reason is None],
        "clip_l14_top30": [row["uid"] for row in rows if row["clip_l14_similarity_score"] >= threshold],
    }
    told = {}
    for name, uids in wanted.items():
        npy = tmp_path / f"{name}.npy"
        rules = CHECKOUT / "filters/recipes" / f"{name}.yaml"
        told[name] = run("filters", "select", dataset, "--rules", rules, "--name", name, "--npy", npy, "--local")
        found = np.load(npy)
        assert found.dtype == np.dtype("u8,u8")
        assert np.array_equal(found, subset(uids)), name
    assert told["datacomp_basic"]["dropped"] == Counter(filter(None, basic))
    assert sorted(told["datacomp_basic"]["dropped"]) == sorted(reason for reason, _ in BASIC_READ if reason in basic)
    assert told["clip_l14_top30"]["rows_out"] > 301  # ties were kept
