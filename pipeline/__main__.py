"""python -m pipeline crawl | download | run | status | report: from web pages to WebDataset shards."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from infra.cli import CONTEXT, open_executor, options_of, print_json, run_main, run_options, say_plan
from infra.errors import UsageError
from infra.log import one_line
from infra.options import CommaList, config_options, given
from infra.progress import Progress
from pipeline.crawl.config import CrawlConfig
from pipeline.download.config import DownloadConfig
from pipeline.reshard.config import ReshardConfig


def _is_network(word: str) -> bool:
    try:
        ipaddress.ip_network(word, strict=False)
    except ValueError:
        return False
    return True


def _is_word(word: str) -> bool:
    return not word.startswith("-")


SPREAD: dict[str, Callable[[str], bool]] = {"--allow-network": _is_network, "--seed": _is_word, "--warc": _is_word}


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Turn web pages into curated image-text shards that any WebDataset reader opens.

    \b
    crawl      pages (live, or in WARC/WAT archives) -> url tables of pairs
    download   url tables -> shards: NNNNN.tar, NNNNN.parquet, NNNNN_stats.json
    reshard    shards and a selection -> curated shards (python -m filters scores and selects)
    remove     takedowns, through tars, tables and everything derived
    run        a recipe: all of it from one YAML file
    status     where a dataset stands
    report     one HTML page that shows what came, what did not, and why
    explore    a local page to find rules by eye

    Every command can be killed at any moment and run again: finished work is skipped, and the result is the same,
    byte for byte. Exit codes: 0 done, 1 failed or too much quarantined, 2 wrong usage.
    """


@main.command()
@click.option("--seed", "seeds", multiple=True, metavar="URL…", help="Pages or sitemaps to start a live crawl from.")
@click.option("--warc", "warcs", multiple=True, metavar="PATH…", help="WARC or WAT files: paths, globs, fsspec urls, "
              "or a Common Crawl warc.paths.gz.")  # fmt: skip
@click.option("--out", required=True, metavar="DATASET", help="Dataset folder or fsspec url; tables go to pairs/.")
@config_options(CrawlConfig)
@run_options
def crawl(seeds: tuple[str, ...], warcs: tuple[str, ...], out: str, **values: Any) -> None:
    """Pages to url tables of pairs, from seeds or from archives.

    \b
    python -m pipeline crawl --seed https://example.org/ --out data/example --max-pages 200
    python -m pipeline crawl --warc 'crawl-*.warc.gz' --out data/archive --local
    """
    from infra.dataset import Dataset
    from pipeline.crawl import run as crawling

    config = CrawlConfig.parse(given(CrawlConfig, values), "crawl")
    crawling.check_start(seeds, warcs)
    dataset = Dataset(out)
    if values["dry_run"]:
        say_plan(crawling.plan_text(dataset, config, seeds, warcs), values["as_json"])
        return
    with open_executor(values) as executor:
        results = crawling.crawl(
            dataset, config, executor, seeds=seeds, warcs=warcs, options=options_of(values), progress=Progress()
        )
    _say_results(results, crawling.summary(results, dataset), values["as_json"])


@main.command()
@click.argument("tables", nargs=-1, required=True, metavar="TABLE…")
@click.option("--out", required=True, metavar="DATASET", help="Dataset folder or fsspec url.")
@click.option("--retry", type=CommaList(), default=(), metavar="REASON,…",
              help="Also try rows again that failed so: timeout,dns,5xx,http_403 …; they fill new shards.")  # fmt: skip
