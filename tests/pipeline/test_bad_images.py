"""Malformed and odd images over HTTP: no crash, no hang, each a right image or one reason, within 1 GiB."""

from __future__ import annotations

import csv
import json
import os
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
        output = tmp_path / "output.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "download", str(table), "--out", str(tmp_path / "out"), "--local",
                 "--allow-network", "127.0.0.0/8", "--json"],
                cwd=CHECKOUT, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
            _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, output.read_text()
    assert usage.ru_maxrss < 1 << 20, f"peak {usage.ru_maxrss / 1024:.0f} MiB"
    facts = json.loads(output.read_text().strip().splitlines()[-1])
    assert facts["rows_in"] == 120 == facts["rows_out"] + sum(facts["dropped"].values())
    fates = {row["caption"]: row for row in pq.read_table(tmp_path / "out/00000.parquet").to_pylist()}
    for row in rows:
        fate = fates[row["file"]]
        assert (fate["status"] == "success") == (fate["reason"] is None)
        if row["pillow_13.0.0_result"] == "ok" and row["kind"] == "valid-but-unusual":
            assert fate["status"] == "success", (row["file"], fate["reason"])
