"""Images: CPU per image and pixel error, img2dataset's Resizer against ours, on the same bytes.

    python -m benchmarks.images [--photos ../shared/data/photos] [--sample 200] [--rounds 5]

Truth is the exact area average of the fully decoded photo, in float64. "Before encoding" is what each engine hands to
its encoder: ours from `prepare`, which `convert` itself calls; img2dataset's by asking it for lossless PNG.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for its version

import cv2
import numpy as np
import simplejpeg

from pipeline.images import ImageConfig, convert, prepare

SIDE, QUALITY = 256, 95
CONFIG = ImageConfig(image_size=SIDE, resize_mode="keep_ratio_largest", only_if_bigger=True, encode_quality=QUALITY)


def exact_area(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) → (size[1], size[0], C) float64: each pixel the mean of what it covers, fractions weighted."""
    rows, columns = _weights(pixels.shape[0], size[1]), _weights(pixels.shape[1], size[0])
    return np.einsum("yh,hwc,xw->yxc", rows, pixels.astype(np.float64), columns, optimize=True)


def _weights(source: int, target: int) -> np.ndarray:
    """(target, source): how much of each source pixel a target pixel covers; rows sum to 1."""
    edges = np.arange(target + 1) * (source / target)
    cells = np.arange(source)
    covered = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return np.clip(covered, 0, None) * (target / source)


def enlarged(photo: np.ndarray, rng: np.random.Generator) -> bytes:
    """A 1600×1200 photo: one small one enlarged, with film grain for the detail it lacks."""
    height = min(photo.shape[0], photo.shape[1] * 3 // 4)
    big = cv2.resize(photo[:height, : height * 4 // 3], (1600, 1200), interpolation=cv2.INTER_LANCZOS4)
    grain = rng.normal(0, 4, big.shape)
    return simplejpeg.encode_jpeg(np.clip(big + grain, 0, 255).astype(np.uint8), 90, colorsubsampling="420")


def mosaic(photos: list[np.ndarray]) -> bytes:
    """A 1600×1200 mosaic of 20 small photos, unscaled: real detail in every pixel, harder than any one photo."""
    tiles = [photo[:300, :320] for photo in photos]
    rows = [np.concatenate(tiles[at : at + 5], axis=1) for at in range(0, 20, 5)]
    return simplejpeg.encode_jpeg(np.ascontiguousarray(np.concatenate(rows)), 90, colorsubsampling="420")


def cpu_ms(engines: dict[str, Callable[[bytes], object]], images: list[bytes], rounds: int) -> dict[str, float]:
    """Process CPU per image, the best of interleaved rounds, so that a neighbour's load spares no engine."""
    best = dict.fromkeys(engines, float("inf"))
    for _ in range(rounds):
        for name, engine in engines.items():
            started = time.process_time()
            for data in images:
                engine(data)
            best[name] = min(best[name], (time.process_time() - started) / len(images) * 1e3)
    return best


def error(results: list[np.ndarray], truths: list[np.ndarray]) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.mean([np.abs(result - truth).mean() for result, truth in zip(results, truths, strict=True)]))


def compare(name: str, images: list[bytes], rounds: int) -> None:
    """Print one row for each engine, and the ratio."""
    from img2dataset.resizer import Resizer

    theirs = Resizer(SIDE, "keep_ratio_largest", True, encode_quality=QUALITY)
    theirs_lossless = Resizer(SIDE, "keep_ratio_largest", True, encode_format="png", encode_quality=1)

    def their_bytes(resizer: Resizer, data: bytes) -> bytes:
        stored, *_, failure = resizer(io.BytesIO(data))
        assert failure is None, failure
        return stored

    def decoded(data: bytes) -> np.ndarray:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(np.float64)

    ours_before = [prepare(data, CONFIG).pixels.astype(np.float64) for data in images]
    sizes = [(pixels.shape[1], pixels.shape[0]) for pixels in ours_before]
    truths = [exact_area(decoded(data), size) for data, size in zip(images, sizes, strict=True)]
    times = cpu_ms(
        {"img2dataset": lambda data: their_bytes(theirs, data), "pairmill": lambda data: convert(data, CONFIG)},
        images,
        rounds,
    )
    errors = {
        "img2dataset": (
            error([decoded(their_bytes(theirs_lossless, data)) for data in images], truths),
            error([decoded(their_bytes(theirs, data)) for data in images], truths),
        ),
        "pairmill": (
            error(ours_before, truths),
            error([decoded(convert(data, CONFIG).data) for data in images], truths),
        ),
    }
    for engine, spent in times.items():
        before, after = errors[engine]
        ratio = times["img2dataset"] / spent
        print(f"{name:<28}{len(images):>7}  {engine:<12}{spent:>9.3f}{ratio:>8.2f}×{before:>10.2f}{after:>10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/photos"), help="a folder of JPEG photos")
    parser.add_argument("--sample", type=int, default=200, help="how many of them")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; the best counts")
    options = parser.parse_args()
    paths = sorted(options.photos.glob("*.jpg"))
    if not paths:
        sys.exit(f"{options.photos}: no *.jpg there; name a folder of photos with --photos")
    rng = random.Random(0)
    small = [path.read_bytes() for path in rng.sample(paths, min(options.sample, len(paths)))]
    photos = [photo for photo in map(simplejpeg.decode_jpeg, small) if photo.shape[0] >= 300 and photo.shape[1] >= 320]
    grain = np.random.default_rng(0)
    big = max(1, options.sample // 10)
    print(
        f"{'to 256 px, JPEG q95':<28}{'number':>7}  {'engine':<12}{'CPU ms':>9}{'ratio':>9}{'before':>10}{'stored':>10}"
    )
    compare("small photos, as they are", small, options.rounds)
    compare("2 megapixels, enlarged", [enlarged(rng.choice(photos), grain) for _ in range(big)], options.rounds)
    compare("2 megapixels, mosaic", [mosaic(rng.choices(photos, k=20)) for _ in range(big)], options.rounds)
    print(
        "ratio: img2dataset's CPU over the engine's; then the mean absolute error in grey levels, before encoding and"
    )
    print("as stored, against the exact area average")


if __name__ == "__main__":
    main()
