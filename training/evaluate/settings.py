"""What an encoder is tried on, and how: the options of `python -m training evaluate`, and a recipe's `evaluate`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from infra.recipe import Config, tuning
from training.sample_settings import MOST

WIDEST = 1000  # pixels of a blur's radius


class EvaluationSettings(Config):
    """What an encoder is tried on, and how."""

    task: str = Field(description="zero_shot, retrieval, caption or generation.")
    data: str = Field(
        description="Folder of shards, local or an fsspec url: a dataset, or one in CLIP_benchmark's form."
    )
    selection: str | None = Field(None, description="Only what this selection keeps.")
    captions: tuple[str, ...] = Field(("web",), description="Tables of captions to use where there is no selection.")
    index: str | None = Field(None, description="Folder of the index, for a dataset of others that may not be written.")
    split: str = Field("test", description="Folder of the tars, in CLIP_benchmark's form.")
    classes: str | None = Field(None, description="File of class names, a line each, or imagenet. Unset: the data's.")
    templates: str | None = Field(
        None, description="File of sentences with {} for the class's name, a line each, or openai. Unset: the data's."
    )
    rerank: int | str = Field(
        0,
        description="retrieval: so many of the nearest are ordered anew by whether they match, by a BLIP. generation: "
        "the CLIP that chooses among candidates: a run or checkpoint, or with --pretrained a name of open_clip's list.",
    )
    num_beams: int = Field(3, ge=1, description="caption: beams; 1 is greedy.")
    max_length: int = Field(20, ge=2, description="caption: most tokens, the prompt and the end among them.")
    min_length: int = Field(5, ge=0, description="caption: fewest tokens, the prompt among them.")
    num_candidates: tuple[Annotated[int, Field(gt=0, le=MOST)], ...] = Field(
        (1,), min_length=1, description="generation: of so many pictures of a caption the one that fits best."
    )
    vae: str | None = Field(None, description="generation: the dVAE of the tokens. Unset: the one of training.")
    features: str | None = Field(
        None, description="generation: the CLIP that measures, a run or checkpoint. Unset: the one that chooses, which "
        "finds by nature that what it chose fits.",
    )  # fmt: skip
    inception: str | None = Field(
        None, description="generation: file of Inception-v3's weights (torch-fidelity's), for FID and IS."
    )
    blur: tuple[Annotated[float, Field(ge=0, le=WIDEST)], ...] = Field(
        (1, 2, 4), description="generation: radii, in pixels, by which drawn and real pictures are blurred as well."
    )
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="generation: divides the logits.")
    top_k: int | None = Field(None, ge=1, description="generation: draw from so many likeliest tokens.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="generation: draw from the likeliest that hold this share."
    )
    guidance: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="generation: how far logits are moved away from those of no text."
    )
    limit: int | None = Field(None, gt=0, description="The first so many samples alone.")
    queries: int = Field(8, ge=0, description="Images, and texts, on the picture sheet; 0: no sheet.")
    seed: int = Field(0, ge=0, description="Of the choice of these.")
    batch: int = tuning(64, "Images, or texts, that the encoder takes at once.", gt=0)
    threads: int | None = tuning(None, "Threads that decode. Unset: a core each.", gt=0)
    copies: str | None = tuning(None, "Folder for copies of remote tars. Unset: the temporary folder.")
    copies_gib: float = tuning(32.0, "Bound of that folder; 0 asks for every image by itself.", ge=0)

    @field_validator("rerank", mode="before")
    @classmethod
    def _number_or_place(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator("rerank")
    @classmethod
    def _not_negative(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 0:
            raise ValueError("0 or more")
        return value
