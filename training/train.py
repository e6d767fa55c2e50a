"""THE job: a recipe to a trained model. One loop for every model; what differs stands in its TrainSpec."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from infra.errors import FingerprintError, PairmillError, RecipeError
from infra.preemption import ASKED_TO_LEAVE, Preemption
from infra.recipe import fingerprint
from infra.storage import Storage
from training.checkpoint import CHECKPOINTS, Checkpoint, Facts, Keep, latest
from training.data.loader import Loader
from training.engine import DTYPES, Engine, StepResult
from training.evaluate import DRAWS, WRITES
from training.evaluate.generation import studio_of
from training.evaluate.run import evaluate
from training.evaluate.settings import EvaluationSettings
from training.flops import forward_flops, made_up, peak_flops, shadow, step_flops
from training.optim import AverageSettings
from training.ranks import Ranks
from training.recipe import TrainRecipe
from training.report import write_page
from training.saver import Saver
from training.spec import Batch, Outputs, Term
from training.watch import Meter, Silent, Watch

BAD_BATCHES = "skipped.jsonl"
EVALUATIONS = "evaluate"
WORTH_A_WORD = 0.05  # share of an average that is left of the beginning


class TrainingError(PairmillError):
    """A run cannot go on."""


class Run:
    """One run on one rank. Raises what a person can mend before the first step."""

    def __init__(self, recipe: TrainRecipe, ranks: Ranks) -> None:
        self.recipe, self.ranks = recipe, ranks
        self.spec, settings = recipe.spec, recipe.model_settings()
        self.metrics: Mapping[str, float] = {}  # of the last evaluation
        self.storage = Storage(recipe.out)
        # Logs are files that grow, which an object store has not: of a remote run they lie here.
        self.folder = Path(
            self.storage.path() if self.storage.is_local else f"runs/{fingerprint(recipe.word(), recipe.out)}"
        )
        self.num_micro = recipe.num_micro(ranks.num)
        self.loader = Loader(
            recipe.data, recipe.ops or self.spec.ops(settings)[0], self.spec.tokenizer_of(settings), recipe.seed,
            ranks=ranks, num_micro=self.num_micro, codes=self.spec.codes(settings),
        )  # fmt: skip
        self.loader.warm_up()
        self.total = recipe.total_steps(self.loader.num_units)
        for each in recipe.evaluate:
            if self._asker(each) is None:
                raise RecipeError(f"evaluate: a {recipe.model['name']} cannot be asked for {each.task}; leave it out")
        torch.manual_seed(recipe.seed)
        module = self.spec.build(settings)
        for each in recipe.evaluate:
            if each.task in DRAWS and ranks.rank == 0:  # who draws and who judges, told missing now and not at the end
                asker = self._asker(each)
                assert asker is not None
                asker(module, "cpu")
        self.micro_batch = recipe.data.batch // ranks.num // self.num_micro
        self._shadow = shadow(module)
        self._sample_flops = 0.0  # to train on one; known from the first batch on
        self.terms: Mapping[str, Term] = self.spec.losses(settings)
        self.engine = Engine(
            module, recipe.optim, recipe.engine, total_steps=self.total, micro_batch=self.micro_batch,
            num_micro=self.num_micro, ranks=ranks, frozen=self.spec.frozen(settings), seed=recipe.seed,
        )  # fmt: skip
        self.saver = Saver(
            Storage(f"{self.storage.url}/{CHECKPOINTS}"), ranks,
            Keep(last=recipe.checkpoints.keep_last, best=recipe.checkpoints.best),
        )  # fmt: skip

    def resume(self, resume: str) -> int:
        """Steps done: from a checkpoint's path, or with "auto" from the run's newest; 0 where there is none."""
        newest = latest(Storage(f"{self.storage.url}/{CHECKPOINTS}"))
        url = newest if resume == "auto" else resume
        if url is None:
            return 0
        checkpoint = Checkpoint.open(url)
        if not self._is_own(checkpoint.facts):
            halved = (checkpoint.facts.recipe.get("optim") or {}).get("halve_at")
            raise FingerprintError(
                f"{url}: made by another recipe (its model, optim, samples, seed or batch differ"
                + (f"; its optim.halve_at is {halved}" if halved else "")
                + "); resume with that, or give another out and start from its weights by model.pretrained"
            )
        if newest is not None and newest != url and not self._is_own(Checkpoint.open(newest).facts):
            raise FingerprintError(
                f"{newest}: this recipe would not have made it, and it would stay the newest; remove it, or give "
                "another out"
            )
        self.loader.resume(checkpoint.facts.loader)
        checkpoint.restore(self.engine)
        self.metrics = checkpoint.facts.metrics
        return checkpoint.facts.step

    def _is_own(self, facts: Facts) -> bool:
        return bool(facts.recipe.get("word") == self.recipe.word(facts.step))

    def train(self, first: int, end: int, watch: Watch, preemption: Preemption) -> int:
        """The loop, from step `first` to before `end`. Returns the steps done: fewer, where it was asked to leave."""
        recipe, done = self.recipe, first
        batches = self.loader.batches(first * recipe.data.batch)
        meter, in_a_row = Meter(), 0
        try:
            for step in range(first, end):
                began = time.monotonic()
                parts = list(islice(batches, self.num_micro))
                waited_s = time.monotonic() - began
                result = self._step(parts, step)
                meter.add(result.terms, result.grad_norm, is_skipped=result.is_skipped, waited_s=waited_s)
                in_a_row = in_a_row + 1 if result.is_skipped else 0
                if result.is_skipped:
                    self._note_skipped(step, parts, result, in_a_row)
                done = step + 1
                is_last = done == end or self._is_any(preemption.is_asked)
                if is_last or done % recipe.log_every == 0:
                    watch.log(done, self._numbers(done, meter, result))
                    meter = Meter()
                found = self._evaluate(done, is_end=done == self.total)
                if found:
                    self.metrics = found
                    watch.log(done, found)
                if is_last or done % recipe.checkpoints.every == 0:
                    self.saver.save(self.engine, self._facts(done, found))
                if is_last:
                    break
            return done
        finally:
            batches.close()
            self.saver.wait()

    def _step(self, parts: list[Batch], step: int) -> StepResult:
        if not self._sample_flops:
            is_cached = self.spec.accumulate == "cached" and self.num_micro > 1
            # Compiled, no text is cut: it's as if each filled the context.
            whole = made_up(self.spec, self.recipe.model_settings(), 1) if self.recipe.engine.compile else parts[0]
            self._sample_flops = step_flops(forward_flops(self._shadow, whole), is_cached)

        def losses(outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
            return {
                name: term.weight(step) * term.loss(outputs, batch, self.ranks) for name, term in self.terms.items()
            }

        result = self.engine.step(
            Batch.joined(parts, self.engine.device),
            losses,
            step,
            accumulate=self.spec.accumulate,
            seed=self._seed(step),
        )
        if not result.is_skipped:
            if self.spec.after_step is not None:
                self.engine.after_step(self.spec.after_step)
            self.engine.move_average(step + 1)
        return result

    def _seed(self, step: int) -> Callable[[int], None]:
        """Chance is a function of where we are, so a checkpoint need not hold it."""
        return lambda micro: _seed_all(self.recipe.seed, step, micro, self.ranks.rank)

    def _numbers(self, done: int, meter: Meter, result: StepResult) -> dict[str, float]:
        recipe = self.recipe
        numbers = meter.numbers(recipe.data.batch) | {"samples": float(done * recipe.data.batch), "lr": result.lr}
        numbers["masked"] = float(sum(self.loader.broken.values()))
        rate = self._sample_flops * numbers["samples_per_s"] / self.ranks.num
        numbers["tflops"] = rate / 1e12  # of one rank
        if peak := peak_flops(self.engine.device, DTYPES.get(recipe.engine.precision, torch.float32)):
            numbers["of_peak"] = rate / peak
        return numbers

    def _evaluate(self, done: int, *, is_end: bool) -> dict[str, float]:
        """Metrics of the evaluations that are due, by "task/metric". Rank 0 works, the others wait for it."""
        found: dict[str, float] = {}
        due = [each for each in self.recipe.evaluate if is_end or done % each.every == 0]
        if not due:
            return found
        weights = self.engine.weights()
        if self.ranks.rank == 0:
            with torch.random.fork_rng():
                module = self.spec.build_bare(self.recipe.model_settings())
            module.load_state_dict(weights)
            for number, each in enumerate(due):
                asker = self._asker(each)
                assert asker is not None
                model = asker(module, str(self.engine.device))
                facts = evaluate(model, each, f"{self.storage.url}/{EVALUATIONS}/{each.task}-{number}")
                for name, share in facts["metrics"].items():
                    found[f"{each.task}/{name}"] = share["value"]
                    found |= {
                        f"{each.task}/{name}/{end}": share[end] for end in ("low", "high") if share[end] is not None
                    }
        return found

    def _asker(self, each: EvaluationSettings) -> Callable[[Any, str], Any] | None:
        """What makes of the module that which the task asks."""
        if each.task in DRAWS and (painter := self.spec.painter) is not None:
            vae, tokens = each.vae or self.recipe.model.get("vae"), self.loader.token_maker
            return lambda module, device: studio_of(painter(module, device, vae=vae, tokens=tokens), each, device)
        return {**dict.fromkeys(DRAWS), **dict.fromkeys(WRITES, self.spec.captioner)}.get(each.task, self.spec.encoder)

    def _facts(self, done: int, metrics: Mapping[str, float]) -> Facts:
        samples = done * self.recipe.data.batch
        settings = self.recipe.model_settings().model_dump(mode="json")
        recipe = {"word": self.recipe.word(done), **self.recipe.model_dump(mode="json")}
        model = {"name": self.recipe.model["name"], "settings": settings}
        told = {
            "step": done,
            "samples": samples,
            "model": model,
            "loader": self.loader.state(samples),
            "recipe": recipe,
            "metrics": metrics,
        }
        return Facts.parse(told, "the checkpoint's facts")

    def _note_skipped(self, step: int, parts: list[Batch], result: StepResult, in_a_row: int) -> None:
        """Write down which samples a skipped step had. Raises TrainingError where too many were skipped in a row."""
        terms = {name: str(value) for name, value in result.terms.items()}
        uids = [uid.hex() for part in parts for uid in part.uids]
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / BAD_BATCHES).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "rank": self.ranks.rank, "terms": terms, "uids": uids}) + "\n")
        if in_a_row >= self.recipe.max_skipped:
            raise TrainingError(
                f"{in_a_row} steps in a row without a finite loss or gradient, the last at step {step}; their uids "
                f"stand in {self.folder / BAD_BATCHES}. Lower optim.lr, set optim.clip_norm, or look at these samples"
            )

    def _is_any(self, is_it: bool) -> bool:
        """On any rank? All must leave at the same step."""
        return bool(self.ranks.mean(torch.tensor(float(is_it), device=self.engine.device)) > 0)


@dataclass(frozen=True)
class Done:
    """How a run ended: steps done, of how many, the exit code, and what its last evaluation found."""

    step: int
    total: int
    code: int
    metrics: Mapping[str, float]


def train(
    recipe: TrainRecipe, ranks: Ranks, resume: str = "auto", limit: int | None = None,
    preemption: Preemption | None = None,
) -> Done:  # fmt: skip
    """Run a recipe to its end, or until a queue wants the machine back. limit: steps after which it leaves as if asked.

    preemption: who says so; None: signals to this process.
    Raises PairmillError for what a person can mend.
    """
    run = Run(recipe, ranks)
    first = run.resume(resume)
    watch = Watch(run.folder, run.total, first, wandb=recipe.wandb) if ranks.rank == 0 else Silent()
    try:
        if ranks.rank == 0:
            run.storage.commit_bytes(
                "recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).encode()
            )
        for line in _screen(run, first):
            watch.say(line)
        with nullcontext(preemption) if preemption else Preemption().watched() as asked:
            done = run.train(first, min(run.total, first + limit) if limit else run.total, watch, asked)
    finally:
        watch.close()
        if ranks.rank == 0:
            write_page(run.folder)
    return Done(done, run.total, 0 if done == run.total else ASKED_TO_LEAVE, run.metrics)


def _screen(run: Run, first: int) -> list[str]:
    """What a person should know before the first step."""
    recipe, order = run.recipe, run.loader.order
    return [
        f"model: {recipe.model['name']}, {run.engine.num_parameters:,} parameters, {recipe.engine.precision}, "
        f"ZeRO {recipe.engine.zero}, {run.ranks.num} ranks on {run.engine.device.type}",
        f"data: {run.loader.num_units:,} {recipe.data.unit}s in {len(order.sizes):,} shards, {order.lanes} lanes",
        f"batch: {recipe.data.batch:,} = {run.ranks.num} ranks x {run.num_micro} micro-batches x {run.micro_batch}",
        f"steps: {run.total:,}, {run.total * recipe.data.batch / run.loader.num_units:.1f} epochs"
        + (f"; going on at {first:,}" if first else ""),
        *_average_lines(recipe.optim.average, run.total),
        f"out: {run.storage.url}",
    ]


def _average_lines(average: AverageSettings | None, total_steps: int) -> list[str]:
    if average is None:
        return []
    line = f"average: {average.decay} of it stays every {average.every:,} steps"
    if (left := average.left(total_steps)) > WORTH_A_WORD:
        line += f"; at the end {left:.0%} of it will still be the first weights: lower optim.average's decay or every"
    return [line]


def _seed_all(*words: int) -> None:
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
