"""What is exported loads elsewhere and gives our features."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from infra.errors import UsageError
from infra.torchvision_here import make_importable
from tests.training.untrained import checkpoint_of
from training.checkpoint import Checkpoint
from training.export import export
from training.models.clip import Clip, ClipSettings
from training.models.clip_spec import build
from training.models.load import load_encoder

make_importable()

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"layers": 1, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32},
    "text_cfg": TEXT,
}
OWN_TEXT = {**VIT, "custom_text": True}
RESNET = {"embed_dim": 16, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}, "text_cfg": TEXT}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}


def trained(arch, **settings):
    torch.manual_seed(0)
    module = Clip(ClipSettings(arch=arch, **settings)).eval()
    module.clip.logit_scale.data.fill_(3.0)
    return module


def inputs(side=32):
    chance = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 49407, (3, 8), generator=chance)
    tokens[:, 5] = 49407  # ends a text; what follows is padding
    return torch.randn(3, 3, side, side, generator=chance), tokens


@pytest.mark.parametrize("way", ["local-dir", "pretrained"])
@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        (VIT, {}),
        (RESNET, {}),
        (VIT, {"loss": "sigmoid"}),
        (VIT, {"image_size": 16}),
        ({**VIT, "custom_text": True}, {}),
    ],
    ids=["vit", "resnet", "sigmoid", "another size", "own text tower"],
)
def test_open_clip_loads_our_folder_and_gives_our_features(way, arch, settings, tmp_path, monkeypatch):
    import open_clip

    module = trained(arch, **settings)
    export(checkpoint_of(module, tmp_path / "run", "clip"), "open_clip", str(tmp_path / "out"))
    if way == "local-dir":
        theirs = open_clip.create_model(f"local-dir:{tmp_path / 'out'}")
    else:
        config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["model_cfg"]
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ours", config)
        theirs = open_clip.create_model("ours", pretrained=str(tmp_path / "out" / "open_clip_model.safetensors"))
    images, tokens = inputs(side=settings.get("image_size", 32))
    theirs.eval()
    with torch.no_grad():
        close = {"atol": 1e-6, "rtol": 0}
        torch.testing.assert_close(theirs.encode_image(images, normalize=True), module.embed_images(images), **close)
        torch.testing.assert_close(theirs.encode_text(tokens, normalize=True), module.embed_texts(tokens), **close)
    assert torch.equal(theirs.logit_scale, module.clip.logit_scale)
    assert (theirs.logit_bias is None) == (module.clip.logit_bias is None)


def test_open_clip_does_to_an_image_what_we_do(tmp_path):
    import open_clip

    module = trained({"model_cfg": VIT, "preprocess_cfg": HALF})
    export(checkpoint_of(module, tmp_path / "run", "clip"), "open_clip", str(tmp_path / "out"))
    *_, evaluation = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    resize, *_, normalize = evaluation.transforms
    assert tuple(resize.size) == (32, 32)
    assert list(normalize.mean) == [0.5] * 3


def test_transformers_loads_our_folder_and_gives_our_features(tmp_path):
    from transformers import CLIPModel

    module = trained(VIT)
    export(checkpoint_of(module, tmp_path / "run", "clip"), "transformers", str(tmp_path / "out"))
    theirs, report = CLIPModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    images, tokens = inputs()
    with torch.no_grad():
        found = theirs.eval()(input_ids=tokens, pixel_values=images)
        close = {"atol": 1e-5, "rtol": 0}  # fp32, another order of the same sums
        torch.testing.assert_close(found.image_embeds, module.embed_images(images), **close)
        torch.testing.assert_close(found.text_embeds, module.embed_texts(tokens), **close)
        logits = module.embed_images(images) @ module.embed_texts(tokens).T * module.clip.logit_scale.exp()
        torch.testing.assert_close(found.logits_per_image, logits, atol=1e-4, rtol=0)  # scaled by 20


@pytest.mark.parametrize(
    ("arch", "settings", "said"), [(RESNET, {}, "no ResNet"), (VIT, {"loss": "sigmoid"}, "no bias")]
)
def test_what_transformers_cannot_say_is_refused_and_nothing_is_written(arch, settings, said, tmp_path):
    url = checkpoint_of(trained(arch, **settings), tmp_path / "run", "clip")
    with pytest.raises(UsageError, match=said):
        export(url, "transformers", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_one_file_holds_every_tensor_by_our_names(tmp_path):
    module = trained(RESNET)
    (file,) = export(checkpoint_of(module, tmp_path / "run", "clip"), "safetensors", str(tmp_path / "all.safetensors"))
    held, weights = load_file(file), module.state_dict()
    assert held.keys() == weights.keys()
    assert all(torch.equal(held[name], weights[name]) for name in weights)


@pytest.mark.parametrize("to", ["open_clip", "transformers"])
def test_another_model_is_refused(to, tmp_path):
    url = checkpoint_of(trained(VIT), tmp_path / "run", "dalle")
    with pytest.raises(UsageError, match="holds a dalle, not a clip"):
        export(url, to, str(tmp_path / "out"))


def test_an_unknown_layout_is_told(tmp_path):
    with pytest.raises(UsageError, match="one of open_clip, transformers, original, safetensors"):
        export(str(tmp_path), "onnx", str(tmp_path / "out"))


@pytest.mark.parametrize("to", ["open_clip", "transformers"])
def test_an_export_is_the_checkpoint_to_an_encoder(to, tmp_path):
    url = checkpoint_of(trained(VIT), tmp_path / "run", "clip")
    export(url, to, str(tmp_path / "out"))
    (tmp_path / "arch.json").write_text(json.dumps(VIT))
    exported = load_encoder(str(tmp_path / "arch.json"), str(tmp_path / "out"))
    assert load_encoder(url).identity() == exported.identity()
    assert torch.equal(load_encoder(url).texts(["a cat"]), exported.texts(["a cat"]))


def test_a_checkpoint_brings_its_own_weights_whatever_it_started_from(tmp_path):
    module = trained(VIT)
    module.settings = ClipSettings(arch=VIT, pretrained="gone.safetensors")
    url = checkpoint_of(module, tmp_path / "run", "clip")
    assert load_encoder(url).scale == pytest.approx(float(torch.tensor(3.0).exp()))
    with pytest.raises(UsageError, match="leave pretrained out"):
        load_encoder(url, "other.safetensors")


def test_a_new_model_starts_from_a_checkpoint(tmp_path):
    module = trained(VIT)
    url = checkpoint_of(module, tmp_path / "run", "clip")
    again = build(ClipSettings(arch=VIT, pretrained=url))
    weights = Checkpoint.open(url).weights()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.state_dict().items())
