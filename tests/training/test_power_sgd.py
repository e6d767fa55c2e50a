"""PowerSGD: all ranks get one mean, nothing of a gradient is lost, and a stopped run goes on with its errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from infra.errors import RecipeError
from infra.storage import Storage
from tests.training.ranked import GLOBAL, Towers, pairs, ranked, rows
from tests.training.runs import recipe, train
from tests.training.shards import make_shards
from training import power_sgd
from training.checkpoint import Checkpoint, Facts, folder_of
from training.engine_settings import EngineSettings
from training.optim import OptimSettings
from training.power_sgd import PowerSGD, is_compressed, num_sent
from training.ranks import Ranks
from training.saver import Saver

SHAPES = {"wide": (5, 14), "tall": (14, 5), "kernel": (6, 2, 3, 3), "bias": (14,), "scale": (), "small": (2, 3)}
STEPS, HALF = 50, 25
FP32 = 1e-5  # of the largest number: products of two factors in place of one sum
OPTIM = OptimSettings(lr=1e-2, warmup_steps=5, clip_norm=1.0)


def parameters(shapes: dict[str, tuple[int, ...]]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}


def give(found: dict[str, nn.Parameter], chance: torch.Generator) -> dict[str, Tensor]:
    """Gradients drawn anew; a copy of them."""
    for one in found.values():
        one.grad = torch.randn(one.shape, generator=chance)
    return gradients(found)


def gradients(found: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: one.grad.clone() for name, one in found.items() if one.grad is not None}


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


# One rank alone: the same arithmetic without sending.


@given(
    n=st.integers(1, 12), m=st.integers(1, 12), rank=st.integers(1, 5), steps=st.integers(1, 5),
    scale=st.sampled_from([1e-6, 1.0, 1e6]), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_what_was_applied_and_what_waits_is_all_that_was_given(n, m, rank, steps, scale, seed) -> None:
    found = parameters({"one": (n, m), "row": (m,)})
    one, chance = PowerSGD(found, rank, Ranks(), seed), torch.Generator().manual_seed(seed)
    given_, applied = torch.zeros(n, m), torch.zeros(n, m)
    for _ in range(steps):
        given_ += scale * give(found, chance)["one"]
        found["one"].grad *= scale
        norm = one.reduce(is_wanted=True)
        applied += found["one"].grad
        wanted = torch.nn.utils.get_total_norm([*gradients(found).values()])
        assert norm == pytest.approx(float(wanted), rel=1e-4)  # fp32, of the factors in place of the product
    waits = one.read().get("one/error", torch.zeros(n, m))
    assert apart(applied + waits, given_) < 20 * FP32  # sums may be small beside what they are of
    assert bool(one.read()) == is_compressed((n, m), rank)


def test_factors_are_sent_where_they_are_fewer_numbers() -> None:
    assert is_compressed((10, 10), 4)
    assert not is_compressed((10, 10), 5)  # as many
    assert not is_compressed((10,), 1)
    assert not is_compressed((), 1)
    assert not is_compressed((0, 10), 1)
    assert is_compressed((8, 4, 3, 3), 6)
    assert num_sent([(10, 10), (10, 10, 1), (7,), (), (3, 3)], 4) == 80 + 80 + 7 + 1 + 9


def test_the_first_factors_follow_from_seed_and_name() -> None:
    def first(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
        return PowerSGD(parameters(shapes), 2, Ranks(), seed).read()

    wanted = first({"a": (9, 9), "b": (9, 9)}, 3)
    assert torch.equal(first({"x": (9, 8), "b": (9, 9)}, 3)["b/q"], wanted["b/q"])
    assert not torch.equal(wanted["a/q"], wanted["b/q"])
    assert not torch.equal(first({"a": (9, 9)}, 4)["a/q"], wanted["a/q"])


@pytest.mark.parametrize("name", ["wide", "bias"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_what_is_not_finite_leaves_errors_and_factors_as_they_were(name: str, bad: float) -> None:
    found, chance = parameters(SHAPES), torch.Generator().manual_seed(0)
    one = PowerSGD(found, 2, Ranks(), 0)
    give(found, chance)
    one.reduce(is_wanted=True)
    before = one.read()
    give(found, chance)
    found[name].grad.view(-1)[3] = bad  # 1e30 is finite, the norm of it is not
    assert not one.reduce(is_wanted=True).isfinite()
    assert same(one.read(), before)
    give(found, chance)
    assert one.reduce(is_wanted=False).isfinite()
    assert same(one.read(), before)


def test_a_matrix_whose_gradient_was_nothing_for_a_while_is_learned_again() -> None:
    found = parameters({"one": (9, 9)})
    one = PowerSGD(found, 2, Ranks(), 0)
    for _ in range(2):
        found["one"].grad = None
        assert one.reduce(is_wanted=True) == 0
    wanted = torch.zeros(9, 9)
    wanted[5:7] = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))  # of rank 2; first rows are nothing
    found["one"].grad = wanted.clone()
    one.reduce(is_wanted=True)
    assert apart(found["one"].grad, wanted) < FP32


def test_a_gradient_in_another_order_of_memory_is_the_same() -> None:
    plain, turned = parameters({"one": (8, 4, 3, 3)}), parameters({"one": (8, 4, 3, 3)})
    give(plain, torch.Generator().manual_seed(0))
    turned["one"].grad = plain["one"].grad.to(memory_format=torch.channels_last)
    for found in (plain, turned):
        PowerSGD(found, 2, Ranks(), 0).reduce(is_wanted=True)
    assert turned["one"].grad.is_contiguous(memory_format=torch.channels_last)
    assert apart(turned["one"].grad, plain["one"].grad) < FP32


def test_states_of_another_rank_are_not_taken() -> None:
    found = parameters(SHAPES)
    one, other = PowerSGD(found, 2, Ranks(), 0), PowerSGD(found, 1, Ranks(), 0)
    begun = other.read()
    give(found, torch.Generator().manual_seed(0))
    one.reduce(is_wanted=True)
    assert not other.write(one.read())
    assert same(other.read(), begun)
    again = PowerSGD(found, 2, Ranks(), 5)
    assert again.write(one.read())
    assert same(again.read(), one.read())


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"zero": 1}, "needs zero: 0"),
        ({"zero": 3}, "needs zero: 0"),
        ({}, "needs zero: 0"),
        ({"zero": 0, "precision": "bf16"}, "needs precision: fp32, not bf16"),
        ({"zero": 0, "precision": "fp16"}, "needs precision: fp32, not fp16"),
        ({"zero": 0, "powersgd_rank": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        EngineSettings.parse({"powersgd_rank": 4, **values}, "recipe.yaml")
    assert EngineSettings.parse({"powersgd_rank": 4, "zero": 0}, "recipe.yaml").powersgd_rank == 4


def test_a_dry_run_says_what_would_be_sent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_shards(tmp_path / "data", [8])
    path = recipe(tmp_path / "run", tmp_path / "data", engine={"zero": 0, "powersgd_rank": 2})
    assert train(path, "--dry-run") == 0
    said = capfd.readouterr().out
    assert "PowerSGD: each of several ranks sends 101,931 numbers a step, 12.5% of its gradients" in said
    assert train(path, "--dry-run", "--set", "engine.zero=1") == 2
    assert "needs zero: 0" in capfd.readouterr().err


# Two ranks, started once.


@contextmanager
def counted() -> Iterator[list[int]]:
    """Bytes of each all-reduce."""
    found, real = [], dist.all_reduce

    def all_reduce(tensor: Tensor, *arguments: Any, **more: Any) -> Any:
        found.append(tensor.nbytes)
        return real(tensor, *arguments, **more)

    dist.all_reduce = all_reduce
    yield found
    dist.all_reduce = real


@contextmanager
def logged() -> Iterator[list[str]]:
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("pairmill").addHandler(handler)
    yield found
    logging.getLogger("pairmill").removeHandler(handler)


def engine(ranks: Ranks, rank: int | None, *, num_micro: int = 1, seed: int = 0) -> Any:
    from training.engine import Engine

    return Engine(
        Towers(seed=seed), OPTIM, EngineSettings(zero=0, powersgd_rank=rank), total_steps=STEPS,
        micro_batch=GLOBAL // ranks.num // num_micro, num_micro=num_micro, ranks=ranks, frozen=["table"], seed=seed,
    )  # fmt: skip


def go_on(one: Any, first: int, last: int, accumulate: str = "plain") -> list[float]:
    results = [
        one.step(rows(step, one.ranks), pairs(one.ranks), step, accumulate=accumulate) for step in range(first, last)
    ]
    assert not any(result.is_skipped for result in results)
    return [result.terms["pairs"] for result in results]


def saved(one: Any, folder: Path, step: int) -> None:
    saver = Saver(Storage(folder), one.ranks)
    saver.save(one, Facts(step=step))
    saver.wait()


def restored(one: Any, folder: Path) -> tuple[Any, list[str]]:
    with logged() as told:
        Checkpoint.open(str(folder / folder_of(HALF))).restore(one)
    return one, told


def two(ranks: Ranks, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"law": law(ranks), "full": at_full_rank(ranks), "torch": as_torch_does(ranks)}
    for rank in (None, 2, 4):
        one = engine(ranks, rank)
        with counted() as sent:
            curve = go_on(one, 0, 1)
        found["sent", rank] = sent
        curve += go_on(one, 1, HALF)
        saved(one, folder / f"two-{rank}", HALF)
        found["curve", rank] = curve + go_on(one, HALF, STEPS)
        found["end", rank] = one.weights(), one.own()
    again, told = restored(engine(ranks, 2, seed=5), folder / "two-2")
    found["resumed"] = go_on(again, HALF, STEPS), (again.weights(), again.own()), told
    found["skipped"] = [skips(again, bad) for bad in ("loss", "gradient")]
    for name, rank, there in (("other", 4, 2), ("off", None, 2), ("on", 2, None)):
        again, told = restored(engine(ranks, rank), folder / f"two-{there}")
        found[name] = told, any(value.any() for key, value in again.own().items() if key.endswith("/error"))
        go_on(again, HALF, HALF + 2)
    in_parts = engine(ranks, 2, num_micro=2)
    with counted() as sent:
        go_on(in_parts, 0, 1, "cached")
    found["sent in parts"] = sent
    found["in parts"] = go_on(in_parts, 1, 4, "cached")
    return found


def alone(ranks: Ranks, folder: Path) -> dict[str, Any]:
    one, told = restored(engine(ranks, 2), folder / "two-2")
    return {"told": told, "curve": go_on(one, HALF, STEPS), "own": one.own()}


def law(ranks: Ranks) -> dict[str, Any]:
    """Over five steps of gradients that differ from rank to rank."""
    found, chance = parameters(SHAPES), torch.Generator().manual_seed(ranks.rank)
    one = PowerSGD(found, 2, ranks, 0)
    given_, applied = ({name: torch.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    for _ in range(5):
        for name, value in give(found, chance).items():
            given_[name] += ranks.mean(value)
        one.reduce(is_wanted=True)
        for name, value in gradients(found).items():
            applied[name] += value
    errors = {name: one.read().get(f"{name}/error") for name in SHAPES}
    waits = {name: 0.0 if error is None else ranks.mean(error).view(SHAPES[name]) for name, error in errors.items()}
    return {
        "last": gradients(found), "compressed": [name for name, error in errors.items() if error is not None],
        "apart": max(apart(applied[name] + waits[name], given_[name]) for name in SHAPES),
        "missing": max(apart(applied[name], given_[name]) for name in SHAPES),
    }  # fmt: skip


def at_full_rank(ranks: Ranks) -> float:
    """Distance from the plain mean."""
    found, chance = parameters({"wide": (6, 9), "tall": (12, 6), "kernel": (6, 2, 2, 2)}), torch.Generator()
    real, power_sgd.is_compressed = power_sgd.is_compressed, lambda shape, rank: True
    one = PowerSGD(found, 6, ranks, 0)
    power_sgd.is_compressed = real
    assert len(one.read()) == 6
    distances = []
    for step in range(3):
        chance.manual_seed(10 * step + ranks.rank)
        wanted = {name: ranks.mean(value) for name, value in give(found, chance).items()}
        one.reduce(is_wanted=True)
        distances += [apart(value, wanted[name]) for name, value in gradients(found).items()]
    return max(distances)


class Bucket:
    """What torch's hook asks of one of DDP's."""

    def __init__(self, found: list[Tensor]) -> None:
        self.flat = torch.cat([one.flatten() for one in found])
        parts = self.flat.split([one.numel() for one in found])
        self.parts = [part.view(one.shape) for part, one in zip(parts, found, strict=True)]

    def buffer(self) -> Tensor:
        return self.flat

    def gradients(self) -> list[Tensor]:
        return self.parts

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True


def as_torch_does(ranks: Ranks) -> float:
    """Distance from what torch's own hook for DDP makes of the same gradients and the same first factors."""
    from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

    rank, shapes = 3, {"wide": (9, 14), "tall": (30, 8), "row": (14,)}  # from 3 on torch takes QR
    found, chance = parameters(shapes), torch.Generator().manual_seed(ranks.rank)
    one = PowerSGD(found, rank, ranks, 0)
    state = PowerSGDState(None, rank, start_powerSGD_iter=2, min_compression_rate=1)
    state.iter = 2
    state.q_memory_dict[0] = torch.cat([one.read()[f"{name}/q"].flatten() for name in ("wide", "tall")])
    state.p_memory_dict[0] = torch.empty(rank * (9 + 30))
    distances = []
    for _ in range(4):
        bucket = Bucket([*give(found, chance).values()])
        powerSGD_hook(state, bucket).wait()
        one.reduce(is_wanted=True)
        distances += [apart(value, want) for value, want in zip(gradients(found).values(), bucket.parts, strict=True)]
    return max(distances)


