"""CLIP's entry: how the model is built, what it is trained by, and who asks it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from training.models.architecture import image_ops, tokenizer
from training.models.clip import Clip, ClipSettings
from training.models.clip_weights import load_weights
from training.models.encoder import Encoder
from training.objectives import contrastive
from training.ranks import Ranks
from training.spec import Batch, Outputs, Term, TrainSpec

MAX_SCALE = 100.0
LOCKED_IMAGE = (r"^clip\.visual\.",)


def build(settings: ClipSettings) -> Clip:
    """The model, with the weights that the settings name."""
    module = Clip(settings)
    if settings.pretrained is not None:
        load_weights(module, settings.pretrained)
    return module


def softmax(outputs: Outputs, batch: Batch, ranks: Ranks, *, rows: contrastive.Rows, chunk: int | None) -> Tensor:
    """Nats per pair, ()."""
    return contrastive.softmax_loss(
        outputs["image_emb"], outputs["text_emb"], outputs["scale"], batch["valid"], ranks, rows=rows, chunk=chunk
    )


def sigmoid(outputs: Outputs, batch: Batch, ranks: Ranks, *, rows: contrastive.Rows, chunk: int | None) -> Tensor:
    """Nats per pair, ()."""
    return contrastive.sigmoid_loss(
        outputs["image_emb"], outputs["text_emb"], outputs["scale"], outputs["bias"], batch["valid"], ranks,
        rows=rows, chunk=chunk,
    )  # fmt: skip


def losses(settings: ClipSettings) -> Mapping[str, Term]:
    """One term: softmax or sigmoid."""
    loss = {"softmax": softmax, "sigmoid": sigmoid}[settings.loss]
    return {settings.loss: Term(partial(loss, rows=settings.rows, chunk=settings.chunk))}


@torch.no_grad()
def clamp_scale(module: nn.Module) -> None:
    """Logits are never scaled by more than 100 (CLIP, section 2.5). Not with a bias: SigLIP's own scale goes beyond.

    It needs whole parameters, and the optimiser's own copies to follow them: `Engine.after_step` sees to both.
    """
    assert isinstance(module, Clip)
    if module.clip.logit_bias is None:
        module.clip.logit_scale.clamp_(max=math.log(MAX_SCALE))


def frozen(settings: ClipSettings) -> Sequence[str]:
    """Regexes on the names of the parameters that are not trained."""
    return LOCKED_IMAGE if settings.lock_image else ()


def encoder(module: nn.Module, device: str, dtype: str = "float32") -> Encoder:
    """The trained model as evaluation asks it."""
    assert isinstance(module, Clip)
    return Encoder(module, device, dtype)


# A convolutional tower: at this size it learns far faster than a ViT. Two thirds of the parameters are the token table.
TINY = {
    "arch": {
        "embed_dim": 128,
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
    }
}

SPEC = TrainSpec(
    Settings=ClipSettings,
    tiny=TINY,
    build=build,
    losses=losses,
    ops=image_ops,
    tokenizer=tokenizer,
    encoder=encoder,
    after_step=clamp_scale,
    accumulate="cached",
    frozen=frozen,
)
