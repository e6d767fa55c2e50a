"""An evaluation end to end: known answers give known numbers, every sample is counted, twice gives the same bytes."""

from __future__ import annotations

import json
import re

import pytest
import torch

from infra.errors import UsageError
from tests.training.evaluate.oracle import Broken, Mute, Oracle, captioned, grey, labelled, write_tars
from tests.training.shards import make_shards
from training.evaluate.run import evaluate, told
from training.evaluate.settings import EvaluationSettings
from training.evaluate.task import EvaluationError

NOT_AN_IMAGE = b"<html>gone</html>"


def settings(task, path, **more):
    return EvaluationSettings.parse({"task": task, "data": str(path), "batch": 3, "threads": 2, **more}, "test")


@pytest.fixture
def classes(tmp_path):
    """Four classes of which one has no image; of eight samples one is mislabelled, two are broken, one has no label."""
    good = [labelled(at, at) for at in (0, 1, 2, 0)]
    wrong = labelled(1, 2)
    broken = [{"png": NOT_AN_IMAGE, "cls": b"1"}, {"cls": b"1"}]
    write_tars(tmp_path / "test", [good, [wrong, *broken, {"png": grey(3)}]])
    (tmp_path / "classnames.txt").write_text("class 0\nclass 1\nclass 2\nclass 3\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}.\nthe {c}\n")
    return tmp_path


@pytest.fixture
def captions(tmp_path):
    """Five samples: two share a caption, one is broken, one has no caption; one caption is of another picture."""
    write_tars(tmp_path / "test", [
        [captioned(0, "is 0", "looks 1"), captioned(1, "looks 1")], [captioned(2, "is 2"), {"jpg": grey(3)},
         {"jpg": NOT_AN_IMAGE, "txt": b"is 4"}],
    ])  # fmt: skip
    return tmp_path


def test_zero_shot_counts_every_sample_and_says_what_it_found(classes):
    facts = evaluate(Oracle(), settings("zero_shot", classes))
    assert facts["counts"] == {
        "samples": 8, "images": 5, "unreadable": {"no_image": 1, "not_an_image": 1}, "without_class": 1,
        "classes": 4, "classes_without_image": 1, "classes_of_one_name": 0, "templates": 2,
    }  # fmt: skip
    assert facts["metrics"]["top1"]["value"] == 4 / 5
    assert facts["metrics"]["mean_class_recall"]["value"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert [row["recall"] for row in facts["classes"]] == [1, 1, 0.5, None]
    assert (
        told(facts)[-1] == "5 images of 8 samples; 1 unreadable, no image; 1 unreadable, not an image; 1 without class"
    )


def test_retrieval_counts_every_sample_and_says_what_it_found(captions):
    facts = evaluate(Oracle(), settings("retrieval", captions))
    assert facts["counts"] == {
        "samples": 5, "images": 3, "unreadable": {"not_an_image": 1}, "without_caption": 1,
        "captions": 4, "texts": 3, "shared_texts": 1,
    }  # fmt: skip
    assert {name: share["value"] for name, share in facts["metrics"].items()} == dict.fromkeys(facts["metrics"], 1.0)
    assert facts["metrics"]["text_to_image_r1"]["n"] == 4


def test_who_says_the_same_of_everything_is_as_good_as_chance(captions):
    facts = evaluate(Mute(), settings("retrieval", captions))
    assert facts["metrics"]["text_to_image_r1"]["value"] == 0


def test_numbers_that_are_none_are_refused_and_not_taken_for_found(captions):
    with pytest.raises(EvaluationError, match="of 3 of 3 images are not finite"):
        evaluate(Broken(), settings("retrieval", captions))


@pytest.mark.parametrize("task", ["zero_shot", "retrieval"])
def test_two_runs_write_the_same_bytes_whatever_the_batch(task, request, tmp_path):
    data = request.getfixturevalue("classes" if task == "zero_shot" else "captions")
    evaluate(Oracle(), settings(task, data), str(tmp_path / "one"))
    evaluate(Oracle(), settings(task, data, batch=64, threads=1), str(tmp_path / "two"))
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert sorted(one) == ["results.json", "sheet.html"]
    assert one == two
    assert json.loads(one["results.json"]) == evaluate(Oracle(), settings(task, data))


def test_another_image_is_another_digest(captions):
    first = evaluate(Oracle(), settings("retrieval", captions))["data"]["digest"]
    write_tars(captions / "test", [[captioned(7, "is 0", "looks 1"), captioned(1, "looks 1")], [captioned(2, "is 2")]])
    assert evaluate(Oracle(), settings("retrieval", captions))["data"]["digest"] != first


def test_a_limit_takes_the_first_samples_alone(captions):
    facts = evaluate(Oracle(), settings("retrieval", captions, limit=2))
    assert (facts["counts"]["samples"], facts["data"]["limit"]) == (2, 2)


def test_retrieval_reads_our_datasets(tmp_path):
    make_shards(tmp_path, [3, 2], images={1: NOT_AN_IMAGE})
    facts = evaluate(Oracle(), settings("retrieval", tmp_path))
    assert facts["counts"]["images"] == 4
    assert facts["data"]["selection"] is None


def test_classes_are_refused_where_they_mean_nothing(captions):
    with pytest.raises(UsageError, match="for zero_shot"):
        evaluate(Oracle(), settings("retrieval", captions, classes="imagenet"))


def test_an_unknown_task_is_told_with_the_nearest(captions):
    with pytest.raises(UsageError, match="did you mean retrieval"):
        evaluate(Oracle(), settings("retreival", captions))


def test_the_sheet_shows_hostile_texts_and_runs_none_of_them(tmp_path):
    hostile = "<script>alert(1)</script>\u202e\x07 & \"quotes' 0"
    write_tars(tmp_path / "test", [[captioned(0, hostile), captioned(1, "{{ 7 * 7 }} 1")]])
    evaluate(Oracle(), settings("retrieval", tmp_path), str(tmp_path / "out"))
    page = (tmp_path / "out" / "sheet.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert "\u202e" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)


def test_the_sheet_marks_who_is_right_and_says_where_who_is_not(captions):
    evaluate(Oracle(), settings("retrieval", captions), str(captions / "out"))
    page = (captions / "out" / "sheet.html").read_text()
    assert page.count("right at first") == 6  # three images, three texts
    assert re.findall(r"<dt>(.*?)</dt>", page) == [
        f"{way}, recall@{cut}" for way in ("image to text", "text to image") for cut in (1, 5, 10)
    ]
    assert "right at place" not in page
    evaluate(Mute(), settings("retrieval", captions), str(captions / "out"))
    page = (captions / "out" / "sheet.html").read_text()
    assert "right at first" not in page


def test_without_queries_there_is_no_sheet(captions):
    evaluate(Oracle(), settings("retrieval", captions, queries=0), str(captions / "out"))
    assert [path.name for path in (captions / "out").iterdir()] == ["results.json"]


@pytest.mark.slow
def test_a_real_encoder_gives_the_same_twice(classes):
    from training.models.clip import ClipSettings
    from training.models.clip_spec import TINY, build
    from training.models.encoder import Encoder

    torch.manual_seed(0)
    encoder = Encoder(build(ClipSettings.parse(TINY, "test")), "cpu", "float32")
    facts = evaluate(encoder, settings("zero_shot", classes))
    assert facts["counts"]["images"] == 5
    assert facts["model"] == encoder.identity()
    assert facts == evaluate(encoder, settings("zero_shot", classes))