@click.option(
    "--no-fetch",
    is_flag=True,
    help="Split the tables and stop: texts can then be scored and selected before any image is asked for.",
)
@click.option("--unsafe-engine", is_flag=True, help="Allow --engine img2dataset, which has none of the guards.")
@config_options(DownloadConfig)
@run_options
def download(
    tables: tuple[str, ...], out: str, retry: tuple[str, ...], no_fetch: bool, unsafe_engine: bool, **values: Any
) -> None:
    """Url tables (ours, img2dataset's, LAION's, DataComp's) to shards; every row ends with a status and a reason.

    TABLE: .parquet, .csv, .tsv or .jsonl files, folders or globs of them. More tables given later append new shards.

    \b
    python -m pipeline download data/example/pairs --out data/example --image-size 256
    python -m pipeline download laion.parquet --url-col URL --caption-col TEXT --out data/laion
    """
    from infra.dataset import Dataset
    from pipeline.download import run as downloading

    config = DownloadConfig.parse(given(DownloadConfig, values), "download")
    if config.engine == "img2dataset" and not unsafe_engine:
        raise UsageError(
            "--engine img2dataset follows redirects to private addresses, reads file:// and has no byte, pixel or time "
            "cap; if every url is trusted, say so with --unsafe-engine"
        )
    dataset = Dataset(out)
    if values["dry_run"]:
        say_plan(downloading.plan_text(dataset, config, tables), values["as_json"])
        return
    with open_executor(values) as executor:
        results = downloading.download(
            dataset, config, tables, executor, options=options_of(values), retry=retry, fetch=not no_fetch,
            progress=Progress(),
        )  # fmt: skip
    _say_results(results, downloading.summary(results, dataset), values["as_json"])


@main.command("run")
@click.argument("recipe", metavar="RECIPE")
@click.option("--set", "settings", multiple=True, metavar="a.b=c", help="Change one value of the recipe.")
@run_options
def run_(recipe: str, settings: tuple[str, ...], **values: Any) -> None:
    """Crawl, download, score, select, train and report, as one YAML file says: see pipeline/recipes/.

    \b
    python -m pipeline run pipeline/recipes/demo.yaml --set download.image_size=128
    """
    from pipeline import run as running

    loaded = running.load_recipe(recipe, settings)
    if values["dry_run"]:
        say_plan(running.plan_recipe(loaded), values["as_json"])
        return
    with open_executor(values) as executor:
        facts = running.run_recipe(loaded, executor, options_of(values), Progress())
    if values["as_json"]:
        print_json(facts)
    else:
        for line in running.fact_lines(facts):
            click.echo(line)


@main.command()
@click.argument("source", metavar="DATASET")
@click.option("--selection", required=True, metavar="NAME", help="The selection that says what is kept.")
@click.option("--out", required=True, metavar="DATASET", help="Folder or fsspec url of the curated shards.")
@config_options(ReshardConfig)
@run_options
def reshard(source: str, selection: str, out: str, **values: Any) -> None:
    """Shards and a selection to curated shards: the same layout, new keys, the same uids, images byte for byte.

    A trainer needs no resharding: it reads the raw shards through a selection. This is for what is handed on.

    \b
    python -m pipeline reshard data/example --selection basic --out data/example-basic --shard-size 10000
    """
    from infra.dataset import Dataset
    from pipeline.reshard import run as resharding

    config = ReshardConfig.parse(given(ReshardConfig, values), "reshard")
    place, target = Dataset(source), Dataset(out)
    if values["dry_run"]:
        say_plan(resharding.plan_text(place, target, selection, config), values["as_json"])
        return
    with open_executor(values) as executor:
        results = resharding.reshard(
            place, target, selection, config, executor, options=options_of(values), progress=Progress()
        )
    _say_results(results, resharding.summary(results, target), values["as_json"])


@main.command()
@click.argument("dataset", metavar="DATASET")
@click.option("--list", "path", required=True, metavar="FILE", help="What must go, a line each: uid:…, url:…, "
              "domain:…, sha256:…, or phash:…[/distance]; path or fsspec url.")  # fmt: skip
