"""DALL-E: the paper's pattern of masks, its loss by hand, the same logits token by token, prompts that are refused."""

from __future__ import annotations

import re
import resource
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from infra.errors import RecipeError, UsageError
from tests.training.runs import ROOT
from tests.training.untrained import checkpoint_of
from training.models.dalle import Dalle
from training.models.dalle_captions import DalleTokenizer
from training.models.dalle_settings import DalleSettings
from training.models.dalle_spec import SPEC
from training.plan import plan_text
from training.ranks import Ranks
from training.recipe import TrainRecipe
from training.spec import Batch, Context

TINY = DalleSettings.parse({**SPEC.tiny, "grid": 4, "kernel": 3}, "tiny")
TEXTS = ["a red boat", "Two blue hats on the left, a tree on the right", "早い"]


def dalle(**more):
    torch.manual_seed(0)
    return Dalle(TINY.model_copy(update=more)).double()


def batch_of(module, valid=(True, True, True)):
    codes = torch.randint(64, (3, 16), generator=torch.Generator().manual_seed(1))
    tensors = {"text": module.tokenizer(TEXTS), "codes": codes, "valid": torch.tensor(valid)}
    return Batch([b"a", b"b", b"c"], tensors)


def test_the_papers_64_layers_are_47_rows_16_columns_and_a_convolution():
    masks = DalleSettings(vocab="tiny").masks()
    assert Counter(mask.kind for mask in masks) == {"row": 47, "column": 16, "convolution": 1}
    assert [at for at, mask in enumerate(masks, 1) if mask.kind == "column"] == [*range(2, 64, 4)]
    assert masks[-1].kind == "convolution"
    assert masks[-1].kernel == 11
    assert {mask.length for mask in masks} == {1 + 256 + 1024}


def test_the_papers_largest_has_twelve_billion_weights():
    with torch.device("meta"):
        module = Dalle(DalleSettings(vocab="tiny"))
    assert sum(one.numel() for one in module.stack.parameters()) == pytest.approx(12e9, rel=0.02)


@pytest.mark.slow
def test_a_dry_run_of_the_papers_largest_needs_no_room_for_its_weights():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = plan_text(TrainRecipe.load(ROOT / "training/recipes/dalle_12b.yaml"))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20 < 4  # GiB, of 45 that they have
    num = int(re.search(r"([\d,]+) parameters", told[0]).group(1).replace(",", ""))
    (stage_3,) = [line for line in told if line.startswith("  ZeRO 3")]
    # Weights twice, gradients, two moments, the average.
    assert f"{6 * 4 * num / 8 / 2**30:.2f} GiB of 8 ranks" in stage_3


def logits_of(module, batch):
    """By hand: the whole stream, each position's next token."""
    states = module.stack(torch.cat([module.embed_text(batch["text"]), module.embed_codes(batch["codes"])], 1))
    return module.text_head(states[:, : TINY.text_length]), module.code_head(states[:, TINY.text_length : -1])


def test_the_losses_are_means_over_the_tokens_of_valid_pairs():
    module = dalle()
    for valid in ((True, True, True), (True, False, True)):
        batch = batch_of(module, valid)
        outputs, kept = module(batch, Context(0, Ranks())), torch.tensor(valid)
        for found, logits, targets in zip(
            (outputs["text"], outputs["image"]), logits_of(module, batch), (batch["text"], batch["codes"]), strict=True
        ):
            wanted = F.cross_entropy(logits[kept].flatten(0, 1), targets[kept].flatten())
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    weights = {name: term.weight(0) for name, term in SPEC.losses(TINY).items()}
    assert weights == {"text": 1 / 8, "image": 7 / 8}


@torch.no_grad()
def test_token_by_token_it_gives_the_logits_of_the_whole_stream():
    module = dalle()
    batch = batch_of(module)
    _, wanted = logits_of(module, batch)
    logits, caches = module.begin(batch["text"], 1)
    for place in range(16):
        torch.testing.assert_close(logits, wanted[:, place], atol=1e-10, rtol=0)
        logits = module.read(batch["codes"][:, place], torch.tensor([place]), caches)


def test_a_text_is_its_words_and_then_a_pad_of_each_place():
    tokenizer = DalleTokenizer(TINY)
    rows = tokenizer(TEXTS)
    for row, text in zip(rows, TEXTS, strict=True):
        num = int((row < len(tokenizer.words)).sum())
        assert row[num:].tolist() == [len(tokenizer.words) + at for at in range(num, TINY.text_length)]
        assert tokenizer.text(row.tolist()) == text.lower()
    assert len(tokenizer) == len(tokenizer.words) + TINY.text_length


def test_a_share_of_texts_is_left_empty_by_a_draw_of_its_own():
    plain, some = (DalleTokenizer(TINY.model_copy(update={"no_text": share})) for share in (0.0, 0.3))
    texts = ["a red boat"] * 1000
    found = some.drawn(texts, np.random.default_rng)
    is_empty = (found == plain([""])).all(1)
    assert 0.25 < is_empty.float().mean() < 0.35
    assert torch.equal(found, some.drawn(texts, np.random.default_rng))
    assert not (plain.drawn(texts, np.random.default_rng) == plain([""])).all(1).any()
    assert torch.equal(some(texts[:1]), plain(texts[:1]))  # who asks is heard


def test_prompts_that_cannot_be_drawn_are_refused_with_a_word():
    tokenizer = DalleTokenizer(TINY)
    assert torch.equal(tokenizer.asked("a red boat"), tokenizer(["a red boat"])[0])
    with pytest.raises(UsageError, match="an empty prompt"):
        tokenizer.asked("  ")
    with pytest.raises(UsageError, match="of which the model reads 24: say it shorter"):
        tokenizer.asked("a red boat under a tree " * 20)


def test_weights_that_learnt_other_words_are_refused(tmp_path):
    """As many words, so every shape fits; only they mean something else."""
    merges = list(TINY.vocab)
    other = DalleSettings.parse({**SPEC.tiny, "vocab": [*merges[:-2], merges[-1], merges[-2]]}, "other")
    place = checkpoint_of(Dalle(other), tmp_path, "dalle")
    assert SPEC.build(other.model_copy(update={"pretrained": place}))
    with pytest.raises(UsageError, match="learnt with other words"):
        SPEC.build(DalleSettings.parse({**SPEC.tiny, "pretrained": place}, "tiny"))


@pytest.mark.parametrize("wrong", [{"kernel": 4}, {"stack": "13b"}, {"vocab": "none.bpe"}, {"stack": {
    "width": 10, "layers": 2, "heads": 3}}])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(wrong):
    with pytest.raises(RecipeError):
        DalleSettings.parse({**SPEC.tiny, **wrong}, "tiny")
