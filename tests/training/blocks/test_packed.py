"""Packed weights say what plain ones say, and the module that they were taken from stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.blocks.packed import Packed, can_pack, packed

needs_onednn = pytest.mark.skipif(not can_pack(torch.zeros(1, 1)), reason="torch has no oneDNN here")


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 8, bias=False))
        self.other = nn.Linear(24, 8)
        self.register_buffer("seen", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = (self.one(x) + self.other(x)) * self.seen
        return found


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 24), (0, 24), (7, 3, 24), (300, 24)])
def test_the_answers_are_the_same(shape):
    module, x = Towers().requires_grad_(False), torch.randn(shape)
    torch.testing.assert_close(packed(module)(x), module(x), atol=1e-6, rtol=1e-5)  # fp32, sums in another order


@needs_onednn
def test_the_module_stays_whole_and_lends_what_is_not_packed():
    module = Towers()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    twin = packed(module, spared=("other.",))
    assert type(module.one[0]) is type(module.other) is nn.Linear
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert [type(part) for part in (twin.one[0], twin.one[2], twin.other)] == [Packed, Packed, nn.Linear]
    assert twin.seen.data_ptr() == module.seen.data_ptr()


def test_what_is_spared_is_left_and_what_has_no_kernel_too():
    module = Towers()
    assert type(packed(module, spared=("one.",)).one[0]) is nn.Linear
    assert not can_pack(torch.zeros(1, 1, dtype=torch.float64))
    assert not can_pack(torch.zeros(1, 1, device="meta"))
    assert type(packed(module.double()).one[0]) is nn.Linear
