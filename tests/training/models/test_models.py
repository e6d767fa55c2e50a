"""Every model of the table: its tiny twin learns one batch, its arithmetic can be counted, its dry run works."""

from __future__ import annotations

import math

import pytest
import torch

from infra.torchvision_here import make_importable
from tests.training.ranked import ranked
from training.flops import forward_flops, made_up, shadow
from training.models import MODELS
from training.plan import _twin
from training.ranks import Ranks
from training.spec import Batch, Context

make_importable()

ROWS, STEPS = 8, 60
TEXTS = [f"{colour} {shape}" for colour in ("a red", "two blue") for shape in ("circle", "star", "moon", "heart")]
# What of its start a term may have left at last. BLIP's contrast has soft targets, and its queue fills with keys of
# these very pairs: it cannot fall below the entropy of its targets, which grows; what it has above that is bounded.
# Matching starts at what a third of yeses costs who does not look, 0.64, and is the last to fall. Language has its
# smoothing, which costs 1 nat of the 7.3.
LEFT = {
    "softmax": 0.3,
    "contrast": 0.3,
    "match": 0.75,
    "language": 0.25,
    "reconstruction": 0.3,
    "text": 0.3,
    "image": 0.5,
}
# Terms that may rise while the model learns: the dVAE's codes begin as good as uniform, and come to tell something.
MAY_RISE = ("divergence",)


def twin(name):
    spec = MODELS[name]
    torch.manual_seed(0)
    settings = spec.Settings.parse(dict(spec.tiny), "tiny")
    return spec, settings, spec.build(settings)


def batch_of(spec, settings):
    """Pictures of four coloured fields each: what a tower is quick to tell apart."""
    made = made_up(spec, settings, ROWS)
    tensors = {"valid": torch.ones(ROWS, dtype=torch.bool)}
    if "image" in made.tensors:
        side = made["image"].shape[-1]
        fields = torch.rand(ROWS, 3, 2, 2, generator=torch.Generator().manual_seed(5))
        tensors["image"] = fields.repeat_interleave(side // 2, 2).repeat_interleave(side // 2, 3)
    else:
        tensors["codes"] = made["codes"]
    uids = [(number + 1).to_bytes(16, "little") for number in range(ROWS)]
    if spec.tokenizer is not None:
        tensors["text"] = spec.tokenizer(settings)(TEXTS)
    return Batch(uids, tensors)


def least(outputs):
    """The least that BLIP's contrast can be with these targets: their entropy, nats per row, mean of both ways."""
    found = 0.0
    for keys, followed in (("text_keys", "image_momentum"), ("image_keys", "text_momentum")):
        is_key = outputs["is_key"]
        logits = outputs[followed] @ outputs[keys].T / outputs["temperature"]
        right = (outputs["is_positive"] & is_key).float()
        soft = logits.masked_fill(~is_key, float("-inf")).softmax(1)
        targets = outputs["alpha"] * soft + (1 - outputs["alpha"]) * right / right.sum(1, keepdim=True)
        found += -torch.special.xlogy(targets, targets).sum(1).mean().item() / 2
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_tiny_model_learns_one_batch(name):
    spec, settings, module = twin(name)
    module.train()
    batch, terms = batch_of(spec, settings), spec.losses(settings)
    trained = [one for one in module.parameters() if one.requires_grad]
    optimiser, told = torch.optim.AdamW(trained, 1e-3, weight_decay=0.0), []
    for step in range(STEPS):
        outputs = module(batch, Context(step, Ranks()))
        losses = {term: each.loss(outputs, batch, Ranks()) for term, each in terms.items()}
        optimiser.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        optimiser.step()
        if spec.after_step is not None:
            with torch.no_grad():
                spec.after_step(module)
        with torch.no_grad():
            bounds = {"contrast": least(outputs)} if "contrast" in losses else {}
            told.append({term: loss.item() - bounds.get(term, 0.0) for term, loss in losses.items()})
    for term in terms.keys() - set(MAY_RISE):
        start, end = told[0][term], sum(one[term] for one in told[-5:]) / 5
        assert end < LEFT[term] * start, (term, start, end)


@pytest.mark.parametrize("name", MODELS)
def test_a_forward_pass_can_be_counted_without_reckoning_it(name):
    spec, settings, module = twin(name)
    follower = shadow(module)
    assert all(tensor.is_meta for tensor in (*follower.parameters(), *follower.buffers()))
    one, four = (forward_flops(follower, made_up(spec, settings, num)) for num in (1, 4))
    with torch.device("meta"):  # as a dry run builds it, where no memory would hold the weights
        bare = spec.build(settings)
    assert forward_flops(bare, made_up(spec, settings, 1)) == one
    # The contrast alone grows with the batch, and a batch of one has nothing to be told from.
    assert one == pytest.approx(four, rel=0.35)
    weights = sum(one.numel() for one in module.parameters() if one.ndim > 1)
    assert four > 0.1 * weights
    short = batch_of(spec, settings)
    assert 0 < forward_flops(follower, short) <= four * 1.05


def dry_runs(ranks: Ranks, names: list[str]) -> list[str]:
    return [_twin(MODELS[name]) for name in names]


@pytest.mark.slow
def test_every_twin_makes_a_step_of_a_dry_run(tmp_path):
    (said,) = ranked(1, dry_runs, tmp_path, [*MODELS])
    for line in said:
        assert "one step on 4 rows of noise: loss" in line
        assert math.isfinite(float(line.rpartition(" ")[2]))