@run_options
def remove(dataset: str, path: str, **values: Any) -> None:
    """Takedowns: purge what a list names from tars, tables and everything derived, and keep it away.

    Nothing of the bytes, the address or the caption is left; a tombstone is, so that no later run fetches it again. The
    selections that held such rows are named, and datasets that were resharded from this one.

    \b
    python -m pipeline remove data/example --list takedowns.txt --dry-run
    python -m pipeline remove data/example --list takedowns.txt
    """
    from infra.dataset import Dataset
    from pipeline.remove import run as removing

    place = Dataset(dataset)
    if values["dry_run"]:
        say_plan(removing.plan_text(place, path), values["as_json"])
        return
    with open_executor(values) as executor:
        facts = removing.remove(place, path, executor, options=options_of(values), progress=Progress())
    if values["as_json"]:
        print_json(facts)
        return
    matched = ", ".join(f"{word} {number:,}" for word, number in facts["by_match"].items())
    click.echo(f"removed: {facts['removed']:,} rows" + (f" ({matched})" if matched else ""))
    for name, number in facts["selections"].items():
        click.echo(f"selection {name}: held {number:,} of them; what it says of the others stands")
    for made in facts["resharded"]:
        click.echo(f"made of this dataset, not changed: {made['dataset']}; there: {made['run']}")


@main.command()
@click.argument("dataset", metavar="DATASET")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(dataset: str, as_json: bool) -> None:
    """Jobs done, rows kept and dropped by reason, and what was quarantined, step by step."""
    from infra.dataset import Dataset
    from pipeline.status import read_status

    steps = read_status(Dataset(dataset))
    if as_json:
        print_json({step.step: step.as_json() for step in steps})
        return
    for step in steps:
        counts = step.counts
        click.echo(f"{step.step:15} {step.num_done:>6}/{step.num_planned} jobs  "
                   f"{counts.rows_in:>10,} rows in  {counts.rows_out:>10,} out")  # fmt: skip
        for reason, number in sorted(counts.dropped.items(), key=lambda item: -item[1]):
            click.echo(f"{'':15} {number:>13,} {reason}")
        for job, error in step.quarantined.items():
            click.echo(f"{'':15} quarantined {job}: {one_line(error.strip().splitlines()[-1])}")


@main.command()
@click.argument("dataset", metavar="DATASET")
@click.option("--out", required=True, metavar="FILE", help="The HTML page to write.")
@click.option("--run", "runs", multiple=True, metavar="RUN", help="Folder of a training run to show, too; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def report(dataset: str, out: str, runs: Sequence[str], as_json: bool) -> None:
    """One self-contained HTML page: funnel, reasons, hosts, sizes, galleries, models. Opens without a network."""
    from pipeline.report import write_report

    facts = write_report(dataset, out, runs)
    if as_json:
        print_json({**facts, "paths": [out]})
    else:
        click.echo(f"report: {out}")


@main.command()
@click.argument("dataset", metavar="DATASET")
@click.option("--port", type=click.IntRange(0, 65535), default=8899, show_default=True, help="0 takes a free one.")
@click.option("--captions", type=CommaList(), default=(), metavar="NAME,…",
              help="Caption tables that stand beside the web's captions.")  # fmt: skip
@click.option("--open", "open_browser", is_flag=True, help="Open a browser at the page.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the address.")
def explore(dataset: str, port: int, captions: Sequence[str], open_browser: bool, as_json: bool) -> None:
    """A local page to find rules by eye: sliders on scores, counts that move along, pictures on both sides of a cut.

    It listens on 127.0.0.1 alone and lets in whoever has the token of the printed address. The rule it writes out is
    pasted into a recipe for python -m filters select. Ctrl-C ends it.

    \b
    python -m pipeline explore data/example
    """
    from pipeline.explore import explore as exploring

    def tell(url: str) -> None:
        if as_json:
            print_json({"url": url})
        else:
            click.echo(f"explore: {url}")

    exploring(dataset, port=port, captions=captions, open_browser=open_browser, on_ready=tell)


def _say_results(results: Sequence[Any], facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    from pipeline.run import result_lines

    for line in result_lines(results):
        click.echo(line)


if __name__ == "__main__":
    sys.exit(run_main(main, "python -m pipeline", takes=SPREAD))
