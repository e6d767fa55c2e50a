"""How pictures are made tokens: what `python -m training encode` may be told."""

from __future__ import annotations

from pydantic import Field

from infra.recipe import Config, tuning


class EncodeSettings(Config):
    """Where and how the model runs."""

    device: str = tuning("auto", "cpu, cuda, cuda:1 …; auto: cuda where a worker has one.")
    batch: int = tuning(64, "Images that the model sees at once.", ge=1, le=4096)
    threads: int = tuning(1, "CPUs of a worker on Ray: they decode.", ge=1)
    num_gpus: float = tuning(0.0, "GPUs of a worker that Ray is asked for; 0.5 puts two workers on one.", ge=0)
    dtype: str = Field("float32", description="What the model computes in: float32, bfloat16 or float16.")
