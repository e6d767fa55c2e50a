"""However a run of a dVAE or a DALL-E is spread, stopped and taken up again, it is one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.executors import LocalExecutor
from tests.training import runs
from tests.training.models.dalles import VAE, WORDS, vae_at
from tests.training.ranked import ranked
from tests.training.shards import make_shards
from training.encode import EncodeStep, encode
from training.encode_settings import EncodeSettings
from training.models.token_maker import dvae_of
from training.ranks import Ranks
from training.recipe import TrainRecipe
from training.train import train

pytestmark = pytest.mark.slow

STAGES = (0, 1, 2, 3)
MODELS = {"dalle.vae": VAE, "dalle": WORDS}
OPTIM = {"lr": 3e-3, "warmup_steps": 2, "clip_norm": 1.0, "average": {"decay": 0.9, "every": 2}}
READS = {"dalle.vae": [], "dalle": ["data.datasets.0.tokens=vae"]}
RTOL = 1e-4  # fp32: sums over ranks in another order, twelve steps of AdamW


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of whose pictures a dVAE has made tokens."""
    folder = tmp_path_factory.mktemp("data")
    dataset = make_shards(folder / "shards", [17, 14])
    encode(EncodeStep(dataset, vae_at(folder / "vae"), "vae", EncodeSettings()), LocalExecutor())
    return folder / "shards"


def recipe_of(folder: Path, name: str, data: Path, **more: Any) -> Path:
    """Twelve steps of twelve, so epochs of 31 end within steps. Words are drawn: merges are left out by chance."""
    return runs.recipe(folder, data, model={"name": name, **MODELS[name]}, optim=OPTIM, **more)


def each_trained(ranks: Ranks, recipes: list[Path], settings: list[str]) -> None:
    for path in recipes:
        assert train(TrainRecipe.load(path, settings), ranks).code == 0


@pytest.mark.parametrize("name", MODELS)
def test_on_two_ranks_every_stage_gives_the_curve_of_stage_0(name: str, data: Path, tmp_path: Path) -> None:
    more = {3: {"deepspeed": str(Path(runs.__file__).with_name("stage3.json"))}}
    recipes = [
        recipe_of(tmp_path / str(stage), name, data, engine={"zero": stage, **more.get(stage, {})}) for stage in STAGES
    ]
    ranked(2, each_trained, tmp_path / "ranks", recipes, READS[name])
    wanted = runs.losses(tmp_path / "0")
    assert len(wanted) == runs.STEPS
    assert wanted[-1][1] < wanted[0][1]
    for stage in STAGES:
        for (_, found), (_, want) in zip(runs.losses(tmp_path / str(stage)), wanted, strict=True):
            assert found == pytest.approx(want, rel=RTOL)
    ends = {stage: runs.weights(tmp_path / str(stage)) for stage in STAGES}
    for stage in STAGES:  # they are averages
        for key, want in ends[0].items():
            assert (ends[stage][key] - want).norm() <= 1e-3 * want.norm() + 1e-6, (stage, key)
    if name == "dalle.vae":  # and who makes tokens has them
        runs.assert_same(dvae_of(str(tmp_path / "0" / "run")).state_dict(), ends[0])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_left_within_an_epoch_ends_with_the_same_bits(name: str, stop: int, data: Path, tmp_path: Path) -> None:
    whole, parted = recipe_of(tmp_path / "whole", name, data), recipe_of(tmp_path / "parted", name, data)
    settings = [word for setting in READS[name] for word in ("--set", setting)]
    assert runs.train(whole, *settings) == 0
    assert runs.train(parted, "--limit", str(stop), *settings) == 75
    assert runs.train(parted, *settings) == 0
    runs.assert_same(runs.weights(tmp_path / "parted"), runs.weights(tmp_path / "whole"))
    assert runs.losses(tmp_path / "parted") == runs.losses(tmp_path / "whole")