def skips(one: Any, bad: str) -> bool:
    """Are weights and own states as before, and goes it on?"""

    def losses(outputs: Any, batch: Any) -> dict[str, Tensor]:
        terms = pairs(one.ranks)(outputs, batch)
        zero = outputs["image"].sum() * 0
        harm = zero.detach() + float("inf") if bad == "loss" else zero.abs().sqrt()
        return terms | {"harm": harm if one.ranks.rank == 1 else zero.detach()}

    before, own = one.weights(), one.own()
    assert one.step(rows(0, one.ranks), losses, 40).is_skipped
    after = one.weights()
    for weights in (before, after):
        del weights["num_seen"]
    is_kept = same(after, before) and same(one.own(), own)
    go_on(one, 40, 41)
    return is_kept and not same(one.own(), own)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("power_sgd")
    both = ranked(2, two, folder / "2", folder)
    return {"ranks": both, **both[0], "alone": ranked(1, alone, folder / "1", folder)[0]}


@pytest.mark.slow
def test_two_ranks_lose_nothing_and_have_the_same_bytes(runs: dict[str, Any]) -> None:
    first, second = (one["law"] for one in runs["ranks"])
    assert first["compressed"] == ["wide", "tall", "kernel"]
    assert first["apart"] < FP32
    assert first["missing"] > 0.1
    assert same(first["last"], second["last"])


