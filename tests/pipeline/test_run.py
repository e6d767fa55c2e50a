"""A recipe that is run again: tables may be added, retries come by the command, refused settings leave no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.dataset import Dataset
from infra.errors import FingerprintError
from infra.executors import LocalExecutor
from infra.jobs import RunOptions
from infra.progress import Progress
from pipeline.download.config import DownloadConfig
from pipeline.download.run import download
from pipeline.run import Recipe, run_recipe


def table(path: Path, *names: str) -> str:
    pq.write_table(pa.table({"url": [f"ftp://example.org/{name}" for name in names], "caption": list(names)}), path)
    return str(path)


def run(out: Path, *tables: str, **values: Any) -> dict[str, Any]:
    recipe = Recipe.parse({"dataset": str(out), "download": {"tables": tables, "shard_size": 2, **values}}, "test")
    return run_recipe(recipe, LocalExecutor(), RunOptions(), Progress.quiet())


def test_a_table_may_be_added_to_a_recipe_and_the_command_may_try_again(tmp_path: Path) -> None:
    one, two = table(tmp_path / "1.parquet", "a", "b"), table(tmp_path / "2.parquet", "c")
    run(tmp_path / "out", one)
    assert run(tmp_path / "out", one, two)["dropped"] == {"blocked_scheme": 3}
    dataset, config = Dataset(tmp_path / "out"), DownloadConfig(shard_size=2)
    download(dataset, config, [one], LocalExecutor(), retry=("blocked_scheme",))
    assert len(dataset.shards()) == 4


def test_refused_settings_are_not_written_down(tmp_path: Path) -> None:
    one = table(tmp_path / "1.parquet", "a")
    run(tmp_path / "out", one, image_size=64)
    with pytest.raises(FingerprintError, match="image_size"):
        run(tmp_path / "out", one, image_size=99)
    assert "image_size: 64" in (tmp_path / "out" / "recipe.yaml").read_text()


def test_a_limit_is_not_told_as_work_that_was_done_before(tmp_path: Path) -> None:
    class Said(Progress):
        def _say(self, text: str) -> None:
            said.append(text)

    said: list[str] = []
    rows = table(tmp_path / "1.parquet", "a", "b", "c", "d", "e")
    config = DownloadConfig(shard_size=1)
    download(Dataset(tmp_path / "out"), config, [rows], LocalExecutor(), options=RunOptions(limit=2), progress=Said())
    assert [line for line in said if "before" in line] == []
