"""The import rules of ARCHITECTURE.md, read from the source with ast: every import counts, lazy and typing ones too."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("pipeline", "filters", "training", "infra")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))

MAY_IMPORT = {  # room → the other rooms that it may import
    "infra": set(),
    "training": {"infra"},
    "filters": {"training", "infra"},
    "pipeline": {"filters", "infra"},
}
FREE_OF_DEEPSPEED = ("models", "preprocess", "tokenize", "convert", "generate")  # what filters may see of training
KEPT_TO: dict[str, str | tuple[str, ...]] = {  # heavy package → the only places that may import it
    "ray": ("infra/executors.py", "infra/ray_train.py"),
    "deepspeed": "training/engine.py",
    "open_clip": "training/models/",
    "transformers": "training/models/",
    "timm": "training/models/",
}
TORCH_ONLY = ("training/blocks/", "training/objectives/")


def imported_by(source: str, module: str) -> Iterator[str]:
    """Full dotted names that a module's source imports, `importlib.import_module` of a literal included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level]) if node.level else ""
            start = ".".join(part for part in (base, node.module) if part)
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value


def faults_of(path: str, source: str) -> list[str]:
    """Sentences, one for each rule that a file breaks. path: relative to the root, with slashes."""
    room = path.partition("/")[0]
    faults = []
    for name in imported_by(source, path.removesuffix(".py").replace("/", ".")):
        top, _, rest = name.partition(".")
        if top in ("tests", "benchmarks"):
            faults.append(f"{path} imports {name}: the rooms do not know their tests")
        if top in ROOMS and top != room and top not in MAY_IMPORT[room]:
            faults.append(f"{path} imports {name}: {room} may import {sorted(MAY_IMPORT[room]) or 'no other room'}")
        if room == "filters" and top == "training" and rest.partition(".")[0] not in FREE_OF_DEEPSPEED:
            faults.append(f"{path} imports {name}: of training, filters may import {FREE_OF_DEEPSPEED}")
        if top in KEPT_TO and not path.startswith(KEPT_TO[top]):
            faults.append(f"{path} imports {top}: only {KEPT_TO[top]} may")
        if path.startswith(TORCH_ONLY) and not _fits_blocks(name):
            faults.append(f"{path} imports {name}: blocks and objectives see torch and each other alone")
    return faults


def _fits_blocks(name: str) -> bool:
    top = name.partition(".")[0]
    return top == "torch" or top in sys.stdlib_module_names or f"{name.replace('.', '/')}/".startswith(TORCH_ONLY)


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


@pytest.mark.parametrize("path", [file.relative_to(ROOT).as_posix() for file in FILES])
def test_a_file_keeps_the_import_rules(path):
    assert faults_of(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("infra/a.py", "import filters.text"),
        ("infra/a.py", "def late():\n    from pipeline.run import load_recipe"),
        ("infra/a.py", "import ray"),
        ("infra/a.py", "from importlib import import_module\nimport_module('ray.util')"),
        ("infra/executor.py", "import ray"),
        ("training/a.py", "from filters import text"),
        ("training/a.py", "from ..pipeline import run"),
        ("training/train.py", "import deepspeed"),
        ("training/blocks/a.py", "import numpy"),
        ("training/blocks/a.py", "from training.models import clip"),
        ("filters/a.py", "from training import engine"),
        ("filters/a.py", "import training.engine"),
        ("filters/a.py", "import transformers"),
        ("pipeline/ablate.py", "from training.models import clip"),
        ("pipeline/a.py", "import tests.servers.files"),
    ],
)
def test_each_broken_rule_is_found(path, source):
    assert len(faults_of(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("infra/executors.py", "import ray"),
        ("infra/ray_train.py", "from ray.train.torch import TorchTrainer"),
        ("pipeline/a.py", "from filters.phash import perceptual_hash\nfrom infra.jobs import run_jobs"),
        ("filters/a.py", "from training.models import MODELS\nfrom training import preprocess"),
        ("training/blocks/a.py", "import math\nimport torch.nn as nn\nfrom training.blocks.vit import Vit"),
        ("training/models/blip.py", "import transformers\nfrom training.blocks import vit"),
    ],
)
def test_what_the_rules_allow_is_no_fault(path, source):
    assert faults_of(path, source) == []


def test_the_search_for_files_sees_every_room():
    assert {file.relative_to(ROOT).parts[0] for file in FILES} == set(ROOMS)


def test_no_package_below_tests():
    # With an __init__.py, tests/pipeline would be a second package named by its room.
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_comes_from_the_checkout(room):
    # Some wheels install a top-level `training` of their own.
    assert Path(importlib.import_module(room).__file__).resolve().is_relative_to(ROOT)
