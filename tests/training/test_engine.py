"""One run is one run: at every ZeRO stage, over one rank or two, resumed or not, in one batch or in parts.

Processes are started three times: alone, then two ranks that go on from its checkpoint, then alone from theirs.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infra.errors import RecipeError
from infra.storage import Storage
from tests.training.ranked import EMBEDDING, GLOBAL, Towers, pairs, ranked, rows
from training.checkpoint import Checkpoint, Facts, folder_of
from training.engine_settings import EngineSettings, deepspeed_config
from training.optim import AverageSettings, LossScale, OptimSettings
from training.ranks import Ranks
from training.saver import Saver
from training.spec import Batch, Outputs

STEPS, HALF, SHORT = 50, 25, 8
STAGES = (0, 1, 2, 3)
FP32 = 2e-6  # sums over ranks and parts in another order, fifty steps of AdamW
BF16 = 5e-3  # the same, with sums rounded to 8 bits: in two parts other rows share a product
DECAY, EVERY = 0.9, 2
OPTIM = OptimSettings(lr=1e-2, warmup_steps=5, clip_norm=1.0, average=AverageSettings(decay=DECAY, every=EVERY))

Curve = list[float]


def engine(
    ranks: Ranks, stage: int, *, num_micro: int = 1, dropout: float = 0.0, seed: int = 0, **settings: Any
) -> Any:
    from training.engine import Engine

    if stage == 3:  # or it would keep parameters as small as these whole
        settings["deepspeed"] = str(Path(__file__).parent / "stage3.json")
    return Engine(
        Towers(dropout, seed=seed + ranks.rank), OPTIM, EngineSettings(zero=stage, **settings), total_steps=STEPS,
        micro_batch=GLOBAL // ranks.num // num_micro, num_micro=num_micro, ranks=ranks, frozen=["table"],
    )  # fmt: skip


def go_on(one: Any, first: int, last: int, accumulate: str = "plain") -> Curve:
    """Losses of steps from first to before last."""

    def chance(step: int) -> Any:
        return lambda micro: torch.manual_seed(1000 * step + 10 * micro + one.ranks.rank)

    curve = []
    for step in range(first, last):
        result = one.step(rows(step, one.ranks), pairs(one.ranks), step, accumulate=accumulate, seed=chance(step))
        one.move_average(step + 1)
        assert not result.is_skipped
        curve.append(result.terms["pairs"])
    return curve


def states(one: Any) -> dict[str, Tensor]:
    return {f"{name}/{key}": value for name in one.sizes() for key, value in one.read(name).items()}


def saved(one: Any, folder: Path, step: int) -> None:
    saver = Saver(Storage(folder), one.ranks)
    saver.save(one, Facts(step=step))
    saver.wait()


def restored(one: Any, folder: Path, step: int) -> Any:
    Checkpoint.open(str(folder / folder_of(step))).restore(one)
    return one


def alone_first(ranks: Ranks, folder: Path) -> dict[str, Any]:
    one = engine(ranks, 1)
    curve = go_on(one, 0, HALF)
    saved(one, folder / "alone", HALF)
    return {"curve": curve + go_on(one, HALF, STEPS)}


def alone_again(ranks: Ranks, folder: Path) -> dict[str, Any]:
    one = restored(engine(ranks, 0, seed=5), folder / "two-2", HALF)
    return {"from two": go_on(one, HALF, STEPS)}


def two(ranks: Ranks, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"curve": {}, "resumed": {}, "skipped": {}, "gradient": {}, "bf16": {}, "offload": {}}
    wholes = {}
    for stage in STAGES:
        one = engine(ranks, stage, dropout=0.1 if stage == 1 else 0.0)
        begun = states(one)
        found["begun", stage] = {name: value for name, value in begun.items() if name.endswith("/weight")}
        curve = go_on(one, 0, HALF)
        saved(one, folder / f"two-{stage}", HALF)
        found["curve"][stage] = curve + go_on(one, HALF, STEPS)
        wholes[stage] = states(one)
        again = restored(
            engine(ranks, stage, dropout=0.1 if stage == 1 else 0.0, seed=5), folder / f"two-{stage}", HALF
        )
        curve = go_on(again, HALF, STEPS)
        found["resumed"][stage] = (curve, same(states(again), wholes[stage]), again.counters())
        found["skipped"][stage] = [skips(again, bad) for bad in ("loss", "gradient")]
        found["clamped", stage] = clamps(again)
        found["scaled", stage] = scales(ranks, stage)
        found["averaged", stage] = averages(engine(ranks, stage))
        found["gradient"][stage] = in_parts(ranks, stage)
    found["frozen"] = all(torch.equal(whole["table/weight"], begun["table/weight"]) for whole in wholes.values())
    found["alone to two"] = go_on(restored(engine(ranks, 2), folder / "alone", HALF), HALF, HALF + SHORT)
    found["2 to 3"] = go_on(restored(engine(ranks, 3), folder / "two-2", HALF), HALF, HALF + SHORT)
    found["3 to 0"] = go_on(restored(engine(ranks, 0), folder / "two-3", HALF), HALF, HALF + SHORT)
    for stage in (0, 2, 3):
        found["bf16"][stage] = go_on(engine(ranks, stage, precision="bf16"), 0, SHORT)
    found["bf16 in parts"] = go_on(engine(ranks, 2, precision="bf16", num_micro=2), 0, SHORT, "cached")
    for stage, weights in ((1, "none"), (2, "none"), (3, "cpu")):
        places = {"offload_optimizer": "cpu", "offload_parameters": weights}
        found["averaged", stage, weights] = averages(engine(ranks, stage, **places))
        curve = go_on(engine(ranks, stage, **places), 0, SHORT)
        one = engine(ranks, stage, num_micro=2, **places)
        in_two = go_on(one, 0, SHORT, "cached")
        name = f"off-{stage}-{weights}"
        saved(one, folder / name, SHORT)
        again = restored(engine(ranks, stage, seed=5, **places), folder / name, SHORT)
        assert same(states(again), states(one))
        found["offload"][name] = (curve + go_on(again, SHORT, 2 * SHORT), in_two)
    return found


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def skips(one: Any, bad: str) -> dict[str, Any]:
    """A loss, or a gradient of a finite loss, is not finite on the last rank only."""

    def losses(outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        terms = pairs(one.ranks)(outputs, batch)
        if one.ranks.rank == one.ranks.num - 1:
            zero = outputs["image"].sum() * 0
            terms["harm"] = zero.detach() + math.inf if bad == "loss" else zero.abs().sqrt()
        else:
            terms["harm"] = terms["pairs"] * 0
        return terms

    before, counted = states(one), one.counters()
    result = one.step(rows(0, one.ranks), losses, 40)
    after = {name: value for name, value in states(one).items() if not name.startswith("num_seen")}
    before = {name: before[name] for name in after}
    good = one.step(rows(1, one.ranks), pairs(one.ranks), 40)
    return {
        "is_skipped": result.is_skipped, "is_finite": math.isfinite(sum(result.terms.values())),
        "unchanged": same(after, before) and one.counters()["num_updates"] == counted["num_updates"] + 1,
        "goes on": not good.is_skipped and math.isfinite(good.grad_norm) and not same(
            {name: states(one)[name] for name in after}, after
        ),
    }  # fmt: skip


def clamps(one: Any) -> tuple[float, float]:
    """What a scale is after it was clamped by one, and after a step more: the optimiser's copy must know it."""

    def clamp(module: Any) -> None:
        module.log_scale.clamp_(max=1.0)

    one.after_step(clamp)
    clamped = float(one.read("log_scale")["weight"])
    go_on(one, STEPS - 1, STEPS)  # where the rate is nearly nothing
    return clamped, float(one.read("log_scale")["weight"])


