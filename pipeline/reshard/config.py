"""Settings of a resharding."""

from __future__ import annotations

from pydantic import Field

from infra.recipe import Config


class ReshardConfig(Config):
    """Every setting of `python -m pipeline reshard`."""

    shard_size: int = Field(10_000, gt=0, description="Samples of a shard.")
    shard_digits: int = Field(5, ge=1, le=9, description="Width of the shard number in file names.")
