"""Published BLIPs ↔ ours: names and shapes of transformers' models and of the released code's files, both ways.

Those have the text stack twice, as encoder and as decoder, equal in all but self-attention; ours has what is shared
once. A round trip gives every tensor back bit for bit: rows are cut and joined, nothing is reckoned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from infra.errors import UsageError

Layout = Literal["transformers", "original"]
Parts = tuple[str, ...]  # names of tensors that ours is, one below the other; most often a single one

ROLES = ("encoder", "decoder")
_BOTH = ("weight", "bias")
_VISION = {  # ours → transformers' → the released code's
    "class_token": ("embeddings.class_embedding", "cls_token"),
    "positions": ("embeddings.position_embedding", "pos_embed"),
    "stem": ("embeddings.patch_embedding", "patch_embed.proj"),
    "norm": ("post_layernorm", "norm"),
}
_VISION_LAYER = {
    "attention_norm": ("layer_norm1", "norm1"),
    "attention.qkv": ("self_attn.qkv", "attn.qkv"),
    "attention.out": ("self_attn.projection", "attn.proj"),
    "feed_norm": ("layer_norm2", "norm2"),
    "fc1": ("mlp.fc1", "mlp.fc1"),
    "fc2": ("mlp.fc2", "mlp.fc2"),
}
_TOWER = {"transformers": ("vision_model", "encoder.layers", 0), "original": ("visual_encoder", "blocks", 1)}
_TEXT = {
    "tokens": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "norm": "embeddings.LayerNorm",
}
_TEXT_LAYER = {
    "cross.query": ("crossattention.self.query",),
    "cross.key_value": ("crossattention.self.key", "crossattention.self.value"),
    "cross.out": ("crossattention.output.dense",),
    "cross_norm": ("crossattention.output.LayerNorm",),
    "fc1": ("intermediate.dense",),
    "fc2": ("output.dense",),
    "norm": ("output.LayerNorm",),
}
_ROLE_LAYER = {
    "attention.{}.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.{}.out": ("attention.output.dense",),
    "attention_norm.{}": ("attention.output.LayerNorm",),
}
_STACKS = {"encoder": "text_encoder", "decoder": "text_decoder.bert"}
_HEADS = {
    "head.dense": "text_decoder.cls.predictions.transform.dense",
    "head.norm": "text_decoder.cls.predictions.transform.LayerNorm",
    "contrast.image": "vision_proj",
    "contrast.text": "text_proj",
    "matching": "itm_head",
}
_ALONE = {"head.bias": "text_decoder.cls.predictions.bias", "contrast.temperature": "temp"}
_COPIES = {  # of tied tensors, in files of the released code
    "text_decoder.cls.predictions.decoder.weight": "text.tokens.weight",
    "text_decoder.cls.predictions.decoder.bias": "head.bias",
}
# Buffers of older code; eyes of a momentum encoder that is never shown an image; and the queue, which begins anew.
_LEFT = re.compile(r".*\.position_ids|text_encoder_m\..*crossattention.*|(image|text|idx)_queue|queue_ptr|ptr_queue")


def layout_of(weights: Iterable[str]) -> Layout | None:
    """Whose names these are; None for ours."""
    towers = {name.partition(".")[0] for name in weights}
    return next((layout for layout, (tower, *_) in _TOWER.items() if tower in towers), None)  # type: ignore[misc]


def from_published(weights: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """→ ours. Raises UsageError that names what is no BLIP's, what it lacks, or what its two stacks do not share."""
    found: dict[str, Tensor] = {}
    left = {name for name in weights if name not in _COPIES and not _LEFT.fullmatch(name)}
    for ours, forms in _names(layout, _depth(weights, r"(?:blocks|layers)"), _depth(weights, "layer")):
        for parts in forms:
            there = [name for name in parts if name in weights and not _LEFT.fullmatch(name)]
            if not there:
                continue
            if len(there) < len(parts):
                raise UsageError(f"not the whole of a BLIP: it lacks {', '.join({*parts} - {*there})}")
            left -= {*parts}
            tensor = torch.cat([weights[name] for name in parts]) if len(parts) > 1 else weights[parts[0]]
            if ours in found and not torch.equal(found[ours], tensor):
                raise UsageError(f"{parts[0]}: its encoder and decoder differ where a BLIP's are one; another model's?")
            found[ours] = tensor
    if left:
        raise UsageError(f"not the weights of a BLIP: it has no {', '.join(sorted(left)[:5])}")
    return found


