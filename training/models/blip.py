"""BLIP: one text stack that reads alone, reads beside an image, and writes; contrast, matching and language losses.

Encoder and decoder share all but self-attention, cross-attention too, so an image's keys and values are made
once for all texts that look at it.
Source: BLIP, arXiv 2201.12086; where its released code differs from the paper, the line says so.
"""

# Shapes: B rows of this rank, G of all ranks, R pairs judged here, P image tokens, L positions, D width, E embedding

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.blocks.text import Context as Seen
from training.blocks.text import WordHead
from training.models.blip_captions import JUDGE, READ, WRITE, BlipTokenizer
from training.models.blip_contrast import Contrast, own_rows
from training.models.blip_parts import DECODER, ENCODER, text_stack_of, vit_of
from training.models.blip_settings import (
    ContrastSettings,
    LanguageSettings,
    SizeSettings,
)
from training.objectives.matching import draw_negatives
from training.ranks import Ranks
from training.spec import Batch, Context, Outputs

COLDEST, HOTTEST = 0.001, 0.5  # bounds of the temperature


class Blip(nn.Module):
    """The towers, and what the entry trains: a decoder that writes, an encoder that contrasts and matches, or both."""

    def __init__(self, settings: SizeSettings) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = BlipTokenizer(settings)
        does_write, does_match = isinstance(settings, LanguageSettings), isinstance(settings, ContrastSettings)
        roles = [ENCODER] * does_match + [DECODER] * does_write
        self.vision = vit_of(settings)
        self.text = text_stack_of(settings, len(self.tokenizer), roles, settings.vision.width)
        self.head = WordHead(len(self.tokenizer), settings.text.width) if does_write else None
        self.matching = nn.Linear(settings.text.width, 2) if does_match else None
        self.contrast = Contrast(settings, self.tokenizer) if isinstance(settings, ContrastSettings) else None

    def forward(self, batch: Batch, context: Context) -> Outputs:
        """batch: image (B, 3, H, W), text (B, L), valid (B,). Returns what the losses of the entry ask for."""
        patches = self.vision(batch["image"])  # (B, P, D)
        seen = self.text.look(patches)
        outputs: dict[str, Tensor] = {}
        if self.contrast is not None:
            texts = self.tokenizer.trimmed(context.ranks.gather(batch["text"])).to(patches.device)  # (G, L)
            ids = texts[own_rows(context.ranks, len(patches))]
            outputs |= self.contrast(batch, patches, self.read(ids), texts, context)
            outputs |= self._judged(batch, seen, texts, outputs, context.ranks)
        if self.head is not None:
            outputs |= self._written(batch, seen)
        return outputs

    def read(self, ids: Tensor) -> Tensor:
        """Captions alone: (B, L) → (B, D), of [CLS]."""
        states: Tensor = self.text(self.tokenizer.begun(ids, READ), ENCODER, is_text=self.tokenizer.is_text(ids))
        return states[:, 0]

    def judge(self, ids: Tensor, seen: Seen) -> Tensor:
        """Captions beside images: (R, L) → (R, 2), logits of no and yes. R / N rows that stand together see one of N.

        Token 0 is [ENC], as in training; the released blip_itm.py leaves [CLS] there.
        """
        assert self.matching is not None
        is_text = self.tokenizer.is_text(ids)
        states = self.text(self.tokenizer.begun(ids, JUDGE), ENCODER, is_text=is_text, context=seen)
        logits: Tensor = self.matching(states[:, 0])
        return logits

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Momentum weights m become momentum x m + (1 - momentum) x w, where there are any."""
        if self.contrast is None:
            return
        leaders = {"vision": self.vision, "reader": self.text, "image": self.contrast.image, "text": self.contrast.text}
        for name, follower in self.contrast.momentum.items():
            weights, copies = dict(leaders[name].named_parameters()), dict(follower.named_parameters())
            torch._foreach_lerp_(list(copies.values()), [weights[one] for one in copies], 1 - momentum)

    def _written(self, batch: Batch, seen: Seen) -> Outputs:
        """Logits of each next token that is asked for: those of captions, behind the prompt."""
        assert self.head is not None
        ids = self.tokenizer.trimmed(batch["text"])
        states = self.text(self.tokenizer.begun(ids, WRITE), DECODER, context=seen)[:, :-1]
        asked = self.tokenizer.is_text(ids)[:, 1:].clone()
        asked[:, : self.tokenizer.num_prompt] = False
        places = asked.flatten().nonzero()[:, 0]  # only these reach the vocabulary: most of a batch is padding
        logits = self.head(states.flatten(0, 1)[places.to(states.device)], self.text.tokens.weight)
        counts = batch["valid"][:, None].expand_as(asked).flatten()[places]
        return {"word_logits": logits, "words": ids[:, 1:].flatten()[places], "word_counts": counts}

    def _judged(self, batch: Batch, seen: Seen, texts: Tensor, found: Outputs, ranks: Ranks) -> Outputs:
        """Each image with its text and a wrong one, each text with a wrong image: 3 B pairs over all ranks, (R, 2).

        Wrong ones are drawn from all ranks, and no image's tokens ever travel: a text goes to the rank of its wrong
        image, where that image's keys and values are at hand. texts: (G, L).
        """
        size, device = len(batch), texts.device
        own = own_rows(ranks, size)
        valid = batch["valid"].to(device)
        may = ~found["is_positive"][:, : len(texts)] & found["is_key"][: len(texts)] & valid[:, None]  # (B, G)
        chance = _same_on_all(ranks, (2, len(texts)), device)
        assert self.contrast is not None
        easy = self.contrast.settings.easy
        wrong_text, has_text = draw_negatives(found["image_logits"], may, chance[0, own], easy)
        wrong_image, has_image = draw_negatives(found["text_logits"], may, chance[1, own], easy)
        logits = [self.judge(torch.stack([texts[own], texts[wrong_text]], 1).flatten(0, 1), seen)]  # (2 B, 2)
        images, arrived, counts = wrong_image, texts[own], has_image
        if ranks.num > 1:
            asked, is_asked = ranks.gather(wrong_image), ranks.gather(has_image)  # (G,)
            is_here = (asked >= own.start) & (asked < own.stop)
            # Where none is, one that does not count: ZeRO-3 gathers weights in each pass, so ranks must make the same.
            here = is_here.nonzero()[:, 0] if is_here.any() else torch.zeros_like(asked[:1])
            images, counts = (asked[here] - own.start).clamp(0, size - 1), (is_asked & is_here)[here]
            arrived = texts[here]
        logits.append(
            self.judge(
                arrived, [(keys.index_select(0, images), values.index_select(0, images)) for keys, values in seen]
            )
        )
        is_match = torch.tensor([True, False], device=device).repeat(size)
        return {
            "match_logits": torch.cat(logits),
            "is_match": torch.cat([is_match, torch.zeros_like(counts)]),
            "match_counts": torch.cat([torch.stack([valid, has_text], 1).flatten(), counts]),
        }


def after_step(module: nn.Module) -> None:
    """The temperature stays in its bounds, momentum encoders follow, keys join the queue."""
    assert isinstance(module, Blip)
    contrast = module.contrast
    assert contrast is not None
    contrast.temperature.clamp_(COLDEST, HOTTEST)
    module.follow(contrast.settings.momentum)
    for _, keys in contrast.pending:
        contrast.queue.push(*keys)
    contrast.pending = []


def _same_on_all(ranks: Ranks, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Random numbers in [0, 1), the same on all ranks: those that a single process would draw."""
    words = ranks.gather(torch.randint(1 << 62, (1,)).to("cpu" if device.type == "meta" else device))
    chance = torch.Generator().manual_seed(int(words[0]))
    return torch.rand(shape, generator=chance, dtype=torch.float64).to(device)
