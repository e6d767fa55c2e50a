"""Near-duplicates among 64-bit hashes: seconds, memory, growth, and a comparison of all with all on a sample.

    python -m benchmarks.unique [--rows 1e6,1e7] [--distance 4]

A fifth of the hashes lie 0 to 6 bits from another one, a fiftieth share all but 20 of their bits (near-uniform
pictures), the others are random. All with all: numpy in blocks on 20,000 of the hashes, multiplied by the square of the
ratio; that is what a search without an index costs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt

from filters.near import greedy_unique

SAMPLE = 20_000


def drawn(num_rows: int, seed: int = 0) -> npt.NDArray[np.uint64]:
    """Hashes as a crawl may have them."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, num_rows, dtype=np.uint64)
    near = rng.choice(num_rows, num_rows // 5, replace=False)
    hashes[near] = hashes[rng.integers(0, num_rows, len(near))]
    for flips in range(6):
        some = near[rng.random(len(near)) < (6 - flips) / 7]
        hashes[some] ^= np.uint64(1) << rng.integers(0, 64, len(some)).astype(np.uint64)
    alike = rng.choice(num_rows, num_rows // 50, replace=False)
    hashes[alike] = rng.integers(0, 1 << 20, len(alike), dtype=np.uint64)
    return hashes


def measured(num_rows: int, distance: int, out: Connection) -> None:
    """In a process of its own, so that its peak memory is its own."""
    hashes = drawn(num_rows)
    started = time.monotonic()
    because = greedy_unique(hashes, distance)
    took_s = time.monotonic() - started
    out.send((took_s, int((because >= 0).sum()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))


def all_with_all(distance: int) -> float:
    """Seconds for the sample."""
    hashes = drawn(SAMPLE)
    started = time.monotonic()
    kept = np.zeros(0, np.uint64)
    for start in range(0, len(hashes), 1000):
        block = hashes[start : start + 1000]
        far = ~(np.bitwise_count(block[:, None] ^ kept[None, :]) <= distance).any(axis=1)
        within = np.tril(np.bitwise_count(block[:, None] ^ block[None, :]) <= distance, -1).any(axis=1)
        kept = np.concatenate([kept, block[far & ~within]])
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1e6,1e7")
    parser.add_argument("--distance", type=int, default=4)
    options = parser.parse_args()
    brute_s = all_with_all(options.distance)
    context = multiprocessing.get_context("spawn")
    for num_rows in (int(float(word)) for word in options.rows.split(",")):
        ours, theirs = context.Pipe()
        process = context.Process(target=measured, args=(num_rows, options.distance, theirs))
        process.start()
        took_s, num_fallen, peak_mib = ours.recv()
        process.join()
        reckoned_s = brute_s * (num_rows / SAMPLE) ** 2
        print(f"{num_rows:,} hashes, distance {options.distance}: {took_s:.1f} s, {num_rows / took_s:,.0f} rows/s, "
              f"{num_fallen:,} fall, peak {peak_mib:,} MiB; all with all {reckoned_s / 3600:,.1f} h (reckoned from "
              f"{brute_s:.1f} s for {SAMPLE:,}), ratio {reckoned_s / took_s:,.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
