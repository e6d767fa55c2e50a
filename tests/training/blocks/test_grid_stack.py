"""The stream read at once, or token by token from caches: the same states, and no more kept than a mask can see."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.blocks.grid_stack import GridStack
from training.blocks.masks import GridMask

KINDS = ["row", "column", "convolution", "causal"]


def stack_of(kinds, text, side, kernel=3, **more):
    torch.manual_seed(0)
    masks = [GridMask(kind, text, side, kernel) for kind in kinds]
    return GridStack(width=12, heads=3, masks=masks, **more).double()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3), st.integers(1, 5), st.integers(1, 5),
       st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3, 5, 11]))  # fmt: skip
@torch.no_grad()
def test_one_token_at_a_time_gives_the_states_of_the_whole(kinds, text, side, num_texts, num_candidates, kernel):
    stack = stack_of(kinds, text, side, kernel)
    chance = torch.Generator().manual_seed(1)
    texts = torch.randn(num_texts, text, 12, generator=chance, dtype=torch.float64)
    images = torch.randn(num_texts * num_candidates, side**2, 12, generator=chance, dtype=torch.float64)
    whole = stack(torch.cat([texts.repeat_interleave(num_candidates, 0), images], 1))
    last, caches = stack.begin(texts, num_candidates)
    torch.testing.assert_close(last.repeat_interleave(num_candidates, 0), whole[:, text - 1], atol=1e-12, rtol=0)
    for at in range(side**2):
        found = stack.read(images[:, at], torch.tensor([at]), caches)
        torch.testing.assert_close(found, whole[:, text + at], atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_one_token_at_a_time_gives_the_gradients_of_the_whole(kind):
    stack = stack_of([kind, "row"], 3, 4)
    texts, images = (torch.randn(*shape, 12, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (4, 16)))
    slope = torch.randn(4, 17, 12, dtype=torch.float64)
    whole = stack(torch.cat([texts.repeat_interleave(2, 0), images], 1))[:, 2:]
    last, caches = stack.begin(texts, 2)
    steps = [stack.read(images[:, at], torch.tensor([at]), caches) for at in range(16)]
    parts = torch.stack([last.repeat_interleave(2, 0), *steps], 1)
    inputs = [texts, images, *stack.parameters()]
    wanted, found = (torch.autograd.grad((each * slope).sum(), inputs) for each in (whole, parts))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_a_cache_holds_a_row_or_the_kernels_reach_or_all_columns_and_each_text_once():
    for kind, places in {"row": 33, "column": 1024, "convolution": 5 * 32 + 6, "causal": 1024}.items():
        stack = stack_of([kind], 7, 32, 11)
        _, (cache,) = stack.begin(torch.randn(2, 7, 12, dtype=torch.float64), 4)
        assert cache.num_numbers == 2 * 12 * (2 * 7 + 2 * 4 * places), kind


def test_activations_reckoned_again_give_the_same_gradients():
    x = torch.randn(2, 3 + 16, 12, dtype=torch.float64)
    found = []
    for again in (False, True):
        stack = stack_of(KINDS, 3, 4, is_checkpointed=again).train()
        stack(x).square().sum().backward()
        found.append([one.grad for one in stack.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("at", [3, 8])
def test_a_state_does_not_hang_on_what_follows(at):
    stack, x = stack_of(KINDS, 4, 4), torch.randn(1, 20, 12, dtype=torch.float64)
    changed = torch.cat([x[:, : at + 1], torch.randn(1, 19 - at, 12, dtype=torch.float64)], 1)
    torch.testing.assert_close(stack(changed)[:, : at + 1], stack(x)[:, : at + 1], atol=1e-12, rtol=0)


def test_who_draws_first_can_train_afterwards():
    """What masks keep is made once; made while drawing, it must serve a backward pass, too."""
    stack = GridStack(width=8, heads=2, masks=[GridMask("row", 3, 9), GridMask("column", 3, 9)])
    x = torch.randn(1, 84, 8)
    with torch.inference_mode():
        stack(x)
    stack(x).sum().backward()
    with torch.inference_mode():
        _, caches = stack.begin(x[:, :3], 1)
        stack.read(x[:, 3], torch.tensor([0]), caches)
    _, caches = stack.begin(x[:, :3], 1)
    stack.read(x[:, 3], torch.tensor([0]), caches).sum().backward()
