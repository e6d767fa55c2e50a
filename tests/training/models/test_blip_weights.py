"""A BLIP's weights come in from every usual place, whole or the part that an entry has; no file gets to run code."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from infra.errors import UsageError
from tests.training.models.blips import CAPTIONS, VISION, blip, pictures, published_config
from tests.training.untrained import checkpoint_of
from training.blocks.vit import resized_positions
from training.convert.blip import to_published
from training.generate import GenerationSettings
from training.models.blip_weights import load_towers, load_weights
from training.models.load import load_captioner, load_encoder, load_matcher

GREEDY = GenerationSettings(method="greedy", max_length=12)
WIDE = {"vision": {**VISION, "width": 128, "heads": 2}, "text": {"width": 64, "layers": 2, "heads": 1, "positions": 40}}
LEFT = ("contrast.queue.", "contrast.momentum.", "contrast.temperature")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A pretrained BLIP with keys in its queue, and its checkpoint."""
    module = blip("blip", seed=1)
    module.contrast.queue.push(torch.ones(3, 24), torch.ones(3, 24), torch.ones(3, 2, dtype=torch.int64))
    return module, checkpoint_of(module, tmp_path_factory.mktemp("trained"), "blip")


def words_of(module, folder):
    file = folder / "vocab.txt"
    file.write_text("\n".join(module.tokenizer.words.words) + "\n")
    return str(file)


def write_folder(module, folder):
    """As transformers writes it, with the words beside it."""
    (folder / "config.json").write_text(json.dumps(published_config(module)))
    save_file(to_published(module.state_dict(), "transformers"), folder / "model.safetensors")
    words_of(module, folder)
    return str(folder)


def write_file(module, folder):
    save_file(to_published(module.state_dict(), "transformers"), folder / "weights.safetensors")
    return str(folder / "weights.safetensors")


