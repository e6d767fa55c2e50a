"""BLIP in three entries: `blip` has all losses; of those `blip.caption` learns to write, `blip.retrieval` to judge."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from training.models.blip import Blip, after_step
from training.models.blip_captions import BlipTokenizer
from training.models.blip_encoder import BlipEncoder
from training.models.blip_settings import (
    BlipSettings,
    CaptionSettings,
    ContrastSettings,
    LanguageSettings,
    RetrievalSettings,
    SizeSettings,
)
from training.models.blip_weights import load_towers, load_weights
from training.models.captioner import Captioner
from training.objectives.language import language_loss
from training.objectives.matching import matching_loss
from training.objectives.momentum import momentum_loss
from training.ranks import Ranks
from training.spec import Batch, Outputs, Term, TrainSpec


def build(settings: SizeSettings) -> Blip:
    """The model, with the weights that the settings name."""
    module = Blip(settings)
    if settings.pretrained is not None:
        load_weights(module, settings.pretrained)
    elif settings.towers is not None:
        load_towers(module, settings.towers)
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
