"""A model by its name and weights, or from a checkpoint or run of ours: what filters and evaluation begin with."""

from __future__ import annotations

from typing import Any

from torch import nn

from infra.errors import UsageError
from training.models import MODELS
from training.models.blip import Blip
from training.models.blip_encoder import BlipEncoder
from training.models.blip_spec import CAPTION, RETRIEVAL, ops
from training.models.blip_weights import located, published_settings
from training.models.captioner import Captioner
from training.models.clip import Clip, ClipSettings
from training.models.clip_spec import build
from training.models.encoder import DTYPES, Encoder
from training.spec import TrainSpec


def load_encoder(
    model: str,
    pretrained: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    *,
    allow_random: bool = False,
) -> Any:
    """What evaluation asks, of a CLIP by its architecture and weights, or of any of our checkpoints.

    model: a name of open_clip's list, a .json file in its form, or the path or url of a checkpoint of ours, or of a
    run's folder.
    pretrained: a tag, path or url (`training.models.clip_weights`); a checkpoint brings its own. dtype: one of
    `DTYPES`. Raises UsageError for unknown names, weights that do not fit, and weights that nobody trained.
    """
    from training.checkpoint import checkpoint_of

    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype}: one of {', '.join(DTYPES)}")
    if (checkpoint := checkpoint_of(model)) is not None:
        if pretrained is not None:
            raise UsageError(f"{model} is a checkpoint and brings its weights; leave pretrained out")
        name, spec, module = module_of(checkpoint)
        if spec.encoder is None:
            raise UsageError(f"{model}: a {name} cannot be asked how near an image and a text are")
        return spec.encoder(module, device, dtype)
    settings = ClipSettings.parse({"arch": model, "pretrained": pretrained}, "model")
    if pretrained is None and not allow_random:
        raise UsageError(
            f"model {model}: without pretrained, its weights are random; give a tag, a path or a checkpoint"
        )
    return Encoder(build(settings), device, dtype)


def load_captioner(
    place: str, device: str = "cpu", dtype: str = "float32", *, prompt: str | None = None, vocab: str | None = None
) -> Captioner:  # fmt: skip
    """What writes captions: a checkpoint or run of ours, or a published BLIP, by a path, url or its name on the hub.

    prompt: what captions begin with; unset: as it was trained, and for a published one "a picture of ". vocab: of a
    published one.
    Raises UsageError where it cannot write, or does not load.
    """
    module = _blip_of(place, CAPTION, vocab)
    if prompt is not None:
        module.tokenizer.begin_with(prompt)
    return Captioner(module, device, dtype, ops(module.settings)[1])


def load_matcher(
    place: str, device: str = "cpu", dtype: str = "float32", *, vocab: str | None = None
) -> BlipEncoder:  # fmt: skip
    """What says whether a text matches an image; arguments and errors as of `load_captioner`."""
    module = _blip_of(place, RETRIEVAL, vocab)
    return BlipEncoder(module, device, dtype, ops(module.settings)[1])


def _blip_of(place: str, published: TrainSpec, vocab: str | None) -> Blip:
    from training.checkpoint import checkpoint_of

    if (checkpoint := checkpoint_of(place)) is not None:
        if vocab is not None:
            raise UsageError(f"{place} is a checkpoint and brings its vocabulary; leave vocab out")
        name, _, module = module_of(checkpoint)
        if not isinstance(module, Blip):
            raise UsageError(f"{place}: holds a {name}, not a blip")
        return module
    url = located(place)
    values = {
        name: value for name, value in published_settings(url, vocab).items() if name in published.Settings.model_fields
    }
    built = published.build(published.Settings.parse(values, place))
    assert isinstance(built, Blip)
    return built


def module_of(url: str) -> tuple[str, TrainSpec, nn.Module]:
    """The model of one of our checkpoints: its name in MODELS, what it brings, and the module with its weights."""
    from training.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(url)
    told = checkpoint.facts.model
    if "name" not in told:
        raise UsageError(f"{url}: does not say which model it holds")
    spec: TrainSpec = MODELS[told["name"]]
    settings = spec.Settings.parse(told["settings"], f"{url}/checkpoint.json")
    module = spec.build_bare(settings)
    try:
        module.load_state_dict(checkpoint.weights())
    except RuntimeError as error:
        raise UsageError(f"{url}: not the weights that its settings are of: {error}") from None
    return told["name"], spec, module


def clip_of_checkpoint(url: str) -> Clip:
    """The CLIP of one of our checkpoints. Raises UsageError where it holds another model."""
    from training.checkpoint import Checkpoint

    if (name := Checkpoint.open(url).facts.model.get("name")) != "clip":
        raise UsageError(f"{url}: holds a {name}, not a clip")
    module = module_of(url)[2]
    assert isinstance(module, Clip)
    return module