@pytest.mark.slow
def test_at_full_rank_it_is_the_plain_mean(runs: dict[str, Any]) -> None:
    assert runs["full"] < FP32


@pytest.mark.slow
def test_torchs_hook_for_ddp_gives_the_same_gradients(runs: dict[str, Any]) -> None:
    assert runs["torch"] < 10 * FP32  # four steps, whose errors come of the steps before


@pytest.mark.slow
@pytest.mark.parametrize("rank", [2, 4])
def test_a_step_sends_three_times_what_the_formula_says(runs: dict[str, Any], rank: int) -> None:
    towers = 2 * [(17, 10), (6, 17)]
    whole = 2 * (17 + 17 + 17 + 6) + 2  # biases, gains, the scale and its bias
    p, q = rank * sum(n for n, _ in towers), rank * sum(m for _, m in towers)
    sent = [size for size in runs["sent", rank] if size in (4 * whole, 4 * p, 4 * q)]
    assert sent == [4 * whole, 4 * p, 4 * q]
    assert sum(sent) == 4 * num_sent([*towers, (whole,)], rank)
    plain = 4 * (whole + sum(n * m for n, m in towers))
    assert runs["sent", None].count(plain) == 1
    rest = sum(runs["sent", None]) - plain  # features, the means of loss terms: the same for all
    assert sum(runs["sent", rank]) == sum(sent) + rest < plain + rest
    assert [size for size in runs["sent in parts"] if size in sent].count(4 * p) == (1 if rank == 2 else 0)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [2, 4])
