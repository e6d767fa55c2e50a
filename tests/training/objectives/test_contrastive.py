"""Any number of ranks, any gather mode, chunked or not: the loss and every gradient are those of a single process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from training.objectives.contrastive import sigmoid_loss, softmax_loss
from training.ranks import Ranks

NUM, WIDTH, EMBEDDING = 24, 10, 6
RTOL = 1e-5  # fp32, sums of 24 terms in another order


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    towers = {name: torch.randn(WIDTH, EMBEDDING, generator=chance, dtype=torch.float64) for name in ("image", "text")}
    scalars = {"log_scale": torch.tensor(math.log(1 / 0.07)), "bias": torch.tensor(-2.0)}
    return {name: value.to(dtype).requires_grad_() for name, value in (towers | scalars).items()}


def batch(masked: bool, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(1)
    images, texts = (torch.randn(NUM, WIDTH, generator=chance, dtype=torch.float64).to(dtype) for _ in range(2))
    valid = torch.ones(NUM, dtype=torch.bool)
    if masked:
        valid[[0, 7, 13]] = False
    return images, texts, valid


def plain_reading(kind: str, masked: bool) -> dict[str, torch.Tensor]:
    """One process, in 64 bits, by the definitions; masked rows are simply not there."""
    own = parameters(torch.float64)
    images, texts, valid = batch(masked, torch.float64)
    x, y = (F.normalize(rows[valid] @ own[name]) for rows, name in ((images, "image"), (texts, "text")))
    logits = own["log_scale"].exp() * x @ y.T
    if kind == "softmax":
        answers = torch.arange(len(x))
        loss = (F.cross_entropy(logits, answers) + F.cross_entropy(logits.T, answers)) / 2
    else:
        signs = 2 * torch.eye(len(x), dtype=torch.float64) - 1
        loss = -F.logsigmoid(signs * (logits + own["bias"])).sum() / len(x)
    loss.backward()
    return {"loss": loss.detach(), **{name: value.grad for name, value in own.items() if value.grad is not None}}


def reckon(kind: str, masked: bool, ranks: Ranks, **options: Any) -> dict[str, torch.Tensor]:
    """A rank's part, its gradients averaged over ranks as an engine does."""
    own = parameters()
    mine = slice(ranks.rank * NUM // ranks.num, (ranks.rank + 1) * NUM // ranks.num)
    images, texts, valid = (rows[mine] for rows in batch(masked))
    x, y = F.normalize(images @ own["image"]), F.normalize(texts @ own["text"])
    scale = own["log_scale"].exp()
    if kind == "softmax":
        loss = softmax_loss(x, y, scale, valid, ranks, **options)
    else:
        loss = sigmoid_loss(x, y, scale, own["bias"], valid, ranks, **options)
    loss.backward()
    found = {"loss": loss, **{name: value.grad for name, value in own.items() if value.grad is not None}}
    return {name: ranks.mean(value) for name, value in found.items()}


def agrees(found: dict[str, torch.Tensor], kind: str, masked: bool) -> None:
    wanted = plain_reading(kind, masked)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        error = (found[name].double() - value).norm() / value.norm()
        assert error < RTOL, (name, error)


WAYS = [(kind, masked, rows, chunk) for kind in ("softmax", "sigmoid") for masked in (False, True)
        for rows in ("local", "global") for chunk in (None, 5)]  # fmt: skip


@pytest.mark.parametrize(("kind", "masked", "rows", "chunk"), WAYS)
def test_alone_it_is_the_definition(kind: str, masked: bool, rows: str, chunk: int | None) -> None:
    agrees(reckon(kind, masked, Ranks(), rows=rows, chunk=chunk), kind, masked)


def one_rank(rank: int, num: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=num)
    try:
        for kind, masked, rows, chunk in WAYS:
            agrees(reckon(kind, masked, Ranks.here(), rows=rows, chunk=chunk), kind, masked)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("num", [2, 4])
def test_any_number_of_ranks_gives_the_loss_and_gradients_of_one(num: int, tmp_path: Path) -> None:
    mp.spawn(one_rank, (num, str(tmp_path)), nprocs=num)


def test_a_batch_without_a_valid_pair_is_no_loss_and_no_nan() -> None:
    x = F.normalize(torch.randn(4, 3)).requires_grad_()
    nothing = torch.zeros(4, dtype=torch.bool)
    loss = softmax_loss(x, x, torch.tensor(10.0), nothing, Ranks()) + sigmoid_loss(
        x, x, torch.tensor(10.0), torch.tensor(-10.0), nothing, Ranks()
    )
    loss.backward()
    assert loss == 0
    assert x.grad is not None
    assert (x.grad == 0).all()
