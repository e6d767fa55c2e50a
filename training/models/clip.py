"""CLIP over open_clip's architectures: an image tower, a text tower, and a loss over who belongs to whom.

Source: CLIP, arXiv 2103.00020; with the sigmoid loss SigLIP, arXiv 2303.15343. The towers are open_clip's, and so are
the names of the parameters, below `clip.`.
"""

# Shapes: B rows of a rank, L tokens, E embedding

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from infra.errors import UsageError
from infra.recipe import tuning
from infra.torchvision_here import make_importable
from training.models.architecture import ArchSettings, model_cfg
from training.models.causal_text import causal_tower, encode_texts
from training.objectives import contrastive
from training.spec import Batch, Context, Outputs

PREFIX = "clip."  # before open_clip's names


class ClipSettings(ArchSettings):
    """A CLIP and how its loss is reckoned."""

    lock_image: bool = Field(False, description="Train the text tower alone, against a fixed image tower (LiT).")
    rows: contrastive.Rows = tuning("local", "Rows of the logits that a rank reckons: its own, or all of them.")
    chunk: int | None = tuning(None, "Rows of logits held at once; the rest is made again. None: all.", ge=1)
    text_groups: int = tuning(
        4,
        "Groups of texts of like length, each of which passes a causal text tower cut behind its longest text: less "
        "work, the same values. Under ZeRO-3 each pass fetches the tower's weights again; 1 fetches them once. "
        "Compiled, all texts pass at their whole length.",
        ge=1,
    )
    gradient_checkpointing: bool = tuning(False, "Reckon activations again in the backward pass: less memory.")


class Clip(nn.Module):
    """Two towers into one space. open_clip's model lies in `clip`, so names less `clip.` are open_clip's."""

    clip: Any

    def __init__(self, settings: ClipSettings) -> None:
        super().__init__()
        self.settings = settings
        self.clip = _open_clip_model(settings)
        self.memory_format = _memory_format(self.clip.visual)
        if settings.gradient_checkpointing:
            self.clip.set_grad_checkpointing(True)

    def forward(self, batch: Batch, context: Context) -> Outputs:
        """batch: image (B, 3, H, W), text (B, L). Returns image_emb, text_emb (B, E), scale (), and bias () if any."""
        outputs = {
            "image_emb": self.embed_images(batch["image"]),
            "text_emb": self.embed_texts(batch["text"]),
            "scale": self.clip.logit_scale.float().exp().squeeze(),
        }
        if self.clip.logit_bias is not None:
            # A sum, never the parameter itself: ZeRO-3 takes parameters away when the forward pass ends.
            outputs["bias"] = (self.clip.logit_bias.float() + 0.0).squeeze()
        return outputs

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, E) float32, unit length."""
        images = images.to(self.clip.logit_scale.dtype, memory_format=self.memory_format)
        features = self.clip.encode_image(images)
        return F.normalize(features.float(), dim=-1)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 → (B, E) float32, unit length."""
        tower = causal_tower(self.clip)
        # A compiled graph has shapes that no text decides.
        if tower is None or torch.compiler.is_compiling():
            return F.normalize(self.clip.encode_text(tokens).float(), dim=-1)
        return F.normalize(encode_texts(tower, tokens, self.settings.text_groups).float(), dim=-1)

    def train(self, mode: bool = True) -> Clip:
        """As of any module; a locked image tower keeps its statistics, too."""
        super().train(mode)
        if self.settings.lock_image:
            self.clip.visual.eval()
        return self


def _open_clip_model(settings: ClipSettings) -> Any:
    make_importable()
    from open_clip.model import CLIP, CustomTextCLIP
    from open_clip.modified_resnet import ModifiedResNet

    cfg = model_cfg(settings)
    # Towers start at random, or from `pretrained`: nothing else is fetched.
    cfg["vision_cfg"]["timm_model_pretrained"] = cfg["text_cfg"]["hf_model_pretrained"] = False
    is_custom = cfg.pop("custom_text", False) or cfg["text_cfg"].get("hf_model_name")
    try:
        model = (CustomTextCLIP if is_custom else CLIP)(**cfg)
    except (TypeError, OSError, RuntimeError) as error:
        raise UsageError(f"arch {settings.arch}: open_clip cannot build it: {error}") from None
    if settings.gradient_checkpointing and isinstance(model.visual, ModifiedResNet):
        raise UsageError("gradient_checkpointing: open_clip's ResNets have none; leave it false, or take a ViT")
    return model


def _memory_format(visual: nn.Module) -> torch.memory_format:
    """How the image tower takes its pictures: convolutions are fastest where a pixel's channels lie side by side."""
    from open_clip.modified_resnet import ModifiedResNet

    return torch.channels_last if isinstance(visual, ModifiedResNet) else torch.preserve_format