def test_a_run_lowers_its_loss_nearly_as_the_plain_one(runs: dict[str, Any], rank: int) -> None:
    plain, found = runs["curve", None], runs["curve", rank]
    assert found[0] == plain[0]
    assert found != plain
    fell, wanted = found[0] - sum(found[-5:]) / 5, plain[0] - sum(plain[-5:]) / 5
    assert fell > 0.9 * wanted
    assert same(*(one["end", rank][0] for one in runs["ranks"]))


@pytest.mark.slow
def test_micro_batches_are_compressed_as_one_gradient(runs: dict[str, Any]) -> None:
    assert runs["in parts"] == pytest.approx(runs["curve", 2][1:4], rel=1e-5)  # fp32, sums in another order


@pytest.mark.slow
def test_a_run_that_is_resumed_on_as_many_ranks_ends_with_the_same_bits(runs: dict[str, Any]) -> None:
    for one in runs["ranks"]:
        curve, (weights, own), told = one["resumed"]
        assert curve == one["curve", 2][HALF:]
        assert same(weights, one["end", 2][0])
        assert same(own, one["end", 2][1])
        assert told == []
    first, second = (one["end", 2][1] for one in runs["ranks"])
    assert any(not torch.equal(first[name], second[name]) for name in first if name.endswith("/error"))
    assert all(torch.equal(first[name], second[name]) for name in first if name.endswith("/q"))


