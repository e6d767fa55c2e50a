"""BLIP: one text stack that reads alone, reads beside an image, and writes; contrast, matching and language losses.

Three entries: `blip` is pretrained by all three losses; `blip.caption` is fine-tuned to write, `blip.retrieval` to
match. Encoder and decoder share all but self-attention, cross-attention too, so an image's keys and values are made
once for all texts that look at it.
Source: BLIP, arXiv 2201.12086; where its released code differs from the paper, the line says so.
"""

# Shapes: B rows of this rank, G of all ranks, R pairs judged here, P image tokens, L positions, D width, E embedding

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.blocks.queue import KeyQueue
from training.blocks.text import Context as Seen
from training.blocks.text import TextStack, WordHead
from training.blocks.vit import Vit
from training.models.blip_captions import JUDGE, READ, WRITE, BlipTokenizer
from training.models.blip_encoder import BlipEncoder
from training.models.blip_settings import (
    BlipSettings,
    CaptionSettings,
    ContrastSettings,
    LanguageSettings,
    RetrievalSettings,
    SizeSettings,
)
from training.models.blip_weights import load_weights
from training.models.captioner import Captioner
from training.objectives.language import language_loss
from training.objectives.matching import draw_negatives, matching_loss
from training.objectives.momentum import momentum_loss
from training.ranks import Ranks
from training.spec import Batch, Context, Outputs, Term, TrainSpec

ENCODER, DECODER = "encoder", "decoder"
COLDEST, HOTTEST = 0.001, 0.5  # bounds of the temperature


class Blip(nn.Module):
    """The towers, and what the entry trains: a decoder that writes, an encoder that contrasts and matches, or both."""

    def __init__(self, settings: SizeSettings) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = BlipTokenizer(settings)
        does_write, does_match = isinstance(settings, LanguageSettings), isinstance(settings, ContrastSettings)
        roles = [ENCODER] * does_match + [DECODER] * does_write
        self.vision = _vit(settings)
        self.text = _text_stack(settings, len(self.tokenizer), roles, settings.vision.width)
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
            ids = texts[_own(context.ranks, len(patches))]
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
        own = _own(ranks, size)
        valid = batch["valid"].to(device)
        may = ~found["is_positive"][:, : len(texts)] & found["is_key"][: len(texts)] & valid[:, None]  # (B, G)
        chance = _same_on_all(ranks, (2, len(texts)), device)
        wrong_text, has_text = draw_negatives(found["image_logits"], may, chance[0, own])
        wrong_image, has_image = draw_negatives(found["text_logits"], may, chance[1, own])
        logits = [self.judge(torch.stack([texts[own], texts[wrong_text]], 1).flatten(0, 1), seen)]  # (2 B, 2)
        images, arrived, counts = wrong_image, texts[own], has_image
        if ranks.num > 1:
            asked, is_asked = ranks.gather(wrong_image), ranks.gather(has_image)  # (G,)
            is_here = (asked >= own.start) & (asked < own.stop)
            # Where none is, one that does not count: ZeRO-3 gathers weights in each pass, so ranks must make the same.
            here = is_here.nonzero()[:, 0] if is_here.any() else torch.zeros_like(asked[:1])
            images, counts = (asked[here] - own.start).clamp(0, size - 1), (is_asked & is_here)[here]
            arrived = texts[here]
        logits.append(self.judge(arrived, [(keys[images], values[images]) for keys, values in seen]))
        is_match = torch.tensor([True, False], device=device).repeat(size)
        return {
            "match_logits": torch.cat(logits),
            "is_match": torch.cat([is_match, torch.zeros_like(counts)]),
            "match_counts": torch.cat([torch.stack([valid, has_text], 1).flatten(), counts]),
        }


class Contrast(nn.Module):
    """Projections into the space where images and texts meet, momentum copies of all that leads there, the queue."""

    def __init__(self, settings: Any, tokenizer: BlipTokenizer) -> None:
        super().__init__()
        self.settings, self.tokenizer = settings, tokenizer
        self.image = nn.Linear(settings.vision.width, settings.embed_dim)
        self.text = nn.Linear(settings.text.width, settings.embed_dim)
        self.temperature = nn.Parameter(torch.tensor(settings.temperature))
        self.queue = KeyQueue(settings.queue, settings.embed_dim)
        self.pending: list[tuple[int, tuple[Tensor, Tensor, Tensor]]] = []  # step and keys
        copies = {
            "vision": _vit(settings),
            "reader": _text_stack(settings, len(tokenizer), [ENCODER], None),  # it only reads texts alone
            "image": copy.deepcopy(self.image),
            "text": copy.deepcopy(self.text),
        }
        self.momentum = nn.ModuleDict(copies).requires_grad_(False)

    def forward(self, batch: Batch, patches: Tensor, read: Tensor, texts: Tensor, context: Context) -> Outputs:
        """patches: (B, P, D), read: (B, D), texts: (G, L) → embeddings, keys, and who is right for whom."""
        ranks, device, settings = context.ranks, patches.device, self.settings
        own = _own(ranks, len(batch))
        image_emb, text_emb = self.embed_image(patches), self.embed_text(read)
        with torch.no_grad():
            own_image, own_text = self._followed(batch["image"], texts[own])
            image, text = ranks.gather(own_image), ranks.gather(own_text)  # (G, E)
            ids = ranks.gather(torch.stack([_image_ids(batch), _text_ids(batch["text"])], 1).to(device))  # (G, 2)
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


def unit(vectors: Tensor) -> Tensor:
    """(B, E) float32, of unit length."""
    return F.normalize(vectors.float(), dim=-1)


