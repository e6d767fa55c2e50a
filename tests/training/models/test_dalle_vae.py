"""The dVAE: outputs of the released one, both terms of its bound by other means, schedules, hostile files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import distributions as D

from infra.errors import RecipeError, UsageError
from tests.training.models.released_dvae import FILE, SIZES, inputs, weights_like
from training.models import MODELS
from training.models.dalle_vae import DalleVae, DalleVaeSettings
from training.models.dalle_vae_spec import SPEC, load_weights
from training.objectives.discrete import (
    divergence_from_uniform,
    logit_laplace_nll,
    mapped,
    mean_over_pictures,
    relaxed,
    unmapped,
)
from training.ranks import Ranks
from training.spec import Batch, Context

TINY = DalleVaeSettings(**SPEC.tiny)


def batch_of(num=4, side=32):
    images = torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(1))
    return Batch([bytes([row]) for row in range(num)], {"image": images, "valid": torch.ones(num, dtype=torch.bool)})


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A dVAE that has the released code's weights, loaded as its files would be."""
    settings = DalleVaeSettings(image_size=16, **SIZES)
    folder = tmp_path_factory.mktemp("published")
    for part, module in (("encoder", DalleVae(settings).encoder), ("decoder", DalleVae(settings).decoder)):
        shapes = {name: tuple(one.shape) for name, one in module.state_dict().items()}
        save_file(weights_like(shapes), folder / f"{part}.safetensors")
    return SPEC.build(settings.model_copy(update={"pretrained": str(folder)})), np.load(FILE)


@torch.no_grad()
def test_it_gives_the_outputs_of_the_released_one(released):
    module, wanted = released
    pixels, codes = inputs()
    logits, stats = module.encoder(mapped(pixels)), module.decoder(codes)
    found = {
        "mapped": mapped(pixels)[:, :, ::4], "logits": logits, "stats": stats,
        "shown": unmapped(stats[:, :3].sigmoid()),
    }  # fmt: skip
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor.numpy(), wanted[name], atol=1e-5, rtol=0, err_msg=name)
    assert torch.equal(module.encode(pixels), torch.from_numpy(wanted["logits"]).argmax(1))


@torch.no_grad()
def test_decoding_is_the_decoder_of_one_hot_codes(released):
    module, _ = released
    codes = torch.arange(8).reshape(2, 2, 2)
    one_hot = torch.nn.functional.one_hot(codes, SIZES["vocab"]).movedim(3, 1).float()
    torch.testing.assert_close(module.decode(codes), unmapped(module.decoder(one_hot)[:, :3].sigmoid()))


def test_the_likelihood_is_that_of_the_sigmoid_of_a_laplace_variable():
    chance = torch.Generator().manual_seed(3)
    stats = torch.randn(2, 6, 5, 4, generator=chance)
    pixels = mapped(torch.rand(2, 3, 5, 4, generator=chance))
    location, log_scale = stats.chunk(2, 1)
    theirs = D.TransformedDistribution(D.Laplace(location, log_scale.exp()), [D.transforms.SigmoidTransform()])
    wanted = -theirs.log_prob(pixels).flatten(1).sum(1)
    torch.testing.assert_close(logit_laplace_nll(pixels, stats), wanted, atol=1e-4, rtol=1e-5)  # sums of 60
    # By hand: at 1/2 the logit is 0, and with b = 1, mu = 2 the density is e^-2 / (2 / 4).
    by_hand = logit_laplace_nll(torch.full((1, 1, 1, 1), 0.5), torch.tensor([2.0, 0.0]).reshape(1, 2, 1, 1))
    assert by_hand.item() == pytest.approx(2 - math.log(2), abs=1e-6)


def test_the_divergence_is_that_from_uniform_codes():
    logits = 3 * torch.randn(2, 7, 3, 3, generator=torch.Generator().manual_seed(4))
    each = D.kl_divergence(D.Categorical(logits=logits.movedim(1, 3)), D.Categorical(logits=torch.zeros(7)))
    torch.testing.assert_close(divergence_from_uniform(logits), each.flatten(1).sum(1), atol=1e-5, rtol=1e-5)
    sure = torch.full((1, 7, 1, 1), -1e4)
    sure[0, 2] = 0
    assert divergence_from_uniform(sure).item() == pytest.approx(math.log(7))


@given(st.floats(0, 1), st.integers(0, 200))
def test_pixels_come_back_and_the_schedules_run_between_their_ends(pixel, step):
    assert unmapped(mapped(torch.tensor(pixel))).item() == pytest.approx(pixel, abs=1e-6)
    weight = SPEC.losses(TINY)["divergence"].weight
    assert 0 == weight(0) <= weight(step) <= weight(step + 1) <= weight(TINY.divergence_steps) == TINY.divergence


def test_relaxed_codes_are_shares_that_sharpen_as_it_cools():
    logits = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(5))
    peaks = []
    for temperature in (1.0, 0.25, 1 / 16):
        torch.manual_seed(6)
        codes = relaxed(logits, temperature)
        torch.testing.assert_close(codes.sum(1), torch.ones(2, 4, 4))
        peaks.append(codes.amax(1).mean().item())
    assert peaks[0] < peaks[1] < peaks[2]
    assert peaks[2] > 0.9


def test_a_broken_picture_costs_nothing_and_the_mean_is_over_the_others():
    each = torch.tensor([1.0, float("nan"), 5.0])
    assert mean_over_pictures(each, torch.tensor([True, False, True]), Ranks()).item() == 3


def test_gradients_reach_every_weight_of_both_halves_and_the_temperature_falls_with_the_step():
    module, batch = SPEC.build(TINY), batch_of()
    torch.manual_seed(0)
    outputs = module(batch, Context(0, Ranks()))
    (outputs["nll"] + outputs["divergence"]).sum().backward()
    for half in (module.encoder, module.decoder):
        assert all(one.grad is not None and one.grad.isfinite().all() for one in half.parameters())
    torch.manual_seed(0)
    assert not torch.equal(module(batch, Context(20, Ranks()))["nll"], outputs["nll"])


def test_the_released_pickles_are_refused_unrun_and_a_missing_part_is_named(tmp_path):
    torch.save(SPEC.build(TINY).encoder, tmp_path / "encoder.pkl")
    with pytest.raises(UsageError, match=r"encoder\.pkl: not read, .* convert it once"):
        load_weights(SPEC.build(TINY), str(tmp_path))
    (tmp_path / "encoder.pkl").unlink()
    save_file(SPEC.build(TINY).encoder.state_dict(), tmp_path / "encoder.safetensors")
    with pytest.raises(UsageError, match="decoder"):
        load_weights(SPEC.build(TINY), str(tmp_path))


@pytest.mark.parametrize("wrong", [{"image_size": 30}, {"hidden": 30}, {"vocab": 1}])
def test_sizes_that_do_not_fit_are_refused(wrong):
    with pytest.raises(RecipeError):
        DalleVaeSettings.parse({**SPEC.tiny, **wrong}, "tiny")


def test_the_papers_sizes_are_the_defaults():
    with torch.device("meta"):
        module = DalleVae(DalleVaeSettings())
    assert module.encoder.blocks.output.conv.w.shape == (8192, 2048, 1, 1)
    assert module.decoder.blocks.input.w.shape == (128, 8192, 1, 1)
    assert DalleVaeSettings().grid == 32
    assert MODELS["dalle.vae"] is SPEC
