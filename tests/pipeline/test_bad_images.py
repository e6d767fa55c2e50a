"""Malformed and odd images over HTTP: no crash, no hang, each a right image or one reason, within 1 GiB."""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tests.servers.commands import CHECKOUT, SHARED
from tests.servers.files import serve_folder

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no test material at {SHARED}")


def test_every_bad_file_ends_as_an_image_or_one_reason_in_bounded_memory(tmp_path):
    with (SHARED / "bad.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    with serve_folder(SHARED) as server:
        table = tmp_path / "bad.jsonl"
        table.write_text(
            "".join(json.dumps({"url": f"{server.url}/{row['file']}", "caption": row["file"]}) + "\n" for row in rows)
        )
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        ended = subprocess.run(
            [sys.executable, "-m", "pipeline", "download", str(table), "--out", str(tmp_path / "out"), "--local",
             "--allow-network", "127.0.0.0/8", "--json"],
            cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert peak_kib < max(1 << 20, before + 1), f"peak {peak_kib / 1024:.0f} MiB"
    facts = json.loads(ended.stdout.strip().splitlines()[-1])
    assert facts["rows_in"] == 120 == facts["rows_out"] + sum(facts["dropped"].values())
    fates = {row["caption"]: row for row in pq.read_table(tmp_path / "out/00000.parquet").to_pylist()}
    for row in rows:
        fate = fates[row["file"]]
        assert (fate["status"] == "success") == (fate["reason"] is None)
        if row["pillow_13.0.0_result"] == "ok" and row["kind"] == "valid-but-unusual":
            assert fate["status"] == "success", (row["file"], fate["reason"])
