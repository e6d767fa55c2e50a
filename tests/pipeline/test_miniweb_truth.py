"""The small web has a truth table: crawl and download must tell the same of every page, pair and image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infra.dataset import Dataset
from infra.miniweb import MiniwebConfig, running
from infra.miniweb.plan import plan_site
from infra.miniweb.truth import truth_table
from infra.verify import Verify
from tests.servers.commands import run

PAGES, SEED = 60, 1
REACH = (
    "--allow-network",
    "127.0.0.0/8",
    "--timeout-s",
    "2",
    "--total-timeout-s",
    "5",
    "--backoff-s",
    "0.2",
    "--local",
)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """The dataset, the truth, and the facts of crawl and download."""
    out = tmp_path_factory.mktemp("web") / "dataset"
    with running(MiniwebConfig(pages=PAGES, seed=SEED, port=0, dns_port=0)) as web:
        truth = truth_table(plan_site(PAGES, SEED, web.port)).to_pylist()
        crawled = run("pipeline", "crawl", "--seed", *web.seeds, *web.sitemaps, "--out", out, "--delay-s", "0.01",
                      "--scope", "domain",
                      "--dns", web.dns, *REACH)  # fmt: skip
        stored = run("pipeline", "download", out / "pairs", "--out", out, "--image-size", "128", "--min-image-size",
                     "64", "--max-aspect-ratio", "4", "--dns", web.dns, *REACH)  # fmt: skip
    return out, truth, crawled, stored


def rows_of(folder: Path, pattern: str) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob(pattern)) for row in pq.read_table(path).to_pylist()]


@pytest.mark.slow
def test_every_page_has_the_fate_that_the_truth_says(told):
    out, truth, _, _ = told
    pages = {row["url"]: row["reason"] for row in rows_of(out, "ledger/pages/*.parquet")}
    expected = {row["page_url"]: row["fate"] for row in truth if row["row"] == "page" and row["fate"] != "out_of_scope"}
    assert {url: fate for url, fate in pages.items() if expected.get(url) != fate} == {}
    assert set(expected) == set(pages)


@pytest.mark.slow
def test_the_pairs_are_those_of_the_truth(told):
    out, truth, crawled, _ = told
    pairs = {(row["url"], row["caption"]) for row in rows_of(out, "pairs/*.parquet")}
    expected = {
        (row["url"], row["caption"]): row for row in truth if row["row"] == "candidate" and row["fate"] == "pair"
    }
    missing = [
        key
        for key, row in expected.items()
        if not any((url, key[1]) in pairs for url in (row["url"], *(row["alternatives"] or ())))
    ]
    assert missing == []
    assert len(pairs) == len(expected) == crawled["rows_out"]
    assert crawled["rows_in"] == crawled["rows_out"] + sum(crawled["dropped"].values())


@pytest.mark.slow
def test_every_image_has_the_outcome_that_the_truth_says(told):
    out, truth, _, stored = told
    expected = {}
    for row in truth:
        if row["row"] == "candidate" and row["fate"] == "pair":
            for url in (row["url"], *(row["alternatives"] or ())):
                expected[url, row["caption"]] = row["outcome"]
    rows = rows_of(out, "[0-9]*.parquet")
    differ = [(row["url"], row["reason"], expected[row["url"], row["caption"]]) for row in rows
              if (row["reason"] or "success") != expected[row["url"], row["caption"]]]  # fmt: skip
    assert differ == []
    assert stored["rows_in"] == stored["rows_out"] + sum(stored["dropped"].values()) == len(rows)


@pytest.mark.slow
def test_the_dataset_verifies(told):
    assert [str(finding) for finding in Verify(Dataset(told[0]), complete=True).findings()] == []
