"""Weights from outside into a CLIP: tags, files, urls, checkpoints of ours; never by a pickle that may run code."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping

from torch import Tensor

from infra.errors import UsageError
from infra.storage import Storage
from infra.torchvision_here import make_importable
from training.convert.clip import from_transformers, is_transformers
from training.models.architecture import ArchSettings, model_cfg, names
from training.models.clip import Clip
from training.models.tensor_files import read_tensors, refuse_misfits

log = logging.getLogger(__name__)

_WRAPPERS = ("module.", "_orig_mod.", "clip.")  # of DDP, torch.compile and ours


def load_weights(module: Clip, source: str) -> None:
    """Put published or trained weights into a model, all of them or none.

    source: a tag of open_clip's for the model's architecture; a path or url of a .safetensors file, or of a .pt or
    .bin file that holds tensors only; a folder with one of `IN_FOLDERS`; a checkpoint of ours. Layouts: open_clip's
    models and training checkpoints, transformers' CLIPModel, ours. Raises UsageError that names what does not fit.
    """
    weights = read_weights(_located(module, source))
    put_weights(module, weights, source)


def read_weights(url: str) -> dict[str, Tensor]:
    """Tensors of a file, a folder or a checkpoint of ours, by open_clip's names. Raises UsageError."""
    weights = _unwrapped(read_tensors(url))
    return from_transformers(weights) if is_transformers(weights) else weights


def put_weights(module: Clip, weights: Mapping[str, Tensor], source: str) -> None:
    """Load tensors by open_clip's names, every one of them. source: for messages. Raises UsageError."""
    fitting = _fitted(module, dict(weights), source)
    refuse_misfits(fitting, module.clip.state_dict(), source, str(module.settings.arch))
    module.clip.load_state_dict(fitting)


def _fitted(module: Clip, weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """What differs between layouts of one model is made good; what differs between models is left to be told."""
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    if hasattr(module.clip, "text") and "positional_embedding" in weights:
        weights = convert_to_custom_text_state_dict(weights)
    own = {"logit_scale": module.clip.logit_scale, "logit_bias": module.clip.logit_bias}
    for name, parameter in own.items():
        if parameter is not None and name in weights and weights[name].numel() == 1:
            weights[name] = weights[name].reshape(parameter.shape)
    if module.clip.logit_bias is None and weights.pop("logit_bias", None) is not None:
        log.info("weights=%s dropped=logit_bias: it changes no softmax", source)
    if module.clip.logit_bias is not None and "logit_bias" not in weights:
        weights["logit_bias"] = module.clip.logit_bias.detach()
        log.info("weights=%s has no logit_bias, trained by softmax; it starts at %g", source, module.clip.logit_bias)
    if module.settings.image_size is not None:
        resize_pos_embed(weights, module.clip)  # open_clip logs it
    if module.settings.context_length is not None:
        resize_text_pos_embed(weights, module.clip)
    return weights


def _located(module: Clip, source: str) -> str:
    """A path or url: a tag's file is fetched by open_clip."""
    make_importable()
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    arch = module.settings.arch
    tags = list_pretrained_tags_by_model(arch) if isinstance(arch, str) else []
    if source not in tags:
        if "/" in source or "." in source or Storage(source).exists():
            return source
        close = difflib.get_close_matches(source, tags, n=1)
        hint = f"did you mean {close[0]}?" if close else f"its tags: {', '.join(tags) or 'none'}."
        raise UsageError(f"pretrained {source}: no tag of {arch}, and no file; {hint} Or give a path or url")
    assert isinstance(arch, str)  # it has tags
    published = get_pretrained_cfg(arch, source)
    _refuse_other_activation(arch, source, is_quick=published.get("quick_gelu", False))
    try:
        path: str = download_pretrained(published)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"pretrained {source}: cannot be fetched: {reason}; without a network, give a path") from None
    return path


def _refuse_other_activation(arch: str, tag: str, *, is_quick: bool) -> None:
    """Weights fit either way, and the features of the wrong one are silently worse."""
    others = {f"{arch}-quickgelu", arch.removesuffix("-quickgelu")} - {arch}
    for other in others & set(names()):
        if _is_quick(arch) != is_quick == _is_quick(other):
            raise UsageError(f"pretrained {tag}: trained with {'QuickGELU' if is_quick else 'GELU'}; take {other}")


def _is_quick(arch: str) -> bool:
    return bool(model_cfg(ArchSettings.parse({"arch": arch}, "arch")).get("quick_gelu", False))


def _unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = dict(weights)
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found
