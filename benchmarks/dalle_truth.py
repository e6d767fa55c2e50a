"""DALL-E on the small web: does it draw what the caption says? Colour, shape and count, of the best of N candidates.

    python -m benchmarks.dalle_truth [--scenes 96000] [--held 500] [--rerank RUN] [--work out/dalle_truth]

Drawn scenes as the small web's trusted host shows them, one true caption each, teach a dVAE, and its tokens a DALL-E:
the tiny recipes, for longer, the DALL-E a little wider. On 2 cores reckon with two hours.
Captions of other scenes, of one kind of thing each and drawn from other seeds, are what it is asked for: 64 candidates
of each. Of every 1, 4, 16 and 64 of them, one after another, a CLIP chooses one; it was trained on such scenes, too.

What a drawn picture shows is said by a classifier that learnt from the truth: 60,000 further scenes of one kind of
thing, each as it was drawn or as the dVAE gives it back, and what is true of it. How often it is right of 2,000 others
that the dVAE gave back bounds what can be seen of a DALL-E without a fault. Chance is what it says of the same drawn
pictures when each is dealt to another caption.

Scenes, runs, a sheet of reconstructions and one of the drawn pictures stay in --work, and are not made again.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.clip_auc import RATIOS, SHORTER, make
from infra.miniweb.captions import describe
from infra.miniweb.pictures import Picture, encode
from infra.miniweb.scenes import COLOURS, MAX_COUNT, SHAPES, Scene, random_scene
from training.evaluate.confidence import Share, share_of_hits
from training.evaluate.contact import Strip, contact
from training.evaluate.embed import Encoder
from training.models.load import load_encoder
from training.models.painter import as_bytes, load_painter
from training.models.token_maker import TokenMaker, load_token_maker
from training.preprocess import Ops
from training.sample import Drawn, sample, sheet
from training.sample_settings import SampleSettings

KINDS: Mapping[str, Sequence[object]] = {"colour": COLOURS, "shape": SHAPES, "count": range(1, MAX_COUNT + 1)}
SIZES = (1, 4, 16, 64)  # candidates
TAUGHT, TRIED = 60_000, 2_000  # scenes that the classifier learns from, and those that it is tried on
EPOCHS, BATCH, RATE = 6, 128, 2e-3
# The tiny recipes, for longer. Four times the samples let the temperature fall later and divergence weigh more, which
# leaves more codes in use.
VAE = ("samples=160000", "model.divergence=3", "model.divergence_steps=500", "model.temperature_steps=2000")
DALLE = ("samples=132000", "model.stack={width: 160, layers: 4, heads: 5}")
SHOWN = 12  # captions of the sheet

# Shapes: B pictures of 3 x side x side; P captions, N candidates


def one_thing(split: str, number: int) -> tuple[Scene, str]:
    """A scene of one kind of thing, and a true caption, which tells its colour, shape and count."""
    rng = random.Random(f"{split}/{number}")
    scene = random_scene(rng)
    while len(scene.things) > 1:
        scene = random_scene(rng)
    return scene, describe(scene, "en", rng)


def picture_of(number: int, split: str, ops: str) -> tuple[Tensor, list[int]]:
    """(3, H, W) in [0, 1], and what is true of it: places in KINDS."""
    scene, _ = one_thing(split, number)
    ratio = random.Random(f"{split}/{number}/ratio").choice(RATIOS)
    data = encode(Picture(scene, round(SHORTER * max(1, ratio)), round(SHORTER * max(1, 1 / ratio)), quality=90))
    return Ops.parse(ops)(data, np.random.default_rng(0)), truth(scene)


def truth(scene: Scene) -> list[int]:
    (thing,) = scene.things
    return [COLOURS.index(thing.colour), SHAPES.index(thing.shape), thing.count - 1]


def pictures(split: str, num: int, ops: str) -> tuple[Tensor, Tensor]:
    """(num, 3, H, W) uint8 and (num, 3) int64."""
    with Pool(initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = [
            (as_bytes(image).numpy(), facts)
            for image, facts in pool.imap(partial(picture_of, split=split, ops=ops), range(num), chunksize=64)
        ]
    return torch.from_numpy(np.stack([image for image, _ in found])), torch.tensor([facts for _, facts in found])


def given_back(maker: TokenMaker, images: Tensor) -> Tensor:
    """Pictures through the dVAE: (B, 3, H, W) uint8 each."""
    return torch.cat([as_bytes(maker.decode(maker.encode(part / 255))) for part in images.split(256)])


class Classifier(nn.Module):
    """(B, 3, side, side) uint8 → logits of each kind of fact."""

    def __init__(self, side: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 256)
        self.body = nn.Sequential(*(
            layer for before, width in pairwise(widths)
            for layer in (nn.Conv2d(before, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        ))  # fmt: skip
        self.heads = nn.ModuleList(nn.Linear(widths[-1] * (side // 16) ** 2, len(kinds)) for kinds in KINDS.values())

    def forward(self, images: Tensor) -> list[Tensor]:
        states = self.body(images / 127.5 - 1).flatten(1)
        return [head(states) for head in self.heads]


def taught(images: Tensor, back: Tensor, facts: Tensor) -> Classifier:
    """A classifier of pictures as drawn and as given back."""
    torch.manual_seed(0)
    model, num = Classifier(images.shape[-1]).to(memory_format=torch.channels_last), len(images)
    optim = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = EPOCHS * (num // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optim, RATE, total_steps=steps)
    for step in range(steps):
        if step % (num // BATCH) == 0:
            order = torch.randperm(num)
        rows = order[step % (num // BATCH) * BATCH :][:BATCH]
        is_back = torch.rand(len(rows), 1, 1, 1) < 0.5
        shown = torch.where(is_back, back[rows], images[rows]).contiguous(memory_format=torch.channels_last)
        losses = [F.cross_entropy(logits, own) for logits, own in zip(model(shown), facts[rows].T, strict=True)]
        optim.zero_grad()
        torch.stack(losses).sum().backward()
        optim.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def hits(model: Classifier, images: Tensor, facts: Tensor) -> Tensor:
    """(B, 4) bool: colour, shape, count, and all three."""
    said = torch.cat([torch.stack([one.argmax(1) for one in model(part)], 1) for part in images.split(256)])
    found = said == facts
    return torch.cat([found, found.all(1, keepdim=True)], 1)


def shares(found: Tensor) -> list[Share]:
    """(B, 4) bool, or (P, n, 4) of which those of a caption hang together → a share of each."""
    found = found.reshape(len(found), -1, found.shape[-1])
    trials = torch.full((len(found),), found.shape[1])
    told = [share_of_hits(column, trials) for column in found.sum(1).T]
    return [share for share in told if share is not None]


def line(name: str, found: Tensor) -> str:
    told = ((100 * share.value, 100 * (share.low or 0), 100 * (share.high or 0)) for share in shares(found))
    return f"{name:<26}" + "".join(f"{value:>7.1f} ({low:.1f} to {high:.1f})" for value, low, high in told)


def psnr(one: Tensor, two: Tensor) -> float:
    """Mean over pictures, dB."""
    error = ((one.float() - two.float()) / 255).square().mean((1, 2, 3)).clamp(min=1e-10)
    return float(-10 * error.log10().mean())


def run(*words: str) -> None:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "training", *words], check=True)
    print(f"{words[0]} {words[1]}: {time.perf_counter() - began:.0f} s", flush=True)


def train(recipe: str, settings: Sequence[str]) -> None:
    run("train", f"training/recipes/{recipe}.yaml", *(word for setting in settings for word in ("--set", setting)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=96_000, help="to train on")
    parser.add_argument("--held", type=int, default=500, help="captions to draw")
    parser.add_argument("--work", type=Path, default=Path("out/dalle_truth"), help="an empty or new folder")
    parser.add_argument("--rerank", help="choose by this run of ours instead of training a CLIP")
    parser.add_argument("--set-vae", action="append", default=[], help="change one value of the dVAE's recipe")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="change one value of the DALL-E's")
    options = parser.parse_args()
    work, scenes = options.work, f"{options.work}/train-{options.scenes}"
    if not Path(scenes).exists():
        half = Path(f"{scenes}.part")
        shutil.rmtree(half, ignore_errors=True)
        make(half, options.scenes, ("true",), ("en",), "train", mix=None)
        half.rename(scenes)
    data = f"data.datasets.0.path={scenes}"
    train("dalle_vae_tiny", [data, *VAE, f"out={work}/vae", *options.set_vae])
    run("encode", f"{work}/vae", "--data", scenes, "--name", "vae")
    maker = load_token_maker(f"{work}/vae")
    tokens = [f"model.codes={maker.kinds}", f"model.grid={maker.grid}"]
    train("dalle_tiny", [data, *tokens, *DALLE, f"out={work}/dalle", *options.settings])
    if options.rerank is None:
        train("clip_alike", [data, f"out={work}/clip"])
    encoder = load_encoder(options.rerank or f"{work}/clip")

    model, tried = judged(work, maker)
    captions = [one_thing("held", number) for number in range(options.held)]
    facts = torch.tensor([truth(scene) for scene, _ in captions])
    drawn = draw(work, [caption for _, caption in captions], encoder)
    (work / "drawn.png").write_bytes(sheet(drawn[:SHOWN], SIZES[-2]))
    tell(model, tried, drawn, facts)


def tell(model: Classifier, tried: Tensor, drawn: Sequence[Drawn], facts: Tensor) -> None:
    """Print the table. tried: hits of real pictures; facts: (P, 3), of the captions."""
    images = torch.cat([one.pictures for one in drawn])
    scores = torch.stack([one.scores for one in drawn if one.scores is not None])
    right, other = (
        hits(model, images, own.repeat_interleave(SIZES[-1], 0)).unflatten(0, (-1, SIZES[-1]))
        for own in (facts, facts.roll(1, 0))
    )
    print(f"\n{'right of 100':<26}" + "".join(f"{name:>22}" for name in [*KINDS, "all three"]))
    print(line("real ones, given back", tried))
    for size in SIZES:
        print(line(f"drawn, best of {size}", best_of(size, right, scores)))
    print(line("dealt to other captions", best_of(SIZES[-1], other, scores)))
    print(line(f"any of {SIZES[-1]}", right.any(1)))


def best_of(size: int, found: Tensor, scores: Tensor) -> Tensor:
    """(P, N, 4) hits, (P, N) → (P, N / size, 4): those of the best of every `size` candidates."""
    chosen = scores.unflatten(1, (-1, size)).argmax(2)[..., None, None]
    return found.unflatten(1, (-1, size)).take_along_dim(chosen, 2).squeeze(2)


def judged(work: Path, maker: TokenMaker) -> tuple[Classifier, Tensor]:
    """The classifier, and its hits of pictures that the dVAE gave back."""
    images, facts = pictures("taught", TAUGHT, maker.ops)
    began = time.perf_counter()
    model = taught(images, given_back(maker, images), facts)
    others, own = pictures("tried", TRIED, maker.ops)
    back = given_back(maker, others)
    print(f"classifier: {time.perf_counter() - began:.0f} s")
    print(line("real ones, as drawn", hits(model, others, own)))
    used = torch.cat([maker.encode(part / 255).flatten() for part in others.split(256)]).unique()
    print(f"reconstructions: PSNR {psnr(others, back):.2f} dB of {TRIED:,}, {len(used)} of {maker.kinds} codes in use")
    rows = [Strip(name, part[:16], [""] * 16) for name, part in {"drawn": others, "given back": back}.items()]
    (work / "reconstructions.png").write_bytes(contact(rows))
    return model, hits(model, back, own)


def draw(work: Path, captions: Sequence[str], encoder: Encoder) -> list[Drawn]:
    painter = load_painter(f"{work}/dalle", vae=f"{work}/vae")
    began = time.perf_counter()
    drawn = [*sample(painter, captions, SampleSettings(num_candidates=SIZES[-1]), encoder)]
    print(f"{len(captions) * SIZES[-1]:,} pictures drawn and scored in {time.perf_counter() - began:.0f} s")
    return drawn


if __name__ == "__main__":
    main()
