"""What an engine holds, by name and whole, whichever ZeRO stage has cut it among ranks. All ranks call each method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.optim import num_numbers
from training.ranks import Ranks

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, by torch's names
AVERAGE = "average"


class States:
    """A module's weights and buffers, AdamW's moments of them, and their moving average, which lies where those lie.

    zero: DeepSpeed's optimiser around `adam`, from stage 1 on; what it gives parameters to find their parts by is used.
    """

    def __init__(self, module: nn.Module, adam: torch.optim.AdamW, zero: Any, stage: int, ranks: Ranks) -> None:
        self._module, self._adam, self._zero, self._stage, self._ranks = module, adam, zero, stage, ranks
        held = module.state_dict().keys()  # without buffers that are not persistent
        named = [*module.named_parameters(), *module.named_buffers()]
        self._keys: tuple[str, ...] = MOMENTS
        self.sizes = {name: num_numbers([tensor]) for name, tensor in named if name in held}

    def read(self, name: str) -> dict[str, Tensor]:
        """A tensor whole: weight, and of a trained one moments and average, each of the weight's shape; copies."""
        tensor = self._tensor(name)
        with whole([tensor], self._ranks):
            states = {"weight": tensor.detach().clone()}
        return states | ({key: self._beside(tensor, key) for key in self._keys} if tensor.requires_grad else {})

    def outcome(self, name: str) -> Tensor:
        """What a run has come to: a trained weight's average, where there is one; else the weight or buffer. A copy."""
        tensor = self._tensor(name)
        if tensor.requires_grad and AVERAGE in self._keys:
            return self._beside(tensor, AVERAGE)
        with whole([tensor], self._ranks):
            return tensor.detach().clone()

    def write(self, name: str, states: Mapping[str, Tensor]) -> None:
        """As `read` gave it, the same on all ranks; what is frozen takes no moments."""
        tensor = self._tensor(name)
        with torch.no_grad(), whole([tensor], self._ranks, is_changed=True):
            tensor.copy_(states["weight"])
            nothing = torch.zeros(tensor.shape)
        for key in self._keys if tensor.requires_grad else ():
            self._set_beside(tensor, key, states.get(key, nothing))

    def flat(self) -> list[Tensor]:
        """What AdamW holds: parameters, or this rank's parts of them, flat."""
        if self._stage == 0:
            return [one for group in self._adam.param_groups for one in group["params"]]
        parts: list[Tensor] = (
            self._zero.fp32_partitioned_groups_flat if self._stage == 3 else self._zero.single_partition_of_fp32_groups
        )
        return parts

    def begin(self, *, is_averaged: bool) -> None:
        """AdamW makes its moments at its first step; made now, a checkpoint can be taken and given at any time.

        An average is kept among them, and begins as the weights: by whatever stage they are cut, so is it.
        """
        self._keys = (*MOMENTS, AVERAGE) if is_averaged else MOMENTS
        for flat in self.flat():
            states = {key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS}
            if is_averaged:
                states[AVERAGE] = flat.detach().clone()
            self._adam.state[flat] = {"step": torch.zeros((), device=flat.device), **states}
        if self._stage in (1, 2):
            self._zero._lazy_init_hp_params_optimizer_state()

    @torch.no_grad()
    def move_average(self, decay: float) -> None:
        """Averages a become decay x a + (1 - decay) x w."""
        flats = self.flat()
        torch._foreach_lerp_([self._adam.state[flat][AVERAGE] for flat in flats], flats, 1 - decay)

    @property
    def num_updates(self) -> int:
        """Steps that AdamW has made."""
        return int(self._adam.state[self.flat()[0]]["step"])

    def set_num_updates(self, number: int) -> None:
        """Let AdamW count on from there."""
        for flat in self.flat():
            self._adam.state[flat]["step"].fill_(number)

    def take_over_weights(self) -> None:
        """The module's weights have changed: the optimiser's own copies follow."""
        if self._stage:
            self._zero.refresh_fp32_params()

    def _tensor(self, name: str) -> Tensor:
        path, _, last = name.rpartition(".")
        found: Tensor = getattr(self._module.get_submodule(path), last)  # a buffer may be another since
        return found

    def _beside(self, parameter: Any, key: str) -> Tensor:
        if self._stage == 0:
            return self._adam.state[parameter][key].clone()
        found: Tensor = (
            self._zero.get_full_hp_param(parameter, key) if self._stage == 3 else parameter.get_full_hp_param(key)
        )
        return found

    def _set_beside(self, parameter: Any, key: str, value: Tensor) -> None:
        value = value.to(parameter.device)
        if self._stage == 0:
            self._adam.state[parameter][key].copy_(value)
        elif self._stage < 3:
            parameter.set_full_hp_param(value, key)
        else:
            # Its setter of whole values fails where the ranks do not divide them: the last part is padded.
            size = parameter.ds_tensor.ds_numel
            own = value.flatten()[size * self._ranks.rank : size * (self._ranks.rank + 1)]
            self._zero.set_local_hp_param(nn.functional.pad(own, (0, size - len(own))), parameter, key)


@contextmanager
def whole(tensors: Iterable[Tensor], ranks: Ranks, *, is_changed: bool = False) -> Iterator[None]:
    """Gathers what stage 3 has cut; a change inside is that of rank 0.

    In place of DeepSpeed's GatheredParameters, which fails on parameters of no dimension.
    """
    parts: list[Any] = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    if parts:
        parts[0].all_gather(param_list=parts)
    yield
    if is_changed and ranks.num > 1:
        for tensor in parts:
            dist.broadcast(tensor.data, 0)
    if parts:
        parts[0].partition(param_list=parts, has_been_updated=is_changed)