@pytest.mark.slow
def test_on_another_number_of_ranks_it_warns_and_goes_on(runs: dict[str, Any]) -> None:
    found = runs["alone"]
    assert len(found["told"]) == 1
    assert "it is of 2 ranks, here are 1" in found["told"][0]
    assert found["curve"][0] == pytest.approx(runs["curve", 2][HALF], rel=1e-5)  # the same weights, other sums
    assert found["curve"][-1] < found["curve"][0]
    assert found["own"] == {}


@pytest.mark.slow
def test_with_another_setting_it_warns_where_something_is_dropped_and_goes_on(runs: dict[str, Any]) -> None:
    for name in ("other", "off"):
        told, has_errors = runs[name]
        assert ["powersgd_rank was another" in line for line in told] == [True]
        assert not has_errors
    assert runs["on"] == ([], False)


@pytest.mark.slow
def test_a_skipped_step_leaves_errors_and_factors_as_they_were(runs: dict[str, Any]) -> None:
    assert [one["skipped"] for one in runs["ranks"]] == [[True, True], [True, True]]


class Held:
    """An engine as far as checkpoints know one: a weight, and something of each rank's own."""

    device = torch.device("cpu")

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.kept = ranks, {"a/error": torch.full((2,), float(ranks.rank))}

    sizes: Callable[..., Any] = lambda self: {"a": 1}
    read: Callable[..., Any] = lambda self, name: {"weight": torch.zeros(1)}
    write: Callable[..., Any] = lambda self, name, states: None
    own: Callable[..., Any] = lambda self: self.kept
    counters: Callable[..., Any] = lambda self: {}
    finish: Callable[..., Any] = lambda self, counters: None

    def write_own(self, states: Any) -> None:
        self.kept = dict(states)


def test_each_rank_is_given_what_it_wrote_and_nothing_if_there_were_more(place: str) -> None:
    saver = Saver(Storage(place), Ranks())
    saver.save(Held(Ranks()), Facts(step=HALF))
    saver.wait()
    held = Held(Ranks())
    held.kept = {}
    Checkpoint.open(f"{place}/{folder_of(HALF)}").restore(held)
    assert same(held.kept, {"a/error": torch.zeros(2)})
    checkpoint = Checkpoint.open(f"{place}/{folder_of(HALF)}")
    with logged() as told:
        assert checkpoint._own(Ranks(3, 0)) == {}
        assert checkpoint._own(Ranks(3, 1)) == {}
    assert len(told) == 1  # rank 0 says it for all
    assert "it is of 1 ranks, here are 3" in told[0]
    assert checkpoint.weights().keys() == {"a"}
