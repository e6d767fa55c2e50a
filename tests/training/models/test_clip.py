"""Our CLIP is open_clip's to the last digits, takes what its settings promise, and learns."""

from __future__ import annotations

import json
import math
import pickle
import re

import pytest
import torch

from infra.errors import RecipeError, UsageError
from infra.torchvision_here import make_importable
from training.models.architecture import model_cfg, names
from training.models.clip import Clip, ClipSettings
from training.models.clip_spec import SPEC, TINY
from training.models.clip_weights import put_weights
from training.ranks import Ranks
from training.spec import Batch, Context

make_importable()

TEXT = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2}
VIT = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32},
    "text_cfg": TEXT,
}
RESNET = {"embed_dim": 16, "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}, "text_cfg": TEXT}
OWN_TEXT = {**VIT, "custom_text": True}
ALONE = Context(0, Ranks())


def pairs(num=6, side=32, length=8, vocab=100):
    """A batch of noise, the last row masked; every text ends in the highest id, as open_clip's tokeniser has it."""
    chance = torch.Generator().manual_seed(1)
    text = torch.randint(1, vocab - 1, (num, length), generator=chance)
    text[:, -1] = vocab - 1
    image = torch.randn(num, 3, side, side, generator=chance)
    return Batch([b"uid"] * num, {"image": image, "text": text, "valid": torch.arange(num) < num - 1})


def theirs(arch, **scale):
    """open_clip's own model, without our hands on it."""
    from open_clip.model import CLIP, CustomTextCLIP

    torch.manual_seed(0)
    cfg = {key: value for key, value in arch.items() if key != "custom_text"}
    return (CustomTextCLIP if "custom_text" in arch else CLIP)(**cfg, **scale).eval()


def ours(arch, weights=None, **settings):
    torch.manual_seed(0)
    module = Clip(ClipSettings(arch=arch, **settings)).eval()
    if weights is not None:
        put_weights(module, weights, "open_clip")
    return module


@pytest.mark.parametrize("arch", [VIT, RESNET, OWN_TEXT], ids=["vit", "resnet", "own text tower"])
def test_features_logits_and_softmax_loss_are_open_clips(arch):
    from open_clip.loss import ClipLoss

    model, batch = theirs(arch), pairs()
    outputs = ours(arch, model.state_dict())(batch, ALONE)
    image, text, scale = model(batch["image"], batch["text"])
    close = {"atol": 1e-6, "rtol": 1e-6}  # fp32; the same kernels in the same order
    torch.testing.assert_close(outputs["image_emb"], image, **close)
    torch.testing.assert_close(outputs["text_emb"], text, **close)
    logits = outputs["scale"] * outputs["image_emb"] @ outputs["text_emb"].T
    torch.testing.assert_close(logits, model.get_logits(batch["image"], batch["text"])[0], **close)
    loss = SPEC.losses(ClipSettings(arch=arch))["softmax"].loss(outputs, batch, Ranks())
    torch.testing.assert_close(loss, ClipLoss()(image[:-1], text[:-1], scale), **close)


@pytest.mark.parametrize("arch", [VIT, RESNET], ids=["vit", "resnet"])
def test_the_sigmoid_loss_is_open_clips(arch):
    from open_clip.loss import SigLipLoss

    model, batch = theirs(arch, init_logit_bias=-10.0, init_logit_scale=math.log(10)), pairs()
    settings = ClipSettings(arch=arch, loss="sigmoid")
    module = ours(arch, model.state_dict(), loss="sigmoid")
    loss = SPEC.losses(settings)["sigmoid"].loss(module(batch, ALONE), batch, Ranks())
    image, text, scale, bias = model(batch["image"], batch["text"])
    torch.testing.assert_close(loss, SigLipLoss()(image[:-1], text[:-1], scale, bias), atol=1e-6, rtol=1e-6)


def test_scale_and_bias_start_as_the_papers_say():
    with torch.no_grad():
        softmax, sigmoid = ours(VIT)(pairs(), ALONE), ours(VIT, loss="sigmoid")(pairs(), ALONE)
    assert float(softmax["scale"]) == pytest.approx(1 / 0.07)
    assert "bias" not in softmax
    assert float(sigmoid["scale"]) == pytest.approx(10)
    assert float(sigmoid["bias"]) == -10


def test_the_loss_says_how_an_exported_architecture_starts():
    exported = model_cfg(ClipSettings(arch=VIT))
    assert exported["init_logit_bias"] is None
    assert model_cfg(ClipSettings(arch=exported, loss="sigmoid"))["init_logit_bias"] == -10


def test_outputs_are_reckoned_never_parameters():
    module = ours(VIT, loss="sigmoid")
    owned = {tensor.data_ptr() for tensor in module.parameters()}
    for tensor in module(pairs(), ALONE).values():
        assert tensor.requires_grad
        assert tensor.data_ptr() not in owned


@pytest.mark.parametrize("cast", [True, False], ids=["cast", "autocast"])
def test_in_half_precision_the_features_are_float32_of_unit_length(cast):
    module = ours(VIT).bfloat16() if cast else ours(VIT)
    with torch.autocast("cpu", torch.bfloat16, enabled=not cast):
        outputs = module(pairs(), ALONE)
    assert {tensor.dtype for tensor in outputs.values()} == {torch.float32}
    for name in ("image_emb", "text_emb"):
        torch.testing.assert_close(outputs[name].norm(dim=-1), torch.ones(6), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_the_tiny_twin_learns_a_batch_in_twenty_steps():
    settings = ClipSettings(**SPEC.tiny)
    torch.manual_seed(0)
    module, batch = SPEC.build(settings).train(), pairs(num=8, side=64, length=32, vocab=49408)
    loss = SPEC.losses(settings)["softmax"].loss
    optimiser = torch.optim.AdamW(module.parameters(), 1e-3)
    seen = []
    for step in range(20):
        value = loss(module(batch, Context(step, Ranks())), batch, Ranks())
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        SPEC.after_step(module)
        seen.append(value.item())
    assert seen[-1] < 0.5 * seen[0]


@pytest.mark.parametrize("log_scale", [5.0, 4.0])
def test_a_step_leaves_the_scale_at_most_100(log_scale):
    module = ours(VIT)
    module.clip.logit_scale.data.fill_(log_scale)
    SPEC.after_step(module)
    assert module.clip.logit_scale.item() == pytest.approx(min(log_scale, math.log(100)))


def test_a_sigmoid_scale_is_free():
    module = ours(VIT, loss="sigmoid")
    module.clip.logit_scale.data.fill_(5.0)
    SPEC.after_step(module)
    assert module.clip.logit_scale.item() == 5.0


def test_reckoning_again_gives_the_same_gradients():
    def gradients(**settings):
        module = ours(VIT, **settings).train()
        sum(tensor.sum() for tensor in module(pairs(), ALONE).values()).backward()
        return [parameter.grad for parameter in module.parameters()]

    torch.testing.assert_close(gradients(), gradients(gradient_checkpointing=True), atol=0, rtol=0)


def test_what_cannot_reckon_again_says_so():
    with pytest.raises(UsageError, match="gradient_checkpointing: open_clip's ResNets have none"):
        ours(RESNET, gradient_checkpointing=True)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_compiled_forward_pass_is_one_graph_and_the_same(arch):
    module = ours(arch)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(dict(compiled(pairs(), ALONE)), dict(module(pairs(), ALONE)))


def test_a_locked_image_tower_keeps_its_weights_and_statistics():
    settings = ClipSettings(arch=RESNET, lock_image=True)
    module = ours(RESNET, lock_image=True).train()
    before = {name: tensor.clone() for name, tensor in module.clip.visual.state_dict().items()}
    module(pairs(), ALONE)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.clip.visual.state_dict().items())
    (pattern,) = SPEC.frozen(settings)
    held = {name for name, _ in module.named_parameters() if re.search(pattern, name)}
    assert held == {f"clip.visual.{name}" for name, _ in module.clip.visual.named_parameters()}
    assert SPEC.frozen(ClipSettings(arch=RESNET)) == ()


def test_the_names_are_open_clips_less_those_with_a_captioning_decoder():
    import open_clip

    captioning = {name for name in open_clip.list_models() if "multimodal_cfg" in open_clip.get_model_config(name)}
    assert set(names()) == set(open_clip.list_models()) - captioning
    assert captioning


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-quickgelu", "RN50", "ViT-B-32-256", "convnext_base"])
def test_an_architecture_by_name_has_open_clips_shapes(name):
    import open_clip

    with torch.device("meta"):
        mine, model = Clip(ClipSettings(arch=name)), open_clip.create_model(name, device="meta")
    assert {key: tensor.shape for key, tensor in mine.clip.state_dict().items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("ViT-B/32", "did you mean ViT-B-32"),
        ("nowhere.json", "no such file"),
        ({"embed_dim": 16, "text_cfg": {}}, "missing: vision_cfg"),
        ({**VIT, "text_cfg": "small"}, "mappings of their own"),
        ({**VIT, "multimodal_cfg": {}}, "captioning decoder"),
    ],
)
def test_a_wrong_architecture_is_told_before_anything_starts(arch, said):
    with pytest.raises(RecipeError, match=said):
        ClipSettings.parse({"arch": arch}, "recipe.yaml: model")


