"""How the engine is asked to run, and DeepSpeed's configuration made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from infra.errors import RecipeError
from infra.recipe import Config, tuning

Offload = Literal["none", "cpu", "nvme"]
BUCKET = 50_000_000  # numbers reduced at once; DeepSpeed's own 500 million would take 2 GB of any model


class EngineSettings(Config):
    """Precision, and where ZeRO keeps what. Weights, gradients and moments are fp32 at every stage and precision.

    bf16 and fp16 are torch's autocast around the forward pass: products run in 16 bits, sums and scales in 32.
    """

    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="arithmetic of the forward pass")
    zero: Literal[0, 1, 2, 3] = tuning(1, "ZeRO stage: ranks share moments (1), gradients too (2), weights too (3)")
    offload_optimizer: Offload = tuning("none", "where moments are kept and weights updated: cpu, from stage 1 on")
    offload_parameters: Offload = tuning("none", "where weights wait for their layer; stage 3 only")
    nvme_path: str | None = tuning(None, "a folder on an NVMe disk of each node, for weights offloaded to it")
    powersgd_rank: int | None = Field(
        None, gt=0, description="PowerSGD: of a gradient of n x m, ranks send (n + m) * powersgd_rank numbers. A copy "
        "more of the gradients is held, and what a step misses comes later; zero: 0 in fp32 only. Unset: sent whole",
    )  # fmt: skip
    compile: bool = tuning(False, "compile the module with torch.compile; below stage 3 only")
    deepspeed: str | None = tuning(
        None, "a JSON file with further keys for DeepSpeed, such as infra/deepspeed/zero2.json"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.offload_parameters != "none" and self.zero != 3:
            raise ValueError(f"offload_parameters={self.offload_parameters} needs zero: 3, which shares weights")
        if self.offload_optimizer != "none" and self.zero == 0:
            raise ValueError(f"offload_optimizer={self.offload_optimizer} needs zero: 1 or more")
        if self.offload_optimizer == "nvme":
            # Seen with DeepSpeed 0.19.8 by itself, with its own Adam too: another loss from the second step on.
            raise ValueError("DeepSpeed trains wrongly with an optimiser on nvme; take cpu, weights may go to nvme")
        if self.powersgd_rank is not None and self.zero != 0:
            raise ValueError(f"powersgd_rank={self.powersgd_rank} needs zero: 0, where every rank has whole gradients")
        if self.powersgd_rank is not None and self.precision != "fp32":
            raise ValueError(f"powersgd_rank={self.powersgd_rank} needs precision: fp32, not {self.precision}")
        if self.offload_parameters == "nvme" and not self.nvme_path:
            raise ValueError("offload_parameters=nvme needs nvme_path, a folder on the disk")
        if self.compile and self.zero == 3:
            raise ValueError("compile does not hold at zero: 3, whose hooks gather weights layer by layer; use zero: 2")
        return self


def deepspeed_config(
    settings: EngineSettings, *, clip_norm: float | None, micro_batch: int, num_micro: int, num_ranks: int
) -> dict[str, Any]:
    """What DeepSpeed is given: the file's keys with ours.

    micro_batch: rows of a rank in one forward pass; num_micro: forward passes a step.
    Raises RecipeError where the file says something else than we do; its "auto" stands for ours.
    """
    zero: dict[str, Any] = {"stage": settings.zero}
    for key, place in (
        ("offload_optimizer", settings.offload_optimizer),
        ("offload_param", settings.offload_parameters),
    ):
        if place != "none":
            zero[key] = {"device": place} | ({"nvme_path": settings.nvme_path} if place == "nvme" else {})
    ours = {
        "train_batch_size": micro_batch * num_micro * num_ranks,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": num_micro,
        # Not set, DeepSpeed clips at 1; at stage 0 its clipping fails on scales, so the engine clips there.
        "gradient_clipping": clip_norm or 0.0 if settings.zero else 0.0,
        "zero_optimization": zero,
        # AdamW is torch's everywhere: its fused kernel runs on CPUs too, where DeepSpeed's would be compiled first.
        "zero_force_ds_cpu_optimizer": False,
    }
    where = settings.deepspeed or ""
    given = _read(where) if where else {}
    for key in ("optimizer", "scheduler", "fp16", "bf16", "torch_autocast"):
        if key in given:
            raise RecipeError(f"{where}: {key} is set by the recipe (optim, engine.precision); take it out of the file")
    how: dict[str, Any] = {}
    if settings.zero:
        how = {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    if settings.zero in (1, 2):
        # Either way a bucket is all-reduced; DeepSpeed's default makes a copy of it first, and copies it back.
        how["reduce_scatter"] = False
    return _under(_joined(ours, given, where), {"zero_optimization": how})


def _read(path: str) -> dict[str, Any]:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"engine.deepspeed={path}: {error.strerror}; files of ours lie in infra/deepspeed/") from None
    except ValueError as error:
        raise RecipeError(f"engine.deepspeed={path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"engine.deepspeed={path}: DeepSpeed's configuration is a mapping of keys")
    return values


def _joined(ours: Mapping[str, Any], given: Mapping[str, Any], where: str, above: str = "") -> dict[str, Any]:
    """Both; a key with two different values is refused."""
    joined = dict(ours)
    for key, value in given.items():
        name = f"{above}{key}"
        if isinstance(joined.get(key), dict) and isinstance(value, dict):
            joined[key] = _joined(joined[key], value, where, f"{name}.")
        elif key not in joined:
            joined[key] = value
        elif value not in ("auto", joined[key]):
            raise RecipeError(f"{where}: {name}={value!r}, and the recipe says {joined[key]!r}; make them agree")
    return joined


def _under(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values, and defaults where none is given."""
    filled = dict(defaults) | dict(values)
    for key, value in defaults.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            filled[key] = _under(values[key], value)
    return filled
