"""Preprocess: CPU per image from JPEG bytes to the normalised tensor, open_clip's transforms against ours.

    python -m benchmarks.preprocess [--photos ../shared/data/photos] [--sample 60] [--rounds 7]

One process, one thread. The same files for both, the rounds interleaved, the best of each counts. open_clip decodes as
its loader does, by Pillow, then runs the transform that it makes by itself. Training is a random crop of 0.9 to 1 of
the area, resized to 224; evaluation is the shorter side at 224 and the middle of that, and for it the difference of the
two results is told in grey levels.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image

from benchmarks.images import mosaic
from infra.torchvision_here import make_importable
from training.preprocess import Ops, set_up_worker

SIZE, QUALITY = 224, 90
LINES = {
    "training": f"decode|random_resized_crop({SIZE}, 0.9)|normalize(clip)",
    "evaluation": f"decode|resize({SIZE})|center_crop({SIZE})|normalize(clip)",
}
CLIP_STD = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]

Engine = Callable[[bytes], torch.Tensor]


def encoded(pixels: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), QUALITY, colorsubsampling="420")


def with_shorter_side(photo: np.ndarray, length: int) -> bytes:
    scale = length / min(photo.shape[:2])
    size = round(photo.shape[1] * scale), round(photo.shape[0] * scale)
    return encoded(np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS)))


def made(photos: list[np.ndarray], sample: int, rng: random.Random) -> dict[str, list[bytes]]:
    """JPEGs of three sizes, with real detail in every pixel: the two large ones are mosaics of unscaled photos."""
    mosaics = [mosaic(rng.choices(photos, k=20)) for _ in range(max(1, sample // 5))]
    parts = [simplejpeg.decode_jpeg(rng.choice(mosaics))[:512, :640] for _ in range(sample)]
    return {
        "256 px": [with_shorter_side(photo, 256) for photo in rng.sample(photos, min(sample, len(photos)))],
        "640×512": [encoded(part) for part in parts],
        "1600×1200": mosaics,
    }


def engines(kind: str) -> dict[str, Engine]:
    """Both ways from bytes to a tensor."""
    make_importable()
    from open_clip.transform import image_transform

    transform = image_transform(SIZE, is_train=kind == "training")
    ops, rng = Ops.parse(LINES[kind]), np.random.default_rng(0)
    return {
        "open_clip": lambda data: transform(Image.open(io.BytesIO(data)).convert("RGB")),
        "pairmill": lambda data: ops(data, rng),
    }


def cpu_ms(rivals: dict[str, Engine], images: list[bytes], rounds: int) -> dict[str, float]:
    """Process CPU per image, the best of interleaved rounds."""
    best = dict.fromkeys(rivals, float("inf"))
    for _ in range(rounds):
        for name, engine in rivals.items():
            started = time.process_time()
            for data in images:
                engine(data)
            best[name] = min(best[name], (time.process_time() - started) / len(images) * 1e3)
    return best


def difference(rivals: dict[str, Engine], images: list[bytes]) -> float:
    """Mean absolute difference of the two results in grey levels; the worst image's."""
    theirs, ours = rivals.values()
    return max(float(((theirs(data) - ours(data)) * CLIP_STD * 255).abs().mean()) for data in images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/photos"), help="a folder of JPEG photos")
    parser.add_argument("--sample", type=int, default=60, help="how many images of a size; a fifth of the largest")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds; the best counts")
    options = parser.parse_args()
    paths = sorted(options.photos.glob("*.jpg"))
    if not paths:
        sys.exit(f"{options.photos}: no *.jpg there; name a folder of photos with --photos")
    set_up_worker()
    rng = random.Random(0)
    photos = [simplejpeg.decode_jpeg(path.read_bytes()) for path in rng.sample(paths, min(200, len(paths)))]
    photos = [photo for photo in photos if photo.shape[0] >= 300 and photo.shape[1] >= 320]
    sizes = made(photos, options.sample, rng)
    print(
        f"{'to 224 px, float32':<20}{'images':<12}{'open_clip ms':>14}{'pairmill ms':>14}{'ratio':>9}{'difference':>13}"
    )
    for kind in LINES:
        rivals = engines(kind)
        for name, images in sizes.items():
            spent = cpu_ms(rivals, images, options.rounds)
            ratio = spent["open_clip"] / spent["pairmill"]
            levels = f"{difference(rivals, images):.2f}" if kind == "evaluation" else "–"
            print(
                f"{kind:<20}{name:<12}{spent['open_clip']:>14.3f}{spent['pairmill']:>14.3f}{ratio:>8.2f}×{levels:>13}"
            )
    print("ratio: open_clip's CPU over ours; difference: mean absolute, grey levels, of the worst image")


if __name__ == "__main__":
    main()
