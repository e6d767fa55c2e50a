"""What a number of a run is: its title, the part of the page that shows it, and how it is drawn."""

from __future__ import annotations

import re
from dataclasses import dataclass

LOSS, EVALUATION, STEPS, SPEED, OTHER = "Loss", "Evaluation", "Steps", "Speed", "Other numbers"
SECTIONS = {  # title → what the reader should know
    LOSS: "Every chart of this page runs over the samples seen, from left to right.",
    EVALUATION: "What the recipe's evaluations measured. The band is the interval that they give.",
    STEPS: "What the optimiser did.",
    SPEED: "How fast samples went by, and what they waited for.",
    OTHER: "",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """How a series is shown. is_noisy: smoothed over its faint points. is_share: in per cent. may_log: over decades."""

    title: str
    section: str
    is_noisy: bool = True
    is_share: bool = False
    may_log: bool = True


KINDS = {
    "loss": Kind("Loss", LOSS),
    "lr": Kind("Learning rate", STEPS, is_noisy=False, may_log=False),
    "grad_norm": Kind("Gradient norm", STEPS),
    "skipped": Kind("Steps skipped: loss or gradient not finite", STEPS, is_noisy=False),
    "samples_per_s": Kind("Samples a second", SPEED),
    "tflops": Kind("TFLOP/s of one rank", SPEED),
    "of_peak": Kind("Share of the device's peak rate", SPEED, is_share=True, may_log=False),
    "data_wait": Kind("Share of time waiting for data", SPEED, is_share=True, may_log=False),
    "masked": Kind("Broken samples so far", SPEED, is_noisy=False),
}


def kind_of(name: str) -> Kind:
    """Of any name: "loss/…" is a term of the loss, another name with a slash a metric of an evaluation."""
    if name in KINDS:
        return KINDS[name]
    first, slash, rest = name.partition("/")
    if first == "loss" and slash:
        return Kind(f"Loss: {rest}", LOSS)
    if slash:
        return Kind(name, EVALUATION, is_noisy=False, may_log=False)
    return Kind(name, OTHER)


def as_counted(name: str) -> list[tuple[int, str]]:
    """What to sort names by, so that r5 stands before r10."""
    parts = re.split(r"(\d+)", name)
    return [(len(part) if at % 2 else 0, part) for at, part in enumerate(parts)]
