"""Recipes: YAML to frozen, typed configuration. Unknown keys are refused; `--set a.b=c` changes one value."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.errors import RecipeError

_PLAIN = {"tuple_type": "give a list", "dict_type": "give a mapping of keys"}  # in place of Python's words


def tuning(default: Any, description: str, **limits: Any) -> Any:
    """A field that changes how fast a step runs, never what it writes: it stays out of the fingerprint."""
    return Field(default, description=description, json_schema_extra={"tuning": True}, **limits)


class Config(BaseModel):
    """Base of every configuration: frozen, typed, unknown keys refused. One default, in one place.

    A field made by `Field` changes the output and enters `fingerprint()`; one made by `tuning` does not.
    The field's description is its `--help` text: options of the commands are made from these models.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def parse(cls, values: dict[str, Any], where: str) -> Self:
        """Validate; `where` names the file or command for the error. Raises RecipeError that says the mend."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError(_explain(cls, error, where)) from None

    @classmethod
    def output_fields(cls) -> list[str]:
        """Names of the fields that change what a step writes."""
        return [name for name, field in cls.model_fields.items() if not is_tuning(field)]

    def fingerprint_values(self) -> dict[str, Any]:
        """JSON-ready values of the fields that change the output."""
        return self.model_dump(mode="json", include=set(self.output_fields()))


def is_tuning(field: Any) -> bool:
    """Does this pydantic field leave the output alone?"""
    extra = field.json_schema_extra
    return bool(isinstance(extra, dict) and extra.get("tuning"))


def fingerprint(*parts: Any) -> str:
    """32 hex digits that name a value: blake2b of its canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML mapping. Raises RecipeError for a missing file, bad YAML or another kind of document."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        shipped = "pipeline/recipes/ and filters/recipes/"
        raise RecipeError(f"{path}: no such recipe; the shipped ones lie in {shipped}") from None
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}; give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, not a {type(values).__name__}")
    return values


def apply_settings(values: dict[str, Any], settings: tuple[str, ...]) -> dict[str, Any]:
    """A copy of `values` with each `a.b=c` applied; c is read as YAML, and a number is a place in a list, from 0.

    Raises RecipeError on a path through a leaf.
    """
    result = json.loads(json.dumps(values))
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise RecipeError(f"--set {setting}: write it as name.field=value")
        *parents, leaf = path.split(".")
        place = result
        for name in parents:
            place = _child(place, name, setting)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise RecipeError(f"--set {setting}: its value is not YAML; put it in quotes") from None
        if isinstance(place, list):
            place[_number(place, leaf, setting)] = value
        else:
            place[leaf] = value
    return result


def _child(place: Any, name: str, setting: str) -> Any:
    child = place[_number(place, name, setting)] if isinstance(place, list) else place.setdefault(name, {})
    if not isinstance(child, dict | list):
        raise RecipeError(f"--set {setting}: {name} is a value, not a group")
    return child


def _number(place: list[Any], name: str, setting: str) -> int:
    if not (name.isdecimal() and int(name) < len(place)):
        raise RecipeError(f"--set {setting}: {name} is no place in a list of {len(place)}, which are counted from 0")
    return int(name)


def _explain(cls: type[BaseModel], error: ValidationError, where: str) -> str:
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(item["loc"][-1]), _all_names(cls), n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(_all_names(cls))}"
            lines.append(f"{where}: unknown key {name}{hint}")
        else:
            message = _PLAIN.get(item["type"], item["msg"].removeprefix("Value error, "))
            lines.append(f"{where}: {name}={item.get('input')!r}: {message}" if name else f"{where}: {message}")
    return "\n".join(lines)


def _all_names(cls: type[BaseModel]) -> list[str]:
    return list(cls.model_fields)
