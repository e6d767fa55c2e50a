"""DALL-E's second stage: one transformer that learns a text's tokens and then its picture's, as one stream.

Source: DALL-E, arXiv 2102.12092, section 2.2 and appendix B.
"""

# Shapes: B pairs, T tokens of a text, I = grid * grid of a picture, D width; N texts, W candidates of each

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.blocks.grid_cache import GridCache
from training.blocks.grid_stack import GridStack
from training.models.dalle_captions import DalleTokenizer
from training.models.dalle_settings import DalleSettings
from training.models.dalle_vae import DalleVae
from training.objectives.chunked import chunked_cross_entropy
from training.ranks import Ranks
from training.spec import Batch, Context, Outputs


class Dalle(nn.Module):
    """The stream's embeddings, the transformer, and a head for each kind of token."""

    def __init__(self, settings: DalleSettings) -> None:
        super().__init__()
        self.settings, self.tokenizer = settings, DalleTokenizer(settings)
        width, side = settings.stack.width, settings.grid
        self.start = nn.Parameter(torch.empty(width))
        self.text_tokens = nn.Embedding(len(self.tokenizer), width)
        self.text_places = nn.Embedding(settings.text_length, width)
        self.codes = nn.Embedding(settings.codes, width)
        self.rows, self.columns = nn.Embedding(side, width), nn.Embedding(side, width)
        self.stack = GridStack(
            width=width, heads=settings.stack.heads, masks=settings.masks(),
            is_checkpointed=settings.gradient_checkpointing,
        )  # fmt: skip
        self.text_head = nn.Linear(width, len(self.tokenizer))
        self.code_head = nn.Linear(width, settings.codes)
        for embedding in (self.text_tokens, self.text_places, self.codes, self.rows, self.columns):
            nn.init.normal_(embedding.weight, std=0.02)
        nn.init.normal_(self.start, std=0.02)
        self._vae: tuple[DalleVae, ...] = ()

    def look_through(self, vae: DalleVae) -> None:
        """Let a trained dVAE make pictures tokens. It is no part of this model: no checkpoint has a copy of it."""
        self._vae = (vae.requires_grad_(False).eval(),)  # a tuple, in which torch does not look for parts

    def forward(self, batch: Batch, context: Context) -> Outputs:
        """batch: text (B, T), codes (B, I) or else image (B, 3, H, W), valid (B,).

        Returns text and image, (): nats per token, whose mean over ranks is the mean over all valid pairs.
        """
        device, num_text = self.start.device, self.settings.text_length
        codes = batch["codes"] if "codes" in batch.tensors else self.codes_of(batch["image"])
        text, codes = batch["text"].to(device), codes.to(device)
        stream = torch.cat([self.embed_text(text), self.embed_codes(codes)], 1)  # (B, 1 + T + I, D)
        states = self.stack(stream)[:, :-1]  # nothing follows the last token
        valid = batch["valid"].to(device)
        num = _num_valid(valid, context.ranks)
        return {
            "text": _mean(states[:, :num_text], self.text_head, text, valid, num),
            "image": _mean(states[:, num_text:], self.code_head, codes, valid, num),
        }

    @torch.no_grad()
    def codes_of(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → (B, I) int64."""
        if images.is_meta:  # where only shapes are followed
            return torch.zeros(len(images), self.settings.num_codes, dtype=torch.int64)
        assert self._vae, "no tokens in the batch, and no dVAE to make them by"
        with torch.autocast(images.device.type, enabled=False):  # in 16 bits some would be others than the table's
            return self._vae[0].to(images.device).encode(images).flatten(1)

    def embed_text(self, text: Tensor) -> Tensor:
        """(B, T) → (B, 1 + T, D): a start, then the text."""
        start = self.start.expand(len(text), 1, -1)
        return torch.cat([start, self.text_tokens(text) + self.text_places.weight], 1)

    def embed_codes(self, codes: Tensor, places: Tensor | None = None) -> Tensor:
        """(B, n) of places (n,), or of the first n → (B, n, D)."""
        if places is None:
            places = torch.arange(codes.shape[1], device=codes.device)
        side = self.settings.grid
        return self.codes(codes) + self.rows(places // side) + self.columns(places % side)

    def begin(self, text: Tensor, num_candidates: int) -> tuple[Tensor, list[GridCache]]:
        """(N, T) → (N, codes) logits of the first image token, and caches for N x num_candidates streams."""
        states, caches = self.stack.begin(self.embed_text(text), num_candidates)
        logits: Tensor = self.code_head(states)
        return logits, caches

    def read(self, codes: Tensor, at: Tensor, caches: Sequence[GridCache]) -> Tensor:
        """Image token `at`, (1,), of each stream, (N * W,) → (N * W, codes) logits of the next."""
        logits: Tensor = self.code_head(self.stack.read(self.embed_codes(codes[:, None], at)[:, 0], at, caches))
        return logits


def _num_valid(valid: Tensor, ranks: Ranks) -> Tensor:
    """Valid pairs of a rank on the average, ()."""
    return ranks.gather(valid.sum()[None]).sum().clamp(min=1) / ranks.num


def _mean(states: Tensor, head: nn.Linear, targets: Tensor, valid: Tensor, num: Tensor) -> Tensor:
    """states: (B, n, D), targets: (B, n) → nats per token, ()."""
    shares = (valid / (num * targets.shape[1])).to(torch.promote_types(states.dtype, torch.float32))
    shares = shares[:, None].expand_as(targets)
    return chunked_cross_entropy(
        states.flatten(0, 1), head.weight, head.bias, targets.flatten(), shares.flatten()
    )  # fmt: skip
