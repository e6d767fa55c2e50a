"""BLIP's laws: what is in the queue, what follows, what is drawn, and what no row may change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import training.models.blip
import training.models.blip_spec
from tests.training.models.blips import ALONE, CAPTIONS, blip, pairs, terms
from training.blocks.queue import KeyQueue
from training.models.blip import COLDEST, HOTTEST, after_step
from training.models.blip_contrast import image_ids, text_ids
from training.objectives.matching import FLOOR, draw_negatives
from training.ranks import Ranks
from training.spec import Context

few = settings(max_examples=60, deadline=None)
FOLLOWED = {
    "vision.": "vision.",
    "reader.": "text.",
    "image.": "contrast.image.",
    "text.": "contrast.text.",
}


def in_order(queue: KeyQueue) -> torch.Tensor:
    """Its keys from the oldest on, (num, 2 E + 2)."""
    whole = torch.cat([queue.image, queue.text, queue.ids.double()], 1).double()
    pushed = int(queue.num_pushed)
    return whole.roll(-(pushed % queue.size), 0) if pushed > queue.size else whole[:pushed]


def step(module, batches, number=0, does_end=True):
    """The forward passes of a step's parts. Returns the keys that it had, as `in_order` gives them."""
    keys = []
    for batch in batches:
        with torch.no_grad():
            outputs = module(batch, Context(number, Ranks()))
        size, is_key = len(batch), batch["valid"]
        ids = torch.stack([image_ids(batch), text_ids(batch["text"])], 1)
        made = torch.cat([outputs["image_keys"][:size], outputs["text_keys"][:size], ids.double()], 1)
        keys.append(made[is_key].double())
    if does_end:
        with torch.no_grad():
            after_step(module)
    return torch.cat(keys)


@few
@given(size=st.integers(1, 9), pushes=st.lists(st.integers(0, 12), max_size=8))
def test_a_queue_holds_the_newest_keys_in_their_order(size, pushes):
    queue, pushed = KeyQueue(size, 2), torch.zeros(0, 6, dtype=torch.float64)
    for num in pushes:
        numbers = len(pushed) + torch.arange(num, dtype=torch.float32)
        image, ids = numbers[:, None] + torch.tensor([0.25, 0.5]), torch.stack([numbers, -numbers], 1).long()
        queue.push(image, -image, ids)
        pushed = torch.cat([pushed, torch.cat([image, -image, ids.float()], 1).double()])
        assert queue.is_key().sum() == min(size, len(pushed))
        newest = pushed[-size:]
        held = torch.cat([queue.image, queue.text, queue.ids.float()], 1).double()[queue.is_key()]
        assert torch.equal(held[held[:, 4].argsort()], newest)
        if num <= size:  # of more, only the last ones were counted
            assert int(queue.num_pushed) <= len(pushed)


def test_a_queue_without_places_takes_nothing():
    module = blip("blip", queue=0)
    batch = pairs(module)
    assert len(step(module, [batch])) == len(CAPTIONS)
    assert len(module.contrast.queue.ids) == 0
    assert torch.stack([*terms(module, "blip", batch).values()]).isfinite().all()


def test_keys_join_at_the_end_of_a_step_those_of_all_parts_and_no_padding():
    module = blip("blip")
    told = []
    for number in range(4):
        parts = [pairs(module, seed=10 * number + part, masked=[part, 4]) for part in (1, 2)]
        before = in_order(module.contrast.queue)
        keys = step(module, parts, number, does_end=False)
        assert torch.equal(in_order(module.contrast.queue), before)
        with torch.no_grad():
            after_step(module)
        assert len(keys) == 2 * (len(CAPTIONS) - 2)
        told.append(keys)
        torch.testing.assert_close(
            in_order(module.contrast.queue), torch.cat(told)[-module.contrast.queue.size :], atol=0, rtol=0
        )


def test_a_skipped_step_leaves_the_queue_and_the_momentum_weights_alone():
    module = blip("blip")
    first = step(module, [pairs(module, seed=1)], 0)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    step(module, [pairs(module, seed=2)], 1, does_end=False)  # skipped: nothing is called after it
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    third = step(module, [pairs(module, seed=3)], 2)
    assert torch.equal(in_order(module.contrast.queue), torch.cat([first, third]))


