"""DALL-E's first stage: a discrete variational autoencoder, which turns a picture into a grid of codes and back.

Source: DALL-E, arXiv 2102.12092, section 2.1 and appendix A.
"""

# Shapes: B pictures, H x W pixels, V codes, h x w the grid

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from infra.recipe import Config
from training.blocks.codec import CodeDecoder, CodeEncoder
from training.objectives.discrete import divergence_from_uniform, logit_laplace_nll, mapped, relaxed, unmapped
from training.schedules import cosine
from training.spec import Batch, Context, Outputs

CHANNELS = 3


class DalleVaeSettings(Config):
    """Sizes and schedules; the paper's unless told."""

    image_size: int = Field(256, gt=0, description="Pixels a side.")
    resize_mode: Literal["crop", "squash"] = Field(
        "crop", description="How a picture becomes a square: its middle, or all of it squeezed."
    )
    vocab: int = Field(8192, ge=2, le=1 << 16, description="Codes.")
    hidden: int = Field(256, ge=4, description="Width of the widest grid's blocks; the smallest has it 8 times.")
    first: int = Field(128, ge=1, description="Width that the decoder begins with.")
    groups: int = Field(4, ge=1, description="Groups of blocks, between which the grid is halved.")
    blocks: int = Field(2, ge=1, description="Blocks of a group.")
    divergence: float = Field(6.6, ge=0, description="Weight of the divergence from uniform codes, at last.")
    divergence_steps: int = Field(5_000, ge=0, description="Steps over which it grows from nothing.")
    temperature: float = Field(1 / 16, gt=0, description="Of the relaxed codes, at last; at first it is 1.")
    temperature_steps: int = Field(150_000, ge=0, description="Steps over which it falls.")
    pretrained: str | None = Field(
        None, description="Weights to start from: a checkpoint or run of ours, or a folder with the published "
        "encoder.safetensors and decoder.safetensors.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.image_size % self.shrink:
            raise ValueError(f"image_size={self.image_size} is no multiple of {self.shrink}, the pixels of a code")
        if self.hidden % 4:
            raise ValueError(f"hidden={self.hidden} is no multiple of 4: blocks are a quarter as wide inside")
        return self

    @property
    def shrink(self) -> int:
        """Pixels a side of what a code stands for."""
        return 1 << (self.groups - 1)

    @property
    def grid(self) -> int:
        """Codes a side."""
        return self.image_size // self.shrink


class DalleVae(nn.Module):
    """Encoder and decoder."""

    def __init__(self, settings: DalleVaeSettings) -> None:
        super().__init__()
        self.settings = settings
        sizes = {
            "vocab": settings.vocab,
            "hidden": settings.hidden,
            "groups": settings.groups,
            "blocks": settings.blocks,
        }
        self.encoder = CodeEncoder(**sizes, channels=CHANNELS)
        self.decoder = CodeDecoder(**sizes, first=settings.first, channels=2 * CHANNELS)

    def forward(self, batch: Batch, context: Context) -> Outputs:
        """batch: image (B, 3, H, W) in [0, 1]. Returns nats of each picture: nll and divergence, (B,)."""
        pixels = mapped(batch["image"])
        logits = self.encoder(pixels)
        settings = self.settings
        temperature = cosine(context.step, 1.0, settings.temperature, settings.temperature_steps)
        stats = self.decoder(relaxed(logits, temperature).to(logits.dtype))
        return {"nll": logit_laplace_nll(pixels, stats), "divergence": divergence_from_uniform(logits)}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → (B, h, w) int64, the likeliest codes."""
        logits: Tensor = self.encoder(mapped(images))
        return logits.argmax(1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """(B, h, w) int64 → (B, 3, H, W) in [0, 1], the locations of the likelihood."""
        first = next(self.decoder.parameters())
        held = F.one_hot(codes, self.settings.vocab).movedim(-1, 1).to(first.dtype)
        stats: Tensor = self.decoder(held)
        return unmapped(stats[:, :CHANNELS].float().sigmoid())
