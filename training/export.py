"""A checkpoint of ours for others to load: a folder as open_clip or transformers have it, or one file of tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor

from infra.errors import UsageError
from infra.storage import Storage
from training.checkpoint import Checkpoint
from training.convert import blip as blip_names
from training.convert import clip as clip_names
from training.models.architecture import NORMALISATIONS, model_cfg, preprocess_cfg
from training.models.blip import Blip
from training.models.load import clip_of_checkpoint, module_of

ARCHITECTURES = {"blip.caption": "BlipForConditionalGeneration", "blip.retrieval": "BlipForImageTextRetrieval"}

Target = Literal["open_clip", "transformers", "original", "safetensors"]


def export(checkpoint_url: str, to: Target, out: str) -> list[str]:
    """Write a checkpoint's weights in another layout; files of these names are replaced. Returns their urls.

    open_clip: of a CLIP, the folder `out`, for `local-dir:`, or its .safetensors for `pretrained`.
    transformers: the folder `out`, for `from_pretrained`: a CLIPModel of plain ViTs, of a blip.caption a
    BlipForConditionalGeneration, of a blip.retrieval a BlipForImageTextRetrieval.
    original: of a BLIP, the file `out`, by the names of the released code.
    safetensors: the file `out`, by our own names; of any model.
    Raises UsageError for a model that the layout cannot say.
    """
    if to not in get_args(Target):
        raise UsageError(f"to {to}: one of {', '.join(get_args(Target))}")
    checkpoint = Checkpoint.open(checkpoint_url)
    if to == "safetensors":
        storage, name = Storage.of_file(out)
        return [_write_tensors(storage, name, checkpoint.weights())]
    if str(checkpoint.facts.model.get("name")).partition(".")[0] == "blip":
        return _export_blip(checkpoint_url, to, out)
    if to == "original":
        raise UsageError(f"{checkpoint_url}: original is for BLIPs, as their released code has them")
    module = clip_of_checkpoint(checkpoint_url)
    weights, cfg, folder = module.clip.state_dict(), model_cfg(module.settings), Storage(out)
    if to == "transformers":
        config = clip_names.transformers_config(cfg)  # which says what does not fit, before a name does
        files = [_write_tensors(folder, "model.safetensors", clip_names.to_transformers(weights))]
        return [*files, _write_json(folder, "config.json", config)]
    config = {"model_cfg": cfg, "preprocess_cfg": preprocess_cfg(module.settings)}
    files = [_write_tensors(folder, "open_clip_model.safetensors", weights)]
    return [*files, _write_json(folder, "open_clip_config.json", config)]


def _export_blip(url: str, to: Target, out: str) -> list[str]:
    name, _, module = module_of(url)
    assert isinstance(module, Blip)
    weights, words = module.state_dict(), module.tokenizer.words
    if to == "original":
        storage, file = Storage.of_file(out)
        return [_write_tensors(storage, file, blip_names.to_published(weights, "original"))]
    if to != "transformers" or name == "blip":
        mend = "take original" if to == "transformers" else "take transformers or original"
        raise UsageError(f"{url}: {to} has no place for a {name}; {mend}, or safetensors")
    ids = {word: words.id(word) for word in ("[DEC]", "[SEP]", "[PAD]")}
    config = blip_names.transformers_config(module.settings, len(words), ids)
    config["architectures"] = [ARCHITECTURES[name]]
    folder = Storage(out)
    mean, std = NORMALISATIONS["clip"]
    looks = {
        "image_processor_type": "BlipImageProcessor",
        "size": dict.fromkeys(("height", "width"), module.settings.image_size),
        "image_mean": mean,
        "image_std": std,
    }
    folder.commit_bytes("vocab.txt", "".join(f"{word}\n" for word in words.words).encode())
    return [
        _write_tensors(folder, "model.safetensors", blip_names.to_published(weights, "transformers")),
        _write_json(folder, "config.json", config),
        _write_json(folder, "preprocessor_config.json", looks),
        folder.file_url("vocab.txt"),
    ]


def _write_tensors(storage: Storage, name: str, weights: Mapping[str, Tensor]) -> str:
    from safetensors.torch import save_file

    with storage.commit(name) as draft:
        # transformers refuses a file that does not name its format.
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, draft.path, metadata={"format": "pt"})
    return storage.file_url(name)


def _write_json(storage: Storage, name: str, values: Mapping[str, Any]) -> str:
    storage.commit_bytes(name, json.dumps(values, indent=2).encode())
    return storage.file_url(name)
