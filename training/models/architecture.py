"""open_clip's architectures: by name, from a JSON file or written out; with their image operations and tokeniser."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from torch import Tensor

from infra.errors import UsageError
from infra.recipe import Config
from infra.storage import Storage
from infra.torchvision_here import make_importable

PARTS = ("embed_dim", "vision_cfg", "text_cfg")  # what open_clip knows an architecture by
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
DEFAULT_PREPROCESS = {  # open_clip's, for an architecture that brings none
    "mean": OPENAI_MEAN, "std": OPENAI_STD, "interpolation": "bicubic", "resize_mode": "shortest",
}  # fmt: skip
NORMALISATIONS = {  # name in training.preprocess → mean, standard deviation
    "clip": (OPENAI_MEAN, OPENAI_STD),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,) * 3, (0.5,) * 3),
}
STARTS = {  # scale (its logarithm) and bias of the logits. A bias added to every logit would change no softmax.
    "softmax": {"init_logit_scale": math.log(1 / 0.07), "init_logit_bias": None},  # CLIP, section 2.5
    "sigmoid": {"init_logit_scale": math.log(10), "init_logit_bias": -10.0},  # SigLIP, section 3.2
}


class ArchSettings(Config):
    """Which two towers, and their sizes."""

    arch: str | dict[str, Any] = Field(
        description="A name of open_clip's model list, the path of a JSON file in its form, or such a mapping itself: "
        "embed_dim, vision_cfg, text_cfg."
    )
    pretrained: str | None = Field(
        None, description="Weights to start from: a tag of open_clip's for this architecture, or a path or url."
    )
    image_size: int | None = Field(None, description="Pixels a side, in place of the architecture's.", ge=1)
    context_length: int | None = Field(None, description="Tokens a text, in place of the architecture's.", ge=2)
    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="Cross-entropy over the batch (CLIP), or a yes or no for every pair (SigLIP)."
    )

    @field_validator("arch")
    @classmethod
    def _known(cls, arch: str | dict[str, Any]) -> str | dict[str, Any]:
        """A file is read here, so that a checkpoint's settings need it no more."""
        if isinstance(arch, str) and arch.endswith(".json"):
            arch = _read_json(arch)
        if isinstance(arch, str):
            if arch not in names():
                close = difflib.get_close_matches(arch, names(), n=3)
                hint = f"did you mean {' or '.join(close)}?" if close else "see open_clip.list_models()"
                raise ValueError(
                    f"open_clip has no architecture of that name; {hint} Or give a .json file, or a mapping"
                )
            return arch
        if "preprocess_cfg" in arch and "model_cfg" not in arch:
            raise ValueError("preprocess_cfg stands beside model_cfg: {model_cfg: {embed_dim: …}, preprocess_cfg: {…}}")
        model_cfg = arch.get("model_cfg", arch)
        if missing := [part for part in PARTS if part not in model_cfg]:
            raise ValueError(f"an architecture has {', '.join(PARTS)}; missing: {', '.join(missing)}")
        if not (isinstance(model_cfg["vision_cfg"], dict) and isinstance(model_cfg["text_cfg"], dict)):
            raise ValueError("vision_cfg and text_cfg are mappings of their own")
        if "multimodal_cfg" in model_cfg:
            raise ValueError("its captioning decoder would stay untrained here; choose one without multimodal_cfg")
        return arch


def names() -> Sequence[str]:
    """Every architecture of open_clip's model list that has an image and a text tower, and nothing else."""
    return list(_shipped())


@cache
def _shipped() -> Mapping[str, dict[str, Any]]:
    # Read where they lie: importing open_clip takes seconds, and a recipe is checked in less.
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise UsageError("open_clip is not installed; make setup installs what training needs")
    read = {path.stem: json.loads(path.read_text()) for path in (Path(spec.origin).parent / "model_configs").iterdir()}
    return {
        name: cfg
        for name, cfg in sorted(read.items())
        if all(part in cfg for part in PARTS) and "multimodal_cfg" not in cfg
    }


def model_cfg(settings: ArchSettings) -> dict[str, Any]:
    """The architecture as open_clip's model classes take it, with the settings' sizes and loss put in."""
    cfg = deepcopy(_shipped()[settings.arch] if isinstance(settings.arch, str) else settings.arch)
    cfg = cfg.get("model_cfg", cfg)
    if settings.image_size is not None:
        cfg["vision_cfg"]["image_size"] = settings.image_size
    if settings.context_length is not None:
        cfg["text_cfg"]["context_length"] = settings.context_length
    return cfg | STARTS[settings.loss]


