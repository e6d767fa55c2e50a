"""PowerSGD: ranks send a matrix's gradient as two thin factors, and what these miss waits for the next step.

Sources: PowerSGD, arXiv 1905.13727, algorithms 1 and 2; DALL-E, arXiv 2102.12092, appendix E, for Householder's QR in
place of Gram and Schmidt. torch has it as a hook for DDP, which we do not run: given a bucket made up for it, the hook
holds four more copies of all gradients, changes its factors in a step that is skipped, too, and is saved by pickle.
"""

# Shapes: a gradient is (n, m), what follows its first dimension flattened; r rank of its factors, P (n, r) and Q (m, r)

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from training.ranks import Ranks


class PowerSGD:
    """Gradients in fp32 to their mean over ranks, which for a matrix is of rank r; all ranks call each method.

    parameters: by name, the same on all ranks. rank: r. seed: with a matrix's name it gives the first Q.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], rank: int, ranks: Ranks, seed: int) -> None:
        self._ranks = ranks
        self._matrices = {name: one for name, one in parameters.items() if is_compressed(one.shape, rank)}
        self._whole = [one for name, one in parameters.items() if name not in self._matrices]
        self._first = {
            name: _drawn(one.shape[1:].numel(), rank, seed, name).to(one.device) for name, one in self._matrices.items()
        }
        self._begin()

    @torch.no_grad()
    def reduce(self, *, is_wanted: bool) -> Tensor:
        """Three all-reduces, after which each gradient is the same mean on all ranks. Returns the norm of them all, ().

        is_wanted: will the step be made, if the norm is finite? If not, or if the norm is not finite, errors and
        factors stay as they were, and the gradients are worth nothing.
        """
        whole = self._mean([_gradient(one) for one in self._whole])
        # Gradient and error, written over the gradient, which is needed no more; the error is, where a step is skipped.
        wanted = {name: _gradient(one).flatten(1).add_(self._errors[name]) for name, one in self._matrices.items()}
        means = self._mean([one @ self._q[name] for name, one in wanted.items()])
        p = [torch.linalg.qr(one).Q for one in means]  # orthonormal, be the gradient of a smaller rank, or nothing
        q = self._mean([one.T @ left for one, left in zip(wanted.values(), p, strict=True)])
        norm = torch.nn.utils.get_total_norm([*whole, *q])  # P is orthonormal, so P Qᵀ is as long as Q
        if is_wanted and torch.isfinite(norm):
            for one, mean in zip(self._whole, whole, strict=True):
                _gradient(one).copy_(mean)
            for (name, one), left, right in zip(self._matrices.items(), p, q, strict=True):
                sent = left @ right.T  # (n, m)
                torch.sub(wanted[name], sent, out=self._errors[name])
                _gradient(one).copy_(sent.view(one.shape))
                # A column that met no gradient is nothing, and could stay so for ever: it begins anew.
                self._q[name] = torch.where(right.any(0), right, self._first[name])
        return norm

    def read(self) -> dict[str, Tensor]:
        """What the next step needs, copied to memory: NAME/error (n, m), this rank's own, and NAME/q (m, r)."""
        return {name: value.to("cpu", copy=True) for name, value in self._held().items()}

    def write(self, states: Mapping[str, Tensor]) -> bool:
        """As `read` gave it. If it is of other matrices or of another r, all begins anew. Returns: was it taken?"""
        self._begin()
        held = self._held()
        is_taken = {name: one.shape for name, one in held.items()} == {name: one.shape for name, one in states.items()}
        if is_taken:
            for name, value in states.items():
                held[name].copy_(value)
        return is_taken

    def _begin(self) -> None:
        self._errors = {name: torch.zeros_like(one).flatten(1) for name, one in self._matrices.items()}
        self._q = {name: first.clone() for name, first in self._first.items()}

    def _held(self) -> dict[str, Tensor]:
        errors = {f"{name}/error": value for name, value in self._errors.items()}
        return errors | {f"{name}/q": value for name, value in self._q.items()}

    def _mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Means over ranks, in one all-reduce."""
        if not tensors:
            return []
        flat = self._ranks.mean(torch.cat([one.flatten() for one in tensors]))
        parts = flat.split([one.numel() for one in tensors])
        return [part.view(one.shape) for part, one in zip(parts, tensors, strict=True)]


def is_compressed(shape: Sequence[int], rank: int) -> bool:
    """Do factors of this rank have fewer numbers than the gradient?"""
    size = torch.Size(shape)
    return len(size) > 1 and (size[0] + size[1:].numel()) * rank < size.numel()


def num_sent(shapes: Iterable[Sequence[int]], rank: int) -> int:
    """Numbers that a rank gives into the all-reduces of a step."""
    sizes = [torch.Size(shape) for shape in shapes]
    return sum((size[0] + size[1:].numel()) * rank if is_compressed(size, rank) else size.numel() for size in sizes)


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Zeros, where no row of this rank came to it."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _drawn(num_columns: int, rank: int, seed: int, name: str) -> Tensor:
    """(m, r), the same on all ranks."""
    digest = hashlib.blake2b(repr((seed, name)).encode(), digest_size=8).digest()
    chance = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(num_columns, rank, generator=chance)