def to_published(weights: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Ours → the layout; what roles share stands with each of those that there are. Raises UsageError.

    Left out are the queue and, for transformers, which has no place for them, momentum copies and temperature.
    """
    roles = [role for role in ROLES if any(f".attention.{role}." in name for name in weights)]
    forms = dict(_names(layout, _depth(weights, r"vision\.layers"), _depth(weights, r"text\.layers"), roles))
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        is_training = name.startswith("contrast.momentum.") or name == "contrast.temperature"
        if name.startswith("contrast.queue.") or (layout == "transformers" and is_training):
            continue
        if name not in forms:
            raise UsageError(f"a published BLIP has no place for {name}; export to safetensors")
        for parts in forms[name]:
            pieces = tensor.chunk(len(parts)) if len(parts) > 1 else (tensor,)  # the temperature has no dimension
            # Clones: safetensors takes no two names for one place in memory.
            found |= zip(parts, (piece.clone(memory_format=torch.contiguous_format) for piece in pieces), strict=True)
    if layout == "original":
        found |= {copied: weights[name] for copied, name in _COPIES.items() if "head.bias" in weights}
    return found


def transformers_config(settings: Any, num_words: int, ids: Mapping[str, int]) -> dict[str, Any]:
    """config.json of transformers' BLIP. ids: of [DEC], [SEP], [PAD]. Raises UsageError where it has no such model."""
    vision, text = settings.vision, settings.text
    if vision.channels:
        raise UsageError("vision.channels: a transformers BLIP has no convolutions before its layers; take safetensors")
    shared = {"layer_norm_eps": vision.norm_eps, "hidden_act": "gelu"}
    return {
        "model_type": "blip",
        "image_text_hidden_size": getattr(settings, "embed_dim", 256),
        "vision_config": {
            **shared,
            "hidden_size": vision.width,
            "intermediate_size": vision.hidden or 4 * vision.width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "image_size": settings.image_size,
            "patch_size": vision.patch,
        },
        "text_config": {
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "vocab_size": num_words,
            "hidden_size": text.width,
            "encoder_hidden_size": vision.width,
            "intermediate_size": text.hidden or 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.positions,
            "hidden_dropout_prob": text.dropout,
            "attention_probs_dropout_prob": text.dropout,
            "bos_token_id": ids["[DEC]"],
            "eos_token_id": ids["[SEP]"],
            "sep_token_id": ids["[SEP]"],
            "pad_token_id": ids["[PAD]"],
        },
    }


def _names(
    layout: Layout, vision_layers: int, text_layers: int, roles: Sequence[str] = ROLES
) -> Iterator[tuple[str, list[Parts]]]:  # fmt: skip
    """Each of our tensors, and where the layout has it: in one place, or with each of the roles that share it."""
    tower, blocks, column = _TOWER[layout]
    yield from _tower("vision", tower, blocks, column, vision_layers)
    yield from _stack("text", {role: _STACKS[role] for role in roles}, text_layers)
    for ours, there in _ALONE.items():
        yield ours, [(there,)]
    for ours, there in _HEADS.items():
        for kind in _BOTH:
            yield f"{ours}.{kind}", [(f"{there}.{kind}",)]
    if layout == "original":
        yield from _tower("contrast.momentum.vision", f"{tower}_m", blocks, column, vision_layers)
        yield from _stack("contrast.momentum.reader", {"encoder": "text_encoder_m"}, text_layers)
        for part, there in (("image", "vision_proj_m"), ("text", "text_proj_m")):
            for kind in _BOTH:
                yield f"contrast.momentum.{part}.{kind}", [(f"{there}.{kind}",)]


def _tower(ours: str, theirs: str, blocks: str, column: int, layers: int) -> Iterator[tuple[str, list[Parts]]]:
    names = {here: there[column] for here, there in _VISION.items()}
    for number in range(layers):
        names |= {
            f"layers.{number}.{here}": f"{blocks}.{number}.{there[column]}" for here, there in _VISION_LAYER.items()
        }
    for here, there in names.items():
        kinds = ("",) if here in ("class_token", "positions") else (".weight", ".bias")
        for kind in kinds:
            yield f"{ours}.{here}{kind}", [(f"{theirs}.{there}{kind}",)]


def _stack(ours: str, stacks: Mapping[str, str], layers: int) -> Iterator[tuple[str, list[Parts]]]:
    for here, there in _TEXT.items():
        for kind in _BOTH if here == "norm" else ("weight",):
            yield f"{ours}.{here}.{kind}", [(f"{stack}.{there}.{kind}",) for stack in stacks.values()]
    for number in range(layers):
        shared = [(here, parts, [*stacks.values()]) for here, parts in _TEXT_LAYER.items()]
        own = [(here.format(role), parts, [stacks[role]]) for role in stacks for here, parts in _ROLE_LAYER.items()]
        for here, parts, places in [*shared, *own]:
            for kind in _BOTH:
                yield (
                    f"{ours}.layers.{number}.{here}.{kind}",
                    [tuple(f"{stack}.encoder.layer.{number}.{part}.{kind}" for part in parts) for stack in places],
                )


def _depth(weights: Iterable[str], list_name: str) -> int:
    """Layers in a list of that name."""
    found = (re.search(rf"(?:^|\.){list_name}\.(\d+)\.", name) for name in weights)
    return max((int(each[1]) + 1 for each in found if each), default=0)
