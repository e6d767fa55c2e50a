"""A BLIP's sizes, words and recipe: what `model:` of a recipe may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from infra.errors import PairmillError
from infra.recipe import Config, tuning
from training.tokenize import ENDING, read_words

TINY_WORDS = Path(__file__).with_name("tiny_words.txt")  # learnt from the small web's captions
TINY = "tiny"

VISION: dict[str, dict[str, Any]] = {
    "base": {"width": 768, "layers": 12, "heads": 12},
    "large": {"width": 1024, "layers": 24, "heads": 16},
    # Not the paper's: a picture of 64 pixels, and convolutions before the layers, since it is to learn in minutes.
    TINY: {"width": 96, "layers": 2, "heads": 3, "patch": 8, "channels": (24, 48, 96)},
}
TEXT: dict[str, dict[str, Any]] = {
    "base": {"width": 768, "layers": 12, "heads": 12},
    TINY: {"width": 96, "layers": 2, "heads": 3, "positions": 64, "dropout": 0.0},
}


class VisionSettings(Config):
    """The image tower, a ViT."""

    width: int = Field(gt=0, description="Width of a token.")
    layers: int = Field(gt=0, description="Layers.")
    heads: int = Field(gt=0, description="Heads of attention.")
    hidden: int | None = Field(None, gt=0, description="Width of the feed-forward part. Unset: four times the width.")
    patch: int = Field(16, gt=0, description="Pixels a side of a patch.")
    channels: tuple[int, ...] = Field((), description="Of convolutions before the layers, each halving the picture.")
    norm_eps: float = Field(1e-6, gt=0, description="Of the norms; transformers' own default is 1e-5.")


class TextSettings(Config):
    """The text stack: BERT's layers with cross-attention in each."""

    width: int = Field(gt=0, description="Width of a token.")
    layers: int = Field(gt=0, description="Layers.")
    heads: int = Field(gt=0, description="Heads of attention.")
    hidden: int | None = Field(None, gt=0, description="Width of the feed-forward part. Unset: four times the width.")
    positions: int = Field(512, gt=0, description="Longest text that there are positions for, in tokens.")
    dropout: float = Field(0.1, ge=0, lt=1, description="In training alone; of BERT, as the released code has it.")


class SizeSettings(Config):
    """What all three entries share: towers, words, and how a caption is read."""

    vision: VisionSettings = Field(
        VisionSettings(**VISION["base"]), description=f"The image tower: {', '.join(VISION)}, or its sizes.",
        validate_default=False,
    )  # fmt: skip
    text: TextSettings = Field(
        TextSettings(**TEXT["base"]), description=f"The text stack: {', '.join(TEXT)}, or its sizes.",
        validate_default=False,
    )  # fmt: skip
    image_size: int = Field(224, gt=0, description="Pixels a side.")
    vocab: str | tuple[str, ...] = Field(
        "bert-base-uncased",
        description="The words: a .txt file, a token a line; tiny, for the small web's; or a name on the Hugging Face "
        "hub. A file's words go into the checkpoint.",
    )
    context: int = Field(30, ge=4, description="Tokens a caption is cut at, its first and last special one among them.")
    max_words: int = Field(30, gt=0, description="Words a caption is cut at before that, as the paper's code does.")
    pretrained: str | None = Field(
        None, description="Weights to start from: a checkpoint or run of ours, or a published file or folder."
    )
    towers: str | None = Field(
        None, description="Where image tower and text layers begin, whichever entry it was, in place of pretrained; "
        "heads begin anew, and a role that it has not as its other one. (The paper's: ImageNet's ViT and BERT.)",
    )  # fmt: skip
    gradient_checkpointing: bool = tuning(False, "Reckon activations again in the backward pass: less memory.")

    @field_validator("vision", "text", mode="before")
    @classmethod
    def _by_name(cls, value: Any, info: Any) -> Any:
        known = VISION if info.field_name == "vision" else TEXT
        if isinstance(value, str):
            if value not in known:
                raise ValueError(f"one of {', '.join(known)}, or a mapping of sizes")
            return known[value]
        return value

    @model_validator(mode="after")
    def _begins_once(self) -> Self:
        if self.pretrained is not None and self.towers is not None:
            raise ValueError("pretrained gives all weights, towers a part of them; give one of the two")
        return self

    @field_validator("vocab")
    @classmethod
    def _read(cls, vocab: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """A file is read here, so that a checkpoint needs it no more."""
        if vocab == TINY:
            vocab = str(TINY_WORDS)
        try:
            return read_words(vocab) if isinstance(vocab, str) and vocab.endswith(ENDING) else vocab
        except PairmillError as error:
            raise ValueError(str(error)) from None


class LanguageSettings(SizeSettings):
    """How a caption is learnt to be written."""

    smoothing: float = Field(0.1, ge=0, lt=1, description="Share of each target that is spread over the vocabulary.")


class ContrastSettings(SizeSettings):
    """How image and text are contrasted, and how wrong pairs are found."""

    embed_dim: int = Field(256, gt=0, description="Width of the space that images and texts meet in.")
    momentum: float = Field(0.995, ge=0, le=1, description="Of the second encoders, which follow the trained ones.")
    queue: int = Field(57600, ge=0, description="Keys of past steps that are negatives, too.")
    temperature: float = Field(0.07, gt=0, description="At the start; it is trained, within .001 and .5.")
    alpha: float = Field(0.4, ge=0, le=1, description="Share of the targets that the momentum encoder says, at last.")
    alpha_steps: int = Field(0, ge=0, description="Steps over which that share grows; the paper's: two epochs.")
    easy: float = Field(
        0.0, ge=0, lt=1, description="Share of wrong pairs that are drawn evenly. (Not the paper's: 0 is.) What "
        "contrast tells apart is never among the likest ones, so matching forgets it.",
    )  # fmt: skip


class BlipSettings(LanguageSettings, ContrastSettings):
    """BLIP as it is pretrained: all three losses."""


class CaptionSettings(LanguageSettings):
    """A captioner: the image tower and the decoder."""

    prompt: str = Field("a picture of ", description="What every caption begins with; it is given, never learnt.")
    context: int = Field(40, ge=4, description="Tokens a caption is cut at, prompt and special ones among them.")


class RetrievalSettings(ContrastSettings):
    """A filter: both encoders, fine-tuned to contrast and to match."""

    context: int = Field(35, ge=4, description="Tokens a caption is cut at, special ones among them.")


Entry = Literal["blip", "blip.caption", "blip.retrieval"]
