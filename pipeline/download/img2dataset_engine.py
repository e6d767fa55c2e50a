"""The real img2dataset as engine: its fetching and resizing, inside our atomic, accounted shard.

For people who want its exact behaviour. It has none of our guards (1.47 follows redirects to loopback, reads
file://, and has no byte or pixel cap), so the command asks for --unsafe-engine. Rows, keys and bytes on disk are
ours, since its own tars are written in completion order, with clocks inside.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from infra.shards import read_members
from pipeline.download.shard import SUCCESS, Fate, ShardStep

PROGRAM = "import json, sys; from img2dataset import download; download(**json.load(sys.stdin))"
STUCK_S = 3_600.0  # it can hang for good when one of its processes is killed

REASONS = (  # its messages, in its words → our reasons
    (r"HTTP Error (\d{3})", r"http_\1"),
    (r"timed out", "timeout"),
    (r"Name or service not known|nodename|name resolution", "dns"),
    (r"refused|unreachable", "connect"),
    (r"certificate|SSL", "tls"),
    (r"reset by peer|IncompleteRead|closed connection", "reset"),
    (r"image decoding error", "decode_error"),
    (r"image too small", "too_small"),
    (r"aspect ratio too large", "too_elongated"),
    (r"image area too large", "too_large_area"),
    (r"hash mismatch", "hash_mismatch"),
    (r"X-Robots-Tag", "opt_out"),
)


class Img2Dataset(ShardStep):
    """One img2dataset process a shard."""

    def find_fates(self, rows: pa.Table, spool: BinaryIO) -> Sequence[Fate]:
        """Run it on the shard's rows in a temporary folder and read what it wrote."""
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "rows.parquet"
            pq.write_table(rows.select(self._columns(rows)), table)
            self._run(table, Path(folder) / "out")
            return _read_fates(Path(folder) / "out", rows.num_rows, spool, self.config.encode_format)

    def _columns(self, rows: pa.Table) -> list[str]:
        more = [name for name in (self.config.hash_col, self.config.bbox_col) if name and name in rows.column_names]
        return ["url", "caption", *more]

    def _run(self, table: Path, out: Path) -> None:
        config = self.config
        arguments: dict[str, Any] = {
            "url_list": str(table), "input_format": "parquet", "url_col": "url", "caption_col": "caption",
            "output_folder": str(out), "output_format": "webdataset", "processes_count": 1,
            "thread_count": min(config.connections, 256), "number_sample_per_shard": 10**9,
            "image_size": config.image_size, "resize_mode": config.resize_mode,
            "resize_only_if_bigger": config.only_if_bigger, "encode_format": config.encode_format,
            "encode_quality": config.encode_quality, "timeout": round(config.timeout_s),
            "retries": config.attempts - 1, "min_image_size": config.min_image_size,
            "compute_hash": "sha256", "extract_exif": config.keep_exif, "user_agent_token": config.agent_token,
        }  # fmt: skip
        optional = {"max_image_area": config.max_image_area, "max_aspect_ratio": config.max_aspect_ratio}
        arguments |= {name: value for name, value in optional.items() if value is not None}
        if config.verify_hash:
            arguments |= {"verify_hash": [config.hash_col, config.verify_hash], "compute_hash": config.verify_hash}
        if config.bbox_col:
            arguments["bbox_col"] = config.bbox_col
        if not config.respect_opt_out:
            arguments["disallowed_header_directives"] = []
        environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM], input=json.dumps(arguments), text=True, env=environment,
            timeout=STUCK_S, capture_output=True, check=False,
        )  # fmt: skip
        if ended.returncode:
            raise RuntimeError(f"img2dataset exited with {ended.returncode}: {ended.stderr.strip()[-2_000:]}")


def _read_fates(folder: Path, num_rows: int, spool: BinaryIO, ending: str) -> list[Fate]:
    (table,) = folder.glob("*.parquet")
    (tar,) = folder.glob("*.tar")
    places: dict[str, tuple[int, int]] = {}
    with tar.open("rb") as file:
        for member, data in read_members(file):
            if member.ending == ending:
                places[member.key] = (spool.seek(0, 2), len(data))
                spool.write(data)
    rows = {row["key"]: row for row in pq.read_table(table).to_pylist()}
    if len(rows) != num_rows:
        raise RuntimeError(f"img2dataset told of {len(rows)} of {num_rows} rows")
    return [_fate(rows[key], places.get(key)) for key in sorted(rows)]


def _fate(row: dict[str, Any], place: tuple[int, int] | None) -> Fate:
    message = row.get("error_message")
    if row["status"] != SUCCESS:
        return Fate(row["status"], _reason(message or ""), message)
    return Fate(
        SUCCESS,
        place=place,
        width=row["width"],
        height=row["height"],
        original_width=row["original_width"],
        original_height=row["original_height"],
        exif=row.get("exif"),
        sha256=row.get("sha256"),
    )


def _reason(message: str) -> str:
    for pattern, reason in REASONS:
        found = re.search(pattern, message, re.IGNORECASE)
        if found:
            return found.expand(reason)
    return "engine_error"
