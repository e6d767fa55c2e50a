"""Weights from outside into a BLIP, whole or the part that an entry has; and the sizes of published ones."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from infra.errors import UsageError
from infra.storage import Storage
from training.blocks.vit import resized_positions
from training.convert.blip import from_published, layout_of
from training.models.blip_settings import SizeSettings
from training.models.tensor_files import read_tensors, refuse_misfits

ROLES = re.compile(r"\.(?:attention|attention_norm)\.(encoder|decoder)\.")
TOWERS = ("vision.", "text.")
FOLLOWERS, QUEUE, TEMPERATURE = "contrast.momentum.", "contrast.queue.", "contrast.temperature"
HEAD_WIDTH = 64  # of published BLIPs, whose files of tensors alone do not say it
IN_FOLDER = ("*.json", "*.safetensors", "*.txt")  # of a model on the hub: no pickle


class Loaded(Protocol):
    """A Blip, as far as loading goes."""

    settings: SizeSettings

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, weights: Mapping[str, Tensor]) -> Any: ...

    def follow(self, momentum: float) -> None: ...


def load_weights(module: Any, source: str) -> None:
    """Put weights into a Blip: all that it has; what the source has beyond that (another role, a head) is left.

    source: a checkpoint of ours or a run's folder; a folder as transformers writes it; a file of tensors in our
    layout, transformers' or the released code's; the name of a model on the Hugging Face hub. Momentum copies begin as
    the weights where the source has none, and the queue begins anew. Positions of another picture size are resampled.
    Raises UsageError that says what does not fit.
    """
    loaded: Loaded = module
    found = _read(loaded.settings, source)
    wanted = loaded.state_dict()
    _resize(found, wanted)
    has_followers = any(name.startswith(FOLLOWERS) for name in found)
    for name, tensor in wanted.items():
        if name.startswith(QUEUE) or (name not in found and name.startswith((FOLLOWERS, TEMPERATURE))):
            found[name] = tensor
    fitting = {name: tensor for name, tensor in found.items() if name in wanted or not _is_beyond(name, wanted)}
    refuse_misfits(fitting, wanted, source, "this model")
    loaded.load_state_dict(fitting)
    if not has_followers:
        loaded.follow(0.0)


def load_towers(module: Any, source: str) -> None:
    """Put image tower and text layers into a Blip. A role that the source has not begins as the one that it has.

    source: as of `load_weights`, of any entry. Heads stay as they are drawn; momentum copies begin as the weights.
    Raises UsageError that says what does not fit.
    """
    loaded: Loaded = module
    found = _read(loaded.settings, source)
    wanted = {name: tensor for name, tensor in loaded.state_dict().items() if name.startswith(TOWERS)}
    _resize(found, wanted)
    fitting = {name: found.get(name, found.get(_in_other_role(name))) for name in wanted}
    held = {name: tensor for name, tensor in fitting.items() if tensor is not None}
    # Beyond them a source may have heads, and a role; a layer more is another architecture.
    held |= {name: found[name] for name in found if name.startswith(TOWERS) and not _is_beyond(name, wanted)}
    refuse_misfits(held, wanted, source, "these towers")
    loaded.load_state_dict({**loaded.state_dict(), **held})
    loaded.follow(0.0)


def located(source: str) -> str:
    """A checkpoint, file or folder; a model of the hub is fetched. Raises UsageError."""
    from training.checkpoint import checkpoint_of

    if (checkpoint := checkpoint_of(source)) is not None:
        return checkpoint
    storage, name = Storage.of_file(source)
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None
    if not is_name or storage.exists(name) or Storage(source).exists():
        return source
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(source, allow_patterns=list(IN_FOLDER)))
    except Exception as error:  # noqa: BLE001 - the hub's client raises its own, its transport's and the system's
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{source}: no such file, and as a model of the Hugging Face hub it cannot be fetched: {reason} Fetch it "
            "where there is a network, and give the folder's path"
        ) from None


def _read(settings: SizeSettings, source: str) -> dict[str, Tensor]:
    """Tensors of a source by our names."""
    url = located(source)
    _refuse_other_words(settings, url)
    tensors = read_tensors(url)
    layout = layout_of(tensors)
    return from_published(tensors, layout) if layout else dict(tensors)


def _resize(found: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Positions of another picture size become those of the wanted one."""
    for name, tensor in wanted.items():
        if name.endswith("vision.positions") and name in found:
            found[name] = resized_positions(found[name], tensor.shape[1])


