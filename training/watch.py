"""What a run shows while it works: lines or a live display, metrics.jsonl, TensorBoard; Weights & Biases if asked."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn

METRICS = "metrics.jsonl"
LINE_EVERY_S = 10.0


class Watch:
    """Follows one run. Only rank 0 has one that speaks.

    folder: of the run, local. total: steps of the run. A line of metrics.jsonl is {"step", "samples", …numbers}; lines
    of steps after `step` are of a run that was killed, and are taken back.
    """

    def __init__(
        self, folder: Path, total: int, step: int, *, wandb: str | None = None, stream: TextIO | None = None
    ) -> None:
        self.total = total
        self._stream = stream if stream is not None else sys.stderr
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _taken_back(folder / METRICS, step).open("a", encoding="utf-8")
        self._board = _tensorboard(folder / "tensorboard", step)
        self._wandb = _wandb(wandb, folder) if wandb else None
        console = Console(file=self._stream)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,}/{task.total:,} steps"),
            TextColumn("{task.fields[told]}"),
            console=console,
        )
        self._task = self._bar.add_task("train", total=total, completed=step, told="")
        self._live = Live(self._bar, console=console, refresh_per_second=4) if console.is_terminal else None
        if self._live:
            self._live.start()
        self._began, self._first, self._said_at = time.monotonic(), step, 0.0

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a step (or of the steps since the last): to every place that keeps them."""
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(numbers), step=step)
        self._show(step, numbers)

    def say(self, text: str) -> None:
        """A line for people: a phase begins, a checkpoint is written."""
        if self._live:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Flush all."""
        if self._live:
            self._live.stop()
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _show(self, step: int, numbers: Mapping[str, float]) -> None:
        told = " · ".join([*_told(numbers), *self._time_left(step)])
        self._bar.update(self._task, completed=step, told=told)
        is_due = time.monotonic() - self._said_at > LINE_EVERY_S or step == self.total or "loss" not in numbers
        if not self._live and is_due:
            self._said_at = time.monotonic()
            self.say(f"train: step {step:,}/{self.total:,} · {told}")

    def _time_left(self, step: int) -> list[str]:
        done = step - self._first
        if not done or step >= self.total:
            return []
        left = (time.monotonic() - self._began) / done * (self.total - step)
        hours, seconds = divmod(round(left), 3600)
        minutes, seconds = divmod(seconds, 60)
        return [f"about {hours} h {minutes:02d} min left" if hours else f"about {minutes} min {seconds:02d} s left"]


@dataclass
class Meter:
    """Numbers of the steps since the last line: means, rates, shares."""

    num_steps: int = 0
    num_skipped: int = 0
    waited_s: float = 0.0
    began: float = field(default_factory=time.monotonic)
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, terms: Mapping[str, float], grad_norm: float, *, is_skipped: bool, waited_s: float) -> None:
        """One step more: the terms of its loss, its gradient's norm, the wait for its data."""
        self.num_steps += 1
        self.num_skipped += is_skipped
        self.waited_s += waited_s
        told = {"loss": sum(terms.values()), "grad_norm": grad_norm}
        for name, value in (told | {f"loss/{name}": term for name, term in terms.items()}).items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def numbers(self, batch: int) -> dict[str, float]:
        """Means over the steps; samples a second; the share of time that went by waiting for data."""
        took_s = max(time.monotonic() - self.began, 1e-9)
        means = {name: value / self.num_steps for name, value in self.sums.items()}
        rates = {"samples_per_s": batch * self.num_steps / took_s, "data_wait": self.waited_s / took_s}
        return {**means, **rates, "skipped": float(self.num_skipped)}


class Silent(Watch):
    """Shows and keeps nothing: for all ranks but the first."""

    def __init__(self) -> None:
        pass

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, in order; a last line that a kill cut short is left out."""
    try:
        lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def _taken_back(path: Path, step: int) -> Path:
    kept = [line for line in read_metrics(path.parent) if line["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)
    return path


def _told(numbers: Mapping[str, float]) -> list[str]:
    """The numbers that fit on a line."""
    parts = [f"loss {numbers['loss']:.4f}"] if "loss" in numbers else []
    forms = {"samples_per_s": "{:,.0f} samples/s", "data_wait": "waiting for data {:.0%}", "lr": "lr {:.2e}",
             "grad_norm": "gradient {:.2f}", "of_peak": "{:.0%} of peak"}  # fmt: skip
    parts += [form.format(numbers[name]) for name, form in forms.items() if name in numbers]
    metrics = [name for name in numbers if f"{name}/low" in numbers]  # those of an evaluation have an interval
    return parts + [f"{name} {numbers[name]:.3f}" for name in metrics]


def _tensorboard(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)


def _wandb(project: str, folder: Path) -> Any:
    import wandb

    return wandb.init(project=project, dir=str(folder), resume="allow", id=folder.resolve().name)
