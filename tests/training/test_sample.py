"""From a prompt to a sheet: candidates in the order in which they fit, what is given stays, mistakes are told."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from infra.cli import run_main
from infra.dataset import Dataset
from infra.executors import LocalExecutor
from infra.rows import Rows
from infra.tables import read_table
from tests.training.models.dalles import VAE, all_at
from tests.training.shards import picture
from tests.training.untrained import checkpoint_of
from training.__main__ import main
from training.evaluate.rerank import encoded, fits, ranked
from training.models import MODELS
from training.models.encoder import Encoder, fit
from training.models.painter import load_painter
from training.models.token_maker import load_token_maker
from training.preprocess import Ops
from training.sample import first_rows
from training.sample_settings import SampleSettings


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A DALL-E, its dVAE and a CLIP, untrained."""
    return all_at(tmp_path_factory.mktemp("models"))


def ask(*words):
    return run_main(main, "training", ["sample", *words])


def test_the_results_are_in_rank_order_and_the_files_are_those_pictures(trained, tmp_path):
    words = [trained["dalle"], "--prompt", "a red boat", "--prompt", "two hats", "--num-candidates", "6"]
    assert ask(*words, "--rerank", trained["clip"], "--top", "4", "--out", str(tmp_path), "--batch", "4") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [told["prompt"] for told in results["prompts"]] == ["a red boat", "two hats"]
    maker = load_token_maker(trained["vae"])
    for told in results["prompts"]:
        scores = [one["score"] for one in told["candidates"]]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == len({one["candidate"] for one in told["candidates"]}) == 4
        for one in told["candidates"]:
            shown = Image.open(tmp_path / one["file"])
            assert shown.size == (VAE["image_size"], VAE["image_size"])
    assert Image.open(tmp_path / "sheet.png").width > 4 * 96
    assert maker.grid == 4


def test_without_a_judge_they_stand_as_drawn_and_more_candidates_change_none(trained, tmp_path):
    for num in (2, 5):
        assert ask(trained["dalle"], "--prompt", "a tree", "--num-candidates", str(num), "--seed", "3", "--out",
                   str(tmp_path / str(num))) == 0  # fmt: skip
    for at in range(2):
        assert (tmp_path / f"2/0000/{at:05d}.png").read_bytes() == (tmp_path / f"5/0000/{at:05d}.png").read_bytes()
    told = json.loads((tmp_path / "5/results.json").read_text())["prompts"][0]["candidates"]
    assert [(one["candidate"], one["score"]) for one in told] == [(at, None) for at in range(5)]


def test_a_prompt_of_no_utf8_is_drawn_and_told(trained, tmp_path):
    assert ask(trained["dalle"], "--prompt", "caf\udce9", "--num-candidates", "1", "--out", str(tmp_path)) == 0
    assert json.loads((tmp_path / "results.json").read_text())["prompts"][0]["prompt"] == "caf?"


def test_the_top_rows_of_a_given_picture_stay(trained, tmp_path):
    (tmp_path / "given.png").write_bytes(picture(9))
    asked = [trained["dalle"], "--prompt", "a tree", "--num-candidates", "3", "--out", str(tmp_path / "out")]
    assert ask(*asked, "--image", str(tmp_path / "given.png"), "--keep-rows", "2") == 0
    painter = load_painter(trained["dalle"])
    rows = first_rows(painter.maker, picture(9), 2)
    assert torch.equal(rows, painter.maker.encode(Ops.parse(painter.maker.ops)(picture(9), None)[None])[0, :8])
    ((codes, pictures),) = painter.paint(["a tree"], SampleSettings(num_candidates=3), rows)
    assert torch.equal(codes[:, :8], rows.expand(3, -1))
    assert len(torch.unique(codes[:, 8:], dim=0)) == 3
    for at, picture_ in enumerate(pictures):
        shown = np.asarray(Image.open(tmp_path / f"out/0000/{at:05d}.png"))
        assert np.array_equal(shown, picture_.permute(1, 2, 0).numpy())


