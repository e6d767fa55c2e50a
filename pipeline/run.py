"""A recipe, step by step: crawl, download, score, select, train, reshard, report. Each resumes where a kill left it."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import Field

from filters.rules import SelectRecipe
from filters.score import score
from filters.score import summary as score_summary
from filters.select import facts as selection_facts
from filters.select import select
from infra.dataset import Dataset
from infra.errors import RecipeError
from infra.jobs import Executor, RunOptions, StepResult
from infra.metric_names import in_percent
from infra.miniweb import MiniwebConfig, running
from infra.progress import Progress
from infra.recipe import Config, apply_settings, load_yaml
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.run import crawl
from pipeline.crawl.run import plan_text as plan_crawl
from pipeline.crawl.run import summary as crawl_summary
from pipeline.download.config import DownloadConfig
from pipeline.download.run import download
from pipeline.download.run import plan_text as plan_download
from pipeline.download.run import summary as download_summary
from pipeline.report import write_report
from pipeline.reshard.config import ReshardConfig
from pipeline.reshard.run import reshard
from pipeline.reshard.run import summary as reshard_summary
from pipeline.train import EncodePart, TrainPart, encode, train

LOOPBACK = ("127.0.0.0/8",)
C = TypeVar("C", bound=Config)


class CrawlPart(CrawlConfig):
    """`crawl:` of a recipe."""

    seeds: tuple[str, ...] = Field((), description="Where a live crawl starts.")
    warcs: tuple[str, ...] = Field((), description="Archives: paths, globs, urls, or a warc.paths.gz.")


class DownloadPart(DownloadConfig):
    """`download:` of a recipe."""

    tables: tuple[str, ...] = Field((), description="Url tables; unset: the pairs that the crawl found.")


class ScorePart(Config):
    """`score:` of a recipe."""

    scorers: tuple[str, ...] = Field(description="Names of scorers, or my_package.module:MyScorer.")
    settings: dict[str, dict[str, Any]] = Field({}, description="Options of scorers: scorer → option → value.")


class ReshardPart(ReshardConfig):
    """`reshard:` of a recipe."""

    selection: str = Field(description="The selection that is stored.")
    out: str = Field(description="The dataset folder of the curated shards.")


class ReportPart(Config):
    """`report:` of a recipe."""

    out: str = Field("report.html", description="Where the page is written.")


class Round(Config):
    """One of `then:`. Its parts are done in this order: what was trained scores what the next is trained on."""

    train: dict[str, TrainPart] = Field({}, description="Runs by name, one after the other.")
    encode: dict[str, EncodePart] = Field({}, description="Tables of image tokens by name.")
    score: ScorePart | None = None
    select: dict[str, SelectRecipe] = Field({}, description="Selections by name: their rules, or a file of them.")


class Recipe(Config):
    """A whole run. The parts are done in this order; a part that is left out is skipped."""

    dataset: str = Field(description="The dataset folder, or its fsspec url.")
    name: str | None = Field(
        None,
        pattern=r"^[a-z0-9_]+$",
        description="Of its resolved copy, recipe-NAME.yaml; for a dataset of another recipe.",
    )
    miniweb: MiniwebConfig | None = Field(None, description="Serve the small web on loopback while the recipe runs.")
    crawl: CrawlPart | None = None
    download: DownloadPart | None = None
    score: ScorePart | None = None
    select: dict[str, SelectRecipe] = Field({}, description="Selections by name: their rules, or a file of them.")
    then: tuple[Round, ...] = Field((), description="Rounds of training, scoring with what was trained, and selecting.")
    reshard: ReshardPart | None = None
    report: ReportPart | None = None

    @property
    def rounds(self) -> Sequence[Round]:
        """All scoring, selecting and training, in order."""
        return (Round(train={}, encode={}, score=self.score, select=self.select), *self.then)

    @property
    def runs(self) -> list[str]:
        """The folders of all training runs, in order. Raises RecipeError where a training recipe cannot be read."""
        return [
            part.out(f"then.{number}.train.{name}")
            for number, one in enumerate(self.then) for name, part in one.train.items()
        ]  # fmt: skip


def load_recipe(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `a.b=c` settings. Raises RecipeError that says the mend."""
    recipe = Recipe.parse(apply_settings(load_yaml(path), tuple(settings)), str(path))
    for one in recipe.rounds:  # a misspelt rule is told before anything is crawled
        for name, rules in one.select.items():
            rules.parsed(f"{path}: select: {name}")
    for out, times in Counter(recipe.runs).items():
        if times > 1:
            raise RecipeError(f"{path}: then: {times} runs in one folder, {out}; give each its own by set: {{out: …}}")
    return recipe


