"""A checkpoint of ours for others to load: a folder as open_clip or transformers have it, or one file of tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor

from infra.errors import UsageError
from infra.storage import Storage
from training.checkpoint import Checkpoint
from training.convert.clip import to_transformers, transformers_config
from training.models.architecture import model_cfg, preprocess_cfg
from training.models.load import clip_of_checkpoint

Target = Literal["open_clip", "transformers", "safetensors"]


def export(checkpoint_url: str, to: Target, out: str) -> list[str]:
    """Write a checkpoint's weights in another layout; files of these names are replaced. Returns their urls.

    open_clip: the folder `out`, for `local-dir:`, or its .safetensors for `pretrained`.
    transformers: the folder `out`, for `CLIPModel.from_pretrained`; of plain ViTs only.
    safetensors: the file `out`, by our own names; of any model.
    Raises UsageError for a model that the layout cannot say.
    """
    if to not in get_args(Target):
        raise UsageError(f"to {to}: one of {', '.join(get_args(Target))}")
    if to == "safetensors":
        storage, name = Storage.of_file(out)
        return [_write_tensors(storage, name, Checkpoint.open(checkpoint_url).weights())]
    module = clip_of_checkpoint(checkpoint_url)
    weights, cfg, folder = module.clip.state_dict(), model_cfg(module.settings), Storage(out)
    if to == "transformers":
        config = transformers_config(cfg)  # which says what does not fit, before a name does
        files = [_write_tensors(folder, "model.safetensors", to_transformers(weights))]
        return [*files, _write_json(folder, "config.json", config)]
    config = {"model_cfg": cfg, "preprocess_cfg": preprocess_cfg(module.settings)}
    files = [_write_tensors(folder, "open_clip_model.safetensors", weights)]
    return [*files, _write_json(folder, "open_clip_config.json", config)]


def _write_tensors(storage: Storage, name: str, weights: Mapping[str, Tensor]) -> str:
    from safetensors.torch import save_file

    with storage.commit(name) as draft:
        # transformers refuses a file that does not name its format.
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, draft.path, metadata={"format": "pt"})
    return storage.file_url(name)


def _write_json(storage: Storage, name: str, values: Mapping[str, Any]) -> str:
    storage.commit_bytes(name, json.dumps(values, indent=2).encode())
    return storage.file_url(name)
