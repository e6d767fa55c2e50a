"""Published CLIPs ↔ ours: names and shapes of open_clip's CLIP and of transformers' CLIPModel, both ways.

A round trip gives every tensor back bit for bit: rows are cut and joined, matrices are turned, nothing is reckoned.
"""

# Shapes: D width of a tower, E embedding

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from infra.errors import UsageError

_TOWERS = {"visual.transformer": "vision_model.encoder", "transformer": "text_model.encoder"}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_PAIRS = {  # open_clip's names → transformers'; * is one part of a name
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.*": "vision_model.pre_layrnorm.*",
    "visual.ln_post.*": "vision_model.post_layernorm.*",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.*": "text_model.final_layer_norm.*",
} | {
    f"{here}.resblocks.*.{part}.*": f"{there}.layers.*.{other}.*"
    for here, there in _TOWERS.items()
    for part, other in _IN_BLOCK.items()
}
_TURNED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}  # (D, E) → (E, D)
_JOINED = {  # (3D, …): queries, keys and values → one of each
    f"{here}.resblocks.*.attn.in_proj_*": f"{there}.layers.*.self_attn.q_proj.*" for here, there in _TOWERS.items()
}
_NOT_FIRST = re.compile(r".*\.self_attn\.[kv]_proj\..*")  # joined to the queries
_VISION_SIZES = frozenset({"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout"})
_TEXT_SIZES = frozenset({"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "tokenizer_kwargs"})
_NO_WEIGHT = re.compile(r"(text|vision)_model\.embeddings\.position_ids")  # a buffer of older transformers


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's CLIP → transformers' CLIPModel. Raises UsageError that names what a CLIPModel has no place for."""
    found = {}
    for full_name, tensor in weights.items():
        name = full_name.removeprefix("text.")
        if there := _renamed(name, _PAIRS):
            found[there] = tensor
        elif there := _renamed(name, _TURNED):
            found[there] = tensor.T.contiguous()
        elif there := _renamed(name, _JOINED):
            found |= zip(_of_each(there), (part.contiguous() for part in tensor.chunk(3)), strict=True)
        else:
            raise UsageError(f"a transformers CLIPModel has no place for {name}; export to open_clip or safetensors")
    return found


def from_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' CLIPModel → open_clip's CLIP. Raises UsageError that names what a CLIPModel has not, or lacks."""
    found = {}
    for name, tensor in weights.items():
        if here := _renamed(name, _swapped(_PAIRS)):
            found[here] = tensor
        elif here := _renamed(name, _swapped(_TURNED)):
            found[here] = tensor.T.contiguous()
        elif here := _renamed(name, _swapped(_JOINED)):
            if missing := [part for part in _of_each(name) if part not in weights]:
                raise UsageError(f"not the whole of a transformers CLIPModel: it lacks {', '.join(missing)}")
            found[here] = torch.cat([weights[part] for part in _of_each(name)])
        elif not (_NOT_FIRST.fullmatch(name) or _NO_WEIGHT.fullmatch(name)):
            raise UsageError(f"not the weights of a transformers CLIPModel: it has no {name}")
    return found


def is_transformers(weights: Mapping[str, Tensor]) -> bool:
    """Are these named as transformers names a CLIPModel's?"""
    return any(name.startswith(("vision_model.", "text_model.")) for name in weights)


def transformers_config(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the CLIPModel that an open_clip architecture is. Raises UsageError where it is none."""
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    _refuse_others(vision, "vision_cfg", _VISION_SIZES, {"pool_type": "tok", "pos_embed_type": "learnable"})
    _refuse_others(text, "text_cfg", _TEXT_SIZES, {"pool_type": "argmax", "proj_type": "linear"})
    if not isinstance(vision.get("layers", 12), int):
        raise UsageError(
            "vision_cfg.layers: a transformers CLIPModel has no ResNet; export to open_clip or safetensors"
        )
    if model_cfg.get("init_logit_bias") is not None:
        raise UsageError("a transformers CLIPModel has no bias, as the sigmoid loss has; export to open_clip")
    activation = "quick_gelu" if model_cfg.get("quick_gelu") else "gelu"
    width, num_tokens = text.get("width", 512), text.get("vocab_size", 49408)
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model_cfg["embed_dim"],
        "text_config": {
            "hidden_act": activation,
            "hidden_size": width,
            "intermediate_size": int(width * text.get("mlp_ratio", 4.0)),
            "max_position_embeddings": text.get("context_length", 77),
            "num_attention_heads": text.get("heads", 8),
            "num_hidden_layers": text.get("layers", 12),
            "vocab_size": num_tokens,
            "bos_token_id": num_tokens - 2,  # open_clip's tokeniser puts both last
            "eos_token_id": num_tokens - 1,
        },
        "vision_config": {
            "hidden_act": activation,
            "hidden_size": vision.get("width", 768),
            "image_size": vision.get("image_size", 224),
            "intermediate_size": int(vision.get("width", 768) * vision.get("mlp_ratio", 4.0)),
            "num_attention_heads": vision.get("width", 768) // vision.get("head_width", 64),
            "num_hidden_layers": vision.get("layers", 12),
            "patch_size": vision.get("patch_size", 16),
        },
    }


def _refuse_others(cfg: Mapping[str, Any], where: str, sizes: frozenset[str], usual: Mapping[str, str]) -> None:
    for key, value in cfg.items():
        if value and key not in sizes and usual.get(key) != value:
            raise UsageError(f"{where}.{key}={value}: a transformers CLIPModel has no such thing; export to open_clip")


def _renamed(name: str, pairs: Mapping[str, str]) -> str | None:
    """The name in the other column, or None where no pattern fits. The parts that stood for * are kept in order."""
    for pattern, target in pairs.items():
        if fits := re.fullmatch(re.escape(pattern).replace(r"\*", r"([^.]+)"), name):
            return target.replace("*", "{}").format(*fits.groups())
    return None


def _swapped(pairs: Mapping[str, str]) -> dict[str, str]:
    """The columns, changed over."""
    return {there: here for here, there in pairs.items()}


def _of_each(name: str) -> list[str]:
    """The names of queries, keys and values, from that of the queries."""
    return [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
