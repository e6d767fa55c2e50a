"""Names to objects, lazily: a table of "name" → "module:object", with did-you-mean."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from infra.errors import UsageError


class Registry(Mapping[str, Any]):
    """A table that imports an entry when it is asked for, and takes "my_package.module:Thing" from outside."""

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        """Is it in the table? Nothing is imported."""
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, name: str) -> Any:
        """The object. Raises UsageError that names the nearest entry, or says what of the path is missing."""
        target = self._entries.get(name, name)
        module, colon, attribute = target.partition(":")
        if not colon:
            close = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(self._entries)}."
            raise UsageError(f"no {self.kind} named {name}; {hint} From outside: my_package.module:Name")
        if not all(part.isidentifier() for part in [*module.split("."), attribute]):
            raise UsageError(f"{self.kind} {name}: write it as my_package.my_module:Name")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise UsageError(f"{self.kind} {name}: {error}; is its package installed where the workers run?") from None
        except AttributeError:
            raise UsageError(f"{self.kind} {name}: module {module} has no {attribute}") from None
