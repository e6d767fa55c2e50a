"""BLIP's contrast: where image and text meet, momentum copies, the queue of past keys, and who is right for whom."""

# Shapes: B rows of this rank, G of all ranks, C keys, P image tokens, L positions, D width, E embedding

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from training.blocks.queue import KeyQueue
from training.models.blip_captions import READ, BlipTokenizer
from training.models.blip_parts import ENCODER, text_stack_of, unit, vit_of
from training.models.blip_settings import ContrastSettings
from training.ranks import Ranks
from training.spec import Batch, Context, Outputs


class Contrast(nn.Module):
    """Projections into the space where images and texts meet, momentum copies of all that leads there, the queue."""

    def __init__(self, settings: ContrastSettings, tokenizer: BlipTokenizer) -> None:
        super().__init__()
        self.settings, self.tokenizer = settings, tokenizer
        self.image = nn.Linear(settings.vision.width, settings.embed_dim)
        self.text = nn.Linear(settings.text.width, settings.embed_dim)
        self.temperature = nn.Parameter(torch.tensor(settings.temperature))
        self.queue = KeyQueue(settings.queue, settings.embed_dim)
        self.pending: list[tuple[int, tuple[Tensor, Tensor, Tensor]]] = []  # step and keys
        copies = {
            "vision": vit_of(settings),
            "reader": text_stack_of(settings, len(tokenizer), [ENCODER], None),  # it only reads texts alone
            "image": copy.deepcopy(self.image),
            "text": copy.deepcopy(self.text),
        }
        self.momentum = nn.ModuleDict(copies).requires_grad_(False)

    def forward(self, batch: Batch, patches: Tensor, read: Tensor, texts: Tensor, context: Context) -> Outputs:
        """patches: (B, P, D), read: (B, D), texts: (G, L) → embeddings, keys, and who is right for whom."""
        ranks, device, settings = context.ranks, patches.device, self.settings
        own = own_rows(ranks, len(batch))
        image_emb, text_emb = self.embed_image(patches), self.embed_text(read)
        with torch.no_grad():
            own_image, own_text = self._followed(batch["image"], texts[own])
            image, text = ranks.gather(own_image), ranks.gather(own_text)  # (G, E)
            ids = ranks.gather(torch.stack([image_ids(batch), text_ids(batch["text"])], 1).to(device))  # (G, 2)
            is_valid = ranks.gather(batch["valid"].to(device))
            self._note(context.step, image, text, ids, is_valid)
            key_ids = torch.cat([ids, self.queue.ids])  # (C, 2)
            grown = min(1.0, context.step / settings.alpha_steps) if settings.alpha_steps else 1.0
            told = {
                "image_momentum": own_image,
                "text_momentum": own_text,
                "image_keys": torch.cat([image, self.queue.image]),
                "text_keys": torch.cat([text, self.queue.text]),
                # Right is the own pair alone, by the paper; where a picture or a text comes again, so is that one here.
                "is_positive": (ids[own, None] == key_ids[None]).any(2),  # (B, C)
                "is_key": torch.cat([is_valid, self.queue.is_key()]),
                "alpha": torch.tensor(settings.alpha * grown, device=device),
                "image_logits": image_emb @ text.T / self.temperature.float(),  # (B, G), to draw wrong ones by
                "text_logits": text_emb @ image.T / self.temperature.float(),
            }
        scale = self.temperature.float() + 0.0  # a sum: ZeRO-3 takes the parameter itself away
        return {"image_emb": image_emb, "text_emb": text_emb, "temperature": scale, **told}

    def embed_image(self, patches: Tensor) -> Tensor:
        """(B, P, D) → (B, E) float32, unit length."""
        return unit(self.image(patches[:, 0]))

    def embed_text(self, read: Tensor) -> Tensor:
        """(B, D), as `Blip.read` gives it → (B, E) float32, unit length."""
        return unit(self.text(read))

    def _followed(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the momentum encoders make of the batch: (B, E) each."""
        copies, tokenizer = self.momentum, self.tokenizer
        read = copies["reader"](tokenizer.begun(ids, READ), ENCODER, is_text=tokenizer.is_text(ids))
        return unit(copies["image"](copies["vision"](images)[:, 0])), unit(copies["text"](read[:, 0]))

    def _note(self, step: int, image: Tensor, text: Tensor, ids: Tensor, is_valid: Tensor) -> None:
        """Keys wait for the end of the step: one that is skipped must leave the queue alone."""
        self.pending = [one for one in self.pending if one[0] == step]
        if not image.is_meta:  # where only shapes are followed there are no keys
            self.pending.append((step, (image[is_valid], text[is_valid], ids[is_valid])))


def own_rows(ranks: Ranks, size: int) -> slice:
    """This rank's rows among those of all."""
    return slice(ranks.rank * size, (ranks.rank + 1) * size)


def image_ids(batch: Batch) -> Tensor:
    """(B,) int64: equal for equal uids."""
    words = [int.from_bytes(uid[:8], "little", signed=True) for uid in batch.uids]
    return torch.tensor(words, device=batch["text"].device)


def text_ids(ids: Tensor) -> Tensor:
    """(B, L) → (B,) int64: equal for equal texts, and for hardly any others."""
    factors = torch.arange(1, ids.shape[1] + 1, device=ids.device) * 0x1E3779B97F4A7C15 | 1  # odd, beyond 64 bits cut
    return ((ids + 1) * factors).sum(1)
