"""A DALL-E's sizes, words and recipe: what `model:` of a recipe may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from infra.errors import PairmillError
from infra.recipe import Config, tuning
from training.blocks.masks import GridMask, Kind
from training.byte_pairs import ENDING, read_merges

TINY = "tiny"
TINY_MERGES = Path(__file__).with_name("tiny_merges.bpe")  # learnt from the small web's captions
SIZES: dict[str, dict[str, Any]] = {
    "12b": {"width": 3968, "layers": 64, "heads": 62},  # the paper's
    "5.6b": {"width": 2688, "layers": 64, "heads": 42},
    "2.8b": {"width": 1920, "layers": 64, "heads": 30},
    "1.3b": {"width": 1792, "layers": 32, "heads": 28},
    TINY: {"width": 128, "layers": 4, "heads": 4},
}


class StackSettings(Config):
    """The transformer."""

    width: int = Field(gt=0, description="Width of a token.")
    layers: int = Field(gt=0, description="Layers.")
    heads: int = Field(gt=0, description="Heads of attention.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is no multiple of heads={self.heads}")
        return self


class DalleSettings(Config):
    """Text and image tokens as one stream; the paper's unless told."""

    stack: StackSettings = Field(
        StackSettings(**SIZES["12b"]), description=f"The transformer: {', '.join(SIZES)}, or its sizes.",
        validate_default=False,
    )  # fmt: skip
    vocab: tuple[str, ...] = Field(
        validate_default=True, description=f"The words: a {ENDING} file of merges that `python -m training tokenizer` "
        "wrote; or tiny, for the small web's. They go into the checkpoint.",
    )  # fmt: skip
    text_length: int = Field(256, gt=0, description="Tokens of a text, its padding among them.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of the words' merges that training leaves out.")
    no_text: float = Field(
        0.0, ge=0, lt=1, description="Share of captions that training leaves empty, for who draws with guidance. "
        "(Not the paper's: 0 is.)",
    )  # fmt: skip
    codes: int = Field(8192, ge=2, description="Different image tokens.")
    grid: int = Field(32, gt=0, description="Image tokens a side.")
    kernel: int = Field(11, gt=0, description="Side of the last layer's convolutional mask, odd.")
    text_share: float = Field(0.125, ge=0, le=1, description="What the text counts in the loss; the image the rest.")
    vae: str | None = Field(
        None, description="The dalle.vae that makes pictures tokens: a run or checkpoint; unset: tokens are read, of "
        "data.datasets.N.tokens.",
    )  # fmt: skip
    pretrained: str | None = Field(None, description="Weights to start from: a checkpoint or run of ours.")
    gradient_checkpointing: bool = tuning(False, "Reckon activations again in the backward pass: less memory.")

    @field_validator("stack", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in SIZES:
                raise ValueError(f"one of {', '.join(SIZES)}, or a mapping of sizes")
            return SIZES[value]
        return value

    @field_validator("vocab", mode="before")
    @classmethod
    def _read(cls, vocab: Any) -> Any:
        """A file is read here, so that a checkpoint needs it no more."""
        if not isinstance(vocab, str):
            return vocab
        try:
            return read_merges(str(TINY_MERGES) if vocab == TINY else vocab)
        except PairmillError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} has no middle; give an odd number")
        return self

    @property
    def num_codes(self) -> int:
        """Image tokens of a picture."""
        return self.grid**2

    def masks(self) -> tuple[GridMask, ...]:
        """A mask a layer: of each four the second looks along columns, others along rows; the last is a convolution.

        Source: appendix B.1.
        """
        kinds: list[Kind] = ["column" if number % 4 == 2 else "row" for number in range(1, self.stack.layers)]
        return tuple(GridMask(kind, 1 + self.text_length, self.grid, self.kernel) for kind in [*kinds, "convolution"])