def write_released(module, folder):
    """As the released code's training writes it, with what its files have beyond weights of ours."""
    weights = to_published(module.state_dict(), "original")
    weights["text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    if module.contrast is not None:
        weights |= {"image_queue": torch.zeros(24, 8), "queue_ptr": torch.zeros(1, dtype=torch.int64)}
        weights |= {
            name.replace("text_encoder.", "text_encoder_m."): tensor + 1
            for name, tensor in weights.items() if name.startswith("text_encoder.") and "crossattention" in name
        }  # fmt: skip
    torch.save({"model": weights, "epoch": 19, "config": {"vit": "base"}}, folder / "released.pth")
    return str(folder / "released.pth")


@pytest.mark.parametrize("entry", ["blip", "blip.caption", "blip.retrieval"])
def test_a_pretrained_checkpoint_starts_each_entry_with_the_part_that_it_has(entry, trained):
    source, url = trained
    module = blip(entry, seed=7)
    load_weights(module, url)
    held = source.state_dict()
    for name, tensor in module.state_dict().items():
        if not name.startswith("contrast.queue."):
            assert torch.equal(tensor, held[name]), name
    if module.contrast is not None:
        assert module.contrast.queue.num_pushed == 0  # the queue begins anew


@pytest.mark.parametrize("entry", ["blip", "blip.retrieval"])
@pytest.mark.parametrize("write", [write_folder, write_file, write_released], ids=lambda write: write.__name__)
def test_every_layout_gives_the_weights_and_followers_that_it_has(write, entry, trained, tmp_path):
    module = blip(entry, seed=7)
    load_weights(module, write(trained[0], tmp_path))
    held, found = trained[0].state_dict(), module.state_dict()
    for name, tensor in found.items():
        if write is write_released or not name.startswith(LEFT):
            assert name.startswith("contrast.queue.") or torch.equal(tensor, held[name]), name
    if write is not write_released:  # what has no followers begins with those of its weights
        for name, tensor in module.contrast.momentum["vision"].named_parameters():
            assert torch.equal(tensor, found[f"vision.{name}"])
        assert torch.equal(module.contrast.momentum["text"].weight, found["contrast.text.weight"])


@pytest.mark.parametrize("how", ["folder", "file", "released"])
def test_a_published_captioner_writes_what_ours_writes(how, tmp_path):
    module = blip("blip.caption", seed=2, scale=2.0, **WIDE)
    place = {"folder": write_folder, "file": write_file, "released": write_released}[how](module, tmp_path)
    captioner = load_captioner(place, vocab=None if how == "folder" else words_of(module, tmp_path))
    checkpoint = load_captioner(checkpoint_of(module, tmp_path / "ours", "blip.caption"))
    assert captioner.size == checkpoint.size == 32
    uids, images = [b"uid"] * 4, pictures(4)
    told = captioner.write(images, uids, GREEDY)
    assert told == checkpoint.write(images, uids, GREEDY)
    assert captioner.identity()["prompt"] == checkpoint.identity()["prompt"] == "a picture of "
    assert captioner.identity()["weights"] == checkpoint.identity()["weights"]


@pytest.mark.parametrize("how", ["folder", "file", "released"])
def test_a_published_filter_judges_as_ours_does(how, tmp_path):
    module = blip("blip.retrieval", seed=2, context=35, **WIDE)  # that of a filter where nobody says another
    place = {"folder": write_folder, "file": write_file, "released": write_released}[how](module, tmp_path)
    matcher = load_matcher(place, vocab=None if how == "folder" else words_of(module, tmp_path))
    checkpoint = checkpoint_of(module, tmp_path / "ours", "blip.retrieval")
    for ours in (load_matcher(checkpoint), load_encoder(checkpoint)):
        images = pictures(6)
        assert torch.equal(matcher.images(images), ours.images(images))
        assert torch.equal(matcher.texts(CAPTIONS), ours.texts(CAPTIONS))
        told = [
            one.match(one.look(images), torch.arange(6), one.tokens(CAPTIONS), 6).tolist() for one in (matcher, ours)
        ]
        assert told[0] == told[1]


def test_a_pretrained_checkpoint_both_writes_and_judges_and_a_part_of_it_does_one(trained, tmp_path):
    url = trained[1]
    assert load_captioner(url).identity()["prompt"] == ""  # as it was trained
    assert load_captioner(url, prompt="a photo of ").identity()["prompt"] == "a photo of "
    assert load_matcher(url).dim == 24
    with pytest.raises(UsageError, match="a captioner cannot tell whether"):
        load_matcher(checkpoint_of(blip("blip.caption"), tmp_path / "writer", "blip.caption"))
    with pytest.raises(UsageError, match="a filter cannot write captions"):
        load_captioner(checkpoint_of(blip("blip.retrieval"), tmp_path / "filter", "blip.retrieval"))
    with pytest.raises(UsageError, match="brings its vocabulary; leave vocab out"):
        load_captioner(url, vocab="bert-base-uncased")


@pytest.mark.parametrize("size", [16, 48])
def test_positions_of_another_picture_size_are_resampled(size, trained):
    module = blip("blip.retrieval", image_size=size)
    load_weights(module, trained[1])
    held = trained[0].vision.positions
    assert torch.equal(module.vision.positions[:, 0], held[:, 0])
    assert torch.equal(module.vision.positions, resized_positions(held, 1 + (size // 8) ** 2))
    assert module.vision(pictures(2, size)).isfinite().all()


def test_resampled_positions_keep_a_flat_grid_flat_and_a_slope_a_slope():
    slope = torch.linspace(0, 1, 4)[:, None, None].expand(4, 4, 3)
    found = resized_positions(torch.cat([torch.full((1, 1, 3), 9.0), slope.reshape(1, 16, 3)], 1), 65)
    assert (found[:, 0] == 9).all()
    grid = found[0, 1:].reshape(8, 8, 3)
    assert (grid.diff(dim=0) > 0).all()  # rows stay rows
    torch.testing.assert_close(grid, grid[:, :1].expand(8, 8, 3))
    same = torch.randn(1, 17, 3)
    assert resized_positions(same, 17) is same


def test_followers_positions_fit_the_other_picture_size_too(trained, tmp_path):
    module = blip("blip", image_size=48)
    load_weights(module, write_released(trained[0], tmp_path))
    held = trained[0].contrast.momentum["vision"].positions
    assert torch.equal(module.contrast.momentum["vision"].positions, resized_positions(held, 37))


def test_as_many_other_words_are_refused(trained):
    words = list(trained[0].tokenizer.words.words)
    words[-3], words[-4] = words[-4], words[-3]
    with pytest.raises(UsageError, match=r"another vocabulary; give model\.vocab the one"):
        load_weights(blip("blip", vocab=tuple(words[:-2])), trained[1])


def test_another_architecture_is_refused_by_name_and_nothing_is_loaded(trained, tmp_path):
    module = blip("blip", text={"width": 32, "layers": 4, "heads": 4, "positions": 40})
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(UsageError, match=r"missing: text\.layers\.3\."):
        load_weights(module, trained[1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    with pytest.raises(UsageError, match=r"of another shape: .*contrast\.image\.weight \(24, 48\), not \(16, 48\)"):
        load_weights(blip("blip", embed_dim=16), trained[1])
    with pytest.raises(UsageError, match=r"not of this architecture: .*layers\.2\."):
        load_weights(blip("blip", text={"width": 32, "layers": 2, "heads": 4, "positions": 40}), trained[1])


def test_a_part_cannot_start_what_has_more(tmp_path):
    writer = checkpoint_of(blip("blip.caption"), tmp_path, "blip.caption")
    with pytest.raises(UsageError, match=r"missing: .*attention\.encoder"):
        load_weights(blip("blip.retrieval"), writer)


@pytest.mark.parametrize("entry", ["blip", "blip.caption", "blip.retrieval"])
@pytest.mark.parametrize("source", ["blip", "blip.caption", "blip.retrieval"])
def test_towers_start_each_entry_from_any_other_and_heads_stay_as_drawn(source, entry, tmp_path):
    theirs = blip(source, seed=1)
    held = theirs.state_dict()
    module = blip(entry, seed=7)
    drawn = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    load_towers(module, checkpoint_of(theirs, tmp_path, source))
    for name, tensor in module.state_dict().items():
        if name.startswith(("vision.", "text.")):
            other = name.replace(".encoder.", "/").replace(".decoder.", ".encoder.").replace("/", ".decoder.")
            assert torch.equal(tensor, held[name if name in held else other]), name
        elif not name.startswith("contrast.momentum."):
            assert torch.equal(tensor, drawn[name]), name
    if module.contrast is not None:
        for name, tensor in module.contrast.momentum["vision"].named_parameters():
            assert torch.equal(tensor, held[f"vision.{name}"])
        assert torch.equal(module.contrast.momentum["image"].weight, drawn["contrast.image.weight"])


def test_towers_of_another_architecture_are_refused_and_so_are_two_starts(trained):
    for text in ({"width": 32, "layers": 4, "heads": 4, "positions": 40}, {"width": 32, "layers": 2, "heads": 4}):
        with pytest.raises(UsageError, match="not the weights of these towers"):
            blip("blip.retrieval", text=text, towers=trained[1])
    with pytest.raises(UsageError, match="give one of the two"):
        blip("blip.retrieval", towers=trained[1], pretrained=trained[1])


def test_a_folder_of_another_model_and_a_file_of_none_are_told(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(UsageError, match="holds a clip, not a blip"):
        load_captioner(str(tmp_path))
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=r"no published BLIP; give a folder with its config\.json"):
        load_matcher(str(tmp_path / "other.safetensors"))


@pytest.mark.filterwarnings("ignore")  # torch tells of what it refuses
def test_a_file_that_would_run_code_is_refused_unrun(trained, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "mark"),)

    weights = to_published(trained[0].state_dict(), "original")
    for file in ("new.pth", "old.pth"):
        held = {"model": weights | {"x": Bomb()}}
        torch.save(held, tmp_path / file, _use_new_zipfile_serialization=file == "new.pth")
        with pytest.raises(UsageError, match="convert it once"):
            load_weights(blip("blip"), str(tmp_path / file))
        with pytest.raises(UsageError, match="convert it once"):
            load_matcher(str(tmp_path / file))
    assert not (tmp_path / "mark").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "mark").exists()  # it does go off when it is unpickled


def test_a_name_out_of_reach_says_to_give_a_path(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for ask in (load_captioner, load_matcher, lambda name: load_weights(blip("blip.caption"), name)):
        with pytest.raises(UsageError, match="Fetch it where there is a network, and give the folder's path"):
            ask("no-one-at-all/blip-of-nobody")
    with pytest.raises(UsageError, match="no such file"):
        load_captioner("./nowhere/at/all.safetensors")
