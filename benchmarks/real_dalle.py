"""Real pictures: what a tiny DALL-E, trained from nothing on Noto's emoji with their names, draws of other names.

    python -m benchmarks.real_dalle [--rerank RUN] [--data ../shared/data] [--work DIR]

A part of the emoji is held out by kind (benchmarks/real_clip.py says how). The rest teach words, a dVAE, a DALL-E, and,
unless --rerank names one, the CLIP that chooses. Pictures to look at, chosen by hash, not by eye:

    reconstructions.png  pictures of kinds held out, and what the dVAE makes of them
    seen.png             names of training, the best of 64 first
    held_out.png         names of kinds held out, the best of 64 first
    completed.png        a half of pictures held out is given, the other drawn to their names
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.dalle_truth import psnr, run, train
from benchmarks.real_clip import Picture, drawings, held_out, write_dataset
from training.data.source import captions_of
from training.evaluate.contact import Strip, contact
from training.evaluate.embed import Encoder
from training.models.load import load_encoder
from training.models.painter import Painter, as_bytes, load_painter
from training.preprocess import Ops
from training.sample import first_rows, sample, sheet
from training.sample_settings import SampleSettings

NUM_WORDS = 1500
PROMPTS, CANDIDATES, SHOWN = 12, 64, 12
KEPT = 0.5  # of the rows
# The tiny recipes, for longer: benchmarks/dalle_truth.py says why the dVAE's schedules change with that.
VAE = ("samples=80000", "model.divergence=3", "model.divergence_steps=500", "model.temperature_steps=1500")
DALLE = ("samples=72000",)


def drawn(painter: Painter, judge: Encoder, names: Sequence[str], out: Path) -> None:
    found = [*sample(painter, names, SampleSettings(num_candidates=CANDIDATES), judge)]
    out.write_bytes(sheet(found, SHOWN))


def completed(painter: Painter, judge: Encoder, pictures: Sequence[Picture], out: Path) -> None:
    """A row a picture: itself, as the dVAE gives it back, and the best of what goes on from its upper half."""
    rows, maker = [], painter.maker
    for picture in pictures:
        given = first_rows(maker, picture.data, round(KEPT * maker.grid))
        (found,) = sample(painter, [picture.name], SampleSettings(num_candidates=CANDIDATES), judge, given)
        image = Ops.parse(maker.ops)(picture.data, np.random.default_rng(0))[None]
        real = torch.cat([as_bytes(image), as_bytes(maker.decode(maker.encode(image)))])
        best = list(found.order[: SHOWN - 2])
        notes = ["held out", "given back", *(f"{at}  {found.scores[at]:.3f}" for at in best)]
        rows.append(Strip(picture.name, torch.cat([real, found.pictures[best]]), notes))
    out.write_bytes(contact(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/pairmill-real/dalle"), help="emptied first")
    parser.add_argument("--rerank", help="choose by this CLIP's run instead of training one")
    parser.add_argument("--set-vae", action="append", default=[], help="change one value of the dVAE's recipe")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="change one value of the DALL-E's")
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"{options.data}: no such folder; name the test material's with --data")
    work, folder = options.work, f"{options.work}/train"
    shutil.rmtree(work, ignore_errors=True)
    emoji = [picture for picture in drawings(options.data) if "emoji" in picture.path.parts]
    seen, unseen = held_out(emoji)
    write_dataset(work / "train", seen)
    words = work / "words.bpe"
    run("tokenizer", folder, "--vocab-size", str(NUM_WORDS), "--out", str(words))
    texts = [*captions_of([folder], None)]
    data = f"data.datasets.0.path={folder}"
    train("dalle_vae_tiny", [data, f"out={work}/vae", *VAE, *options.set_vae])
    run("encode", f"{work}/vae", "--data", folder, "--name", "vae")
    train("dalle_tiny", [data, f"model.vocab={words}", f"out={work}/dalle", *DALLE, *options.settings])
    if options.rerank is None:
        train("clip_tiny", [data, f"out={work}/clip"])
    painter, judge = load_painter(f"{work}/dalle", vae=f"{work}/vae"), load_encoder(options.rerank or f"{work}/clip")
    firsts = [kind[0] for kind in unseen][:PROMPTS]
    images = torch.stack([Ops.parse(painter.maker.ops)(each.data, np.random.default_rng(0)) for each in firsts])
    back = painter.maker.decode(painter.maker.encode(images))
    print(f"{len(seen):,} emoji with {len(set(texts)):,} names; {len(unseen)} kinds held out; "
          f"reconstructions of {len(firsts)}: PSNR {psnr(as_bytes(images), as_bytes(back)):.2f} dB")  # fmt: skip
    pairs = {"held out": as_bytes(images), "given back": as_bytes(back)}
    rows = [Strip(name, part, [""] * len(part)) for name, part in pairs.items()]
    (work / "reconstructions.png").write_bytes(contact(rows))
    drawn(painter, judge, [each.name for each in seen[:: len(seen) // PROMPTS][:PROMPTS]], work / "seen.png")
    drawn(painter, judge, [each.name for each in firsts], work / "held_out.png")
    completed(painter, judge, firsts, work / "completed.png")
    print(f"look at {work}/*.png")


if __name__ == "__main__":
    main()
