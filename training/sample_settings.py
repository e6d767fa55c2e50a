"""What `python -m training sample` may be told beside its prompts."""

from __future__ import annotations

from pydantic import Field

from infra.recipe import Config, tuning

MOST = 16_384  # candidates of a prompt: their pictures lie in memory until one is chosen


class SampleSettings(Config):
    """How many pictures of each prompt, drawn how, and which are shown."""

    num_candidates: int = Field(16, gt=0, le=MOST, description="Pictures that are drawn of each prompt.")
    top: int | None = Field(None, gt=0, description="How many of them are written, the best first. Unset: all.")
    temperature: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="Divides the logits; less is likelier pictures."
    )
    top_k: int | None = Field(None, ge=1, description="Draw from so many likeliest tokens.")
    top_p: float | None = Field(None, gt=0, le=1, description="Draw from the likeliest tokens that hold this share.")
    guidance: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="How far logits are moved away from those of no text at all. (Not the paper's: 0 is.)",
    )
    seed: int = Field(0, ge=0, lt=2**64, description="Of the numbers that are drawn.")
    batch: int = tuning(64, "Candidates that are drawn together.", gt=0)
