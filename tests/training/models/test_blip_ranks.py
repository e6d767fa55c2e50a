"""However a step is reckoned, it is one step: on ranks, at ZeRO stages, resumed, recomputed, nearly in 16 bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from infra.storage import Storage
from tests.training import runs
from tests.training.models.blips import ALONE, CAPTIONS, TEXT, VISION, blip, pairs, terms
from tests.training.ranked import ranked
from tests.training.shards import make_shards
from training.checkpoint import CHECKPOINTS, Checkpoint, latest
from training.models.blip import after_step
from training.models.blip_spec import SPEC
from training.ranks import Ranks
from training.spec import Batch, Context

RTOL = 1e-5  # fp32, sums of twelve rows in another order
NUM, STEPS = 12, 3


def whole(module, step: int) -> Batch:
    """Of all ranks: captions of many lengths, a picture and a text that come again; in steps 1 and 2 padding.

    In step 2 the last three rows are: no text can come to the last rank of four.
    """
    texts = [*CAPTIONS, *(f"{text} on a wall" for text in CAPTIONS[:4]), CAPTIONS[2], "a moon"]
    uids = [(100 * step + number + 1).to_bytes(16, "little") for number in range(NUM)]
    uids[7] = uids[1]
    return pairs(module, texts, seed=step, masked=[[], [0, 5, 8], [9, 10, 11]][step], uids=uids)


def reckon(ranks: Ranks) -> list[dict[str, Any]]:
    """Of each step the terms, all gradients and the queue, as an engine that averages over ranks would have them."""
    module, told = blip("blip"), []
    size = NUM // ranks.num
    for step in range(STEPS):
        batch = whole(module, step).part(ranks.rank * size, (ranks.rank + 1) * size)
        torch.manual_seed(1000 * step + ranks.rank)  # what ranks draw alike must not hang on this
        module.zero_grad()
        outputs = module(batch, Context(step, ranks))
        losses = {name: term.loss(outputs, batch, ranks) for name, term in SPEC.losses(module.settings).items()}
        torch.stack([*losses.values()]).sum().backward()
        gradients = {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
        with torch.no_grad():
            after_step(module)
        told.append({
            "terms": {name: ranks.mean(loss) for name, loss in losses.items()},
            "gradients": {name: ranks.mean(gradient) for name, gradient in gradients.items()},
            "queue": {name: buffer.clone() for name, buffer in module.contrast.queue.named_buffers()},
            "arrived": int(outputs["match_counts"][2 * size :].sum()),
        })  # fmt: skip
    return told


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.double().norm().clamp(min=1e-30))


def one_rank(rank: int, num: int, folder: str) -> None:
    torch.set_num_threads(1)
    wanted = reckon(Ranks())
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=num)
    try:
        found = reckon(Ranks.here())
    finally:
        dist.destroy_process_group()
    for here, alone in zip(found, wanted, strict=True):
        for kind in ("terms", "gradients"):
            assert here[kind].keys() == alone[kind].keys()
            for name, value in alone[kind].items():
                assert apart(here[kind][name], value) < RTOL, (name, apart(here[kind][name], value))
        for name, value in alone["queue"].items():
            torch.testing.assert_close(here["queue"][name], value, atol=1e-6, rtol=0)  # rows go in other batches
    (Path(folder) / f"{rank}.json").write_text(json.dumps([step["arrived"] for step in found]))


@pytest.mark.slow
@pytest.mark.parametrize("num", [2, 4])
def test_any_number_of_ranks_gives_the_losses_gradients_and_queue_of_one(num: int, tmp_path: Path) -> None:
    mp.spawn(one_rank, (num, str(tmp_path)), nprocs=num)
    arrived = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(num)]
    assert [sum(of_step) for of_step in zip(*arrived, strict=True)] == [NUM, NUM - 3, NUM - 3]
    assert any(len(set(of_step)) > 1 for of_step in zip(*arrived, strict=True))  # they came unevenly
    assert num == 2 or arrived[-1][2] == 0


def losses_over(ranks: Ranks) -> Any:
    found = SPEC.losses(blip("blip").settings)
    return lambda outputs, part: {name: term.loss(outputs, part, ranks) for name, term in found.items()}


def trained(ranks: Ranks, asked: list[tuple[int, bool]]) -> dict[tuple[int, bool], Any]:
    """Three steps of an engine at each (stage, reckoned again?): losses, and the weights and buffers at last."""
    from training.engine import Engine
    from training.engine_settings import EngineSettings
    from training.optim import OptimSettings

    found = {}
    for stage, again in asked:
        more = {"deepspeed": str(runs.ROOT / "tests/training/stage3.json")} if stage == 3 else {}
        module = blip("blip", gradient_checkpointing=again)
        engine = Engine(
            module.train(), OptimSettings(lr=1e-3, warmup_steps=0, clip_norm=1.0),
            EngineSettings(zero=stage, **more), total_steps=9, micro_batch=NUM // ranks.num // 2, num_micro=2,
            ranks=ranks,
        )  # fmt: skip
        told, size = [], NUM // ranks.num
        for step in range(STEPS):
            batch = whole(module, step).part(ranks.rank * size, (ranks.rank + 1) * size)

            def seed(micro, step=step):
                torch.manual_seed(100 * step + micro)

            result = engine.step(batch, losses_over(ranks), step, seed=seed)
            assert not result.is_skipped
            engine.after_step(after_step)
            told.append(result.terms)
        found[stage, again] = told, engine.weights()
    return found


def agree(found: Any, wanted: Any) -> None:
    (told, weights), (want_told, want_weights) = found, wanted
    for one, want in zip(told, want_told, strict=True):
        assert one == pytest.approx(want, rel=RTOL)
    assert weights.keys() == want_weights.keys()
    assert {"contrast.queue.image", "contrast.momentum.vision.norm.weight"} <= weights.keys()
    for name, tensor in want_weights.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=1e-5, msg=name)  # three steps of AdamW


@pytest.mark.slow
def test_zero_3_gives_the_losses_weights_and_queue_of_zero_0_where_no_text_comes_to_a_rank(tmp_path: Path) -> None:
    """All ranks must make the same passes: each gathers weights that are cut among them."""
    for found in ranked(2, trained, tmp_path, [(0, False), (3, False), (0, True), (3, True)]):
        plain = found.pop((0, False))
        assert int(plain[1]["contrast.queue.num_pushed"]) > 0
        for other in found.values():
            agree(other, plain)


MODEL = {"name": "blip", "vision": VISION, "text": {**TEXT, "dropout": 0.1}, "vocab": "tiny", "image_size": 16,
         "context": 12, "embed_dim": 16, "queue": 30, "momentum": 0.9, "alpha_steps": 4}  # fmt: skip


@pytest.mark.slow
def test_a_run_resumed_at_its_half_ends_with_the_same_bits_queue_and_followers_too(tmp_path: Path) -> None:
    make_shards(tmp_path / "data", [20, 17])
    more = {"model": MODEL, "samples": 6 * runs.BATCH, "micro_batch": 6, "seed": 3}
    paths = {name: runs.recipe(tmp_path / name, tmp_path / "data", **more) for name in ("straight", "halted")}
    assert runs.train(paths["straight"]) == 0
    assert runs.train(paths["halted"], "--limit", "3") == 75
    assert runs.train(paths["halted"]) == 0
    found = {}
    for name in paths:
        checkpoint = Checkpoint.open(latest(Storage(f"{tmp_path}/{name}/run/{CHECKPOINTS}")) or "")
        assert checkpoint.facts.step == 6
        found[name] = checkpoint.weights()
    runs.assert_same(found["halted"], found["straight"])
    assert runs.losses(tmp_path / "halted") == runs.losses(tmp_path / "straight")
    assert int(found["straight"]["contrast.queue.num_pushed"]) == 6 * runs.BATCH


def gradients(module, entry):
    torch.manual_seed(3)
    torch.stack([*terms(module, entry, pairs(module)).values()]).sum().backward()
    return {name: one.grad for name, one in module.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("entry", ["blip", "blip.caption", "blip.retrieval"])
def test_reckoning_again_gives_the_same_gradients(entry):
    text = {"width": 32, "layers": 2, "heads": 4, "positions": 40, "dropout": 0.3}
    made = [blip(entry, text=text, gradient_checkpointing=again).train() for again in (False, True)]
    plain, again = (gradients(module, entry) for module in made)
    torch.testing.assert_close(again, plain, atol=0, rtol=0)


def test_in_bf16_the_embeddings_are_float32_of_unit_length_and_the_losses_near():
    module = blip("blip")
    torch.manual_seed(3)
    plain = terms(module, "blip", pairs(module))
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = module(pairs(module), ALONE)
    torch.testing.assert_close(outputs["image_emb"].norm(dim=1), torch.ones(6), atol=1e-6, rtol=0)
    assert outputs["text_emb"].dtype == outputs["image_keys"].dtype == torch.float32
    for name, term in SPEC.losses(module.settings).items():  # bf16 has 8 bits
        torch.testing.assert_close(term.loss(outputs, pairs(module), Ranks()), plain[name], atol=0.05, rtol=0.02)