def test_a_misspelt_size_is_told_when_it_is_built():
    with pytest.raises(UsageError, match=r"open_clip cannot build it: .*'wdith'"):
        ours({**VIT, "text_cfg": {"wdith": 3}})


def test_an_architecture_from_a_file_needs_the_file_no_more(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"model_cfg": VIT, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}))
    settings = ClipSettings.parse({"arch": str(file)}, "recipe")
    file.unlink()
    again = ClipSettings.parse(settings.model_dump(mode="json"), "checkpoint")
    assert again == settings
    assert SPEC.ops(again)[1].endswith("normalize(half)")
    assert ours(again.arch)(pairs(), ALONE)["image_emb"].shape == (6, 16)


def test_sizes_of_the_settings_go_before_those_of_the_architecture():
    settings = ClipSettings(arch=VIT, image_size=16, context_length=5)
    outputs = Clip(settings)(pairs(side=16, length=5), ALONE)
    assert outputs["image_emb"].shape == outputs["text_emb"].shape
    assert SPEC.ops(settings)[0] == "decode|random_resized_crop(16,0.9,1)|normalize(clip)"
    assert SPEC.tokenizer(settings)(["one"]).shape == (1, 5)


def test_image_operations_are_those_of_the_tag():
    clip = ClipSettings(arch="ViT-B-32", pretrained="laion2b_s34b_b79k")
    siglip = ClipSettings(arch="ViT-B-16-SigLIP", pretrained="webli")
    assert SPEC.ops(clip)[1] == "decode|resize(224)|center_crop(224)|normalize(clip)"
    assert SPEC.ops(siglip)[1] == "decode|squash(224)|normalize(half)"


def test_the_tokeniser_is_open_clips_and_travels(tmp_path):
    import open_clip

    tokenizer = SPEC.tokenizer(ClipSettings(**TINY))
    texts = ["A photo of a cat.", "", "long " * 40]
    ids = pickle.loads(pickle.dumps(tokenizer))(texts)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, open_clip.get_tokenizer("RN50", context_length=32)(texts))
    assert len(pickle.dumps(tokenizer)) < 1_000


def test_a_tokeniser_out_of_reach_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    there = {**VIT, "text_cfg": {**TEXT, "hf_tokenizer_name": str(tmp_path)}}
    with pytest.raises(UsageError, match="the path of its folder"):
        SPEC.tokenizer(ClipSettings(arch=there))(["a cat"])
