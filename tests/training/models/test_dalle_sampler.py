"""Sampling: as a sampler that reads the whole stream anew for each token; a candidate is the same in any company."""

from __future__ import annotations

import copy

import pytest
import torch

from infra.errors import UsageError
from training.models.dalle import Dalle
from training.models.dalle_sampler import DalleSampler, DrawingError
from training.models.dalle_settings import DalleSettings
from training.models.dalle_spec import SPEC
from training.sample_settings import SampleSettings

SETTINGS = DalleSettings.parse({**SPEC.tiny, "grid": 4, "kernel": 3}, "tiny")
PROMPT = "a red boat"


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    made = Dalle(SETTINGS)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def drawn(module, num=6, given=None, prompt=PROMPT, **settings):
    (found,) = DalleSampler(module, "cpu").candidates([prompt], SampleSettings(num_candidates=num, **settings), given)
    return found


def test_a_candidate_is_the_same_whatever_is_drawn_beside_it(module):
    whole = drawn(module, 7, seed=3)
    assert whole.shape == (7, 16)
    assert len({tuple(row.tolist()) for row in whole}) == 7
    for more in ({"batch": 2}, {"batch": 1}, {"batch": 64}):
        assert torch.equal(drawn(module, 7, seed=3, **more), whole)
    assert torch.equal(drawn(module, 3, seed=3), whole[:3])
    assert not torch.equal(drawn(module, 7, seed=4), whole)
    assert not torch.equal(drawn(module, 7, seed=3, prompt="a blue boat"), whole)


def test_a_prompt_that_is_drawn_again_has_other_candidates(module):
    asked = SampleSettings(num_candidates=3)
    first, again, third = DalleSampler(module, "cpu").candidates([PROMPT] * 3, asked, times=[0, 1, 0])
    assert torch.equal(first, third)
    assert not torch.equal(first, again)


@pytest.mark.parametrize("settings", [{"guidance": 1e300}, {"temperature": 1e-300}])
def test_settings_that_logits_cannot_bear_draw_nothing(module, settings):
    with pytest.raises(DrawingError, match="no probabilities"):
        drawn(module, **settings)


@pytest.mark.parametrize("settings", [{}, {"guidance": 2.0}, {"top_k": 3}, {"top_p": 0.5}])
def test_weights_that_are_no_numbers_draw_nothing(module, settings):
    broken = copy.deepcopy(module)
    with torch.no_grad():
        broken.code_head.bias[3] = torch.nan
    with pytest.raises(DrawingError, match="no probabilities"):
        drawn(broken, **settings)


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.5}, {"temperature": 0.5}, {"guidance": 2.0}])
@torch.no_grad()
def test_every_token_is_one_that_the_whole_stream_gives_a_share_to(module, settings):
    from training.next_token import draw, probabilities, uniform_numbers

    found = drawn(module, 5, **settings)
    asked = SampleSettings(**settings)
    texts = module.tokenizer([PROMPT, ""])
    seen = [torch.cat([module.embed_text(text.expand(5, -1)), module.embed_codes(found)], 1) for text in texts]
    logits, untold = (module.code_head(module.stack(one)[:, SETTINGS.text_length : -1]) for one in seen)
    logits = logits + asked.guidance * (logits - untold)
    import hashlib

    uid = hashlib.blake2b(" ".join(map(str, texts[0].tolist())).encode(), digest_size=16).digest()
    numbers = uniform_numbers([uid], 5, 16, 0)[0]
    for place in range(16):
        shares = probabilities(logits[:, place], asked.temperature, asked.top_k, asked.top_p)
        assert torch.equal(draw(shares, numbers[:, place]), found[:, place])


def test_prompts_are_drawn_together_as_each_alone(module):
    prompts = [PROMPT, "two hats", "a moon"]
    for more in ({}, {"guidance": 1.0}):
        alone = [drawn(module, 3, prompt=prompt, **more) for prompt in prompts]
        for batch in (1, 2, 6, 64):
            asked = SampleSettings(num_candidates=3, batch=batch, **more)
            told = []
            found = [*DalleSampler(module, "cpu").candidates(prompts, asked, tell=told.append)]
            assert torch.equal(torch.stack(found), torch.stack(alone))
            assert sum(told) == 9


def test_given_rows_stay_and_the_rest_goes_on_from_them(module):
    given = torch.arange(8)
    found = drawn(module, 4, given)
    assert torch.equal(found[:, :8], given.expand(4, -1))
    assert len({tuple(row.tolist()) for row in found}) == 4
    other = drawn(module, 4, given + 1)
    assert not torch.equal(found[:, 8:], other[:, 8:])
    with pytest.raises(UsageError, match="nothing is left to draw"):
        drawn(module, 1, torch.zeros(16, dtype=torch.int64))


def test_a_prompt_that_cannot_be_read_is_refused(module):
    with pytest.raises(UsageError, match="empty prompt"):
        drawn(module, prompt="")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_a_recorded_step_draws_as_one_that_is_not(module, monkeypatch):
    import training.models.dalle_sampler as sampler

    (recorded,) = DalleSampler(module, "cuda").candidates([PROMPT], SampleSettings(num_candidates=6))
    monkeypatch.setattr(sampler, "Replayed", lambda function, *examples: function)
    (plain,) = DalleSampler(module, "cuda").candidates([PROMPT], SampleSettings(num_candidates=6))
    assert torch.equal(recorded, plain)
    assert (recorded == drawn(module)).float().mean() > 0.9  # a draw on a boundary may fall to the other side
