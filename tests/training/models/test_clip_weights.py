"""Weights come in from every usual place, whole or not at all; no file gets to run code."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from infra.errors import UsageError
from infra.torchvision_here import make_importable
from training.convert.clip import to_transformers
from training.models.clip import Clip, ClipSettings
from training.models.clip_weights import load_weights, read_weights

make_importable()

VIT = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 64, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1},
}


def clip(seed, **changes):
    torch.manual_seed(seed)
    return Clip(ClipSettings(**{"arch": VIT} | changes))


def weights_of(module):
    return {name: tensor.clone() for name, tensor in module.clip.state_dict().items()}


def same(module, weights):
    return all(torch.equal(tensor, weights[name]) for name, tensor in module.clip.state_dict().items())


@pytest.fixture(scope="module")
def trained():
    return weights_of(clip(1))


def save_plain(weights, folder: Path):
    torch.save(weights, folder / "plain.pt")
    return folder / "plain.pt"


def save_training_checkpoint(weights, folder: Path):
    # As open_clip's trainer writes it.
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    held = {"epoch": 3, "name": "run", "optimizer": optimizer.state_dict()}
    torch.save(
        {**held, "state_dict": {f"module.{name}": value for name, value in weights.items()}}, folder / "epoch_3.pt"
    )
    return folder / "epoch_3.pt"


def save_safetensors(weights, folder: Path):
    save_file(weights, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def save_folder(weights, folder: Path):
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def save_transformers(weights, folder: Path):
    save_file(to_transformers(weights), folder / "model.safetensors")
    return folder


def save_our_names(weights, folder: Path):
    save_file({f"clip.{name}": value for name, value in weights.items()}, folder / "ours.safetensors")
    return folder / "ours.safetensors"


def save_as_url(weights, folder: Path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/weights/a.safetensors", save_safetensors(weights, folder).read_bytes())
    return "memory://weights/a.safetensors"


LAYOUTS = [
    save_plain,
    save_training_checkpoint,
    save_safetensors,
    save_folder,
    save_transformers,
    save_our_names,
    save_as_url,
]


@pytest.mark.parametrize("save", LAYOUTS, ids=lambda save: save.__name__)
def test_every_layout_gives_the_same_weights(save, trained, tmp_path):
    module = clip(0)
    assert not same(module, trained)
    load_weights(module, str(save(trained, tmp_path)))
    assert same(module, trained)


class Bomb:
    """Unpickling it would make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.filterwarnings("ignore")  # torch tells of what it refuses
@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle", "in the state_dict"])
def test_a_file_that_would_run_code_is_refused_unrun(kind, trained, tmp_path):
    file, mark = tmp_path / "bomb.pt", tmp_path / "mark"
    held = {"state_dict": trained | {"x": Bomb(mark)}} if kind == "in the state_dict" else {"weights": Bomb(mark)}
    if kind == "plain pickle":
        file.write_bytes(pickle.dumps(held))
    else:
        torch.save(held, file, _use_new_zipfile_serialization=kind != "legacy")
    with pytest.raises(UsageError, match=r"convert it once: safetensors\.torch\.save_file"):
        load_weights(clip(0), str(file))
    assert not mark.exists()


def test_the_bomb_does_go_off_when_it_is_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.filterwarnings("ignore")  # torch tells of what it refuses
def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(tmp_path / "scripted.pt"))
    with pytest.raises(UsageError, match="convert it once"):
        load_weights(clip(0), str(tmp_path / "scripted.pt"))


def whole_files():
    """Bytes of a valid file of each kind."""
    made = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(2, 3), "b": torch.ones(1, dtype=torch.int64)}}, made)
    return {".pt": made.getvalue(), ".safetensors": save({"a": torch.zeros(2, 3)})}