def averages(one: Any) -> dict[str, Any]:
    """The largest distance of an average from what its weight's course makes it, and what is evaluated."""

    def weights() -> dict[str, Tensor]:
        return {name: one.read(name)["weight"] for name in one.sizes()}

    begun = wanted = weights()
    for step in range(SHORT):
        go_on(one, step, step + 1)
        if (step + 1) % EVERY == 0:
            wanted = {name: DECAY * wanted[name] + (1 - DECAY) * now for name, now in weights().items()}
    found, evaluated, last = {name: one.read(name) for name in one.sizes()}, one.weights(), weights()
    trained = [name for name in found if "exp_avg" in found[name]]
    return {
        "distance": max(float((found[name]["average"] - wanted[name]).abs().max()) for name in trained),
        "moved": max(float((found[name]["average"] - begun[name]).abs().max()) for name in trained),
        "evaluated": all(
            torch.equal(evaluated[name], found[name]["average"] if name in trained else last[name]) for name in last
        ),
        "others": {name for name in found if name not in trained and "average" not in found[name]},
    }


def scales(ranks: Ranks, stage: int) -> dict[str, Any]:
    """With a loss scale, as fp16 has one: the same steps; where it overflows, a skip and half the scale."""
    one = engine(ranks, stage)
    one.loss_scale = LossScale(2.0**12)
    curve = go_on(one, 0, SHORT)
    one.loss_scale = LossScale(2.0**127)
    result = one.step(rows(0, ranks), lambda *given: {"pairs": 1e4 * pairs(ranks)(*given)["pairs"]}, SHORT)
    return {"curve": curve, "overflow": (result.is_skipped, one.counters()["loss_scale"]["scale"])}


