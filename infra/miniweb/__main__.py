"""python -m infra.miniweb serve | truth"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from infra.errors import PairmillError
from infra.miniweb.launch import MiniwebConfig, RunningWeb, serve


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each field of MiniwebConfig, with its description as help."""
    for name, field in reversed(MiniwebConfig.model_fields.items()):
        flag = f"--{name.replace('_', '-')}"
        command = click.option(flag, type=int, default=field.default, show_default=True, help=field.description)(
            command
        )
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A small web with known truth, drawn by program and served on loopback."""


@main.command("serve")
@config_options
@click.option("--ready-file", type=click.Path(path_type=Path), help="Written as JSON when the web is up.")
@click.option("--parent", type=int, hidden=True, help="Stop when this process is no longer the parent.")
def serve_command(ready_file: Path | None, parent: int | None, **values: int) -> None:
    """Serve the web until SIGTERM or ctrl-C. Resolve its names with the name server it prints."""
    config = MiniwebConfig.parse(values, "miniweb serve")

    def announce(web: RunningWeb) -> None:
        click.echo("\n".join([*(f"seed {url}" for url in web.seeds), *(f"sitemap {url}" for url in web.sitemaps)]))
        click.echo(f"dns {web.dns}")
        click.echo(f"ready: {config.pages} pages on 127.0.0.1:{web.port}")
        sys.stdout.flush()
        if ready_file:
            partial = ready_file.with_name(ready_file.name + ".partial")
            partial.write_text(json.dumps(dataclasses.asdict(web)), encoding="utf-8")
            os.replace(partial, ready_file)

    asyncio.run(serve(config, announce, parent))


@main.command("truth")
@config_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Parquet file to write.")
def truth_command(out: Path, **values: int) -> None:
    """Write what must become of every page and every img: the truth table of the web that `serve` serves."""
    import pyarrow.parquet as pq

    from infra.miniweb.plan import plan_site
    from infra.miniweb.truth import truth_table

    config = MiniwebConfig.parse(values, "miniweb truth")
    if config.port == 0:
        raise click.UsageError("--port 0: urls hold the port; give the one that the web is served on")
    table = truth_table(plan_site(config.pages, config.seed, config.port))
    pq.write_table(table, out)
    click.echo(f"{out}: {table.num_rows} rows")


if __name__ == "__main__":
    try:
        main()
    except PairmillError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
