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


def test_in_bf16_it_stays_near_float32():
    inputs, targets, shares = given_(50, 16, 20, torch.float32)
    plain = chunked_cross_entropy(*inputs, targets, shares)
    with torch.autocast("cpu", torch.bfloat16):
        halves = [each.detach().bfloat16().requires_grad_() for each in inputs]
        found = chunked_cross_entropy(*halves, targets, shares)
        found.backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain, rtol=0.02, atol=0.1)  # bf16 has 8 bits
    assert all(each.grad.isfinite().all() for each in halves)


def test_without_gradients_nothing_is_kept():
    inputs, targets, shares = given_(5, 3, 4)
    with torch.no_grad():
        found = chunked_cross_entropy(*inputs, targets, shares)
    assert not found.requires_grad