def _vit(settings: SizeSettings) -> Vit:
    vision = settings.vision
    return Vit(
        image_size=settings.image_size, patch=vision.patch, width=vision.width, layers=vision.layers,
        heads=vision.heads, hidden=vision.hidden or 4 * vision.width, norm_eps=vision.norm_eps,
        channels=vision.channels, is_checkpointed=settings.gradient_checkpointing,
    )  # fmt: skip


def _text_stack(settings: SizeSettings, num_words: int, roles: Sequence[str], context_width: int | None) -> TextStack:
    text = settings.text
    return TextStack(
        vocab_size=num_words, positions=text.positions, width=text.width, layers=text.layers, heads=text.heads,
        hidden=text.hidden or 4 * text.width, roles=roles, causal=[DECODER], context_width=context_width,
        dropout=text.dropout, is_checkpointed=settings.gradient_checkpointing,
    )  # fmt: skip


def _own(ranks: Ranks, size: int) -> slice:
    """This rank's rows among those of all."""
    return slice(ranks.rank * size, (ranks.rank + 1) * size)


def _image_ids(batch: Batch) -> Tensor:
    """(B,) int64: equal for equal uids."""
    words = [int.from_bytes(uid[:8], "little", signed=True) for uid in batch.uids]
    return torch.tensor(words, device=batch["text"].device)


def _text_ids(ids: Tensor) -> Tensor:
    """(B, L) → (B,) int64: equal for equal texts, and for hardly any others."""
    factors = torch.arange(1, ids.shape[1] + 1, device=ids.device) * 0x1E3779B97F4A7C15 | 1  # odd, beyond 64 bits cut
    return ((ids + 1) * factors).sum(1)


def _same_on_all(ranks: Ranks, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Random numbers in [0, 1), the same on all ranks: those that a single process would draw."""
    words = ranks.gather(torch.randint(1 << 62, (1,)).to("cpu" if device.type == "meta" else device))
    chance = torch.Generator().manual_seed(int(words[0]))
    return torch.rand(shape, generator=chance, dtype=torch.float64).to(device)


def build(settings: SizeSettings) -> Blip:
    """The model, with the weights that the settings name."""
    module = Blip(settings)
    if settings.pretrained is not None:
        load_weights(module, settings.pretrained)
    else:
        module.follow(0.0)
    return module


def contrast_loss(outputs: Outputs, batch: Batch, ranks: Ranks) -> Tensor:
    """Mean of both directions, nats per pair, ()."""
    told = {name: outputs[name] for name in ("is_positive", "is_key", "temperature", "alpha")}
    told |= {"valid": batch["valid"]}
    i2t = momentum_loss(outputs["image_emb"], outputs["text_keys"], outputs["image_momentum"], ranks=ranks, **told)
    t2i = momentum_loss(outputs["text_emb"], outputs["image_keys"], outputs["text_momentum"], ranks=ranks, **told)
    return (i2t + t2i) / 2


def match_loss(outputs: Outputs, batch: Batch, ranks: Ranks) -> Tensor:
    """Nats per pair, ()."""
    return matching_loss(outputs["match_logits"], outputs["is_match"], outputs["match_counts"], ranks)


def word_loss(outputs: Outputs, batch: Batch, ranks: Ranks, *, smoothing: float) -> Tensor:
    """Nats per token, ()."""
    return language_loss(outputs["word_logits"], outputs["words"], outputs["word_counts"], ranks, smoothing=smoothing)


def losses(settings: Any) -> Mapping[str, Term]:
    """Contrast, matching and language, as far as the entry has them; each counts once (section 3.2)."""
    found: dict[str, Term] = {}
    if isinstance(settings, ContrastSettings):
        found |= {"contrast": Term(contrast_loss), "match": Term(match_loss)}
    if isinstance(settings, LanguageSettings):
        found["language"] = Term(partial(word_loss, smoothing=settings.smoothing))
    return found


def ops(settings: SizeSettings) -> tuple[str, str]:
    """Image operations of training and of evaluation, as the released code has them."""
    size = settings.image_size
    train = f"decode|random_resized_crop({size},0.5,1)|flip|randaugment(2,5)|normalize(clip)"
    return train, f"decode|squash({size})|normalize(clip)"


def encoder(module: nn.Module, device: str, dtype: str = "float32") -> BlipEncoder:
    """The trained model as evaluation asks it."""
    assert isinstance(module, Blip)
    return BlipEncoder(module, device, dtype, ops(module.settings)[1])


def captioner(module: nn.Module, device: str, dtype: str = "float32") -> Captioner:
    """The trained model as one that writes."""
    assert isinstance(module, Blip)
    return Captioner(module, device, dtype, ops(module.settings)[1])


def _spec(settings: type[SizeSettings]) -> TrainSpec:
    tiny = {"vision": "tiny", "text": "tiny", "vocab": "tiny", "image_size": 64, "context": 24}
    is_contrast = issubclass(settings, ContrastSettings)
    return TrainSpec(
        Settings=settings,
        tiny=tiny | ({"embed_dim": 64, "queue": 512, "momentum": 0.98} if is_contrast else {}),
        build=build,
        losses=losses,
        ops=ops,
        tokenizer=BlipTokenizer,
        encoder=encoder if is_contrast else None,
        captioner=captioner if issubclass(settings, LanguageSettings) else None,
        after_step=after_step if is_contrast else None,
    )


SPEC, CAPTION, RETRIEVAL = _spec(BlipSettings), _spec(CaptionSettings), _spec(RetrievalSettings)
