"""What Ray costs: the same 64 archives with --local, on one Ray node and on two, wall and CPU seconds, per shard.

    python -m benchmarks.executors [--shards 64] [--archive FILE.warc.gz] [--repeat 20]

Each run is the command that a person types; the bytes of all three results are compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.download import CHECKOUT, cpu_s
from tests.servers.commands import assert_same
from tests.servers.ray_nodes import ray_nodes


def timed(archives: Path, out: Path, *more: str) -> tuple[float, float]:
    """Wall and CPU seconds of a crawl; CPU without that of Ray's own processes, which outlive the command."""
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "crawl",
        "--warc",
        str(archives / "*.warc.gz"),
        "--out",
        str(out),
        *more,
    ]
    started = time.perf_counter()
    spent_s = cpu_s(command)
    return time.perf_counter() - started, spent_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = CHECKOUT / "../shared/data/warc/resiliparse-warcfile.warc.gz"
    parser.add_argument("--archive", type=Path, default=default, help="a WARC file; each shard repeats it")
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=20, help="copies of the archive in one shard")
    options = parser.parse_args()
    if not options.archive.exists():
        sys.exit(f"{options.archive}: no such file; name a WARC with --archive")
    (CHECKOUT / "out").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CHECKOUT / "out") as name:  # not /tmp: the second node has its own
        folder = Path(name)
        (folder / "in").mkdir()
        data = options.archive.read_bytes() * options.repeat
        for number in range(options.shards):
            (folder / f"in/{number:05d}.warc.gz").write_bytes(data)
        mb = options.shards * len(data) / 1e6
        print(f"{options.shards} shards, {mb:.0f} MB compressed")
        print(f"{'':<34}{'wall s':>8}{'MB/s':>8}{'ms more a shard':>18}")
        local_s, _ = timed(folder / "in", folder / "local", "--local")
        print(f"{'--local, one process':<34}{local_s:>8.1f}{mb / local_s:>8.1f}")
        started = time.perf_counter()
        cpu_s([sys.executable, "-c", "from infra.executors import RayExecutor as R; r = R(); r.connect(); r.close()"])
        start_s = time.perf_counter() - started
        for label, nodes in (("one Ray node, 2 CPUs", 0), ("two Ray nodes, 1 CPU each", 2)):
            out = folder / f"ray{nodes}"
            if nodes:
                with ray_nodes() as (address, _):
                    time.sleep(8)  # until the second node has joined
                    wall_s, _ = timed(folder / "in", out, "--ray", address)
            else:
                wall_s, _ = timed(folder / "in", out)
            more_ms = (2 * wall_s - local_s) / options.shards * 1e3
            print(f"{label:<34}{wall_s:>8.1f}{mb / wall_s:>8.1f}{more_ms:>18.1f}")
            assert_same(folder / "local", out)
        print(f"starting and stopping a Ray alone: {start_s:.1f} s")
        print("ms more a shard: wall of both CPUs beyond that of --local, over the shards; all gave the same bytes")


if __name__ == "__main__":
    main()
