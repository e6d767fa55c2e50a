"""DALL-E's first stage as an entry: how it is built, where its weights begin, what it is trained by."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from infra.storage import Storage
from training.models.dalle_vae import CHANNELS, DalleVae, DalleVaeSettings
from training.models.tensor_files import read_tensors, refuse_misfits
from training.objectives.discrete import mean_over_pictures
from training.ranks import Ranks
from training.schedules import cosine
from training.spec import Batch, Outputs, Term, TrainSpec

PARTS = ("encoder", "decoder")  # of the published weights, a file each


def build(settings: DalleVaeSettings) -> DalleVae:
    """The model, with the weights that the settings name."""
    module = DalleVae(settings)
    if settings.pretrained is not None:
        load_weights(module, settings.pretrained)
    return module


def load_weights(module: DalleVae, source: str) -> None:
    """Put weights into a dVAE. source: a checkpoint or run of ours, or a folder with the published parts as tensors.

    The released files are pickled modules, which could run code: those are refused, with a word on how to convert
    them once. Raises UsageError.
    """
    from training.checkpoint import checkpoint_of

    checkpoint = checkpoint_of(source)
    if checkpoint is not None:
        found = dict(read_tensors(checkpoint))
    else:
        found = {f"{part}.{name}": tensor for part in PARTS for name, tensor in _published(source, part).items()}
    refuse_misfits(found, module.state_dict(), source, "this dVAE")
    module.load_state_dict(found)


def _published(source: str, part: str) -> Mapping[str, Tensor]:
    """A part's tensors: of PART.safetensors in the folder, or else of the pickled PART.pkl, which is refused."""
    name = f"{part}.safetensors" if Storage(source).exists(f"{part}.safetensors") else f"{part}.pkl"
    return read_tensors(f"{source}/{name}")


def reconstruction_loss(outputs: Outputs, batch: Batch, ranks: Ranks, *, num: int) -> Tensor:
    """Nats per number of a picture, ()."""
    return mean_over_pictures(outputs["nll"], batch["valid"], ranks) / num


def divergence_loss(outputs: Outputs, batch: Batch, ranks: Ranks, *, num: int) -> Tensor:
    """Nats per number of a picture, ()."""
    return mean_over_pictures(outputs["divergence"], batch["valid"], ranks) / num


def losses(settings: DalleVaeSettings) -> Mapping[str, Term]:
    """Both terms of the evidence bound, over the numbers of a picture (appendix A.2)."""
    num = CHANNELS * settings.image_size**2

    def weight(step: int) -> float:
        return cosine(step, 0.0, settings.divergence, settings.divergence_steps)

    return {
        "reconstruction": Term(partial(reconstruction_loss, num=num)),
        "divergence": Term(partial(divergence_loss, num=num), weight),
    }


def ops(settings: DalleVaeSettings) -> tuple[str, str]:
    """Image operations of training and of evaluation."""
    size = settings.image_size
    if settings.resize_mode == "squash":
        return (f"decode|squash({size})|normalize(unit)",) * 2
    # The paper crops a square of the whole height and then up to an eighth off that; here shape and area are drawn.
    return (f"decode|random_resized_crop({size},0.79,1)|flip|normalize(unit)",
            f"decode|resize({size})|center_crop({size})|normalize(unit)")  # fmt: skip


SPEC = TrainSpec(
    Settings=DalleVaeSettings,
    tiny={"image_size": 32, "vocab": 64, "hidden": 32, "first": 32, "groups": 3, "blocks": 1, "divergence_steps": 20,
          "temperature_steps": 40},
    build=build,
    losses=losses,
    ops=ops,
    tokenizer=None,
)  # fmt: skip