def preprocess_cfg(settings: ArchSettings) -> dict[str, Any]:
    """What open_clip does to an image before this model: size, mean, std, interpolation, resize_mode."""
    found: dict[str, Any] = dict(DEFAULT_PREPROCESS)
    if isinstance(settings.arch, dict):
        found |= settings.arch.get("preprocess_cfg", {})
    elif settings.pretrained is not None:
        make_importable()
        from open_clip.pretrained import get_pretrained_cfg

        tagged = get_pretrained_cfg(settings.arch, settings.pretrained) or {}
        found |= {name: tagged[name] for name in found if name in tagged}
    return found | {"size": _side(settings)}


def image_ops(settings: ArchSettings) -> tuple[str, str]:
    """Operations for training and for evaluation, in the grammar of training.preprocess. Raises UsageError."""
    cfg = preprocess_cfg(settings)
    size, normalize = cfg["size"], _normalisation(cfg)
    if cfg["interpolation"] != "bicubic":
        raise UsageError(f"{_named(settings)}: interpolation {cfg['interpolation']} is not among our image operations")
    whole = {"shortest": f"resize({size})|center_crop({size})", "squash": f"squash({size})"}.get(cfg["resize_mode"])
    if whole is None:
        raise UsageError(f"{_named(settings)}: resize_mode {cfg['resize_mode']} is not among our image operations")
    # Crops of 0.9 to 1 of the area: open_clip's default, not the paper's random square crop.
    return f"decode|random_resized_crop({size},0.9,1)|{normalize}", f"decode|{whole}|{normalize}"


def _normalisation(cfg: Mapping[str, Any]) -> str:
    for name, (mean, std) in NORMALISATIONS.items():
        if tuple(cfg["mean"]) == mean and tuple(cfg["std"]) == std:
            return f"normalize({name})"
    raise UsageError(f"mean {cfg['mean']} and std {cfg['std']} are none of ours: {', '.join(NORMALISATIONS)}")


def _side(settings: ArchSettings) -> int:
    size = model_cfg(settings)["vision_cfg"].get("image_size", 224)
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise UsageError(f"{_named(settings)}: image_size {size} is not square; our image operations make squares")
    return int(sides.pop())


def _named(settings: ArchSettings) -> str:
    return settings.arch if isinstance(settings.arch, str) else "this architecture"


def _read_json(url: str) -> dict[str, Any]:
    storage, name = Storage.of_file(url)
    try:
        found = json.loads(storage.read(name))
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"the file holds no mapping of {', '.join(PARTS)}")
    return found


@dataclass(frozen=True)
class OpenClipTokenizer:
    """The tokeniser that open_clip gives an architecture; made at first use, in whichever process that is."""

    text_cfg_json: str

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B, L) int64, padded and cut to the context length. Raises UsageError where its files are out of reach."""
        ids: Tensor = _made(self.text_cfg_json)(list(texts))
        return ids


@cache  # in each process, not in what is sent there
def _made(text_cfg_json: str) -> Any:
    make_importable()
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

    cfg = json.loads(text_cfg_json)
    options = {
        "context_length": cfg.get("context_length", DEFAULT_CONTEXT_LENGTH),
        **(cfg.get("tokenizer_kwargs") or {}),
    }
    if options.get("reduction_mask"):
        raise UsageError("tokenizer_kwargs.reduction_mask draws words by chance of its own; leave it out")
    folder = cfg.get("hf_tokenizer_name")
    if not folder:
        return SimpleTokenizer(**options)
    try:
        return HFTokenizer(folder, tokenizer_mode=cfg.get("tokenizer_mode"), **options)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"tokeniser {folder} comes from the Hugging Face hub: {str(error).splitlines()[0]} "
            "Fetch it once where there is a network, and give text_cfg.hf_tokenizer_name the path of its folder"
        ) from None


def tokenizer(settings: ArchSettings) -> OpenClipTokenizer:
    """The architecture's tokeniser, cheap to send to a worker."""
    return OpenClipTokenizer(json.dumps(model_cfg(settings)["text_cfg"], sort_keys=True))
