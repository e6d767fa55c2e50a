"""Malformed and odd images over HTTP: no crash, no hang, each a right image or one reason, within 1 GiB."""

from __future__ import annotations

import csv
import json

import pyarrow.parquet as pq
import pytest

from tests.servers.commands import SHARED, start, watched
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
        words = ("--out", tmp_path / "out", "--local", "--allow-network", "127.0.0.0/8", "--json")
        process = start("pipeline", "download", table, *words)
        out, err, peak_mib = watched(process, timeout_s=120)
    assert process.returncode == 0, err
    assert 0 < peak_mib < 1024
    facts = json.loads(out.strip().splitlines()[-1])
    assert facts["rows_in"] == 120 == facts["rows_out"] + sum(facts["dropped"].values())
    fates = {row["caption"]: row for row in pq.read_table(tmp_path / "out/00000.parquet").to_pylist()}
    for row in rows:
        fate = fates[row["file"]]
        assert (fate["status"] == "success") == (fate["reason"] is None)
        if row["pillow_13.0.0_result"] == "ok" and row["kind"] == "valid-but-unusual":
            assert fate["status"] == "success", (row["file"], fate["reason"])