def test_momentum_weights_follow_the_closed_form():
    momentum, num = 0.9, 5
    module = blip("blip", momentum=momentum)
    start = {name: tensor.clone() for name, tensor in module.contrast.momentum.named_parameters()}
    chance, leaders = torch.Generator().manual_seed(0), []
    for _ in range(num):
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=chance))
            after_step(module)
        leaders.append({name: tensor.detach().clone() for name, tensor in module.named_parameters()})
    seen = 0
    for name, found in module.contrast.momentum.named_parameters():
        part = next(part for part in FOLLOWED if name.startswith(part))
        leader = name.replace(part, FOLLOWED[part], 1)
        wanted = momentum**num * start[name].double()
        for number, weights in enumerate(leaders):
            wanted += (1 - momentum) * momentum ** (num - 1 - number) * weights[leader].double()
        torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-5)  # fp32, five steps
        seen += 1
    assert seen == len(start)
    assert not any(parameter.requires_grad for parameter in module.contrast.momentum.parameters())


def test_momentum_weights_begin_as_those_they_follow():
    module = training.models.blip_spec.build(blip("blip").settings)
    own = dict(module.named_parameters())
    for name, found in module.contrast.momentum.named_parameters():
        part = next(part for part in FOLLOWED if name.startswith(part))
        assert torch.equal(found, own[name.replace(part, FOLLOWED[part], 1)]), name


def test_followers_that_are_alike_say_what_they_follow_says():
    module = training.models.blip_spec.build(blip("blip").settings)
    outputs = module.eval()(pairs(module), ALONE)
    for kind in ("image", "text"):
        torch.testing.assert_close(outputs[f"{kind}_keys"][:6], outputs[f"{kind}_emb"], atol=1e-6, rtol=0)  # fp32
        assert torch.equal(outputs[f"{kind}_keys"][:6], outputs[f"{kind}_momentum"])
        assert not outputs[f"{kind}_keys"].requires_grad


@few
@given(temperature=st.floats(-5, 5))
def test_a_step_leaves_the_temperature_in_its_bounds(temperature):
    contrast = LAWFUL.contrast
    with torch.no_grad():
        contrast.temperature.fill_(temperature)
        after_step(LAWFUL)
    assert contrast.temperature.item() == pytest.approx(min(max(temperature, COLDEST), HOTTEST))


LAWFUL = blip("blip", queue=4)


