"""Plain mistakes of who scores: each is told in one line that says the mend, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from filters.score import make_steps, score
from infra.cli import run_main
from infra.dataset import Dataset
from infra.errors import UsageError
from infra.executors import LocalExecutor
from infra.tables import write_table

WHOLE = """
import pyarrow as pa
from filters.base import Reduction, Scorer, column

class Whole(Scorer):
    name = "whole"
    per = "caption"
    columns = pa.schema([column("length", pa.int64(), "letters")])

    def score(self, batch):
        return pa.table({"length": [len(text) for text in batch.texts]})
"""
BASED = "from filters.base import Reduction, Scorer\n"


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.syspath_prepend(tmp_path)
    made = Dataset(tmp_path / "data")
    write_table(made.storage, "00000.parquet", pa.table({"url": ["http://a.test/"], "caption": ["a cat"]}))
    return made


def test_a_scorer_that_is_whole_scores(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "outside_whole.py").write_text(WHOLE)
    (result,) = score(dataset, ["outside_whole:Whole"], LocalExecutor())
    assert (result.step, result.counts.rows_out) == ("score_whole", 1)


@pytest.mark.parametrize(
    ("number", "module", "message"),
    [
        (0, WHOLE.replace('    name = "whole"\n', ""), "Given has no name; see filters.base.Scorer"),
        (1, WHOLE.replace('    per = "caption"\n', ""), "Given has no per;"),
        (2, BASED + "class Given(Scorer):\n    pass\n", "Given has no name, per, columns, score;"),
        (3, BASED + "class Given(Reduction):\n    pass\n", "Given has no name, .*run.*; see filters.base.Reduction"),
        (4, "raise RuntimeError('no such\\ndevice')\n", "cannot be imported: RuntimeError: no such device; mend"),
        (5, "def Given(:\n", "cannot be imported: SyntaxError"),
        (6, "from filters.base import Nothing\n", "cannot be imported: ImportError"),
        (7, "import nothing_of_the_kind\n", "No module named 'nothing_of_the_kind'"),
        (8, "Given = 3\n", "not a Scorer or Reduction"),
    ],
)
def test_a_scorer_from_outside_that_is_not_whole_is_told_with_what_it_lacks(
    dataset: Dataset, tmp_path: Path, number: int, module: str, message: str
) -> None:
    (tmp_path / f"outside_{number}.py").write_text(module.replace("class Whole", "class Given"))
    with pytest.raises(UsageError, match=message) as raised:
        make_steps(dataset, [f"outside_{number}:Given"])
    assert f"scorer outside_{number}:Given" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_option_of_a_scorer_without_settings_is_told_so(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="--set text: unknown key foo; text has no settings"):
        make_steps(dataset, ["text"], settings=["text.foo=1"])


def test_a_caption_table_that_is_not_there_is_told(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    from filters.__main__ import main

    words = ["score", dataset.storage.url, "--scorers", "text", "--captions", "nothere", "--as", "t2", "--local"]
    assert run_main(main, "python -m filters", words) in (1, 2)
    told = capsys.readouterr().err
    assert "captions/nothere" in told
    assert "Traceback" not in told
    assert dataset.ledger.steps() == []
