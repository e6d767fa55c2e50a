"""The whole downloader against img2dataset: images per CPU-second of the whole process tree, same server, same photos.

    python -m benchmarks.download [--rows 3000] [--schemes http,https] [--rounds 3]

Both run as a person would start them, in processes of their own, one after the other, in turns: keep_ratio_largest 256,
only-if-bigger, JPEG 95 with 4:2:0. CPU is that of the process and all its children (wait4), start-up included; the
server's is not counted. `marginal` leaves start-up out: the CPU of the extra rows of a longer run. Pixel errors of
both are told by benchmarks/images.py, which calls the same code on the same photos.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import trustme
from aiohttp import web

from benchmarks.images import enlarged

CHECKOUT = Path(__file__).resolve().parent.parent
PEER = """import json, sys
if __name__ == "__main__":
    from img2dataset import download
    download(**json.load(sys.stdin))
"""


def _serve(images: list[bytes], certificate: Path | None, pipe: Any) -> None:
    async def answer(request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        return web.Response(body=images[number % len(images)], content_type="image/jpeg")

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/{number}.jpg", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        context = None
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context, backlog=4096)
        await site.start()
        pipe.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(main())


@contextmanager
def server(images: list[bytes], certificate: Path | None) -> Iterator[int]:
    """Serve images from memory in a process of its own. Yields the port."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_serve, args=(images, certificate, theirs), daemon=True
    )
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def cpu_s(command: list[str], stdin: str = "", **environment: str) -> float:
    """CPU seconds of a command and everything it started and waited for. Raises where it fails."""
    process = subprocess.Popen(
        command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(stdin)
    process.stdin.close()
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[:4]} exited with {process.returncode}:\n{output[-3_000:]}")
    return usage.ru_utime + usage.ru_stime


def run_ours(table: Path, out: Path, num_rows: int, ca: Path) -> float:
    """Pairmill, in one process with two pixel threads."""
    command = [
        sys.executable, "-m", "pipeline", "download", str(table), "--out", str(out), "--local", "--image-size", "256",
        "--resize-mode", "keep_ratio_largest", "--allow-network", "127.0.0.0/8", "--shard-size", "1000",
        "--threads", "2", "--per-host", "32", "--ca-file", str(ca), "--json",
    ]  # fmt: skip
    return cpu_s(command)


def run_peer(table: Path, out: Path, num_rows: int, ca: Path) -> float:
    """img2dataset, two processes of 32 threads."""
    arguments = {
        "url_list": str(table), "input_format": "parquet", "url_col": "url", "caption_col": "caption",
        "output_folder": str(out), "output_format": "webdataset", "processes_count": 2, "thread_count": 32,
        "number_sample_per_shard": 1000, "image_size": 256, "resize_mode": "keep_ratio_largest",
        "resize_only_if_bigger": True, "encode_quality": 95,
    }  # fmt: skip
    script = out.parent / "peer.py"
    script.write_text(PEER)
    return cpu_s(
        [sys.executable, str(script)], json.dumps(arguments),
        SSL_CERT_FILE=str(ca), NO_ALBUMENTATIONS_UPDATE="1", WANDB_MODE="disabled",
    )  # fmt: skip


def num_stored(out: Path) -> int:
    """Images stored, by the tables."""
    tables = [pq.read_table(path, columns=["status"]) for path in out.glob("[0-9]*.parquet")]
    return sum(table["status"].to_pylist().count("success") for table in tables)


def measure(label: str, images: list[bytes], num_rows: int, scheme: str, rounds: int, folder: Path) -> None:
    """Print a row an engine, and the ratio."""
    authority = trustme.CA()
    ca, certificate = folder / "ca.pem", folder / "server.pem"
    # Both trust the machine's own authorities and ours: a full-sized trust store, as on the web.
    system = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    ca.write_bytes((Path(system).read_bytes() if Path(system).exists() else b"") + authority.cert_pem.bytes())
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    spent: dict[str, dict[int, list[float]]] = {"img2dataset": {}, "pairmill": {}}
    with server(images, certificate if scheme == "https" else None) as port:
        for size in (num_rows // 4, num_rows):
            urls = [f"{scheme}://127.0.0.1:{port}/{number}.jpg" for number in range(size)]
            table = folder / f"rows-{size}.parquet"
            pq.write_table(pa.table({"url": urls, "caption": [f"photo {number}" for number in range(size)]}), table)
            for _ in range(rounds if size == num_rows else 1):
                for name, engine in (("img2dataset", run_peer), ("pairmill", run_ours)):
                    out = folder / name
                    shutil.rmtree(out, ignore_errors=True)
                    spent[name].setdefault(size, []).append(engine(table, out, size, ca))
                    stored = num_stored(out)
                    if stored != size:
                        raise RuntimeError(f"{name} stored {stored} of {size} images; nothing can be compared")
    small, large = num_rows // 4, num_rows
    peer = statistics.median(spent["img2dataset"][large])
    margins = {name: statistics.median(runs[large]) - runs[small][0] for name, runs in spent.items()}
    for name, runs in spent.items():
        total = statistics.median(runs[large])
        marginal_ms = margins[name] / (large - small) * 1e3
        print(f"{label:<24}{scheme:<7}{name:<13}{large:>7}{total:>9.1f}{large / total:>10.1f}{peer / total:>8.2f}×"
              f"{marginal_ms:>10.2f}{margins['img2dataset'] / margins[name]:>9.2f}×")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--photos", type=Path, default=CHECKOUT / "../shared/data/photos", help="a folder of JPEG photos"
    )
    parser.add_argument(
        "--rows", type=int, default=3_000, help="small photos fetched in a run; a tenth of 2 megapixels"
    )
    parser.add_argument("--schemes", default="http,https")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; the median counts")
    options = parser.parse_args()
    paths = sorted(options.photos.glob("*.jpg"))
    if not paths:
        sys.exit(f"{options.photos}: no *.jpg there; name a folder of photos with --photos")
    small = [path.read_bytes() for path in paths]
    photos = [simplejpeg.decode_jpeg(data) for data in small[:60]]
    grain, rng = np.random.default_rng(0), random.Random(0)
    big = [enlarged(rng.choice(photos), grain) for _ in range(40)]
    print(f"{'to 256 px, JPEG q95':<24}{'':<7}{'engine':<13}{'rows':>7}{'CPU s':>9}{'img/CPU s':>10}{'ratio':>9}"
          f"{'ms more':>10}{'ratio':>10}")  # fmt: skip
    for scheme in options.schemes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            measure("photos of about 350 px", small, options.rows, scheme, options.rounds, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        measure("photos of 2 megapixels", big, max(options.rows // 4, 40), "http", options.rounds, Path(folder))


if __name__ == "__main__":
    main()
