"""An encoder gives what its model gives, from text and pixels, and says which weights it has."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from infra.errors import UsageError
from infra.torchvision_here import make_importable
from training.models.clip import Clip, ClipSettings
from training.models.encoder import digest_of
from training.models.load import load_encoder
from training.preprocess import Ops

make_importable()

ARCH = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 64, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TEXTS = ["a cat", "a dog in the rain"]


@pytest.fixture
def published(tmp_path):
    """The files of a small model: its architecture and its weights; and the model."""
    torch.manual_seed(0)
    module = Clip(ClipSettings(arch=ARCH)).eval()
    (tmp_path / "arch.json").write_text(json.dumps(ARCH))
    save_file(module.clip.state_dict(), tmp_path / "weights.safetensors")
    return str(tmp_path / "arch.json"), str(tmp_path / "weights.safetensors"), module


def test_features_are_the_models_of_unit_length_and_without_gradient(published):
    arch, weights, module = published
    encoder = load_encoder(arch, weights)
    images = torch.randn(2, 3, encoder.size, encoder.size)
    # Without gradients torch takes another kernel for attention.
    torch.testing.assert_close(encoder.images(images), module.embed_images(images).detach(), atol=1e-6, rtol=0)
    texts = encoder.texts(TEXTS)
    assert texts.shape == (2, encoder.dim)
    assert not texts.requires_grad
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(2))
    assert encoder.scale == pytest.approx(1 / 0.07)


def test_half_precision_gives_nearly_the_same_in_float32(published):
    arch, weights, _ = published
    half = load_encoder(arch, weights, dtype="bfloat16").texts(TEXTS)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, load_encoder(arch, weights).texts(TEXTS), atol=0.02, rtol=0)  # bf16 has 8 bits


def test_the_identity_is_json_and_follows_the_weights_not_the_precision(published, tmp_path):
    arch, weights, module = published
    identity = load_encoder(arch, weights).identity()
    assert json.loads(json.dumps(identity)) == identity
    assert load_encoder(arch, weights, dtype="bfloat16").identity() == identity
    module.clip.visual.proj.data[0, 0] += 1e-3
    save_file(module.clip.state_dict(), tmp_path / "other.safetensors")
    assert load_encoder(arch, str(tmp_path / "other.safetensors")).identity()["weights"] != identity["weights"]


def test_a_digest_is_of_names_and_values_in_any_order():
    a, b = torch.arange(3.0), torch.ones((), dtype=torch.int64)
    assert digest_of({"a": a, "b": b}) == digest_of({"b": b, "a": a})
    assert len({digest_of({"a": a}), digest_of({"b": a}), digest_of({"a": a + 1}), digest_of({"a": a.double()})}) == 4


def test_random_weights_are_refused_unless_asked_for(published):
    arch, _, _ = published
    with pytest.raises(UsageError, match="its weights are random"):
        load_encoder(arch)
    assert load_encoder(arch, allow_random=True).dim == 16


def test_an_unknown_model_or_precision_is_told():
    with pytest.raises(UsageError, match="did you mean ViT-B-32"):
        load_encoder("ViT-B_32")
    with pytest.raises(UsageError, match="one of float32, bfloat16, float16"):
        load_encoder("ViT-B-32", dtype="fp16")


@pytest.mark.parametrize(("arch", "tag"), [("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-B-16-SigLIP", "webli")])
def test_evaluation_operations_give_open_clips_pixels(arch, tag):
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    from training.models.architecture import image_ops, preprocess_cfg

    settings = ClipSettings(arch=arch, pretrained=tag)
    levels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    picture = Image.fromarray(levels).resize((450, 300), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "PNG")
    ours = Ops.parse(image_ops(settings)[1])(file.getvalue(), np.random.default_rng(0))
    cfg = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), preprocess_cfg(settings)))
    theirs = image_transform_v2(cfg, is_train=False)(picture)
    torch.testing.assert_close(ours, theirs, atol=2 / 255 / 0.25, rtol=0)  # grey levels that resizing rounds