def run_recipe(recipe: Recipe, executor: Executor, options: RunOptions, progress: Progress) -> dict[str, Any]:
    """Run the parts in order. Returns the facts for --json, a mapping a part."""
    facts: dict[str, Any] = {"dataset": recipe.dataset}
    dataset = Dataset(recipe.dataset)
    with _web(recipe) as recipe:
        if recipe.crawl is not None:
            part = recipe.crawl
            config = _plain(part, CrawlConfig)
            found = crawl(
                dataset, config, executor, seeds=part.seeds, warcs=part.warcs, options=options, progress=progress
            )
            facts["crawl"] = crawl_summary(found, dataset)
        if recipe.download is not None:
            wanted = _plain(recipe.download, DownloadConfig)
            stored = download(dataset, wanted, tables_of(recipe), executor, options=options, progress=progress)
            facts["download"] = download_summary(stored, dataset)
        facts |= _curate(dataset, recipe, executor, options, progress)
        write_resolved(dataset, recipe)  # now that no part has refused these settings
    facts |= _in_all(facts)
    if recipe.report is not None:
        write_report(recipe.dataset, recipe.report.out, recipe.runs)
        facts["report"] = str(Path(recipe.report.out).resolve())
    return facts


def _curate(
    dataset: Dataset, recipe: Recipe, executor: Executor, options: RunOptions, progress: Progress
) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for one in recipe.rounds:
        if one.train or one.encode:
            executor.close()  # training takes all cores; it is opened again where there is work for it
        for name, run in one.train.items():
            facts.setdefault("train", {})[name] = train(name, run)
        for name, table in one.encode.items():
            facts.setdefault("encode", {})[name] = encode(name, table, recipe.dataset)
        if one.score is not None:
            scored = score(
                dataset, one.score.scorers, executor, settings=_scorer_settings(one.score), options=options,
                progress=progress,
            )  # fmt: skip
            facts["score"] = score_summary(scored, dataset)
        for name, rules in one.select.items():
            summaries = select([dataset], rules, name, executor, options=options, progress=progress)
            facts.setdefault("select", {})[name] = selection_facts(summaries)
    if recipe.reshard is not None:
        part = recipe.reshard
        out = Dataset(part.out)
        curated = reshard(
            dataset, out, part.selection, _plain(part, ReshardConfig), executor, options=options, progress=progress
        )
        facts["reshard"] = reshard_summary(curated, out)
    return facts


def _scorer_settings(part: ScorePart) -> list[str]:
    return [
        f"{scorer}.{option}={json.dumps(value)}"
        for scorer, options in part.settings.items()
        for option, value in options.items()
    ]


def _in_all(facts: dict[str, Any]) -> dict[str, Any]:
    """rows_in, rows_out, dropped and paths of the whole run: one count where the download took what the crawl gave."""
    parts = [facts[part] for part in ("crawl", "download") if part in facts]
    if not parts:
        return {}
    last = parts[-1]
    if len(parts) == 2 and parts[0]["rows_out"] == last["rows_in"]:
        dropped = Counter(parts[0]["dropped"]) + Counter(last["dropped"])
        return {
            "rows_in": parts[0]["rows_in"],
            "rows_out": last["rows_out"],
            "dropped": dropped,
            "paths": last["paths"],
        }
    return {name: last[name] for name in ("rows_in", "rows_out", "dropped", "paths")}


def plan_recipe(recipe: Recipe) -> list[str]:
    """What a run would do; nothing is fetched or written."""
    dataset = Dataset(recipe.dataset)
    lines = [f"dataset: {dataset.storage.url}"]
    if recipe.miniweb is not None:
        lines.append(f"miniweb: {recipe.miniweb.pages} pages drawn with seed {recipe.miniweb.seed}, served on loopback")
    if recipe.crawl is not None:
        lines += plan_crawl(dataset, recipe.crawl, recipe.crawl.seeds, recipe.crawl.warcs)
    if recipe.download is not None:
        if recipe.download.tables or dataset.tables("pairs"):
            lines += plan_download(dataset, recipe.download, tables_of(recipe))
        else:
            lines.append("download: the pairs that the crawl will find")
    for one in recipe.rounds:
        lines += [f"train: {name}: {shlex.join(run.command())}" for name, run in one.train.items()]
        encoded = ((name, table.command(name, recipe.dataset)) for name, table in one.encode.items())
        lines += [f"encode: {name}: {shlex.join(command)}" for name, command in encoded]
        if one.score is not None:
            lines.append(f"score: {', '.join(one.score.scorers)}, every stored image and caption")
        lines += [f"select: {name}, by {len(rules.rules)} rules" for name, rules in one.select.items()]
    if recipe.reshard is not None:
        lines.append(f"reshard: what {recipe.reshard.selection} keeps, to {recipe.reshard.out}")
    if recipe.report is not None:
        lines.append(f"report: {recipe.report.out}")
    return lines


def tables_of(recipe: Recipe) -> Sequence[str]:
    """The url tables of the download: named ones, or the crawl's."""
    assert recipe.download is not None
    return recipe.download.tables or (Dataset(recipe.dataset).storage.file_url("pairs"),)


