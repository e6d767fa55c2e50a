"""A table of every ill of the hostile web, through the command: each row its reason, in bounded time and memory."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.reasons import REASONS
from tests.servers.commands import start, watched
from tests.servers.hostile import ALLOW, ILLS, HostileWeb, Ill, serve_hostile

MAX_SECONDS = 45  # 15 on two idle cores
MAX_MIB = 1024


@pytest.fixture(scope="module")
def web() -> Iterator[HostileWeb]:
    with serve_hostile() as web:
        yield web


def expected_reason(ill: Ill) -> str | None:
    """What the table must say: None for a stored image."""
    reason = ill.final or ill.reason
    return ill.image if reason == "ok" else reason


def download(web: HostileWeb, table: Path, out: Path, per_host: int) -> dict[str, Any]:
    """Run the command; its facts, with the seconds it took and its peak memory in MiB."""
    web.requests.clear()
    words = [
        "pipeline",
        "download",
        table,
        "--out",
        out,
        "--local",
        "--json",
        "--allow-network",
        ALLOW,
        "--dns",
        web.dns,
    ]
    words += ["--ca-file", web.ca_file, "--timeout-s", "1", "--total-timeout-s", "4", "--backoff-s", "0.1"]
    words += ["--dns-timeout-s", "0.5", "--per-host", str(per_host), "--max-bytes", str(8 << 20)]
    started = time.monotonic()
    process = start(*words)
    out_text, err_text, peak_mib = watched(process, timeout_s=4 * MAX_SECONDS)
    assert process.returncode == 0, err_text
    facts: dict[str, Any] = json.loads(out_text.strip().splitlines()[-1])
    return {**facts, "took_s": time.monotonic() - started, "peak_mib": peak_mib}


def test_every_ill_ends_as_its_reason_and_a_second_run_writes_the_same_bytes(web: HostileWeb, tmp_path: Path) -> None:
    names = list(ILLS)
    table = tmp_path / "ills.parquet"
    pq.write_table(pa.table({"url": [web.url(name) for name in names], "caption": names}), table)

    facts = download(web, table, tmp_path / "one", per_host=64)
    rows = {row["caption"]: row for row in pq.read_table(tmp_path / "one" / "00000.parquet").to_pylist()}
    expected = {name: expected_reason(ill) for name, ill in ILLS.items()}
    assert {name: row["reason"] for name, row in rows.items()} == expected
    assert all(reason in REASONS or reason.startswith("http_") for reason in facts["dropped"])
    assert facts["rows_in"] == len(names) == facts["rows_out"] + sum(facts["dropped"].values())
    assert web.num_canary == 0
    assert facts["took_s"] < MAX_SECONDS
    assert facts["peak_mib"] < MAX_MIB

    # Other manners, another order of events: the same tables, the same tar.
    download(web, table, tmp_path / "two", per_host=16)
    again = {row["caption"]: row for row in pq.read_table(tmp_path / "two" / "00000.parquet").to_pylist()}
    assert {name: row for name, row in again.items() if row != rows[name]} == {}
    for name in ("00000.parquet", "00000.tar", "index/00000.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    print(facts)
