"""Generation: transformers' tokens for greedy and beam search, its distributions for samples, chance by uid alone."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infra.errors import RecipeError
from infra.torchvision_here import make_importable
from training.generate import GenerationSettings, generate
from training.next_token import draw, penalised, probabilities, uniform_numbers

make_importable()
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel  # noqa: E402
from transformers.generation import logits_process as theirs  # noqa: E402

END, PAD, VOCABULARY = 3, 1, 13
METHODS = ("greedy", "beam", "sample")
SEEDS = st.integers(0, 2**32 - 1)
few = settings(max_examples=40, deadline=None)


class Recomputing:
    """A Decoding that reads all its tokens anew at each step, and holds the caller to the protocol."""

    def __init__(self, logits_of, num_inputs: int, width: int, length: int):
        self.logits_of, self.num_inputs, self.width, self.length = logits_of, num_inputs, width, length
        self.tokens = torch.empty((num_inputs * width, 0), dtype=torch.int64)
        self.reads: list[int] = []

    def read(self, tokens: Tensor) -> Tensor:
        assert len(tokens) == self.num_inputs * self.width
        self.tokens = torch.cat([self.tokens, tokens], 1)
        assert self.tokens.shape[1] < self.length
        self.reads.append(len(tokens))
        return self.logits_of(self.tokens)

    def reorder(self, rows: Tensor) -> None:
        assert torch.equal(rows // self.width, torch.arange(len(self.tokens)) // self.width)
        self.tokens = self.tokens[rows]

    def keep(self, inputs: Tensor) -> None:
        assert 0 < len(inputs) < self.num_inputs
        assert torch.equal(inputs, inputs.unique())
        self.tokens = self.tokens.unflatten(0, (self.num_inputs, self.width))[inputs].flatten(0, 1)
        self.num_inputs = len(inputs)


def gpt(seed: int, end_logit: float = 1.0) -> GPT2LMHeadModel:
    """Two layers of random weights, large enough that some next tokens are much likelier than others.

    end_logit: what the end token has beyond its share; at 1, some rows end early and some never do.
    """
    torch.manual_seed(seed)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "tie_word_embeddings": False}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=END, **sizes)).eval()
    model.lm_head = torch.nn.Linear(16, VOCABULARY)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6.0 if weight.dim() > 1 else 1.0)
        model.lm_head.weight.normal_(std=0.5)
        model.lm_head.bias[END] += end_logit
    return model


def logits_by(model: GPT2LMHeadModel):
    return lambda tokens: model(tokens).logits[:, -1]


def bigrams(seed: int, num_tokens: int = VOCABULARY):
    """A model that looks at the last token alone."""
    table = torch.randn((num_tokens, num_tokens), generator=torch.Generator().manual_seed(seed))
    return lambda tokens: table[tokens[:, -1]]


def prompts(num: int, length: int = 2, seed: int = 0) -> Tensor:
    tokens = torch.randint(4, VOCABULARY, (num, length), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = 4 + torch.arange(num) % (VOCABULARY - 4)
    return tokens


def names(num: int) -> list[bytes]:
    return [n.to_bytes(16, "big") for n in range(num)]


def texts(logits_of, prompt: Tensor, uids: list[bytes] | None = None, drop_at: float = 0.125, **chosen):
    """What is generated, and the sizes of the batches that the model read."""
    made = []

    def begin(width: int, length: int) -> Recomputing:
        made.append(Recomputing(logits_of, len(prompt), width, length))
        return made[-1]

    uids = uids or names(len(prompt))
    found = generate(begin, prompt, GenerationSettings(**chosen), end=END, pad=PAD, uids=uids, drop_at=drop_at)
    return found, made[0].reads


def assert_transformers_finds_the_same(seed: int, **chosen) -> Tensor:
    """Compares with the reference; returns the lengths."""
    model, prompt = gpt(seed), prompts(8, seed=seed)
    found, _ = texts(logits_by(model), prompt, **chosen)
    config = {name: value for name, value in chosen.items() if name != "method"}
    want = model.generate(
        prompt, attention_mask=torch.ones_like(prompt),
        generation_config=GenerationConfig(do_sample=False, eos_token_id=END, pad_token_id=PAD, use_cache=False,
                                           output_scores=True, return_dict_in_generate=True, **config),
    )  # fmt: skip
    width = want.sequences.shape[1]
    assert torch.equal(found.tokens[:, 0, :width], want.sequences)
    assert (found.tokens[:, 0, width:] == PAD).all()
    if chosen["method"] == "beam":
        torch.testing.assert_close(found.scores[:, 0], want.sequences_scores, atol=1e-5, rtol=1e-5)  # fp32, 12 sums
    return found.lengths


PENALTIES = ((1.0, 0), (1.0, 7), (1.1, 0), (1.5, 9))


def test_greedy_search_is_that_of_transformers():
    lengths = torch.cat([
        assert_transformers_finds_the_same(seed, method="greedy", max_length=14, repetition_penalty=r, min_length=m)
        for seed, (r, m) in product(range(5), PENALTIES)
    ])  # fmt: skip
    assert (lengths < 14).any()
    assert (lengths == 14).any()


@pytest.mark.parametrize("num_beams", [2, 3, 4])
def test_beam_search_is_that_of_transformers(num_beams):
    lengths = torch.cat([
        assert_transformers_finds_the_same(
            10 * num_beams + n, method="beam", num_beams=num_beams, length_penalty=length_penalty,
            repetition_penalty=r, min_length=m, max_length=14,
        ) for n, (length_penalty, (r, m)) in enumerate(product((0.5, 1.0, 2.0, -1.0), PENALTIES))
    ])  # fmt: skip
    assert (lengths < 14).any()
    assert (lengths == 14).any()


@pytest.mark.parametrize("end_logit", [-100.0, 100.0])
def test_beam_search_is_that_of_transformers_where_all_end_or_none(end_logit):
    model, prompt = gpt(0, end_logit), prompts(4)
    found, _ = texts(logits_by(model), prompt, method="beam", max_length=9, min_length=0)
    config = GenerationConfig(num_beams=3, max_length=9, eos_token_id=END, pad_token_id=PAD, use_cache=False)
    want = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    assert torch.equal(found.tokens[:, 0, : want.shape[1]], want)
    assert (found.lengths == (9 if end_logit < 0 else 3)).all()


def test_the_texts_of_a_beam_search_are_its_best_rows_in_order():
    model, prompt = gpt(8), prompts(6)
    found, _ = texts(logits_by(model), prompt, method="beam", num=3, max_length=12)
    config = GenerationConfig(num_beams=3, num_return_sequences=3, min_length=5, max_length=12, eos_token_id=END,
                              pad_token_id=PAD, use_cache=False)  # fmt: skip
    want = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    assert torch.equal(found.tokens.flatten(0, 1)[:, : want.shape[1]], want)
    assert (found.scores.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_an_input_gets_the_same_texts_in_any_batch_and_any_order(method):
    num = 1 if method == "greedy" else 2
    logits_of, prompt, uids = logits_by(gpt(8)), prompts(9), names(9)
    whole, _ = texts(logits_of, prompt, uids, method=method, num=num, max_length=16)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffled, _ = texts(logits_of, prompt[order], [uids[i] for i in order], method=method, num=num, max_length=16)
    assert torch.equal(shuffled.tokens, whole.tokens[order])
    for i in range(9):
        alone, _ = texts(logits_of, prompt[i : i + 1], uids[i : i + 1], method=method, num=num, max_length=16)
        assert torch.equal(alone.tokens[0], whole.tokens[i])
        torch.testing.assert_close(alone.scores[0], whole.scores[i], atol=1e-5, rtol=1e-5)  # fp32, batches of two sizes


@pytest.mark.parametrize("method", METHODS)
def test_dropping_what_is_done_changes_the_work_alone(method):
    chosen = {"method": method, "max_length": 16, "min_length": 0}
    at_once, fewer = texts(logits_by(gpt(8)), prompts(9), drop_at=1e-9, **chosen)
    never, all_of_them = texts(logits_by(gpt(8)), prompts(9), drop_at=2.0, **chosen)
    assert torch.equal(at_once.tokens, never.tokens)
    assert torch.equal(at_once.lengths, never.lengths)
    torch.testing.assert_close(at_once.scores, never.scores, atol=1e-5, rtol=1e-5)  # fp32, batches of two sizes
    assert set(all_of_them) == {all_of_them[0]}
    assert sum(fewer) < sum(all_of_them)
    assert len(fewer) == len(all_of_them)


@pytest.mark.parametrize("method", ["greedy", "sample"])
def test_a_row_is_read_until_it_ends_and_no_longer(method):
    found, reads = texts(bigrams(2), prompts(30), drop_at=1e-9, method=method, max_length=30, min_length=0)
    assert reads == [int((found.lengths > length).sum()) for length in range(2, int(found.lengths.max()))]


def test_the_nth_sample_of_a_uid_is_the_same_however_many_are_drawn():
    one, _ = texts(bigrams(0), prompts(4), method="sample", num=1)
    five, _ = texts(bigrams(0), prompts(4), method="sample", num=5)
    assert torch.equal(one.tokens[:, 0], five.tokens[:, 0])
    assert len(set(map(tuple, five.tokens[0].tolist()))) > 1


def test_samples_hang_on_uid_and_seed():
    prompt = prompts(1).expand(20, -1)
    found, _ = texts(bigrams(0), prompt, method="sample", top_p=None)
    other, _ = texts(bigrams(0), prompt, method="sample", top_p=None, seed=1)
    same, _ = texts(bigrams(0), prompt, names(1) * 20, method="sample", top_p=None)
    assert len(set(map(tuple, found.tokens[:, 0].tolist()))) > 10
    assert not torch.equal(found.tokens, other.tokens)
    assert (same.tokens == same.tokens[0]).all()


PINNED = [[0.6502641838524754, 0.8312936851537084], [0.6485539941805508, 0.19899010415863227]]


def test_the_numbers_of_a_uid_stay_what_they_are():
    # Captions of published datasets hang on them.
    numbers = uniform_numbers([bytes(16), b"uid"], 2, 3, seed=7)
    assert torch.equal(uniform_numbers([b"uid"], 1, 9, seed=7)[0, 0, :3], numbers[1, 0])
    torch.testing.assert_close(numbers[:, :, 2], torch.tensor(PINNED, dtype=torch.float64), atol=0, rtol=0)


def test_two_samples_on_end_are_as_frequent_as_the_model_says():
    num, tokens = 5000, 5
    logits_of = bigrams(0, tokens)
    found, _ = texts(logits_of, torch.full((num, 1), 4), method="sample", top_p=None, min_length=3, max_length=3)
    first = penalised(logits_of(torch.tensor([[4]])), torch.tensor([[4]]), 1.0, END).softmax(-1)
    second = penalised(logits_of(torch.arange(tokens)[:, None]), torch.tensor([[4]]), 1.0, END).softmax(-1)
    want = (first.T * second).flatten()
    pairs = found.tokens[:, 0, 1] * tokens + found.tokens[:, 0, 2]
    distance = 0.5 * (pairs.bincount(minlength=tokens**2) / num - want).abs().sum()
    # Its mean is at most √(25 / n) / 2; beyond that by √(ln 10⁶ / 2n) once in 10⁶ seeds (McDiarmid).
    assert distance < 0.5 * math.sqrt(tokens**2 / num) + math.sqrt(math.log(1e6) / (2 * num))


@few
@given(SEEDS, st.sampled_from([0.0, 2.0**-53, 0.5, 1 - 2.0**-53]) | st.floats(0, 1, exclude_max=True))
def test_a_draw_inverts_the_cumulated_probabilities(seed, uniform):
    chance = torch.Generator().manual_seed(seed)
    logits = torch.randint(-3, 3, (6, 40), generator=chance).float() * 20  # ties, and shares below fp32's rounding
    logits[:, 1:][torch.rand((6, 39), generator=chance) < 0.7] = float("-inf")
    logits = logits[:, torch.randperm(40, generator=chance)]
    shares = logits.softmax(-1)
    token = draw(shares, torch.full((6,), uniform, dtype=torch.float64))[:, None]
    held = shares.double().cumsum(-1)
    assert (shares.gather(1, token) > 0).all()
    assert (held.gather(1, token) > uniform * held[:, -1:]).all()
    assert ((held - shares.double()).gather(1, token) <= uniform * held[:, -1:] + 1e-15).all()  # fp64, one subtraction


def test_a_scan_that_rounds_up_at_an_impossible_token_does_not_draw_it(monkeypatch):
    # The parallel scan of a GPU adds in another order at each place; here it is made to do so.
    monkeypatch.setattr(Tensor, "cumsum", lambda *_: torch.tensor([[0.5, 0.5 + 2.0**-52, 1.0]], dtype=torch.float64))
    assert draw(torch.tensor([[0.5, 0.0, 0.5]]), torch.tensor([0.5])) == 2


@few
@given(
    SEEDS, st.floats(0.2, 3), st.none() | st.integers(1, 40), st.none() | st.floats(0.05, 1), st.floats(0.5, 2),
    st.booleans(),
)  # fmt: skip
def test_probabilities_are_those_of_transformers(seed, temperature, top_k, top_p, repetition_penalty, is_short):
    chance = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn((5, 30), generator=chance)
    tokens = torch.randint(0, 30, (5, 8), generator=chance)
    got = probabilities(
        penalised(logits, tokens, repetition_penalty, END if is_short else None), temperature, top_k, top_p
    )
    steps = [theirs.RepetitionPenaltyLogitsProcessor(repetition_penalty)]
    steps += [theirs.MinLengthLogitsProcessor(9 if is_short else 8, END)]
    steps += [theirs.TemperatureLogitsWarper(temperature)]
    steps += [theirs.TopKLogitsWarper(top_k)] if top_k else []
    steps += [theirs.TopPLogitsWarper(top_p)] if top_p else []
    want = theirs.LogitsProcessorList(steps)(tokens, logits).softmax(-1)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)  # fp32


@pytest.mark.parametrize(
    ("top_k", "top_p", "num_kept"),
    [
        (None, 0.7999, 2),
        (None, 0.8001, 3),
        (3, 0.8420, 2),
        (3, 0.8422, 3),
        (2, None, 2),
        (2, 0.99, 2),
        (3, 0.1, 1),
        (None, 1e-9, 1),
    ],
)
def test_a_cut_keeps_the_fewest_tokens_that_hold_the_share(top_k, top_p, num_kept):
    shares = torch.tensor([[0.05, 0.5, 0.15, 0.3]])  # of the best three, the best two hold 0.8421
    got = probabilities(shares.log(), 1.0, top_k, top_p)
    want = torch.where(shares >= shares.sort(descending=True).values[:, num_kept - 1], shares, 0)
    torch.testing.assert_close(got, want / want.sum(), atol=1e-6, rtol=0)  # fp32


@few
@given(SEEDS, st.none() | st.integers(1, 30), st.none() | st.floats(0.05, 1))
def test_tokens_of_equal_logits_stay_or_go_together(seed, top_k, top_p):
    logits = torch.randint(-3, 3, (1, 30), generator=torch.Generator().manual_seed(seed)).float()
    shares = probabilities(logits, 1.0, top_k, top_p)[0]
    for logit in logits.unique():
        assert len(shares[logits[0] == logit].unique()) == 1
    assert shares[logits[0].argmax()] > 0


@few
@given(SEEDS, st.sampled_from(METHODS), st.integers(1, 3), st.integers(0, 12), st.integers(3, 12))
def test_a_row_is_prompt_text_end_and_padding(seed, method, num, min_length, max_length):
    prompt, min_length = prompts(3, seed=seed), min(min_length, max_length)
    found, _ = texts(bigrams(seed), prompt, method=method, num=1 if method == "greedy" else num,
                     min_length=min_length, max_length=max_length)  # fmt: skip
    assert found.tokens.shape == (*found.lengths.shape, max_length)
    for i, j in product(*map(range, found.lengths.shape)):
        row, length = found.tokens[i, j], int(found.lengths[i, j])
        assert torch.equal(row[:2], prompt[i])
        assert END not in row[: length - 1]
        assert (row[length:] == PAD).all()
        assert length == max_length or row[length - 1] == END
        if row[length - 1] == END:
            assert length - 1 >= min_length


@pytest.mark.parametrize("method", ["greedy", "sample"])
def test_a_score_is_what_the_model_gives_to_the_text(method):
    logits_of = bigrams(3)
    found, _ = texts(logits_of, prompts(5), method=method, repetition_penalty=1.3, temperature=0.7)
    for row, length, score in zip(found.tokens[:, 0], found.lengths[:, 0], found.scores[:, 0], strict=True):
        nats = [logits_of(row[None, :n]).log_softmax(-1)[0, row[n]] for n in range(2, int(length))]
        torch.testing.assert_close(score, torch.stack(nats).sum(), atol=1e-5, rtol=1e-6)  # fp32, 18 sums


@pytest.mark.parametrize("method", METHODS)
def test_no_input_gives_no_text(method):
    def begin(width: int, length: int):
        raise AssertionError("there is nothing to decode")

    found = generate(begin, prompts(0), GenerationSettings(method=method), end=END, pad=PAD, uids=[])
    assert found.tokens.shape == (0, 1, 20)
    assert found.lengths.shape == found.scores.shape == (0, 1)


@pytest.mark.parametrize(
    ("chosen", "mend"),
    [
        ({"min_length": 21}, "lower min_length"),
        ({"method": "beam", "num": 4}, "set num_beams: 4 or more"),
        ({"method": "beam", "num_beams": 1}, "set method: greedy"),
        ({"method": "greedy", "num": 2}, "set method: beam or sample"),
        ({"temperature": 0}, "greater than 0"),
        ({"top_p": 1.5}, "less than or equal to 1"),
    ],
)
def test_impossible_settings_say_the_mend(chosen, mend):
    with pytest.raises(RecipeError, match=mend):
        GenerationSettings.parse(chosen, "recipe.yaml")


def test_a_prompt_without_room_says_the_mend():
    with pytest.raises(RecipeError, match="max_length=20 leaves nothing after a prompt of 20 tokens; raise it"):
        texts(bigrams(0), prompts(2, length=20))