def write_resolved(dataset: Dataset, recipe: Recipe) -> None:
    """Publish recipe.yaml, or recipe-NAME.yaml: every setting that changes the output, as it was used."""
    values: dict[str, Any] = {}
    for name in ("miniweb", "crawl", "download", "score", "reshard"):
        part = getattr(recipe, name)
        if part is not None:
            values[name] = part.fingerprint_values()
    if recipe.select:
        values["select"] = {name: rules.model_dump(mode="json") for name, rules in recipe.select.items()}
    if recipe.then:
        values["then"] = [one.model_dump(mode="json", exclude_defaults=True) for one in recipe.then]
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    name = "recipe.yaml" if recipe.name is None else f"recipe-{recipe.name}.yaml"
    dataset.storage.commit_bytes(name, text.encode())


def _plain(part: Config, kind: type[C]) -> C:
    """The settings as the command of that part has them: its inputs are no setting, and may be added to."""
    return kind.model_construct(**{name: getattr(part, name) for name in kind.model_fields})


@contextmanager
def _web(recipe: Recipe) -> Iterator[Recipe]:
    """Serve the small web, if the recipe asks for it, and point crawl and download at it."""
    if recipe.miniweb is None:
        yield recipe
        return
    with running(recipe.miniweb) as web:
        reach = {"dns": (web.dns,), "allow_network": LOOPBACK}
        crawl_part = recipe.crawl and recipe.crawl.model_copy(
            update=reach | ({} if recipe.crawl.seeds else {"seeds": (*web.seeds, *web.sitemaps)})
        )
        download_part = recipe.download and recipe.download.model_copy(update=reach)
        yield recipe.model_copy(update={"crawl": crawl_part, "download": download_part})


def fact_lines(facts: dict[str, Any]) -> list[str]:
    """What a run ended with, for people."""
    lines = []
    for part in ("crawl", "download"):
        if part in facts:
            told = facts[part]
            fell = ", ".join(f"{reason} {number:,}" for reason, number in sorted(told["dropped"].items(), key=_most))
            what = "pairs" if part == "crawl" else "images stored"
            lines.append(
                f"{part}: {told['rows_out']:,} {what} of {told['rows_in']:,}" + (f"; dropped {fell}" if fell else "")
            )
            if told["quarantined"]:
                lines.append(f"{part}: quarantined {', '.join(told['quarantined'])}; run again to try them again")
    if "score" in facts:
        tables = facts["score"]["tables"]
        lines.append("score: " + ", ".join(f"{table} {told['rows_out']:,}" for table, told in tables.items()))
    for name, told in facts.get("select", {}).items():
        fell = ", ".join(f"{reason} {number:,}" for reason, number in sorted(told["dropped"].items(), key=_most))
        lines.append(
            f"select: {name} keeps {told['rows_out']:,} of {told['rows_in']:,}" + (f"; {fell}" if fell else "")
        )
    for name, told in facts.get("train", {}).items():
        shares = [f"{metric} {_figure(metric, told['metrics'][metric])}{_interval(told['metrics'], metric)}"
                  for metric in told["metrics"] if metric.count("/") == 1]  # fmt: skip
        lines.append(f"train: {name}, {told['steps']:,} steps" + "".join(f"; {share}" for share in shares))
    for name, told in facts.get("encode", {}).items():
        missing = "".join(f"; {reason} {number:,}" for reason, number in told["unknown"].items())
        lines.append(f"encode: {name}, tokens of {told['rows_out']:,} pictures{missing}")
    if "reshard" in facts:
        lines.append(f"reshard: {facts['reshard']['rows_out']:,} pairs in {len(facts['reshard']['paths'])} shards")
    if "report" in facts:
        lines.append(f"report: {facts['report']}")
    return lines


def _interval(metrics: dict[str, float], metric: str) -> str:
    low, high = (metrics.get(f"{metric}/{end}") for end in ("low", "high"))
    return "" if low is None or high is None else f" ({_figure(metric, low)} to {_figure(metric, high)})"


def _figure(metric: str, value: float) -> str:
    return f"{100 * value:.1f}" if in_percent(metric) else f"{value:.3g}"


def result_lines(results: Sequence[StepResult]) -> list[str]:
    """A line a step: what went in, what came out, what fell and why."""
    lines = []
    for result in results:
        counts = result.counts
        fell = ", ".join(f"{reason} {number:,}" for reason, number in sorted(counts.dropped.items(), key=_most))
        tail = f"; dropped {fell}" if fell else ""
        lines.append(f"{result.step}: {counts.rows_in:,} rows in, {counts.rows_out:,} out{tail}")
    return lines


def _most(item: tuple[str, int]) -> tuple[int, str]:
    return (-item[1], item[0])
