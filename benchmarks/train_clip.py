"""Training step: our engine against a bare PyTorch loop on preloaded tensors, same model, same data, same cores.

    python -m benchmarks.train_clip [--arch ViT-S-16] [--image-size 112] [--batch 64] [--rounds 6]

A CLIP with a ViT-S/16 image tower in fp32; ours under DeepSpeed ZeRO-1 on one rank, a bare loop with torch's fused
AdamW and open_clip's own loss. There are two bare loops: one over open_clip's forward pass, as anyone writes it, one
over ours, which cuts texts to their ends (training/models/causal_text.py). Against the first, ours is what a user
gains; against the second, what engine and trainer cost. All begin with the same weights and take the same batches;
texts have 6 to 40 tokens, 16 on the average, about as captions of the web have. Rounds of one step are interleaved,
and the first ones, in which memory is asked of the system, do not count; ratios are those of the medians. The losses
are compared, so that all do the same work.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from training.engine import Engine
from training.engine_settings import EngineSettings
from training.models.clip import Clip
from training.models.clip_spec import SPEC, build
from training.optim import OptimSettings, parameter_groups
from training.ranks import Ranks
from training.rendezvous import joined
from training.spec import Batch, Context, Outputs

LR, CLIP = 5e-4, 1.0
STEPS_A_ROUND = 1
WARM = 4  # rounds that do not count


def made(batch: int, size: int, length: int, num: int) -> list[Batch]:
    """Noise and random tokens that end as texts do."""
    chance = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(num):
        tokens = torch.randint(1, 49_000, (batch, length), generator=chance)
        ends = (5 + torch.empty(batch, 1).exponential_(1 / 11, generator=chance)).long().clamp(max=39)
        at = torch.arange(length)
        tokens = torch.where(at < ends, tokens, (at == ends) * 49_407)
        images = torch.randn(batch, 3, size, size, generator=chance)
        valid = torch.ones(batch, dtype=torch.bool)
        batches.append(Batch([b""] * batch, {"image": images, "text": tokens, "valid": valid}))
    return batches


def bare(module: Clip, batches: list[Batch], *, is_cut: bool) -> Callable[[int], float]:
    """A loop as one writes it: forward, loss, backward, clip, step, clamp. is_cut: over our forward pass."""
    from open_clip.loss import ClipLoss

    model, loss_of = module.clip, ClipLoss()
    adam = torch.optim.AdamW(parameter_groups(module, 0.2), lr=LR, betas=(0.9, 0.98), eps=1e-6, fused=True)

    def step(number: int) -> float:
        batch = batches[number % len(batches)]
        if is_cut:
            outputs = module(batch, Context(0, Ranks()))
            loss = loss_of(outputs["image_emb"], outputs["text_emb"], outputs["scale"])
        else:
            loss = loss_of(*model(batch["image"], batch["text"]))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        adam.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)
        return float(loss.detach())

    return step


def ours(module: torch.nn.Module, settings: object, batches: list[Batch], ranks: Ranks) -> Callable[[int], float]:
    """The engine's step, with what the trainer does around it."""
    optim = OptimSettings.parse({"lr": LR, "warmup_steps": 0, "schedule": "constant", "clip_norm": CLIP}, "optim")
    engine = Engine(
        module, optim, EngineSettings.parse({"zero": 1}, "engine"), total_steps=1000, micro_batch=len(batches[0]),
        num_micro=1, ranks=ranks,
    )  # fmt: skip
    terms = SPEC.losses(settings)

    def losses(outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        return {name: term.weight(0) * term.loss(outputs, batch, ranks) for name, term in terms.items()}

    def step(number: int) -> float:
        result = engine.step(batches[number % len(batches)], losses, number, accumulate=SPEC.accumulate)
        assert SPEC.after_step is not None
        engine.after_step(SPEC.after_step)
        return sum(result.terms.values())

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="ViT-S-16")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    settings = SPEC.Settings.parse({"arch": options.arch, "image_size": options.image_size}, "model")
    length = SPEC.tokenizer(settings)(["a"]).shape[1]
    batches = made(options.batch, options.image_size, length, 4)
    with joined(os.environ) as ranks:
        modules = []
        for _ in range(3):
            torch.manual_seed(0)
            modules.append(build(settings))
        rivals = {
            "bare loop": bare(modules[0], batches, is_cut=False),
            "bare, cut": bare(modules[1], batches, is_cut=True),
            "ours": ours(modules[2], settings, batches, ranks),
        }
        took: dict[str, list[float]] = {name: [] for name in rivals}
        found: dict[str, list[float]] = {name: [] for name in rivals}
        for number in range(WARM + options.rounds):
            for name, step in rivals.items():
                began = time.perf_counter()
                found[name] += [step(number * STEPS_A_ROUND + at) for at in range(STEPS_A_ROUND)]
                if number >= WARM:
                    took[name].append((time.perf_counter() - began) / STEPS_A_ROUND)
    medians = {name: statistics.median(values) for name, values in took.items()}
    for name, median in medians.items():
        print(f"{name:<12}{median:>8.3f} s a step of {options.batch}{options.batch / median:>10.1f} samples/s")
    apart = max((max(each) - min(each)) / abs(each[0]) for each in zip(*found.values(), strict=True))
    print(f"ours against the bare loop: {medians['ours'] / medians['bare loop']:.3f}x the time")
    print(f"ours against a bare loop over our forward pass: {medians['ours'] / medians['bare, cut']:.3f}x the time")
    print(f"losses of {len(found['ours'])} steps: {apart:.1e} apart, relative, at most")


if __name__ == "__main__":
    main()