@few
@given(data=st.data(), rows=st.integers(1, 6), columns=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_what_may_not_be_drawn_never_is(data, rows, columns, seed):
    chance = torch.Generator().manual_seed(seed)
    logits = data.draw(st.sampled_from([0.0, 1.0, 300.0])) * torch.randn(rows, columns, generator=chance)
    may = torch.rand(rows, columns, generator=chance) < data.draw(st.sampled_from([0.0, 0.2, 0.8]))
    edges = st.sampled_from([0.0, 0.5, 1 - 2**-53, 2**-60]) | st.floats(0, 1, exclude_max=True)
    uniform = torch.tensor(data.draw(st.lists(edges, min_size=rows, max_size=rows)), dtype=torch.float64)
    drawn, has_any = draw_negatives(logits, may, uniform, data.draw(st.sampled_from([0.0, 0.3, 0.99])))
    assert torch.equal(has_any, may.any(1))
    assert ((drawn >= 0) & (drawn < columns)).all()
    assert may[torch.arange(rows), drawn][has_any].all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_least_and_the_greatest_chance_draw_what_may_be_drawn(uniform):
    may = torch.tensor([[False, True, False, True, False]])
    drawn, _ = draw_negatives(torch.zeros(1, 5), may, torch.tensor([uniform], dtype=torch.float64))
    assert drawn.item() == (3 if uniform else 1)


@pytest.mark.parametrize(("sharpness", "easy"), [(0.0, 0.0), (2.0, 0.0), (20.0, 0.0), (20.0, 0.4)])
def test_wrong_ones_are_drawn_as_often_as_they_are_similar_and_easy_ones_evenly(sharpness, easy):
    num, chance = 20_000, torch.Generator().manual_seed(1)
    logits = sharpness * torch.randn(7, generator=chance)
    may = torch.tensor([True, True, False, True, True, False, True])
    even = (torch.arange(num, dtype=torch.float64) + 0.5) / num  # every share of chance once, so nothing is left to it
    drawn, _ = draw_negatives(logits.expand(num, 7), may.expand(num, 7), even, easy)
    shares = (logits.double().softmax(0) + FLOOR) * may
    wanted = (1 - easy) * shares / shares.sum() + easy * may / may.sum()
    found = drawn.bincount(minlength=7).double() / num
    torch.testing.assert_close(found, wanted, atol=1.5 / num, rtol=0)  # a step at either end


def test_wrong_texts_are_drawn_by_what_an_image_is_near_and_wrong_images_by_what_a_text_is_near():
    told = []

    def noted(logits, may, uniform, easy):
        told.append((logits, uniform))
        return draw_negatives(logits, may, uniform, easy)

    with pytest.MonkeyPatch.context() as patched, torch.no_grad():
        patched.setattr(training.models.blip, "draw_negatives", noted)
        outputs = LAWFUL(pairs(LAWFUL), ALONE)
    for (logits, _), queries, keys in zip(told, ("image_emb", "text_emb"), ("text_keys", "image_keys"), strict=True):
        wanted = outputs[queries] @ outputs[keys][:6].T / outputs["temperature"]
        torch.testing.assert_close(logits, wanted)
    assert not torch.equal(told[0][1], told[1][1])  # each row has two chances of its own


@few
@given(
    images=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    texts=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    masked=st.sets(st.integers(0, 5)),
    seed=st.integers(0, 99),
)
def test_no_pair_is_matched_wrongly_with_its_own_or_an_equal_image_or_text_or_with_padding(images, texts, masked, seed):
    uids = [bytes([one + 1]) * 16 for one in images]
    batch = pairs(LAWFUL, [CAPTIONS[one] for one in texts], masked=sorted(masked), uids=uids)
    told = []

    def noted(logits, may, uniform, easy):
        told.append(draw_negatives(logits, may, uniform, easy))
        return told[-1]

    with pytest.MonkeyPatch.context() as patched, torch.no_grad():
        patched.setattr(training.models.blip, "draw_negatives", noted)
        torch.manual_seed(seed)
        outputs = LAWFUL(batch, ALONE)

    def may_pair(row, other):
        return not {row, other} & masked and images[row] != images[other] and texts[row] != texts[other]

    may = [[may_pair(row, other) for other in range(6)] for row in range(6)]
    counts = [[row not in masked, any(may[row])] for row in range(6)]
    assert outputs["match_counts"].tolist() == [one for each in counts for one in each] + [any(each) for each in may]
    assert outputs["is_match"].tolist() == [True, False] * 6 + [False] * 6
    for drawn, _ in told:
        assert all(may[row][other] for row, other in enumerate(drawn.tolist()) if any(may[row]))


def plain_contrast(outputs, batch, queries, keys, followed):
    """One direction, in 64 bits, by the definitions; masked rows and empty places are simply not there."""
    rows, there = batch["valid"], outputs["is_key"]
    x, y, m = (outputs[name].detach().double() for name in (queries, keys, followed))
    x, m, y = x[rows], m[rows], y[there]
    right = outputs["is_positive"][rows][:, there].double()
    soft = (m @ y.T / outputs["temperature"].double()).softmax(1)
    alpha = outputs["alpha"].double()
    targets = alpha * soft + (1 - alpha) * right / right.sum(1, keepdim=True)
    return F.cross_entropy(x @ y.T / outputs["temperature"].double(), targets)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("num_past", [0, 1, 5])
def test_the_contrast_is_its_definition_with_masked_rows_and_pictures_and_texts_that_come_again(num_past, alpha):
    module = blip("blip", alpha=alpha)
    for number in range(num_past):
        step(module, [pairs(module, seed=number)], number)
    texts, uids = [*CAPTIONS[:5], CAPTIONS[0]], [bytes([number]) * 16 for number in (1, 2, 3, 2, 5, 6)]
    batch = pairs(module, texts, seed=9, masked=[2], uids=uids)
    outputs = module(batch, ALONE)
    right = torch.eye(6, dtype=torch.bool)
    right[[0, 5, 1, 3], [5, 0, 3, 1]] = True
    assert torch.equal(outputs["is_positive"][:, :6], right)
    # CAPTIONS came with each past step, in that order: the first of them in the queue is right for it, too.
    of_queue = (outputs["is_positive"] & outputs["is_key"])[0, 6:]
    assert of_queue.sum() == len([key for key in range(6 * num_past)[-16:] if key % 6 == 0])
    wanted = plain_contrast(outputs, batch, "image_emb", "text_keys", "image_momentum")
    wanted = (wanted + plain_contrast(outputs, batch, "text_emb", "image_keys", "text_momentum")) / 2
    found = terms(module, "blip", batch)["contrast"].double()
    torch.testing.assert_close(found, wanted.double(), atol=1e-5, rtol=1e-5)  # fp32, logits of up to 14


@pytest.mark.parametrize(("steps", "alphas"), [(0, [0.4] * 4), (2, [0, 0.2, 0.4, 0.4]), (4, [0, 0.1, 0.2, 0.3])])
def test_what_the_momentum_encoder_says_counts_more_with_each_step(steps, alphas):
    module = blip("blip", alpha_steps=steps)
    found = [float(module(pairs(module), Context(number, Ranks()))["alpha"]) for number in range(4)]
    assert found == pytest.approx(alphas)


def gradients(module, entry, batch, name=None):
    """Of all losses, or of one."""
    module.zero_grad()
    torch.manual_seed(3)
    found = terms(module, entry, batch)
    (found[name] if name else torch.stack([*found.values()]).sum()).backward()
    return {key: one.grad.clone() for key, one in module.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("past", [0, 2])
def test_masked_rows_change_no_loss_and_no_gradient(past):
    module = blip("blip")
    for number in range(past):
        step(module, [pairs(module, seed=20 + number)], number)
    texts = [CAPTIONS[0], CAPTIONS[5], *CAPTIONS[2:]]
    one = pairs(module, texts, masked=[1, 3])
    other = pairs(module, [texts[0], texts[1] + " and much more than all others say of it", *texts[2:]], masked=[1, 3])
    other["image"][[1, 3]] = 50.0
    other.uids[1] = other.uids[0]  # equal to a row that counts
    torch.testing.assert_close(gradients(module, "blip", other), gradients(module, "blip", one), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("masked", [range(6), range(1, 6)], ids=["none counts", "one counts"])
def test_a_batch_of_padding_or_of_one_pair_gives_no_nan(masked):
    module = blip("blip")
    batch = pairs(module, masked=[*masked])
    found = gradients(module, "blip", batch)
    assert all(gradient.isfinite().all() for gradient in found.values())
    losses = terms(module, "blip", batch)
    if len([*masked]) == 6:
        assert all(loss == 0 for loss in losses.values())
        assert all((gradient == 0).all() for gradient in found.values())


REACHED = {"contrast": ("vision.", "text.", "contrast."), "match": ("vision.", "text.", "matching."),
           "language": ("vision.", "text.", "head.")}  # fmt: skip


@pytest.mark.parametrize("name", REACHED)
def test_each_loss_reaches_its_parts_the_image_tower_always_and_no_follower(name):
    module = blip("blip")
    found = gradients(module, "blip", pairs(module), name)
    assert all(any(key.startswith(part) for part in REACHED[name]) for key in found)
    assert not any(key.startswith("contrast.momentum.") for key in found)
    reached = {key for key, gradient in found.items() if gradient.abs().max() > 0}
    assert {key for key, _ in module.named_parameters() if key.startswith("vision.")} <= reached
    role = "decoder" if name == "language" else "encoder"
    roles = {key.split(".")[4] for key in reached if ".attention." in key and key.startswith("text.")}
    assert roles == {role}
    assert any(".cross." in key for key in reached) == (name != "contrast")
    assert ("contrast.temperature" in reached) == (name == "contrast")


def test_two_threads_give_the_same_gradients_each_time():
    """Where a row is read twice, its gradient is a sum; threads that add as they come round it otherwise each time."""
    module = blip("blip", queue=0)
    batch = pairs(module, [f"{text} and {number} more" for number in range(16) for text in CAPTIONS])
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for _ in range(4):
            module.zero_grad()
            torch.manual_seed(0)
            sum(terms(module, "blip", batch).values()).backward()
            found.append([parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for each in found[1:] for one, other in zip(found[0], each, strict=True))
