"""Command-line options made from configuration models: a default and its help text stand in one place."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic_core import PydanticUndefined

from infra.recipe import Config

C = TypeVar("C", bound=Config)
Command = Callable[..., Any]


def config_options(model: type[Config], skip: Sequence[str] = ()) -> Callable[[Command], Command]:
    """Give a click command one option for each field of `model`; an option not given is left out of the values."""

    def decorate(command: Command) -> Command:
        for name, field in reversed(model.model_fields.items()):
            if name not in skip:
                command = click.option(*_flags(name, field.annotation), **_settings(field))(command)
        return command

    return decorate


def given(model: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that the user typed for fields of `model`; the rest keep the model's defaults."""
    return {name: values[name] for name in model.model_fields if values.get(name) not in (None, ())}


def spread(argv: Sequence[str], takes: Mapping[str, Callable[[str], bool]]) -> list[str]:
    """Let `--seed A B` mean `--seed A --seed B`: an option in `takes` also takes each following word it accepts."""
    result: list[str] = []
    current: str | None = None
    for at, word in enumerate(argv):
        if word.startswith("-"):
            current = word if word in takes else None
            result.append(word)
        elif current is not None and argv[at - 1] != current and takes[current](word):
            result += [current, word]
        else:
            if current is not None and argv[at - 1] != current:
                current = None
            result.append(word)
    return result


class CommaList(click.ParamType):
    """Words with commas between them."""

    name = "word,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split; a list passes as it is."""
        return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value


def _flags(name: str, annotation: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    return [f"{flag}/--no-{flag[2:]}", name] if _bare(annotation) is bool else [flag, name]


def _settings(field: Any) -> dict[str, Any]:
    kind = _bare(field.annotation)
    text = field.description or ""
    default = field.default
    if default is True:
        text += "  [default: on]"
    elif default is not False and default not in (None, (), PydanticUndefined):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        text += f"  [default: {shown}]"
    settings: dict[str, Any] = {"help": text, "default": None, "show_default": False}
    if get_origin(kind) is Literal:
        return settings | {"type": click.Choice(list(get_args(kind)))}
    if get_origin(kind) is tuple:
        return settings | {"multiple": True, "type": CommaList(), "callback": _flatten, "default": ()}
    return settings if kind is bool else settings | {"type": kind}


def _flatten(ctx: click.Context, param: click.Parameter, value: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(word for words in value for word in words)


def _bare(annotation: Any) -> Any:
    # "int | None" means: an int, or not set.
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else str
    return annotation
