"""Chunks give the loss and gradients of torch's own cross-entropy, and never hold more logits than a chunk's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from training.objectives import chunked
from training.objectives.chunked import chunked_cross_entropy


def given_(num, width, vocab, dtype=torch.float64):
    chance = torch.Generator().manual_seed(num)
    parts = [torch.randn(*shape, generator=chance, dtype=dtype) for shape in ((num, width), (vocab, width), (vocab,))]
    shares = torch.rand(num, generator=chance, dtype=dtype)
    return [part.requires_grad_() for part in parts], torch.randint(vocab, (num,), generator=chance), shares


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 12), st.integers(1, 100))
def test_chunks_of_any_size_give_the_loss_and_gradients_of_the_whole(num, width, vocab, numbers):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "CHUNK_NUMBERS", numbers)
        inputs, targets, shares = given_(num, width, vocab)
        found = chunked_cross_entropy(*inputs, targets, shares)
        wanted = (F.cross_entropy(F.linear(*inputs), targets, reduction="none") * shares).sum()
        torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-12)
        for one, other in zip(*(torch.autograd.grad(3 * each, inputs) for each in (found, wanted)), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)  # those of weights are summed in float32


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_in_16_bits_each_row_of_every_gradient_stays_near_float32(dtype, rtol):
    """As an engine has it: float32 outside, a scaled loss, and tokens of which each counts next to nothing."""
    inputs, targets, shares = given_(64, 16, 4096, torch.float32)
    shares = shares * 1e-7
    grads = []
    for is_half in (False, True):
        with torch.autocast("cpu", dtype, enabled=is_half):
            loss = chunked_cross_entropy(*inputs, targets, shares)
        assert loss.dtype == torch.float32
        grads.append(torch.autograd.grad(2**16 * loss, inputs))
    for found, wanted in zip(grads[1], grads[0], strict=True):
        rows = [each.reshape(len(each), -1) for each in (found - wanted, wanted)]
        apart = rows[0].norm(dim=1) / rows[1].norm(dim=1)
        assert apart.median() < rtol
        assert apart.max() < 0.2  # of rows that hardly have one


def test_no_more_logits_lie_in_memory_than_a_chunks(monkeypatch):
    seen = []
    linear = F.linear
    monkeypatch.setattr(chunked, "CHUNK_NUMBERS", 40)
    monkeypatch.setattr(chunked.F, "linear", lambda *inputs: seen.append(linear(*inputs).numel()) or linear(*inputs))
    inputs, targets, shares = given_(30, 4, 10)
    chunked_cross_entropy(*inputs, targets, shares).backward()
    assert sum(seen) == 30 * 10
    assert max(seen) == 40


def test_without_gradients_nothing_is_kept():
    inputs, targets, shares = given_(5, 3, 4)
    with torch.no_grad():
        found = chunked_cross_entropy(*inputs, targets, shares)
    assert not found.requires_grad
