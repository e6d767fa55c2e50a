"""python -m filters score | import | select | explain: score once, decide many."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from infra.cli import CONTEXT, open_executor, options_of, print_json, run_main, run_options, say_plan
from infra.options import CommaList
from infra.progress import Progress

SPREAD: dict[str, Callable[[str], bool]] = {"--set": lambda word: "=" in word}


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Scores and selections of a dataset.

    \b
    score      what models and measures say of images and captions: columns, nothing is dropped
    import     scores or captions made elsewhere
    select     rules over those columns: which captions are kept, and why the others fell
    explain    one row's whole life in words

    A scorer costs compute and judges nothing; a rule judges and costs none. So score once, and try as many selections
    as you like. Exit codes: 0 done, 1 failed or too much quarantined, 2 wrong usage.
    """


@main.command()
@click.argument("dataset", metavar="DATASET")
@click.option(
    "--scorers",
    type=CommaList(),
    required=True,
    metavar="NAME,…",
    help="text,language,image,duplicates,recurrence,clip_score,caption,itm; my_package.module:MyScorer.",
)
@click.option("--as", "name", metavar="NAME", help="Name of the table, where one scorer is given.  [default: its own]")
@click.option("--set", "settings", multiple=True, metavar="SCORER.OPTION=VALUE", help="Change one setting of a scorer.")
@click.option("--captions", type=CommaList(), default=(), metavar="NAME,…",
              help="Caption tables whose texts are scored beside the web's.")  # fmt: skip
@run_options
def score(
    dataset: str, scorers: Sequence[str], name: str | None, settings: tuple[str, ...], captions: Sequence[str],
    **values: Any,
) -> None:  # fmt: skip
    """Score every stored image and caption; a table for each scorer, in scores/NAME/.

    All scorers of one command share one reading of the shards and one decoding of each image.

    \b
    python -m filters score data/example --scorers text,language,image,duplicates
    python -m filters score data/example --scorers language --as lid176 --set language.model=lid.176.bin
    python -m filters score data/example --scorers clip_score --set clip_score.model=ViT-B-32 \\
        --set clip_score.pretrained=laion2b_s34b_b79k
    """
    from filters import score as scoring
    from infra.dataset import Dataset

    place = Dataset(dataset)
    if values["dry_run"]:
        lines = scoring.plan_text(place, scorers, name=name, settings=settings, captions=captions)
        say_plan(lines, values["as_json"])
        return
    with open_executor(values) as executor:
        results = scoring.score(
            place, scorers, executor, name=name, settings=settings, captions=captions, options=options_of(values),
            progress=Progress(),
        )  # fmt: skip
    facts = scoring.summary(results, place)
    if values["as_json"]:
        print_json(facts)
        return
    for table, told in facts["tables"].items():
        unknown = ", ".join(f"{word} {number:,}" for word, number in told["unknown"].items())
        click.echo(f"{table}: {told['rows_out']:,} rows" + (f"; {unknown}" if unknown else ""))


@main.command("import")
@click.argument("dataset", metavar="DATASET")
@click.argument("tables", nargs=-1, required=True, metavar="TABLE…")
@click.option("--as", "name", required=True, metavar="NAME", help="Name of the table that it becomes.")
@click.option(
    "--on",
    type=click.Choice(["uid", "key", "url"]),
    help="The column that rows are joined by.  [default: the first of uid, url, key that the table has]",
)
@click.option("--caption-col", metavar="COLUMN", help="The table holds captions, in this column: they go to captions/.")
@click.option(
    "--per",
    type=click.Choice(["caption", "image"]),
    default="caption",
    show_default=True,
    help="What its scores are of: the web's caption, or the image and so all of its captions.",
)
@run_options
def import_(
    dataset: str, tables: tuple[str, ...], name: str, on: Any, caption_col: str | None, per: Any, **values: Any
) -> None:
    """Scores or captions made elsewhere: LAION's columns, DataComp's metadata, any parquet, csv, tsv or jsonl.

    \b
    python -m filters import data/laion laion-metadata/ --as laion --on url
    python -m filters import data/datacomp metadata/ --as datacomp
    """
    from filters import imports
    from filters.score import plan_step
    from infra.dataset import Dataset

    place = Dataset(dataset)
    if values["dry_run"]:
        step = imports.make_step(place, tables, name, on=on, caption_col=caption_col, per=per)
        say_plan([plan_step(step)], values["as_json"])
        return
    with open_executor(values) as executor:
        result = imports.import_table(
            place, tables, name, executor, on=on, caption_col=caption_col, per=per, options=options_of(values),
            progress=Progress(),
        )  # fmt: skip
    counts = result.counts
    folder = "scores" if caption_col is None else "captions"
    if values["as_json"]:
        fates = {word: number for word, number in counts.as_json().items() if word != "extra"}
        paths = [place.storage.file_url(f"{folder}/{name}")]
        print_json({**fates, "unknown": dict(counts.extra), "quarantined": sorted(result.quarantined), "paths": paths})
        return
    told = ", ".join(f"{word} {number:,}" for word, number in sorted(counts.extra.items()))
    click.echo(f"{folder}/{name}: {counts.rows_out:,} rows" + (f"; {told}" if told else ""))


