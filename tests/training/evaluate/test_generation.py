"""Drawn pictures against real ones: known painters give known numbers, every sample is counted, bytes come again."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from infra.cli import run_main
from infra.errors import DatasetError, UsageError
from tests.training import runs
from tests.training.evaluate.oracle import DIM, Broken, Mute, Oracle, captioned, grey, write_tars
from tests.training.models.dalles import WORDS, all_at
from tests.training.shards import make_shards
from training.__main__ import main
from training.evaluate.generation import OTHERS, Studio, r_precision_hits
from training.evaluate.run import evaluate, told
from training.evaluate.settings import EvaluationSettings
from training.evaluate.task import EvaluationError

SIZE, RIGHT = 8, 2
LONG = "word " * 9


def shade(number):
    return torch.full((3, SIZE, SIZE), 4 * number + 2, dtype=torch.uint8)


class KnownPainter:
    """Its third candidate of "is 5" is the picture that an oracle takes for 5; the others are of 0."""

    def __init__(self):
        self.maker = SimpleNamespace(ops=f"decode|squash({SIZE})|normalize(unit)")
        self.sampler = SimpleNamespace(tokenizer=self)
        self.times = []

    def asked(self, prompt):
        if prompt == LONG.strip():
            raise UsageError("too long")

    def paint(self, prompts, settings, times):
        self.times += zip(prompts, times, strict=True)
        for prompt in prompts:
            numbers = [0] * settings.num_candidates
            if len(numbers) > RIGHT:
                numbers[RIGHT] = int(prompt.rpartition(" ")[2])
            yield torch.zeros(len(numbers), 4), torch.stack([shade(number) for number in numbers])

    def identity(self):
        return {"dalle": "known"}


def studio(chooser=None, judge=None):
    return Studio(KnownPainter(), chooser or Oracle(), judge or chooser or Oracle())


def settings(path, **more):
    told = {"task": "generation", "data": str(path), "batch": 3, "threads": 2, "num_candidates": (1, 4), **more}
    return EvaluationSettings.parse(told, "test")


@pytest.fixture
def captions(tmp_path):
    """Nine samples: five whole ones, one broken, one without a picture, one without a caption, one too long."""
    whole = [captioned(at, f"is {at}", "another") for at in (3, 7, 11, 20, 33)]
    lost = [{"jpg": b"<html>", "txt": b"is 4"}, {"txt": b"is 5"}, {"jpg": grey(3)}, captioned(9, LONG)]
    write_tars(tmp_path / "test", [whole[:2] + lost[:2], lost[2:] + whole[2:]])
    return tmp_path


def values(facts):
    return {name: share["value"] for name, share in facts["metrics"].items()}


def test_every_sample_is_counted(captions):
    facts = evaluate(studio(), settings(captions))
    assert facts["counts"] == {"samples": 9, "images": 5, "unreadable": {"no_image": 1, "not_an_image": 1},
                               "without_caption": 1, "without_readable_caption": 1}  # fmt: skip
    assert told(facts)[-1].startswith("5 images of 9 samples; 1 unreadable, no image; ")
    assert facts["texts_of_r_precision"] == 5


def test_equal_captions_are_drawn_anew_each_time(tmp_path):
    write_tars(tmp_path / "test", [[captioned(at, "is 7", "another") for at in range(5)]])
    asked = studio()
    evaluate(asked, settings(tmp_path, batch=2))
    assert asked.painter.times == [("is 7", at) for at in range(5)]


def test_the_right_candidate_is_chosen_once_it_is_among_them(captions):
    facts = evaluate(studio(), settings(captions, num_candidates=(4, 1, 2, 3), blur=()))
    found = values(facts)
    for size in (1, 2):
        assert found[f"clip_score@{size}"] == found[f"r_precision@{size}"] == 0
        assert found[f"clip_frechet@{size}"] > 0.5
    for size in (3, 4):
        assert found[f"clip_score@{size}"] == found[f"r_precision@{size}"] == 1
        assert found[f"clip_frechet@{size}"] == pytest.approx(0, abs=1e-5)
    assert found["clip_kernel@3"] < found["clip_kernel@2"]
    assert facts["num_candidates"] == [1, 2, 3, 4]


def test_who_says_the_same_of_everything_chooses_the_first_and_finds_nothing(captions):
    found = values(evaluate(studio(chooser=Mute(), judge=Oracle()), settings(captions)))
    assert found["r_precision@1"] == found["r_precision@4"] == 0
    assert found["clip_frechet@4"] == found["clip_frechet@1"] > 0.5
    mute = values(evaluate(studio(Mute()), settings(captions)))
    assert mute["r_precision@4"] == 0, "a tie is a miss"


def test_both_sides_are_blurred_and_only_distances_are_told_of_it(captions):
    found = values(evaluate(studio(), settings(captions, blur=(0, 1.5, 3))))
    blurred = {name for name in found if "/blur" in name}
    assert blurred == {f"clip_{what}@4/blur{radius}" for what in ("frechet", "kernel") for radius in ("1.5", "3")}
    assert found["clip_frechet@4/blur3"] == pytest.approx(0, abs=1e-5), "pictures of one grey level stay what they are"


def test_two_runs_write_the_same_bytes_whatever_the_batch(captions, tmp_path):
    for name, batch in (("one", 3), ("two", 64)):
        evaluate(studio(), settings(captions, batch=batch), str(tmp_path / name))
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert sorted(one) == ["pictures.png", "results.json", "sheet.html"]
    assert one == two
    page = one["sheet.html"].decode()
    assert page.count("<svg") == 4 + 2, "four metrics against N, the two distances against blur"
    assert "of 1: 0.00" in page
    assert "of 4: 1.00" in page


def test_numbers_that_are_none_and_too_little_data_are_refused(captions, tmp_path):
    with pytest.raises(EvaluationError, match="not finite"):
        evaluate(studio(Broken()), settings(captions))
    with pytest.raises(DatasetError, match="fewer than two images"):
        evaluate(studio(), settings(captions, limit=1))


def test_r_precision_asks_a_hundred_texts_and_counts_a_repeated_one_once():
    texts = [f"is {at}" for at in range(150)] + ["is 0"]
    emb = torch.from_numpy(np.random.default_rng(0).normal(size=(151, 16)))
    emb[150] = emb[0]
    emb /= emb.norm(dim=1, keepdim=True)
    assert r_precision_hits(emb, emb, texts, 0).all()
    guesses = emb.roll(1, 0)
    share = r_precision_hits(guesses, emb, texts, 0).float().mean()
    assert share < 0.1, "a picture of another text is nearest to its own by chance alone"
    # Of fewer others, each is asked; a nearer one is always among them.
    few = texts[: OTHERS + 1]
    near = torch.eye(len(few))
    assert r_precision_hits(near, near, few, 0).all()
    assert not r_precision_hits(near.roll(1, 0), near, few, 0).any()
    assert len(few) > DIM


def test_a_trained_dalle_is_asked_by_the_command(tmp_path, capsys):
    models = all_at(tmp_path / "models")
    write_tars(tmp_path / "data" / "test", [[captioned(at, f"a picture of {at}") for at in range(4)]])
    words = ["evaluate", models["dalle"], "--task", "generation", "--data", str(tmp_path / "data")]
    assert run_main(main, "training", words) == 2
    assert "who chooses among candidates? Give --rerank" in capsys.readouterr().err
    words += ["--rerank", models["clip"], "--num-candidates", "1,3", "--blur", "1"]
    assert run_main(main, "training", [*words, "--json", "--out", str(tmp_path / "out")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["metrics"]["clip_score@3"]["value"] >= facts["metrics"]["clip_score@1"]["value"]
    assert facts["model"]["vae"]["num"] == 16
    assert (tmp_path / "out" / "sheet.html").exists()
    assert run_main(main, "training", words) == 0
    assert "clip_frechet@3/blur1: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_draws_as_it_trains_and_its_report_shows_it(tmp_path, capsys):
    models = all_at(tmp_path / "models")
    make_shards(tmp_path / "data", [12])
    asked = {"task": "generation", "data": str(tmp_path / "data"), "rerank": models["clip"], "num_candidates": [1, 2],
             "every": 100, "queries": 2, "blur": []}  # fmt: skip
    told = {"model": {"name": "dalle", **WORDS, "vae": models["vae"]}, "samples": 2 * runs.BATCH}
    path = runs.recipe(tmp_path / "good", tmp_path / "data", **told, evaluate=[asked])
    assert runs.train(path, "--json") == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]
    assert metrics["generation/clip_score@2"] >= metrics["generation/clip_score@1"]
    assert (tmp_path / "good/run/evaluate/generation-0/pictures.png").exists()
    assert "data:image/png;base64," in (tmp_path / "good/run/report.html").read_text()
    lacking = runs.recipe(tmp_path / "lacking", tmp_path / "data", **told, evaluate=[asked | {"rerank": 0}])
    assert runs.train(lacking) == 2
    assert "who chooses among candidates?" in capsys.readouterr().err
    assert not (tmp_path / "lacking/run/metrics.jsonl").exists()
    other = runs.recipe(tmp_path / "bad", tmp_path / "data", **told, evaluate=[asked | {"task": "retrieval"}])
    assert runs.train(other) == 2
    assert "a dalle cannot be asked for retrieval" in capsys.readouterr().err


def test_a_task_refuses_the_other_ones_rerank(captions):
    with pytest.raises(UsageError, match="retrieval takes a number"):
        evaluate(Oracle(), settings(captions, task="retrieval", rerank="out/clip"))
    assert settings(captions, rerank="12").rerank == 12
    with pytest.raises(Exception, match="0 or more"):
        settings(captions, rerank=-1)
