"""open_clip's CLIP and transformers' CLIPModel are one model by two sets of names."""

from __future__ import annotations

import pytest
import torch

from infra.errors import UsageError
from infra.torchvision_here import make_importable
from training.convert.clip import from_transformers, is_transformers, to_transformers, transformers_config
from training.models.clip import Clip, ClipSettings

VIT = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2},
}


def open_clip_weights(**changes):
    torch.manual_seed(0)
    return Clip(ClipSettings(arch=VIT | changes)).clip.state_dict()


def test_a_round_trip_gives_every_bit_back():
    weights = open_clip_weights()
    there = to_transformers(weights)
    back = from_transformers(there)
    assert is_transformers(there)
    assert not is_transformers(weights)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_clip_model_of_transformers_has_the_same_features(quick_gelu):
    make_importable()
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    ours = Clip(ClipSettings(arch=VIT | {"quick_gelu": quick_gelu})).eval()
    theirs = CLIPModel(CLIPConfig(**transformers_config(VIT | {"quick_gelu": quick_gelu}))).eval()
    theirs.load_state_dict(to_transformers(ours.clip.state_dict()), strict=True)
    images, tokens = torch.randn(3, 3, 16, 16), torch.randint(1, 99, (3, 8))
    tokens[:, 5] = 99  # ends a text; what follows is padding
    with torch.no_grad():
        found = theirs(input_ids=tokens, pixel_values=images)
        torch.testing.assert_close(found.image_embeds, ours.embed_images(images), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.text_embeds, ours.embed_texts(tokens), atol=1e-5, rtol=0)


def test_a_text_tower_of_its_own_has_the_same_names_there():
    assert to_transformers(open_clip_weights(custom_text=True)).keys() == to_transformers(open_clip_weights()).keys()


def test_a_buffer_of_older_transformers_is_passed_over():
    weights = to_transformers(open_clip_weights())
    older = weights | {"text_model.embeddings.position_ids": torch.arange(8)[None]}
    assert from_transformers(older).keys() == from_transformers(weights).keys()


def test_a_name_that_the_other_has_not_is_told():
    weights = open_clip_weights()
    with pytest.raises(UsageError, match="no place for logit_bias"):
        to_transformers(weights | {"logit_bias": torch.zeros(())})
    with pytest.raises(UsageError, match=r"it has no vision_model\.head"):
        from_transformers(to_transformers(weights) | {"vision_model.head": torch.zeros(1)})
    there = to_transformers(weights)
    del there["text_model.encoder.layers.1.self_attn.v_proj.bias"]
    with pytest.raises(UsageError, match=r"lacks text_model\.encoder\.layers\.1\.self_attn\.v_proj\.bias"):
        from_transformers(there)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("vision_cfg", {"layers": [1, 1, 1, 1]}, "no ResNet"),
        ("vision_cfg", {"timm_model_name": "vit_base_patch16_siglip_224"}, r"vision_cfg\.timm_model_name"),
        ("vision_cfg", {"pool_type": "avg"}, r"vision_cfg\.pool_type=avg"),
        ("text_cfg", {"no_causal_mask": True}, r"text_cfg\.no_causal_mask"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, r"text_cfg\.hf_model_name"),
    ],
)
def test_what_a_clip_model_cannot_say_is_refused_by_name(part, change, said):
    with pytest.raises(UsageError, match=said):
        transformers_config(VIT | {part: VIT[part] | change})


def test_usual_values_written_out_are_no_hindrance():
    spelt = {"vision_cfg": VIT["vision_cfg"] | {"pool_type": "tok", "no_ln_pre": False, "ls_init_value": None}}
    assert transformers_config(VIT | spelt) == transformers_config(VIT)