@main.command()
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET…")
@click.option("--rules", required=True, metavar="RECIPE", help="A YAML file of rules; shipped ones: filters/recipes/.")
@click.option("--name", required=True, metavar="NAME", help="Name of the selection.")
@click.option("--set", "settings", multiple=True, metavar="a.b=c", help="Change one value of the recipe.")
@click.option("--npy", metavar="FILE", help="Also write the kept uids as a DataComp subset file.")
@run_options
def select(
    datasets: tuple[str, ...], rules: str, name: str, settings: tuple[str, ...], npy: str | None, **values: Any
) -> None:
    """Judge every caption by a recipe's rules, in their order; the first rule that it fails is its reason.

    It reads columns of score tables, no image and no model, in bounded memory. Several datasets are judged as one: a
    share is of all of them, and a duplicate in the second falls for one in the first.

    \b
    rules:
      - where: language = 'en' and words > 2     # SQL over columns; text.words where two tables have the name
      - unique: phash                            # near duplicates: bits that may differ
        distance: 4
        keep: largest
      - top: clip_score                          # a share of those still in; of: all for all rows
        fraction: 0.3

    \b
    python -m filters select data/example --rules filters/recipes/datacomp_basic.yaml --name basic
    """
    from filters import select as selecting
    from filters.rules import load_rules
    from infra.dataset import Dataset

    recipe = load_rules(rules, settings)
    places = [Dataset(dataset) for dataset in datasets]
    if values["dry_run"]:
        say_plan(selecting.plan_text(places, recipe, name), values["as_json"])
        return
    with open_executor(values) as executor:
        summaries = selecting.select(
            places, recipe, name, executor, npy=npy, options=options_of(values), progress=Progress()
        )
    if values["as_json"]:
        written = str(Path(npy).resolve()) if npy and values["limit"] is None else None
        print_json(selecting.facts(summaries) | {"npy": written})
        return
    for dataset, told in zip(datasets, summaries, strict=True):
        waiting = f"; {told['waiting']:,} jobs wait, no selection yet" if told.get("waiting") else ""
        click.echo(f"{name}: {told['rows_out']:,} of {told['rows_in']:,} captions kept in {dataset}{waiting}")
        for rule in told["rules"]:
            fell = ", ".join(f"{word} {number:,}" for word, number in rule["dropped"].items()) or "nothing fell"
            click.echo(f"    {rule['text']}: {fell}")


@main.command()
@click.argument("dataset", metavar="DATASET")
@click.argument("what", metavar="UID|URL")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain(dataset: str, what: str, as_json: bool) -> None:
    """One row's whole life: page, download, scores, each rule's verdict, selections that hold it, shards that store it.

    \b
    python -m filters explain data/example 5f0c7c8b1f0a4f7d9e0b8b1f5f0c7c8b
    python -m filters explain data/example https://example.org/cat.jpg
    """
    from filters.explain import as_json as json_of
    from filters.explain import explain as explaining
    from filters.explain import life_lines
    from infra.dataset import Dataset

    lives = explaining(Dataset(dataset), what)
    if as_json:
        print_json({"rows": [json_of(life) for life in lives]})
        return
    for number, life in enumerate(lives):
        if number:
            click.echo()
        for line in life_lines(life):
            click.echo(line)


if __name__ == "__main__":
    sys.exit(run_main(main, "python -m filters", takes=SPREAD))
