"""Ours, transformers' and the released code's BLIP are one model by three sets of names."""

from __future__ import annotations

import re

import pytest
import torch

from infra.errors import UsageError
from infra.torchvision_here import make_importable
from tests.training.models.blips import ENTRIES, blip, published_config, settings_of
from training.convert.blip import from_published, layout_of, to_published, transformers_config
from training.models.blip_settings import VISION

LAYOUTS = ("transformers", "original")
TRAINING_ONLY = ("contrast.momentum.", "contrast.temperature")
TIED = {"text_decoder.cls.predictions.decoder.weight", "text_decoder.cls.predictions.decoder.bias"}
QKV = "text_encoder.encoder.layer.1.attention.self.key.weight"
SHARED = "text_encoder.encoder.layer.1.crossattention.self.value.bias"


def kept(entry, layout):
    """Our tensors that the layout has a place for."""
    left = ("contrast.queue.",) if layout == "original" else ("contrast.queue.", *TRAINING_ONLY)
    return {name: tensor for name, tensor in blip(entry).state_dict().items() if not name.startswith(left)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_round_trip_gives_every_bit_back(entry, layout):
    weights = blip(entry).state_dict()
    there = to_published(weights, layout)
    assert layout_of(there) == layout
    assert layout_of(weights) is None
    back, wanted = from_published(there, layout), kept(entry, layout)
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_round_trip_from_there_gives_every_bit_back(layout):
    there = to_published(blip("blip").state_dict(), layout)
    again = to_published(from_published(there, layout), layout)
    assert again.keys() == there.keys()
    assert all(torch.equal(again[name], there[name]) for name in there)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_a_file_of_safetensors_though_one_tensor_has_two_names(layout):
    from safetensors.torch import load, save

    there = to_published(blip("blip").state_dict(), layout)
    assert all(torch.equal(tensor, there[name]) for name, tensor in load(save(there)).items())


@pytest.mark.parametrize(
    ("entry", "kind"),
    [("blip.caption", "BlipForConditionalGeneration"), ("blip.retrieval", "BlipForImageTextRetrieval")],
)
def test_transformers_finds_all_that_it_looks_for_and_nothing_else(entry, kind):
    make_importable()
    import transformers

    module = blip(entry)
    theirs = getattr(transformers, kind)(transformers.BlipConfig(**published_config(module)))
    missing, unexpected = theirs.load_state_dict(to_published(module.state_dict(), "transformers"), strict=False)
    assert set(missing) <= TIED
    assert not unexpected
    theirs.tie_weights()
    back, wanted = from_published(theirs.state_dict(), "transformers"), kept(entry, "transformers")
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[name], wanted[name]) for name in wanted)


def test_the_released_codes_file_has_its_own_copies_and_leaves_out_what_begins_anew():
    weights = blip("blip").state_dict()
    there = to_published(weights, "original")
    table = weights["text.tokens.weight"]
    for stack in ("text_encoder", "text_decoder.bert"):
        assert torch.equal(there[f"{stack}.embeddings.word_embeddings.weight"], table)
    assert torch.equal(there["text_decoder.cls.predictions.decoder.weight"], table)
    assert {"temp", "visual_encoder_m.cls_token", "text_encoder_m.embeddings.LayerNorm.bias"} <= there.keys()
    assert not any("queue" in name for name in there)
    more = {
        "image_queue": torch.zeros(24, 8), "text_queue": torch.zeros(24, 8), "queue_ptr": torch.zeros(1),
        "text_encoder.embeddings.position_ids": torch.arange(40)[None],
        "text_encoder_m.encoder.layer.0.crossattention.self.query.weight": torch.zeros(32, 32),
    }  # fmt: skip
    assert from_published(there | more, "original").keys() == from_published(there, "original").keys()


@pytest.mark.parametrize("ours", ["attention.encoder.qkv.weight", "cross.key_value.weight"])
def test_what_is_three_matrices_there_stands_here_in_the_order_of_their_names(ours):
    weights = blip("blip").state_dict()
    there, name = to_published(weights, "transformers"), f"text.layers.2.{ours}"
    part, kinds = ("attention", ("query", "key", "value")) if "qkv" in ours else ("crossattention", ("key", "value"))
    joined = [there[f"text_encoder.encoder.layer.2.{part}.self.{kind}.weight"] for kind in kinds]
    assert torch.equal(torch.cat(joined), weights[name])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_missing_foreign_or_not_shared_is_told_by_name(layout):
    there = to_published(blip("blip").state_dict(), layout)
    less = {name: tensor for name, tensor in there.items() if name != QKV}
    with pytest.raises(UsageError, match=f"lacks {re.escape(QKV)}"):
        from_published(less, layout)
    with pytest.raises(UsageError, match=r"it has no text_encoder\.pooler\.dense\.bias"):
        from_published(there | {"text_encoder.pooler.dense.bias": torch.zeros(32)}, layout)
    with pytest.raises(UsageError, match=r"it has no text_encoder\.encoder\.layer\.7"):
        from_published(there | {"text_encoder.encoder.layer.7.oops.weight": torch.zeros(32)}, layout)
    other = SHARED.replace("text_encoder.", "text_decoder.bert.")
    key = other.replace("value", "key")
    with pytest.raises(UsageError, match=rf"{re.escape(key)}: its encoder and decoder differ"):
        from_published(there | {other: there[other] + 1}, layout)
    assert from_published(there | {QKV: there[QKV] + 1}, layout)  # self-attention may differ


def test_a_tensor_without_a_place_is_told_by_name():
    weights = blip("blip").state_dict()
    with pytest.raises(UsageError, match=r"no place for text\.extra; export to safetensors"):
        to_published(weights | {"text.extra": torch.zeros(1)}, "original")


def test_convolutions_before_the_layers_are_told_wherever_they_would_go():
    tiny = {**VISION["tiny"]}
    with pytest.raises(UsageError, match=r"vision\.channels"):
        transformers_config(settings_of("blip", vision=tiny, image_size=64), 8, {})
    with pytest.raises(UsageError, match=r"no place for vision\.stem\.0"):
        to_published(blip("blip", vision=tiny, image_size=64).state_dict(), "transformers")