@given(
    suffix=st.sampled_from([".pt", ".safetensors"]),
    noise=st.binary(max_size=40),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    fresh=st.booleans(),
)
@settings(max_examples=100, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_hostile_bytes_are_weights_or_the_users_to_mend(suffix, noise, cut, fresh):
    whole = whole_files()[suffix]
    first, second = (int(place * len(whole)) for place in cut)
    data = noise if fresh else whole[:first] + noise + whole[second:]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"hostile{suffix}"
        file.write_bytes(data)
        with contextlib.suppress(UsageError):
            assert all(isinstance(value, torch.Tensor) for value in read_weights(str(file)).values())


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_an_empty_file_is_told_by_name(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=name):
        read_weights(str(tmp_path / name))


def test_names_and_shapes_that_do_not_fit_are_listed_and_nothing_is_loaded(trained, tmp_path):
    module = clip(0)
    before = weights_of(module)
    wrong = {name: value for name, value in trained.items() if not name.startswith("transformer.")}
    wrong |= {"ln_final.weight": torch.zeros(3), "visual.other": torch.zeros(1)}
    with pytest.raises(UsageError) as told:
        load_weights(module, str(save_safetensors(wrong, tmp_path)))
    assert "12 missing: transformer.resblocks.0." in str(told.value)
    assert "and 7 more" in str(told.value)
    assert "1 not of this architecture: visual.other" in str(told.value)
    assert "1 of another shape: ln_final.weight (3,), not (32,)" in str(told.value)
    assert same(module, before)


def test_position_embeddings_are_resized_only_where_another_size_was_asked_for(trained, tmp_path):
    file = str(save_safetensors(trained, tmp_path))
    larger = {**VIT, "vision_cfg": {**VIT["vision_cfg"], "image_size": 64}}
    with pytest.raises(UsageError, match=r"visual\.positional_embedding \(17, 64\), not \(65, 64\)"):
        load_weights(clip(0, arch=larger), file)
    asked = clip(0, image_size=64, context_length=6)
    load_weights(asked, file)
    assert torch.equal(asked.clip.visual.positional_embedding[0], trained["visual.positional_embedding"][0])
    assert torch.equal(asked.clip.ln_final.weight, trained["ln_final.weight"])


def test_softmax_weights_start_a_sigmoid_training_and_the_other_way_round(trained, tmp_path):
    sigmoid = clip(0, loss="sigmoid")
    load_weights(sigmoid, str(save_safetensors(trained, tmp_path)))
    assert sigmoid.clip.logit_bias.item() == -10
    softmax = clip(0)
    load_weights(softmax, str(save_safetensors(weights_of(sigmoid), tmp_path)))
    assert same(softmax, trained)


def test_a_text_tower_of_its_own_takes_the_older_names(trained, tmp_path):
    module = clip(0, arch={**VIT, "custom_text": True})
    load_weights(module, str(save_safetensors(trained, tmp_path)))
    assert torch.equal(module.clip.text.ln_final.weight, trained["ln_final.weight"])


def test_what_is_neither_tag_nor_file_is_told_with_the_nearest_tag():
    with torch.device("meta"):
        module = Clip(ClipSettings(arch="ViT-B-32"))
    with pytest.raises(UsageError, match="did you mean laion2b_s34b_b79k"):
        load_weights(module, "laion2b_s34b_b79")
    with pytest.raises(UsageError, match=r"there is no such file"):
        load_weights(module, "weights/nowhere.pt")


@pytest.mark.parametrize("tag", ["openai", "laion400m_e32", "metaclip_400m"])
def test_weights_of_another_activation_are_refused_before_they_are_fetched(tag):
    with torch.device("meta"):
        module = Clip(ClipSettings(arch="ViT-B-32"))
    with pytest.raises(UsageError, match="trained with QuickGELU; take ViT-B-32-quickgelu"):
        load_weights(module, tag)


def test_a_tag_out_of_reach_says_to_give_a_path(monkeypatch):
    import open_clip.pretrained

    def unreachable(cfg):
        raise FileNotFoundError("Failed to download file. Last error: no network")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", unreachable)
    with torch.device("meta"):
        module = Clip(ClipSettings(arch="ViT-B-32"))
    with pytest.raises(UsageError, match="without a network, give a path"):
        load_weights(module, "laion2b_s34b_b79k")
