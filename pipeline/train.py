"""Training as a part of a recipe: what its room does, as processes of their own. The pipeline knows no model."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from infra.child import run_child
from infra.errors import PairmillError, RecipeError
from infra.preemption import ASKED_TO_LEAVE
from infra.recipe import Config, apply_settings, load_yaml, tuning

# On a CPU, threads of one operation that wait for each other sleep. By default they spin, and then one busy neighbour
# on the same cores slows a training tenfold and more; sleeping costs a small model a quarter of its speed, undisturbed.
SHARED_MACHINE = {"OMP_WAIT_POLICY": "passive"}


class TrainingEnded(PairmillError):
    """A run ended before its end; what it said stands above."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class TrainPart(Config):
    """One run."""

    recipe: str = Field(description="A recipe of training/recipes/, or another.")
    set: dict[str, Any] = Field({}, description="What differs from it: {samples: 9600, out: out/clip}.")
    launcher: str = tuning("python -m training", "What starts it: torchrun --nproc-per-node 8 -m training.")

    def settings(self) -> list[str]:
        """The changes as --set takes them; a mapping changes what it names and leaves its neighbours."""
        return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in _leaves(self.set)]

    def out(self, where: str) -> str:
        """The run's folder. Raises RecipeError where the recipe cannot be read or names none."""
        found = apply_settings(load_yaml(self.recipe), tuple(self.settings())).get("out")
        if not isinstance(found, str):
            raise RecipeError(f"{where}: {self.recipe} names no folder; add set: {{out: FOLDER}}")
        return found

    def command(self) -> list[str]:
        """What a person would type."""
        changes = [word for setting in self.settings() for word in ("--set", setting)]
        return [*shlex.split(self.launcher), "train", self.recipe, *changes]


def _leaves(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


class EncodePart(Config):
    """Image tokens of the dataset, by a trained dVAE: `tokens/NAME/` beside the shards."""

    checkpoint: str = Field(description="The dalle.vae: a run or checkpoint.")
    launcher: str = tuning("python -m training", "What starts it.")
    options: tuple[str, ...] = tuning((), "More words of it: [--ray, auto, --num-gpus, '1'].")

    def command(self, name: str, dataset: str) -> list[str]:
        """What a person would type."""
        words = ["encode", self.checkpoint, "--data", dataset, "--name", name, *self.options]
        return [*shlex.split(self.launcher), *words]


def train(name: str, part: TrainPart) -> dict[str, Any]:
    """Run it, or go on where it was stopped. Returns out, steps, total, and the metrics of its last evaluation.

    Raises TrainingEnded: with exit code 75 where a queue wants the machine back, and the run has saved.
    """
    return _facts_of(f"train {name}", part.command())


def encode(name: str, part: EncodePart, dataset: str) -> dict[str, Any]:
    """Make the table, or go on where it was stopped. Returns rows_in, rows_out, unknown. Raises TrainingEnded."""
    return _facts_of(f"encode {name}", part.command(name, dataset))


def _facts_of(what: str, command: Sequence[str]) -> dict[str, Any]:
    """What a command of the training room says at its end, with --json."""
    program = [sys.executable, *command[1:]] if command[0] == "python" else [*command]
    code, output = run_child([*program, "--json"], SHARED_MACHINE)
    if code == ASKED_TO_LEAVE:
        raise TrainingEnded(f"{what}: asked to leave, and saved; the same command goes on from there", code)
    told = [line for line in output.splitlines() if line.startswith("{")]
    if code or not told:
        raise TrainingEnded(f"{what}: ended with code {code}; by itself it is: {shlex.join(command)}", 1)
    facts: dict[str, Any] = json.loads(told[-1])
    return facts
