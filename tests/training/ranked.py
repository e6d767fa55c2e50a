"""Work on several gloo ranks, each a process of its own; and a tiny pair of towers for them to train."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from training.objectives.contrastive import sigmoid_loss
from training.ranks import Ranks
from training.rendezvous import joined
from training.spec import Batch, Context, Outputs

WIDTH, EMBEDDING = 10, 6
GLOBAL = 16  # rows of all ranks in a step


def start(num: int, work: Callable[..., Any], folder: Path, *arguments: Any) -> list[BaseProcess]:
    """Ranks that call work(ranks, *arguments). What it returns lies in the folder afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = mp.get_context("spawn")
    ranks = [spawn.Process(target=_one, args=(rank, num, port, work, folder, arguments)) for rank in range(num)]
    for process in ranks:
        process.start()
    return ranks


def ranked(num: int, work: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What each rank returned. Asserts that all ended well."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = start(num, work, folder, *arguments)
    for process in processes:
        process.join(240)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * num, codes
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(num)]


def _one(rank: int, num: int, port: int, work: Callable[..., Any], folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with joined({name: str(value) for name, value in place.items()}, timeout_s=60) as ranks:
        found = work(ranks, *arguments)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))


class Towers(nn.Module):
    """Two towers; a scale and a bias of no dimension, a table to freeze, a count; sizes that ranks do not divide."""

    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.image, self.text = self._tower(dropout), self._tower(dropout)
            self.log_scale = nn.Parameter(torch.tensor(1.5))
            self.bias = nn.Parameter(torch.tensor(-2.0))
            self.table = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH)
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))

    @staticmethod
    def _tower(dropout: float) -> nn.Module:
        return nn.Sequential(
            nn.Linear(WIDTH, 17), nn.GELU(), nn.LayerNorm(17), nn.Dropout(dropout), nn.Linear(17, EMBEDDING)
        )

    def forward(self, batch: Batch, context: Context) -> Outputs:
        self.num_seen += len(batch)
        return {
            "image": F.normalize(self.image(batch["image"] + batch["image"] @ self.table), dim=-1),
            "text": F.normalize(self.text(batch["text"]), dim=-1),
            "scale": self.log_scale.exp(),
            "bias": self.bias * 1.0,
        }


def rows(step: int, ranks: Ranks, num: int = GLOBAL) -> Batch:
    """This rank's rows of a step; all ranks together have the same ones, however many they are."""
    chance = torch.Generator().manual_seed(step)
    images = torch.randn(num, WIDTH, generator=chance)
    texts = images @ torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(7)) / 3
    everyone = {"image": images, "text": texts, "valid": torch.ones(num, dtype=torch.bool)}
    share = num // ranks.num
    batch = Batch([bytes([number]) for number in range(num)], everyone)
    return batch.part(ranks.rank * share, (ranks.rank + 1) * share)


def pairs(ranks: Ranks) -> Callable[[Outputs, Batch], dict[str, Tensor]]:
    """SigLIP's loss over all ranks' rows."""

    def losses(outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        image, text = outputs["image"].float(), outputs["text"].float()
        return {"pairs": sigmoid_loss(image, text, outputs["scale"], outputs["bias"], batch["valid"], ranks)}

    return losses
