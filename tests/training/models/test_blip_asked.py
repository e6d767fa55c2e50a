"""A BLIP that is asked: no answer hangs on what else is asked with it, and its identity tells what it hangs on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.models.blips import CAPTIONS, blip, pictures
from training.generate import GenerationSettings
from training.models.blip_encoder import BlipEncoder
from training.models.captioner import Captioner

NUM = 7
IMAGES = pictures(NUM)
UIDS = [bytes([number]) * 16 for number in range(NUM)]
SAMPLES = GenerationSettings(method="sample", num=3, max_length=12, top_p=0.9, seed=5)
METHODS = {
    "greedy": GenerationSettings(method="greedy", max_length=12),
    "beam": GenerationSettings(method="beam", num_beams=3, num=2, max_length=12, repetition_penalty=1.1),
    "sample": SAMPLES,
}
ROUNDING = 1e-6  # fp32: rows of other batches, in other kernels
few = settings(max_examples=25, deadline=None)


def writer(prompt="a picture of ", seed=1):
    """One whose captions end at various lengths."""
    module = blip("blip.caption", seed=seed, scale=1.5, prompt=prompt)
    with torch.no_grad():
        module.head.bias[module.tokenizer.end] += 3.0
    return Captioner(module, "cpu", "float32", "ops")


WRITER, MATCHER = writer(), BlipEncoder(blip("blip.retrieval"), "cpu", "float32", "ops")
ALL = {name: WRITER.write(IMAGES, UIDS, how) for name, how in METHODS.items()}


def words(written):
    return [(one.text, one.num_tokens) for one in written]


@pytest.mark.parametrize("method", METHODS)
def test_captions_are_of_various_lengths_and_say_various_things(method):
    told = [one for each in ALL[method] for one in each]
    assert len({one.text for one in told}) > 1
    assert len({one.num_tokens for one in told}) > 1
    assert all(0 < one.num_tokens <= 12 - 4 and one.score < 0 for one in told)
    assert not any(one.text.startswith("a picture of") for one in told)


@few
@given(order=st.permutations(range(NUM)), cuts=st.lists(st.integers(1, NUM), min_size=NUM), data=st.data())
@pytest.mark.parametrize("method", METHODS)
def test_captions_hang_on_neither_batch_nor_order(method, order, cuts, data):
    order = order[: data.draw(st.integers(1, NUM))]
    start = 0
    for size in cuts:
        if not (batch := order[start : start + size]):
            break
        start += size
        found = WRITER.write(IMAGES[batch], [UIDS[one] for one in batch], METHODS[method])
        for one, written in zip(batch, found, strict=True):
            assert words(written) == words(ALL[method][one])
            scores = torch.tensor([[each.score for each in some] for some in (written, ALL[method][one])])
            torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=1e-5)  # fp32, sums of tokens' nats


def test_the_nth_sample_hangs_on_neither_how_many_nor_how_long_but_on_uid_and_seed():
    for num in (1, 2, 5):
        told = WRITER.write(IMAGES, UIDS, SAMPLES.model_copy(update={"num": num}))
        shared = min(num, SAMPLES.num)
        assert [words(each[:shared]) for each in told] == [words(each[:shared]) for each in ALL["sample"]]
    assert len({one.text for each in ALL["sample"] for one in each}) > NUM
    assert WRITER.write(IMAGES, UIDS[::-1], SAMPLES) != ALL["sample"]
    assert WRITER.write(IMAGES, UIDS, SAMPLES.model_copy(update={"seed": 6})) != ALL["sample"]


def test_nothing_asked_is_nothing_told():
    assert WRITER.write(IMAGES[:0], [], SAMPLES) == []
    nothing = torch.zeros(0, dtype=torch.int64)
    assert len(MATCHER.match(MATCHER.look(IMAGES), nothing, MATCHER.tokens([]), 4)) == 0


@few
@given(asked=st.lists(st.tuples(st.integers(0, NUM - 1), st.sampled_from(CAPTIONS)), min_size=1, max_size=12),
       batch=st.integers(1, 13))  # fmt: skip
def test_a_match_is_that_of_the_pair_alone(asked, batch):
    which, texts = torch.tensor([image for image, _ in asked]), [text for _, text in asked]
    found = MATCHER.match(MATCHER.look(IMAGES), which, MATCHER.tokens(texts), batch)
    for (image, text), one in zip(asked, found, strict=True):
        alone = MATCHER.match(MATCHER.look(IMAGES[[image]]), torch.tensor([0]), MATCHER.tokens([text]), 1)
        assert abs(alone[0].sigmoid() - one.sigmoid()) <= ROUNDING
    assert found.dtype == torch.float32


def test_images_are_looked_at_once_however_many_texts_ask():
    seen, looked = MATCHER.look(IMAGES), []
    hook = MATCHER._module.vision.register_forward_hook(lambda *told: looked.append(told))
    try:
        which = torch.arange(NUM).repeat_interleave(len(CAPTIONS))
        found = MATCHER.match(seen, which, MATCHER.tokens(CAPTIONS * NUM), 10).view(NUM, -1)
    finally:
        hook.remove()
    assert not looked
    assert found.std(0).min() > 0
    assert found.std(1).min() > 0


def test_embeddings_are_of_unit_length_float32_and_of_their_row_alone():
    for found, alone in (
        (MATCHER.images(IMAGES), torch.cat([MATCHER.images(image[None]) for image in IMAGES])),
        (MATCHER.texts(CAPTIONS), torch.cat([MATCHER.texts([text]) for text in CAPTIONS])),
    ):
        assert found.dtype == torch.float32
        assert not found.requires_grad
        assert found.shape[1] == MATCHER.dim == 24
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)), atol=ROUNDING, rtol=0)
        torch.testing.assert_close(found, alone, atol=ROUNDING, rtol=0)
    assert MATCHER.scale == pytest.approx(1 / 0.07)


def test_a_text_is_cut_to_the_context_and_to_so_many_words_and_some_signs_are_nothing():
    long = "a red star " * 30
    assert torch.equal(MATCHER.texts([long]), MATCHER.texts([long + "and a blue moon"]))
    tokens = MATCHER.tokens([long, "a red star"])
    assert tokens.shape == (2, 16)
    assert tokens[0, -1] == MATCHER._tokenizer.end
    assert torch.equal(MATCHER.tokens(['A  RED "star"! (#1)']), MATCHER.tokens(["a red star 1"]))
    few_words = BlipEncoder(blip("blip.retrieval", max_words=2), "cpu", "float32", "ops")
    assert torch.equal(few_words.tokens([long]), few_words.tokens(["a red"]))
    assert MATCHER.texts(["", "..."]).isfinite().all()


def test_a_prompt_is_given_and_never_told():
    without = writer(prompt="")
    assert without.identity()["prompt"] == ""
    assert words(without.write(IMAGES, UIDS, METHODS["greedy"])[0]) != words(ALL["greedy"][0])


def test_the_identity_changes_with_weights_sizes_prompt_and_image_operations_alone():
    identity = WRITER.identity()
    assert writer().identity() == identity
    assert writer(prompt="").identity() == {**identity, "prompt": ""}
    assert writer(seed=2).identity()["weights"] != identity["weights"]
    module, other = blip("blip.retrieval"), blip("blip.retrieval")
    told = BlipEncoder(module, "cpu", "float32", "ops").identity()
    other.contrast.queue.push(torch.ones(1, 24), torch.ones(1, 24), torch.ones(1, 2, dtype=torch.int64))
    with torch.no_grad():
        other.contrast.momentum["text"].bias.add_(1)
    assert BlipEncoder(other, "cpu", "bfloat16", "ops").identity() == told  # what only training needs, and the dtype
    assert BlipEncoder(blip("blip.retrieval"), "cpu", "float32", "other").identity() == {**told, "ops": "other"}
    with torch.no_grad():
        changed = blip("blip.retrieval")
        changed.matching.bias.add_(1e-3)
    assert BlipEncoder(changed, "cpu", "float32", "ops").identity()["weights"] != told["weights"]


def test_half_precision_gives_nearly_the_same():
    half = BlipEncoder(blip("blip.retrieval"), "cpu", "bfloat16", "ops")
    assert half.images(IMAGES).dtype == half.texts(CAPTIONS).dtype == torch.float32
    torch.testing.assert_close(half.texts(CAPTIONS), MATCHER.texts(CAPTIONS), atol=0.03, rtol=0)  # bf16 has 8 bits
    which = torch.arange(6)
    found, wanted = (one.match(one.look(IMAGES), which, one.tokens(CAPTIONS), 6) for one in (half, MATCHER))
    torch.testing.assert_close(found.sigmoid(), wanted.sigmoid(), atol=0.03, rtol=0)
