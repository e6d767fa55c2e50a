"""A training recipe: model, data, optimiser, engine, and what is kept. YAML to frozen settings; `--set` changes one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from infra.errors import RecipeError
from infra.recipe import Config, apply_settings, fingerprint, load_yaml, tuning
from training.data.loader import DataSettings
from training.engine_settings import EngineSettings
from training.evaluate.settings import EvaluationSettings
from training.models import MODELS
from training.optim import OptimSettings
from training.spec import TrainSpec


class CheckpointSettings(Config):
    """When the run's state is written, and what of it is kept."""

    every: int = tuning(1000, "Steps between checkpoints; the last step writes one, too.", gt=0)
    keep_last: int = tuning(2, "Newest checkpoints that are kept.", gt=0)
    best: str | None = tuning(None, "Metric of which the best checkpoint is kept, too: retrieval/image_to_text_r1.")


class EvaluateSettings(EvaluationSettings):
    """One evaluation during the run, its results in OUT/evaluate/."""

    every: int = tuning(1000, "Steps between evaluations; after the last step there is one, too.", gt=0)


class TrainRecipe(Config):
    """One run."""

    model: dict[str, Any] = Field(description="name (of training.models.MODELS), and the model's own settings.")
    data: DataSettings
    optim: OptimSettings = OptimSettings.parse({}, "optim")
    engine: EngineSettings = EngineSettings.parse({}, "engine")
    samples: int | None = Field(None, gt=0, description="Samples to see in all; or say epochs.")
    epochs: float | None = Field(None, gt=0, description="Passes over the data; or say samples.")
    ops: str | None = Field(None, description="Image operations of training. Unset: the model's.")
    micro_batch: int | None = tuning(None, "Samples that a rank holds at once. Unset: its part of the batch.", gt=0)
    seed: int = Field(0, ge=0, description="Of weights, order and augmentation.")
    out: str = tuning(..., "Folder of the run: checkpoints, metrics, report; a path or an fsspec url.")
    checkpoints: CheckpointSettings = tuning(CheckpointSettings(), "When the state is written.")
    evaluate: tuple[EvaluateSettings, ...] = tuning((), "Evaluations during the run.")
    log_every: int = tuning(10, "Steps between lines of metrics.", gt=0)
    max_skipped: int = tuning(20, "Steps without finite loss or gradient in a row, before the run stops.", gt=0)
    wandb: str | None = tuning(None, "Project of Weights & Biases that metrics go to as well.")

    @classmethod
    def load(cls, path: str | Path, settings: Sequence[str] = ()) -> Self:
        """Read a recipe file. Raises RecipeError that says the mend."""
        recipe = cls.parse(apply_settings(load_yaml(path), tuple(settings)), str(path))
        if (recipe.samples is None) == (recipe.epochs is None):
            raise RecipeError(f"{path}: say either samples or epochs")
        recipe.model_settings()  # told now, not when data has been read
        return recipe

    @property
    def spec(self) -> TrainSpec:
        """What the model brings."""
        if "name" not in self.model:
            raise RecipeError(f"model: has no name; known: {', '.join(MODELS)}")
        spec: TrainSpec = MODELS[self.model["name"]]
        return spec

    def model_settings(self) -> Config:
        """The model's own settings, checked."""
        return self.spec.Settings.parse({key: value for key, value in self.model.items() if key != "name"}, "model")

    def total_steps(self, num_units: int) -> int:
        """Steps of the run; the last sees a whole batch, too."""
        samples = self.samples if self.samples is not None else (self.epochs or 0) * num_units
        return max(1, -(-int(samples) // self.data.batch))

    def num_micro(self, num_ranks: int) -> int:
        """Micro-batches of a step on each rank. Raises RecipeError where the batch does not divide."""
        each, left = divmod(self.data.batch, num_ranks)
        if left:
            raise RecipeError(
                f"data.batch={self.data.batch} does not divide among {num_ranks} ranks; change one of them"
            )
        micro = self.micro_batch or each
        if each % micro:
            raise RecipeError(
                f"micro_batch={micro} does not divide a rank's {each} samples of a step "
                f"(data.batch={self.data.batch}, {num_ranks} ranks); take a divisor"
            )
        return each // micro

    def word(self, step: int = 0) -> str:
        """What names a run: two recipes of one word, over the same data, have the same weights after `step` steps.

        What is not set says nothing, so that a new setting which nobody sets will leave runs their words.
        """
        parts = (self.model_settings(), self.optim.until(step))
        told = [part.model_dump(mode="json", include={*part.output_fields()}, exclude_none=True) for part in parts]
        return fingerprint(self.model["name"], told, self.samples, self.epochs, self.ops, self.seed, self.data.batch)
