"""python -m infra doctor | verify | index: is the machine fit, is a dataset whole, can a foreign one be read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from infra import cli
from infra.errors import UsageError

MAX_TOLD = 1_000  # findings in one JSON object


@click.group(context_settings=cli.CONTEXT)
def main() -> None:
    """The ground under all rooms.

    \b
    doctor    versions, rooms, Ray, disk, names, limits: what to mend before a run
    verify    do tars, tables, index, ledger and sizes.json of a dataset agree?
    index     make the index of a folder that img2dataset or others wrote

    Exit codes: 0 all is well, 1 a problem was found, 2 wrong usage.
    """


@main.command()
@click.option("--path", default=".", metavar="DATASET", help="Where datasets go: a folder or fsspec url.  [default: .]")
@click.option("--ray", "ray_address", metavar="ADDRESS", help="A running Ray cluster.  [default: a Ray here]")
@click.option("--no-ray", is_flag=True, help="Leave Ray out.")
@click.option("--names", metavar="FILE", help="Host names to resolve, one a line.  [default: localhost]")
@click.option("--dns", multiple=True, metavar="HOST:PORT", help="Name servers to ask.  [default: the system's]")
@click.option("--connections", type=click.IntRange(min=1), default=128, show_default=True,
              help="Connections that a worker will hold.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(names: str | None, no_ray: bool, as_json: bool, **values: Any) -> int:
    """Look at this machine, and the cluster: each line is ok, a warning, or a problem with its mend."""
    from infra.doctor import Wanted, examine

    checks = []
    for check in examine(Wanted(names=_read_names(names), ray=not no_ray, **values)):
        checks.append(check)
        if not as_json:
            click.echo(str(check))
    num_problems = sum(check.state == "problem" for check in checks)
    if as_json:
        cli.print_json({"ok": not num_problems, "checks": [check.as_json() for check in checks]})
    return 1 if num_problems else 0


@main.command()
@click.argument("dataset", metavar="DATASET")
@click.option("--sidecar", metavar="FOLDER", help="Where the index lies, if not in the dataset.")
@click.option("--quick", is_flag=True, help="Compare sizes, not digests: a flipped byte may pass.")
@click.option("--complete", is_flag=True, help="Unfinished and quarantined jobs are problems, too.")
@click.option("--threads", type=click.IntRange(min=1),
              help="Shards looked at at once.  [default: 1 on a disk, 8 on an object store]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(dataset: str, sidecar: str | None, as_json: bool, **values: Any) -> int:
    """Do tars, tables, index, ledger and sizes.json agree? Every disagreement is a line: where, what, the mend.

    \b
    python -m infra verify data/example
    python -m infra verify s3://bucket/example --quick --json
    """
    from infra.dataset import Dataset
    from infra.verify import Verify

    verifier = Verify(Dataset(dataset), sidecar=Dataset(sidecar) if sidecar else None, **values)
    num_problems = num_warnings = 0
    told: list[dict[str, Any]] = []
    for finding in verifier.findings():
        num_problems += finding.is_problem
        num_warnings += not finding.is_problem
        if not as_json:
            click.echo(str(finding))
        elif len(told) < MAX_TOLD:
            told.append(finding.as_json())
    verdict = verifier.verdict
    facts = {
        "shards": len(verdict.samples),
        "samples": sum(verdict.samples.values()),
        "files": verdict.num_files,
        "problems": num_problems,
        "warnings": num_warnings,
    }
    if as_json:
        cli.print_json({"ok": not num_problems, **facts, "findings": told})
    else:
        click.echo(
            f"{facts['shards']:,} shards, {facts['samples']:,} stored samples, {facts['files']:,} files of the ledger: "
            f"{num_problems} problems, {num_warnings} warnings"
        )
    return 1 if num_problems else 0


@main.command()
@click.argument("dataset", metavar="DATASET")
@click.option("--sidecar", metavar="FOLDER", help="Write the index there; the dataset stays as it is.")
@cli.run_options
def index(dataset: str, sidecar: str | None, **values: Any) -> None:
    """Index the tars of img2dataset, DataComp or CLIP_benchmark: uid, member, offset, size of every sample.

    \b
    python -m infra index downloads/laion
    python -m infra index /read/only/datacomp/shards --sidecar data/datacomp-index
    """
    from infra.dataset import Dataset
    from infra.indexing import index_dataset, index_plan
    from infra.progress import Progress

    source, target = Dataset(dataset), Dataset(sidecar or dataset)
    if values["dry_run"]:
        plan = index_plan(source, target)
        if values["as_json"]:
            cli.print_json({"plan": plan})
        else:
            click.echo("\n".join(plan))
        return
    with cli.open_executor(values) as executor:
        result = index_dataset(source, executor, target=target, options=cli.options_of(values), progress=Progress())
    counts = result.counts
    if values["as_json"]:
        paths = [target.storage.file_url(name) for name in target.tables("index")]
        cli.print_json({**counts.as_json(), "quarantined": sorted(result.quarantined), "paths": paths})
    else:
        origins = ", ".join(f"{name.removeprefix('uid_from_')} {number:,}" for name, number in counts.extra.items())
        click.echo(f"index: {result.num_jobs:,} tars, {counts.rows_out:,} samples; uids from {origins or 'nowhere'}")


def _read_names(path: str | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        names = tuple(line.strip() for line in Path(path).read_text().splitlines() if line.strip())
    except OSError as error:
        raise UsageError(f"--names {path}: {error.strerror}") from None
    if not names:
        raise UsageError(f"--names {path}: no names there; write one host name a line")
    return names


def run_main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; returns the exit code."""
    return cli.run_main(main, "python -m infra", argv)


if __name__ == "__main__":
    sys.exit(run_main())
