"""Masks over text and grid: the paper's figure by hand, no future, and every path the same as dense attention."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from training.blocks import grid_attention as grid_attention_module
from training.blocks.grid_attention import _block_mask, flex, grid_attention
from training.blocks.masks import GridMask

KINDS = ["row", "column", "convolution", "causal"]
TEXT = [  # of figure 11: six text tokens, each sees itself and those before
    "#.....................", "##....................", "###...................",
    "####..................", "#####.................", "######................",
]  # fmt: skip
IMAGE = {  # sixteen image tokens, row by row; what each sees of the image
    "row": [
        "#...............", "##..............", "###.............", "####............",
        "#####...........", ".#####..........", "..#####.........", "...#####........",
        "....#####.......", ".....#####......", "......#####.....", ".......#####....",
        "........#####...", ".........#####..", "..........#####.", "...........#####",
    ],
    "column": [
        "#...............", ".#..............", "..#.............", "...#............",
        "#...#...........", ".#...#..........", "..#...#.........", "...#...#........",
        "#...#...#.......", ".#...#...#......", "..#...#...#.....", "...#...#...#....",
        "#...#...#...#...", ".#...#...#...#..", "..#...#...#...#.", "...#...#...#...#",
    ],
    "convolution": [  # three by three, going on into the row above where it meets an edge
        "#...............", "##..............", ".##.............", "#.##............",
        "##.##...........", "###.##..........", ".###.##.........", "..###.##........",
        "...###.##.......", "....###.##......", ".....###.##.....", "......###.##....",
        ".......###.##...", "........###.##..", ".........###.##.", "..........###.##",
    ],
    "causal": ["#" * (at + 1) + "." * (15 - at) for at in range(16)],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_four_by_four_is_the_one_written_out(kind):
    written = TEXT + ["######" + line for line in IMAGE[kind]]
    found = ["".join(".#"[one] for one in row) for row in GridMask(kind, 6, 4, 3).dense().tolist()]
    assert found == written


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 9), st.integers(1, 7), st.sampled_from([1, 3, 5, 11]))
def test_nothing_sees_its_future_and_everything_itself_and_image_tokens_the_text(kind, text, side, kernel):
    dense = GridMask(kind, text, side, kernel).dense()
    assert not dense.triu(1).any()
    assert dense.diagonal().all()
    assert dense[text:, :text].all()
    assert torch.equal(dense[:text, :text], torch.ones(text, text, dtype=torch.bool).tril())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 9), st.integers(1, 7), st.sampled_from([1, 3, 5, 11]), st.integers(1, 7))
def test_in_blocks_it_gives_the_output_and_gradients_of_dense_attention(kind, text, side, kernel, heads_at_once):
    mask = GridMask(kind, text, side, kernel)
    at_once = heads_at_once * grid_attention_module._num_scores(mask)
    chance = torch.Generator().manual_seed(text + 10 * side)
    given_ = [torch.randn(2, 3, mask.length, 5, generator=chance, dtype=torch.float64) for _ in range(4)]
    found = []
    for attend in (grid_attention, lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask.dense())):
        inputs = [each.clone().requires_grad_() for each in given_[:3]]
        with mock.patch.object(grid_attention_module, "AT_ONCE", at_once):
            out = attend(*inputs, mask)
        (out * given_[3]).sum().backward()
        found.append([out.detach(), *(each.grad for each in inputs)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["row", "column", "convolution"])
@pytest.mark.parametrize(("text", "side"), [(7, 6), (129, 12)])
def test_flex_attention_gives_the_output_of_dense_attention(kind, text, side):
    """As torch runs it uncompiled; the compiled kernel is for GPUs, and tested there."""
    mask = GridMask(kind, text, side, 5)
    inputs = [torch.randn(2, 2, mask.length, 8, generator=torch.Generator().manual_seed(at)) for at in range(3)]
    wanted = F.scaled_dot_product_attention(*inputs, mask.dense())
    torch.testing.assert_close(flex(*inputs, mask, flex_attention), wanted, atol=1e-5, rtol=0)


def test_side_by_side_columns_leave_blocks_empty_that_raster_order_fills():
    mask = GridMask("column", 256, 32)
    blocks = _block_mask(mask, torch.device("cpu"))
    in_order = mask.dense().unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).any(3).any(1)
    assert blocks.sparsity() > 100 * (1 - in_order.float().mean().item()) + 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_outputs_and_gradients_are_those_of_dense_attention(kind):
    mask = GridMask(kind, 257, 32)
    given = [torch.randn(1, 2, mask.length, 64, device="cuda") for _ in range(4)]
    found = []
    for attend in (grid_attention, lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask.dense("cuda"))):
        inputs = [each.clone().requires_grad_() for each in given[:3]]
        out = attend(*inputs, mask)
        (out * given[3]).sum().backward()
        found.append([out.detach(), *(each.grad for each in inputs)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)  # float32


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_later_changes_nothing_before(kind):
    mask = GridMask(kind, 4, 5, 3)
    inputs = [torch.randn(1, 1, mask.length, 4) for _ in range(3)]
    before = grid_attention(*inputs, mask)
    for at in range(1, mask.length):
        changed = [torch.cat([each[:, :, :at], torch.randn_like(each[:, :, at:])], 2) for each in inputs]
        torch.testing.assert_close(grid_attention(*changed, mask)[:, :, :at], before[:, :, :at], atol=1e-6, rtol=0)
