"""torchvision can be imported whatever torch is here, and whatever needs it with it."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from infra import torchvision_here

pytest.importorskip("torch")


def python(code: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter: schemas and modules of this one do not count."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_torchvision_imports_after_it_and_still_transforms():
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    code = """
from infra.torchvision_here import make_importable
assert make_importable() is make_importable()
import torch
from torchvision.transforms.v2 import functional
assert functional.resize(torch.zeros(3, 8, 8), [4, 4]).shape == (3, 4, 4)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_the_module_itself_imports_nothing_heavy():
    code = "import sys, infra.torchvision_here; assert not {'torch', 'torchvision'} & set(sys.modules)"
    assert python(code).returncode == 0


def test_where_torchvision_is_absent_nothing_is_declared(monkeypatch):
    monkeypatch.setattr(torchvision_here, "find_spec", lambda name: None)
    assert torchvision_here.make_importable.__wrapped__() is None


def test_where_its_compiled_part_loads_nothing_is_declared(monkeypatch):
    import torch

    monkeypatch.setattr(torchvision_here, "_compiled_part_loads", lambda folder: True)
    monkeypatch.setattr(torch.library, "Library", None)
    assert torchvision_here.make_importable.__wrapped__() is None
