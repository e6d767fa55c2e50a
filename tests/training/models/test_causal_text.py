"""A causal text tower cut behind its texts says what it says over the whole context, and does less."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from training.flops import forward_flops, shadow
from training.models.causal_text import causal_tower
from training.models.clip import Clip, ClipSettings
from training.spec import Batch

CONTEXT, VOCAB, END = 29, 100, 99  # a context that no step of lengths divides
TEXT = {"context_length": CONTEXT, "vocab_size": VOCAB, "width": 32, "heads": 2, "layers": 2}
ARCH = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32},
    "text_cfg": TEXT,
}
EOS = {"pool_type": "eos", "eos_id": 7}
ARCHS = {
    "CLIP": ARCH,
    "own text tower": {**ARCH, "custom_text": True},
    "read at the end token": {**ARCH, "text_cfg": TEXT | EOS},
    "own, read at the end token": {**ARCH, "custom_text": True, "text_cfg": TEXT | EOS},
    "no projection": {**ARCH, "embed_dim": 32, "custom_text": True, "text_cfg": TEXT | {"proj_type": "none"}},
    "projection with bias": {**ARCH, "custom_text": True, "text_cfg": TEXT | {"proj_bias": True}},
}
WHOLE = {
    "not causal": {**ARCH, "custom_text": True, "text_cfg": TEXT | {"no_causal_mask": True}},
    "read at the last position": {**ARCH, "text_cfg": TEXT | {"pool_type": "last"}},
    "read at the first position": {**ARCH, "text_cfg": TEXT | {"pool_type": "first"}},
    "a class token": {**ARCH, "custom_text": True, "text_cfg": TEXT | {"embed_cls": True}},
}
lengths = st.lists(st.integers(0, CONTEXT), min_size=1, max_size=12)


def made(arch, num_groups=4) -> Clip:
    torch.manual_seed(0)
    return Clip(ClipSettings(arch=arch, text_groups=num_groups))


def texts(lengths, end=END, filler=0):
    """A row for each length: words, an end token, and filler behind it; of length 0, filler alone."""
    chance = torch.Generator().manual_seed(1)
    tokens = torch.randint(8, VOCAB - 1, (len(lengths), CONTEXT), generator=chance)
    for row, length in zip(tokens, lengths, strict=True):
        row[max(length - 1, 0) :] = filler
        if length:
            row[length - 1] = end
    return tokens


def gradients(module, features):
    """Of every weight, after a loss in which each feature has another say."""
    says = torch.arange(features.numel(), dtype=torch.float32).view_as(features).cos()
    module.zero_grad()
    (features * says).sum().backward()
    return {name: each.grad for name, each in module.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("num_groups", [1, 2, 5])
@pytest.mark.parametrize("name", ARCHS)
def test_features_and_gradients_are_those_of_the_whole_context(name, num_groups):
    module, arch = made(ARCHS[name], num_groups), ARCHS[name]
    tokens = texts([3, 29, 1, 8, 9, 0, 17, 2, 5], end=arch["text_cfg"].get("eos_id", END))
    assert causal_tower(module.clip) is not None
    cut, whole = module.embed_texts(tokens), F.normalize(module.clip.encode_text(tokens), dim=-1)
    torch.testing.assert_close(cut, whole, atol=1e-6, rtol=1e-6)
    ours, theirs = gradients(module, cut), gradients(module, whole)
    assert ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        assert (ours[key] - gradient).norm() <= 5e-6 * gradient.norm(), key  # 1e-6 at most, measured


@settings(max_examples=30, deadline=None)
@given(lengths, st.integers(1, 14), st.sampled_from([0, 3]))
def test_any_lengths_in_any_groups(lengths, num_groups, filler):
    module = made(ARCH, num_groups)
    tokens = texts(lengths, filler=filler)
    with torch.no_grad():
        whole = F.normalize(module.clip.encode_text(tokens), dim=-1)
        torch.testing.assert_close(module.embed_texts(tokens), whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", WHOLE)
def test_where_padding_has_a_say_nothing_is_cut(name):
    assert causal_tower(made(WHOLE[name]).clip) is None


@given(lengths)
@settings(max_examples=20, deadline=None)
def test_how_often_the_tower_is_passed_depends_on_the_number_of_texts_alone(lengths):
    assert num_passes(texts(lengths)) == num_passes(texts([5] * len(lengths))) <= 4


def num_passes(tokens):
    module, passes = made(ARCH), []
    module.clip.transformer.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        module.embed_texts(tokens)
    return len(passes)


def test_arithmetic_is_counted_as_it_is_done():
    """Of long texts more than of short ones, of the whole context as much as open_clip's own pass; nothing is run."""
    module = made(ARCH)
    image, valid = torch.randn(8, 3, 32, 32), torch.ones(8, dtype=torch.bool)

    def counted(lengths):
        return forward_flops(shadow(module), Batch([b""] * 8, {"image": image, "text": texts(lengths), "valid": valid}))

    short, mixed, full = counted([4] * 8), counted([4] * 6 + [CONTEXT] * 2), counted([CONTEXT] * 8)
    assert short < mixed < full
    image_alone = counted([1] * 8) - text_flops(8)
    assert full == pytest.approx(image_alone + text_flops(CONTEXT))
    assert mixed == pytest.approx(image_alone + (6 * text_flops(8) + 2 * text_flops(CONTEXT)) / 8)
    assert all(each.device.type == "cpu" for each in module.parameters())


def text_flops(length: int) -> float:
    """Of one text of `length` positions through two layers of width 32, by hand; and of its projection."""
    linear = 2 * length * 12 * 32 * 32
    attention = 2 * 2 * length * length * 32
    return 2 * (linear + attention) + 2 * 32 * 16
