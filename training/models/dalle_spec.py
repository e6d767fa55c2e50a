"""DALL-E's second stage as an entry: how it is built, where its weights begin, what it is trained by."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from infra.errors import UsageError
from training.models.dalle import Dalle
from training.models.dalle_captions import DalleTokenizer
from training.models.dalle_settings import DalleSettings
from training.models.dalle_vae import DalleVae, DalleVaeSettings
from training.models.dalle_vae_spec import ops as of_vae
from training.models.painter import painter_of
from training.models.tensor_files import read_tensors, refuse_misfits
from training.models.token_maker import dvae_of
from training.ranks import Ranks
from training.spec import Batch, Outputs, Term, TrainSpec


def build(settings: DalleSettings) -> Dalle:
    """The model, with the weights that the settings name, and the dVAE that makes pictures tokens, if any."""
    module = Dalle(settings)
    if (vae := vae_of(settings)) is not None:
        module.look_through(vae)
    if settings.pretrained is not None:
        from training.checkpoint import Checkpoint, checkpoint_of

        checkpoint = checkpoint_of(settings.pretrained)
        if checkpoint is not None:
            known = Checkpoint.open(checkpoint).facts.model["settings"].get("vocab")
            if known != [*settings.vocab]:
                raise UsageError(
                    f"{settings.pretrained}: learnt with other words; set model.vocab to the file of its own"
                )
        found = read_tensors(checkpoint or settings.pretrained)
        refuse_misfits(found, module.state_dict(), settings.pretrained, "this DALL-E")
        module.load_state_dict(dict(found))
    return module


def vae_of(settings: DalleSettings) -> DalleVae | None:
    """The dVAE that the settings name. Raises UsageError where its tokens are not this model's."""
    if settings.vae is None:
        return None
    module = dvae_of(settings.vae)
    if (module.settings.vocab, module.settings.grid) != (settings.codes, settings.grid):
        raise UsageError(
            f"{settings.vae}: makes {module.settings.grid} x {module.settings.grid} tokens of {module.settings.vocab} "
            f"kinds; set model.grid={module.settings.grid} and model.codes={module.settings.vocab}"
        )
    return module


def text_loss(outputs: Outputs, batch: Batch, ranks: Ranks) -> Tensor:
    """Nats per text token, ()."""
    return outputs["text"]


def image_loss(outputs: Outputs, batch: Batch, ranks: Ranks) -> Tensor:
    """Nats per image token, ()."""
    return outputs["image"]


def losses(settings: DalleSettings) -> Mapping[str, Term]:
    """Text and image, each by its share."""
    share = settings.text_share
    return {"text": Term(text_loss, lambda step: share), "image": Term(image_loss, lambda step: 1 - share)}


def ops(settings: DalleSettings) -> tuple[str, str]:
    """Image operations of training and of evaluation: the same, since tokens are made once of each picture."""
    vae = vae_of(settings)
    made = of_vae(vae.settings if vae is not None else DalleVaeSettings.parse({}, "dalle.vae"))[1]
    return made, made


def codes(settings: DalleSettings) -> tuple[int, int] | None:
    """Image tokens of a picture and their kinds; None where pictures come."""
    return (settings.num_codes, settings.codes) if settings.vae is None else None


SPEC = TrainSpec(
    Settings=DalleSettings,
    tiny={"stack": "tiny", "vocab": "tiny", "text_length": 24, "codes": 64, "grid": 8, "kernel": 5},
    build=build,
    losses=losses,
    ops=ops,
    tokenizer=DalleTokenizer,
    painter=painter_of,
    codes=codes,
)