def test_a_dry_run_says_what_would_be_drawn_and_draws_nothing(trained, tmp_path, capsys):
    asked = [trained["dalle"], "--prompt", "a tree", "--num-candidates", "5", "--out", str(tmp_path / "out")]
    assert ask(*asked, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "pictures: 5, 5 of each prompt, of 4 x 4 tokens" in said
    assert not (tmp_path / "out").exists()
    assert ask(*asked, "--prompt", " ", "--dry-run") == 2


def test_mistakes_are_told_with_the_mend(trained, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    (tmp_path / "words.txt").write_text("no picture")
    good = [trained["dalle"], "--prompt", "a tree", *out]
    for words, said in (
        ([trained["dalle"], "--prompt", " ", *out], "an empty prompt"),
        ([trained["dalle"], "--prompt", "tree " * 90, *out], "say it shorter"),
        ([trained["vae"], "--prompt", "a tree", *out], "holds a dalle.vae, not a dalle"),
        ([str(tmp_path), "--prompt", "a tree", *out], "no checkpoint or run there"),
        ([*good, "--vae", trained["dalle"]], "holds a dalle, not a dalle.vae"),
        ([*good, "--guidance", "inf"], "guidance"),
        ([*good, "--num-candidates", "100000"], "num_candidates"),
        ([*good, "--keep-rows", "2"], "--image and --keep-rows go together"),
        ([*good, "--image", str(tmp_path / "none.png"), "--keep-rows", "2"], "no such file"),
        ([*good, "--image", str(tmp_path / "words.txt"), "--keep-rows", "2"], "--image: "),
        ([*good, "--image", str(tmp_path / "words.txt"), "--keep-rows", "4"], "keep 1 to 3"),
    ):
        assert ask(*words) == 2, words
        assert said in capsys.readouterr().err, words
    assert not (tmp_path / "out").exists()


def test_a_dvae_of_other_tokens_is_refused(trained, tmp_path, capsys):
    spec = MODELS["dalle.vae"]
    other = checkpoint_of(spec.build(spec.Settings.parse({**VAE, "vocab": 41}, "vae")), tmp_path, "dalle.vae")
    assert ask(trained["dalle"], "--prompt", "a tree", "--vae", other, "--out", str(tmp_path / "out")) == 2
    assert "4 x 4 tokens of 41 kinds" in capsys.readouterr().err


def test_the_fit_is_the_score_that_clip_score_gives_the_stored_picture(trained, tmp_path):
    from filters.score import score
    from tests.filters.stored_shards import Sample, store
    from training.models.load import load_encoder

    encoder = load_encoder(trained["clip"])
    assert isinstance(encoder, Encoder)
    chance = torch.Generator().manual_seed(2)
    pictures = torch.randint(256, (3, 3, 20, 24), generator=chance, dtype=torch.uint8)
    found = fits(encoder, pictures, "a red boat")
    samples = [Sample(f"{at}", "a red boat", encoded(one)) for at, one in enumerate(pictures)]
    store(tmp_path, {"00000": samples})
    score(Dataset(tmp_path), ["clip_score"], LocalExecutor(), settings=[f"clip_score.model={trained['clip']}"])
    dataset = Dataset(tmp_path)
    (shard,) = Rows(dataset).shards
    told = read_table(dataset.storage, f"scores/clip_score/{shard}.parquet")["clip_score"].to_pylist()
    np.testing.assert_allclose(found.numpy(), told, atol=1e-6)  # other batches round otherwise
    assert ranked(torch.tensor([0.1, 0.3, 0.3, -1.0])) == [1, 2, 0, 3]
    assert fit(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0000002, 0.0])).item() == 1.0
    assert Image.open(io.BytesIO(encoded(pictures[0]))).size == (24, 20)
