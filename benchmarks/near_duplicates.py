"""Near duplicates: which copies the perceptual hashes find, and which other pictures they take for copies, by distance.

    python -m benchmarks.near_duplicates [--pages 6600] [--seed 3] [--photos FOLDER] [--emoji FOLDER] [--workers 2]

Every distinct picture of the small web gets a twin of each kind of edit, and so do photos and emoji; all are stored as
a download stores them, longer side 256, JPEG. found: share of twins within the distance of their original. false:
originals with another, earlier original within the distance, which `unique` would drop. precision: of what `unique`
drops where one row in a hundred is a twin of each kind, as on the small web.
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from filters.phash import SIDE, coarse_hashes, fine_hashes, hamming, miniature
from filters.pixels import decode, grey
from infra.miniweb.pictures import Picture, encode
from infra.miniweb.plan import plan_site
from pipeline.images import ImageConfig, convert

EDITS = ("resized", "recompressed", "cropped")
STORED = ImageConfig(image_size=256, resize_mode="keep_ratio_largest")
DISTANCES = range(0, 17, 2)  # half of the bits are set, so distances are nearly always even
HASHES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"phash": coarse_hashes, "phash_fine": fine_hashes}
SHARE = 0.01  # of each kind of twin among the rows


def drawn(num_pages: int, seed: int) -> list[Picture]:
    """The pictures of a small web that show what no earlier one does and that come down right."""
    candidates = [each for page in plan_site(num_pages, seed, 8000).pages for each in page.candidates]
    good = [each for each in candidates if each.outcome == "success" and each.picture and not each.duplicate_of]
    return list({each.picture.scene: each.picture for each in reversed(good) if each.picture}.values())[::-1]


def miniatures(images: Iterable[bytes]) -> np.ndarray:
    """What the hashes are made of, (images, SIDE, SIDE), of the images as a download stores them."""
    pixels = [decode(convert(image, STORED).data) for image in images]
    assert all(each is not None for each in pixels)
    return np.stack([miniature(grey(each)) for each in pixels if each is not None])


def of_drawing(picture: Picture) -> np.ndarray:
    """The original and its twins, (1 + edits, SIDE, SIDE), as the small web serves them."""
    twins = [replace(picture, edit=edit, format="jpeg", orientation=1) for edit in EDITS]
    return miniatures(map(encode, [picture, *twins]))


def of_file(path: Path) -> np.ndarray:
    """The same of a photo: resized to .5 to .8, recompressed at quality 50 to 85, 2 to 10 % of each side cut off."""
    rng = random.Random(path.name)
    pixels = decode(path.read_bytes())
    assert pixels is not None
    image = Image.fromarray(pixels)
    scale = rng.uniform(0.5, 0.8)
    width, height = (round(side * scale) for side in image.size)
    box: list[float] = []
    for side in image.size:
        lost = rng.uniform(0.02, 0.1) * side
        first = rng.uniform(0, lost)
        box += [first, first + side - lost]
    cropped = image.crop(tuple(round(edge) for edge in (box[0], box[2], box[1], box[3])))  # type: ignore[arg-type]
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return miniatures(
        [_jpeg(image, 95), _jpeg(resized, 90), _jpeg(image, rng.randint(50, 85)), _jpeg(cropped, 90)],
    )


def nearest_earlier(hashes: np.ndarray) -> np.ndarray:
    """For each hash its distance to the nearest of those before it; 65 for the first."""
    nearest = np.full(len(hashes), 65)
    for first in range(0, len(hashes), 512):
        block = hashes[first : first + 512]
        apart = hamming(block[:, None], hashes[None, : first + len(block)]).astype(int)
        apart[np.arange(len(hashes[: first + len(block)]))[None] >= np.arange(first, first + len(block))[:, None]] = 65
        nearest[first : first + len(block)] = apart.min(axis=1)
    return nearest


def report(title: str, found: Sequence[np.ndarray]) -> None:
    """Print a table for each hash. found: what `of_drawing` or `of_file` made, for each picture."""
    stacked = np.stack(found)  # (pictures, 1 + edits, SIDE, SIDE)
    for name, hashes in HASHES.items():
        each = hashes(stacked.reshape(-1, SIDE, SIDE)).reshape(stacked.shape[:2])
        nearest = nearest_earlier(each[:, 0])
        apart = hamming(each[:, :1], each[:, 1:])  # (pictures, edits)
        print(f"\n{title}: {name}, {len(each):,} pictures\n")
        print(f"| distance | found {' | '.join(EDITS)} | false rows | precision |")
        print("|---" * (3 + len(EDITS)) + "|")
        for distance in DISTANCES:
            recall = np.mean(apart <= distance, axis=0)
            num_false = int(np.sum(nearest <= distance))
            true = SHARE * len(each) * float(recall.sum())
            precision = true / (true + num_false)
            cells = [f"{share:.3f}" for share in recall] + [f"{num_false:,}", f"{precision:.3f}"]
            print(f"| {distance} | {' | '.join(cells)} |")


def _jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=6600, help="of the small web: about three pictures each")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/photos"), help="a folder of JPEG photos")
    parser.add_argument("--emoji", type=Path, default=Path("../shared/data/emoji"), help="a folder of PNG drawings")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.workers) as pool:
        each = partial(pool.map, chunksize=32)
        report("small web", list(each(of_drawing, drawn(options.pages, options.seed))))
        for title, paths in (("photos", options.photos.glob("*.jpg")), ("emoji", options.emoji.glob("*.png"))):
            if found := sorted(paths):
                report(title, list(each(of_file, found)))


if __name__ == "__main__":
    main()