def in_parts(ranks: Ranks, stage: int) -> dict[str, float]:
    """Relative distance of each gradient (AdamW's first moment after one step) in four parts from that in one."""
    moments = []
    for num_micro in (1, 4):
        one = engine(ranks, stage, num_micro=num_micro)
        go_on(one, 0, 2, "cached")
        moments.append({name: value for name, value in states(one).items() if name.endswith("exp_avg")})
        assert int(one.read("num_seen")["weight"]) == 2 * GLOBAL // ranks.num  # rows are counted once
    whole, parts = moments
    return {name: float((parts[name] - whole[name]).norm() / whole[name].norm()) for name in whole}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs")
    found = ranked(1, alone_first, folder / "1", folder)[0]
    first, second = ranked(2, two, folder / "2", folder)
    assert first["curve"] == second["curve"]
    first |= {("begun", stage): second["begun", stage] for stage in STAGES}
    return {**found, "two": first, **ranked(1, alone_again, folder / "3", folder)[0]}


def distance(found: Curve, wanted: Curve) -> float:
    assert len(found) == len(wanted)
    return max(abs(one - other) / abs(other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.slow
def test_every_stage_gives_the_curve_of_stage_0(runs: dict[str, Any]) -> None:
    curves = runs["two"]["curve"]
    assert curves[0][-1] < 0.6 * curves[0][0]
    for stage in (2, 3):
        assert distance(curves[stage], curves[0]) < FP32
    assert distance(runs["two"]["scaled", 1]["curve"], curves[0][:SHORT]) < FP32  # stage 1's own curve has dropout
    for stage in (2, 3):
        assert distance(runs["two"]["bf16"][stage], runs["two"]["bf16"][0]) < FP32
    assert distance(runs["two"]["bf16"][0], curves[0][:SHORT]) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(runs: dict[str, Any], stage: int) -> None:
    curve, is_same, counters = runs["two"]["resumed"][stage]
    assert curve == runs["two"]["curve"][stage][HALF:]
    assert is_same
    assert counters["num_updates"] == STEPS


@pytest.mark.slow
def test_a_run_goes_on_over_other_ranks_and_at_other_stages(runs: dict[str, Any]) -> None:
    goes_on = runs["curve"][HALF:]
    assert distance(runs["two"]["curve"][0], runs["curve"]) < FP32
    for name in ("alone to two", "2 to 3", "3 to 0"):
        assert distance(runs["two"][name], goes_on[:SHORT]) < FP32
    assert distance(runs["from two"], goes_on) < FP32


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_rank_begins_with_rank_0s_weights_and_leaves_frozen_ones(runs: dict[str, Any], stage: int) -> None:
    begun = runs["two"]["begun", stage]
    wanted = Towers(seed=0).state_dict()
    assert begun.keys() == {f"{name}/weight" for name in wanted}
    assert all(torch.equal(begun[f"{name}/weight"], value) for name, value in wanted.items())
    assert runs["two"]["frozen"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_gradient_of_a_contrastive_loss_is_the_same_in_parts(runs: dict[str, Any], stage: int) -> None:
    distances = runs["two"]["gradient"][stage]
    assert {"log_scale/exp_avg", "bias/exp_avg", "image.0.weight/exp_avg"} <= distances.keys()
    assert max(distances.values()) < 1e-5  # fp32, sums in another order
    assert distance(runs["two"]["bf16 in parts"], runs["two"]["bf16"][2]) < BF16


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_what_is_not_finite_on_one_rank_is_skipped_by_all_and_changes_nothing(runs: dict[str, Any], stage: int) -> None:
    loss, gradient = runs["two"]["skipped"][stage]
    assert loss == {"is_skipped": True, "is_finite": False, "unchanged": True, "goes on": True}
    assert gradient == {"is_skipped": True, "is_finite": True, "unchanged": True, "goes on": True}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_scale_changes_no_step_and_an_overflow_halves_it(runs: dict[str, Any], stage: int) -> None:
    found = runs["two"]["scaled", stage]
    assert distance(found["curve"], runs["two"]["curve"][0][:SHORT]) < FP32
    assert found["overflow"] == (True, 2.0**126)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_clamped_scale_stays_clamped(runs: dict[str, Any], stage: int) -> None:
    clamped, afterwards = runs["two"]["clamped", stage]
    assert clamped == 1.0
    assert afterwards == pytest.approx(1.0, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("of", [*((stage,) for stage in STAGES), (1, "none"), (2, "none"), (3, "cpu")])
def test_an_average_of_weights_follows_them_and_is_what_is_evaluated(runs: dict[str, Any], of: tuple[Any, ...]) -> None:
    found = runs["two"]["averaged", *of]
    assert found["distance"] < 1e-6  # four moves in fp32, by hand in another order
    assert found["moved"] > 1e-3
    assert found["evaluated"]
    assert found["others"] == {"table", "num_seen"}


@pytest.mark.slow
def test_offloading_gives_the_same_curve_in_parts_and_resumed_too(runs: dict[str, Any]) -> None:
    wanted = runs["two"]["curve"][0]
    assert len(runs["two"]["offload"]) == 3
    for curve, in_two in runs["two"]["offload"].values():
        assert distance(curve, wanted[: 2 * SHORT]) < FP32
        assert distance(in_two, wanted[:SHORT]) < FP32


@pytest.mark.parametrize(
    "values",
    [
        {"zero": 4},
        {"zero": 2, "offload_parameters": "cpu"},
        {"zero": 0, "offload_optimizer": "cpu"},
        {"zero": 3, "offload_optimizer": "nvme", "nvme_path": "/tmp"},
        {"zero": 3, "offload_parameters": "nvme"},
        {"zero": 2, "offload_parameters": "nvme", "nvme_path": "/tmp"},
        {"zero": 3, "compile": True},
        {"precision": "fp8"},
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        EngineSettings.parse(values, "recipe.yaml")


@pytest.mark.slow
def test_what_this_machine_cannot_do_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import engine as module

    cpu = torch.device("cpu")
    with pytest.raises(RecipeError, match="no fp16 on a CPU; take bf16"):
        module.refuse_unfit(EngineSettings(precision="fp16"), cpu)
    nvme = EngineSettings(zero=3, offload_parameters="nvme", nvme_path=str(tmp_path / "none"))
    monkeypatch.setattr(module.AsyncIOBuilder, "is_compatible", lambda self: False)
    with pytest.raises(RecipeError, match="libaio"):
        module.refuse_unfit(nvme, cpu)
    monkeypatch.setattr(module.AsyncIOBuilder, "is_compatible", lambda self: True)
    with pytest.raises(RecipeError, match="no such folder"):
        module.refuse_unfit(nvme, cpu)


def config(settings: EngineSettings) -> dict[str, Any]:
    return deepspeed_config(settings, clip_norm=1.0, micro_batch=4, num_micro=2, num_ranks=3)


SHIPPED = sorted((Path(__file__).parents[2] / "infra" / "deepspeed").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_fits_the_settings_of_its_name(path: Path, tmp_path: Path) -> None:
    stage = int(path.stem[4])
    places = {"offload_optimizer": "cpu"} if "offload" in path.stem else {}
    if "nvme" in path.stem:
        places |= {"offload_parameters": "nvme", "nvme_path": str(tmp_path)}
    found = config(EngineSettings(zero=stage, deepspeed=str(path), **places))
    assert found["train_batch_size"] == 24
    assert found["zero_optimization"]["stage"] == stage


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"train_micro_batch_size_per_gpu": 8}', "train_micro_batch_size_per_gpu=8, and the recipe says 4"),
        ('{"gradient_accumulation_steps": 1}', "the recipe says 2"),
        ('{"zero_optimization": {"stage": 2}}', "zero_optimization.stage=2, and the recipe says 1"),
        ('{"optimizer": {"type": "Adam"}}', "optimizer is set by the recipe"),
        ('{"bf16": {"enabled": true}}', "bf16 is set by the recipe"),
        ("[]", "a mapping"),
        ("{", "not JSON"),
    ],
)
def test_a_file_that_says_otherwise_than_the_recipe_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=told):
        config(EngineSettings(deepspeed=str(path)))


def test_a_file_adds_keys_and_auto_stands_for_ours(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(
        '{"train_batch_size": "auto", "zero_optimization": {"reduce_bucket_size": 7, "overlap_comm": true}}'
    )
    found = config(EngineSettings(deepspeed=str(path)))
    assert found["train_batch_size"] == 24
    assert found["zero_optimization"] == {
        "stage": 1, "reduce_bucket_size": 7, "allgather_bucket_size": 50_000_000, "reduce_scatter": False,
        "overlap_comm": True,
    }  # fmt: skip
    with pytest.raises(RecipeError, match="No such file"):
        config(EngineSettings(deepspeed=str(tmp_path / "none.json")))


def test_rows_that_all_ranks_have_are_those_of_one() -> None:
    halves = [rows(3, Ranks(2, rank))["image"] for rank in range(2)]
    assert torch.equal(torch.cat(halves), rows(3, Ranks())["image"])
    assert EMBEDDING < GLOBAL