def _in_other_role(name: str) -> str:
    role = ROLES.search(name)
    return name.replace(f".{role[1]}.", ".decoder." if role[1] == "encoder" else ".encoder.") if role else name


def published_settings(url: str, vocab: str | None) -> dict[str, Any]:
    """Sizes of a published BLIP: of a folder by its config.json, of a file by its tensors' shapes.

    vocab: its words; unset: the folder's vocab.txt, or bert-base-uncased. Raises UsageError where it is no BLIP.
    """
    folder = Storage(url)
    if folder.exists("config.json"):
        config = json.loads(folder.read("config.json"))
        if config.get("model_type") != "blip":
            raise UsageError(f"{url}: holds a {config.get('model_type')}, not a blip")
        found = _by_config(config)
    else:
        found = _by_shapes(url)
    words = f"{url}/vocab.txt" if folder.exists("vocab.txt") else "bert-base-uncased"
    return {**found, "vocab": vocab or words, "pretrained": url}


def _by_config(config: Mapping[str, Any]) -> dict[str, Any]:
    vision, text = config["vision_config"], config["text_config"]
    sizes = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
    # What a file leaves out is transformers' default.
    usual = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072}
    tower = usual | {"num_attention_heads": 12} | vision
    stack = usual | {"num_attention_heads": 8} | text
    return {
        "vision": {name: tower[there] for name, there in sizes.items()}
        | {"hidden": tower["intermediate_size"], "patch": vision.get("patch_size", 16),
           "norm_eps": vision.get("layer_norm_eps", 1e-5)},
        "text": {name: stack[there] for name, there in sizes.items()}
        | {"hidden": stack["intermediate_size"], "positions": text.get("max_position_embeddings", 512)},
        "image_size": vision.get("image_size", 384),
        "embed_dim": config.get("image_text_hidden_size", 256),
    }  # fmt: skip


def _by_shapes(url: str) -> dict[str, Any]:
    tensors = read_tensors(url)
    layout = layout_of(tensors)
    if layout is None:
        raise UsageError(f"{url}: holds no published BLIP; give a folder with its config.json, or a checkpoint of ours")
    weights = from_published(tensors, layout)
    width, text_width = weights["vision.class_token"].shape[-1], weights["text.tokens.weight"].shape[1]
    patch, grid = weights["vision.stem.weight"].shape[-1], round((weights["vision.positions"].shape[1] - 1) ** 0.5)

    def layers(stack: str) -> int:
        return len({name.split(".")[2] for name in weights if name.startswith(f"{stack}.layers.")})

    found: dict[str, Any] = {
        "vision": {"width": width, "layers": layers("vision"), "heads": width // HEAD_WIDTH, "patch": patch},
        "text": {"width": text_width, "layers": layers("text"), "heads": text_width // HEAD_WIDTH,
                 "positions": len(weights["text.positions.weight"])},
        "image_size": grid * patch,
    }  # fmt: skip
    if "contrast.image.weight" in weights:
        found["embed_dim"] = len(weights["contrast.image.weight"])
    return found


def _is_beyond(name: str, wanted: Mapping[str, Tensor]) -> bool:
    """Is it a part of BLIP that the module has not at all: a role, a head?"""
    if role := ROLES.search(name):
        return not any(f".{role[1]}." in own for own in wanted)
    part = name.partition(".")[0]
    if part in ("head", "contrast", "matching"):
        return not any(own.startswith(f"{part}.") for own in wanted)
    return name.startswith(QUEUE)


def _refuse_other_words(settings: SizeSettings, url: str) -> None:
    """The same number of other words would load, and say nonsense."""
    storage = Storage(url)
    if not storage.exists("checkpoint.json"):
        return
    from training.checkpoint import Checkpoint

    theirs = Checkpoint.open(url).facts.model.get("settings", {}).get("vocab")
    own = list(settings.vocab) if isinstance(settings.vocab, tuple) else settings.vocab
    if theirs is not None and theirs != own:
        raise UsageError(f"{url}: made with another vocabulary; give model.vocab the one that it was trained with")
