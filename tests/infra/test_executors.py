"""Executors start Ray when there is work, leave alone what they did not start, and say where nothing answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infra.executors import RayExecutor

ROOT = Path(__file__).resolve().parents[2]


def test_ray_is_not_even_imported_before_there_is_work() -> None:
    code = """
import sys
from infra.executors import RayExecutor
executor = RayExecutor("127.0.0.1:1")
with executor.open(None, 0) as running:
    assert running.num_open == 0
executor.close()
assert "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.ray
def test_an_executor_leaves_a_ray_that_it_did_not_start(ray_here: RayExecutor) -> None:
    guest = RayExecutor()
    told = guest.describe(["infra", "no_such_module"])
    guest.close()
    assert told["cpus"] == 2
    (files,) = told["nodes"].values()
    assert files == {"infra": str(ROOT / "infra" / "__init__.py"), "no_such_module": None}
    assert len(ray_here.describe()["nodes"]) == 1


def test_an_address_where_no_ray_answers_is_a_usage_error_at_once() -> None:
    code = """
from infra.executors import RayExecutor
from infra.errors import UsageError
try:
    RayExecutor("127.0.0.1:1").describe()
except UsageError as error:
    assert "127.0.0.1:1" in str(error) and "ray start" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)
