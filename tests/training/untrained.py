"""Checkpoints of modules that nobody trained, written as a run writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infra.storage import Storage
from training.checkpoint import Facts, folder_of
from training.ranks import Ranks
from training.saver import Saver


class _Untrained:
    """A module as the saver reads an engine: no moments."""

    ranks, device = Ranks(), torch.device("cpu")

    def __init__(self, module: nn.Module) -> None:
        self._weights = module.state_dict()

    def sizes(self) -> dict[str, int]:
        return {name: tensor.numel() for name, tensor in self._weights.items()}

    def read(self, name: str) -> dict[str, Tensor]:
        return {"weight": self._weights[name]}

    def counters(self) -> dict[str, Any]:
        return {}

    def own(self) -> dict[str, Tensor]:
        return {}


def checkpoint_of(module: Any, folder: Path | str, name: str, step: int = 3) -> str:
    """A checkpoint of an entry's module, which has settings; its url."""
    saver = Saver(Storage(folder), Ranks())
    told = {"name": name, "settings": module.settings.model_dump(mode="json")}
    saver.save(_Untrained(module), Facts(step=step, model=told))  # type: ignore[arg-type]
    saver.wait()
    return f"{folder}/{folder_of(step)}"
