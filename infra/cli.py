"""What the commands of all rooms share: exit codes, options of work over shards, one JSON object as the last line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from infra.errors import PairmillError, UsageError
from infra.jobs import RunOptions
from infra.log import configure
from infra.options import spread

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def run_main(
    group: click.Command,
    program: str,
    argv: Sequence[str] | None = None,
    takes: Mapping[str, Callable[[str], bool]] | None = None,
) -> int:
    """Parse and run; returns the exit code: 0 done, 1 failed, 2 wrong usage. Our own errors print one line.

    A command may return an exit code of its own. takes: options that also take the words behind them, see `spread`.
    """
    configure()
    words = spread(list(sys.argv[1:] if argv is None else argv), takes or {})
    try:
        code = group.main(args=words, prog_name=program, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except click.Abort:
        click.echo("interrupted; run the same command again to go on", err=True)
        return 1
    except PairmillError as error:
        click.echo(f"error: {error}", err=True)
        if "--json" in words:
            print_json({"error": str(error)})
        return error.exit_code
    return code if isinstance(code, int) else 0


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command that runs over shards."""
    options = [
        click.option("--local", is_flag=True, help="Run in this process, without Ray."),
        click.option("--ray", "ray_address", metavar="ADDRESS", help="A running Ray cluster.  [default: a Ray here]"),
        click.option("--limit", type=click.IntRange(min=1), help="Run at most this many shards (rounds, archives)."),
        click.option("--dry-run", is_flag=True, help="Say what would be done, and stop."),
        click.option("--shard-attempts", type=click.IntRange(min=1), default=3, show_default=True,
                     help="Tries of a failing shard before it is quarantined."),
        click.option("--max-quarantined", type=click.FloatRange(0, 1), default=0.0, show_default=True,
                     help="Fraction of shards that may be given up before the command fails."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def options_of(values: Mapping[str, Any]) -> RunOptions:
    """The RunOptions among a command's values."""
    return RunOptions(values["limit"], values["shard_attempts"], values["max_quarantined"])


@contextmanager
def open_executor(values: Mapping[str, Any]) -> Iterator[Any]:
    """The executor that --local or --ray asks for, closed at the end."""
    from infra.executors import LocalExecutor, RayExecutor
    from infra.jobs import Executor

    if values["local"] and values["ray_address"]:
        raise UsageError("give --local or --ray ADDRESS, not both")
    executor: Executor = LocalExecutor() if values["local"] else RayExecutor(values["ray_address"])
    try:
        yield executor
    finally:
        executor.close()


def say_plan(lines: Sequence[str], as_json: bool) -> None:
    """What --dry-run prints."""
    if as_json:
        print_json({"plan": list(lines)})
        return
    for line in lines:
        click.echo(line)


def print_json(values: Any) -> None:
    """One JSON object on one line of standard output."""
    click.echo(json.dumps(values, ensure_ascii=False))
