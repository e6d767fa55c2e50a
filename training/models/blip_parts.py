"""The towers of a BLIP, by its settings."""

# Shapes: B rows, E embedding

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from training.blocks.text import TextStack
from training.blocks.vit import Vit
from training.models.blip_settings import SizeSettings

ENCODER, DECODER = "encoder", "decoder"


def vit_of(settings: SizeSettings) -> Vit:
    """The image tower."""
    vision = settings.vision
    return Vit(
        image_size=settings.image_size, patch=vision.patch, width=vision.width, layers=vision.layers,
        heads=vision.heads, hidden=vision.hidden or 4 * vision.width, norm_eps=vision.norm_eps,
        channels=vision.channels, is_checkpointed=settings.gradient_checkpointing,
    )  # fmt: skip


def text_stack_of(
    settings: SizeSettings, num_words: int, roles: Sequence[str], context_width: int | None
) -> TextStack:  # fmt: skip
    """The text stack in some of its roles; without a context width it sees no image."""
    text = settings.text
    return TextStack(
        vocab_size=num_words, positions=text.positions, width=text.width, layers=text.layers, heads=text.heads,
        hidden=text.hidden or 4 * text.width, roles=roles, causal=[DECODER], context_width=context_width,
        dropout=text.dropout, is_checkpointed=settings.gradient_checkpointing,
    )  # fmt: skip


def unit(vectors: Tensor) -> Tensor:
    """(B, E) float32, of unit length."""
    return F.normalize(vectors.float(), dim=-1)
