"""What a run would be, before it is one: parameters, memory, steps, arithmetic; and one step of the tiny twin."""

from __future__ import annotations

import warnings

import torch

from infra.errors import PairmillError
from training.data.loader import Loader
from training.engine import Engine
from training.engine_settings import EngineSettings
from training.flops import forward_flops, made_up, step_flops
from training.optim import OptimSettings, freeze, num_numbers
from training.power_sgd import is_compressed, num_sent
from training.ranks import Ranks
from training.recipe import TrainRecipe
from training.rendezvous import joined
from training.spec import Batch, Outputs, TrainSpec

FLOAT_BYTES = 4  # weights, gradients and moments are fp32 at every precision
TWIN_ROWS = 4
RANKS = (1, 8, 64)


def plan_text(recipe: TrainRecipe) -> list[str]:
    """Lines for people. Trains nothing of the recipe's, and writes nothing."""
    spec, settings = recipe.spec, recipe.model_settings()
    with torch.device("meta"), warnings.catch_warnings():
        # Shapes without numbers: a model that no memory here would hold. Weights to start from are read, and stay out.
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
        module = spec.build(settings)
    num = num_numbers(module.parameters())
    freeze(module, spec.frozen(settings))
    shapes = [one.shape for one in module.parameters() if one.requires_grad]
    forward = forward_flops(module, made_up(spec, settings, 1))
    is_cached = spec.accumulate == "cached" and recipe.num_micro(1) > 1
    flops = step_flops(forward, is_cached)
    is_averaged = recipe.optim.average is not None
    beside = "moments, average" if is_averaged else "moments"
    lines = [
        f"model: {recipe.model['name']}, {num:,} parameters; {forward / 1e9:,.2f} GFLOPs forward, "
        f"{flops / 1e9:,.2f} GFLOPs to train on a sample (of a text that fills the context; shorter ones take less)",
        f"states on each rank (reckoned: weights, gradients, {beside} in fp32; activations come on top):",
        *(
            f"  ZeRO {stage}: "
            + ", ".join(f"{memory_gib(num, stage, ranks, is_averaged):,.2f} GiB of {ranks} ranks" for ranks in RANKS)
            for stage in range(4)
        ),
    ]
    if recipe.engine.powersgd_rank:
        sent = num_sent(shapes, recipe.engine.powersgd_rank)
        whole = sum(shape.numel() for shape in shapes)
        held = sum(shape.numel() for shape in shapes if is_compressed(shape, recipe.engine.powersgd_rank))
        lines.append(
            f"PowerSGD: each of several ranks sends {sent:,} numbers a step, {sent / whole:.1%} of its gradients, "
            f"and holds {FLOAT_BYTES * held / 2**30:,.2f} GiB more"
        )
    return [*lines, *_steps(recipe, flops), _twin(spec)]


def _steps(recipe: TrainRecipe, flops: float) -> list[str]:
    try:
        spec, settings = recipe.spec, recipe.model_settings()
        ops = recipe.ops or spec.ops(settings)[0]
        codes = spec.codes(settings)
        loader = Loader(recipe.data, ops, spec.tokenizer_of(settings), recipe.seed, ranks=Ranks(), codes=codes)
    except PairmillError as error:
        return [f"data: cannot be read here, so steps are not known: {error}"]
    num_units = loader.num_units
    total = recipe.total_steps(num_units)
    samples = total * recipe.data.batch
    return [
        f"data: {num_units:,} {recipe.data.unit}s",
        f"steps: {total:,} of {recipe.data.batch:,} samples, {samples / num_units:,.1f} epochs",
        f"arithmetic: {samples * flops:.3g} FLOPs in all, at most",
    ]


def memory_gib(num: int, stage: int, ranks: int, is_averaged: bool = False) -> float:
    """Of a rank's states, for `num` weights. From stage 1 on DeepSpeed updates a second copy of its part of them."""
    # Of moments, average, copies, gradients, weights.
    shared = {0: 0, 1: 3, 2: 4, 3: 5}[stage] + (is_averaged and stage > 0)
    whole = {0: 4, 1: 2, 2: 1, 3: 0}[stage] + (is_averaged and stage == 0)
    return FLOAT_BYTES * num * (whole + shared / ranks) / 2**30


def _twin(spec: TrainSpec) -> str:
    """One step of the tiny model, through engine and losses."""
    settings = spec.Settings.parse(dict(spec.tiny), "the tiny twin")
    with joined({}) as ranks, torch.random.fork_rng():
        torch.manual_seed(0)
        engine = Engine(
            spec.build(settings), OptimSettings.parse({}, "optim"), EngineSettings.parse({"zero": 0}, "engine"),
            total_steps=1, micro_batch=TWIN_ROWS, num_micro=1, ranks=ranks,
        )  # fmt: skip
        terms = spec.losses(settings)

        def losses(outputs: Outputs, batch: Batch) -> dict[str, torch.Tensor]:
            return {name: term.weight(0) * term.loss(outputs, batch, ranks) for name, term in terms.items()}

        result = engine.step(made_up(spec, settings, TWIN_ROWS), losses, 0, accumulate=spec.accumulate)
    loss = sum(result.terms.values())
    return f"tiny twin: {engine.num_parameters:,} parameters, one step on {TWIN_ROWS} rows of noise: loss {loss:.3f}"
