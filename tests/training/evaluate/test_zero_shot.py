"""Zero-shot: the mean of a class's sentences, argmax's order of ties, every class and prompt accounted for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import DatasetError, UsageError
from infra.storage import Storage
from infra.torchvision_here import make_importable
from training.evaluate.zero_shot import Prompts, accuracy, classifier, read_prompts

C, E = 7, 3
POINTS = st.lists(st.lists(st.integers(-1, 1), min_size=E, max_size=E), min_size=1, max_size=20)


@given(POINTS, st.lists(st.lists(st.integers(-1, 1), min_size=E, max_size=E), min_size=C, max_size=C),
       st.integers(1, 25), st.randoms())  # fmt: skip
def test_accuracy_is_argmaxs_whatever_the_chunk(points, classes, chunk, random):
    images, classes = torch.tensor(points).float(), torch.tensor(classes).float()
    labels = torch.tensor([random.randrange(C) for _ in points])
    got = accuracy(images, labels, classes, chunk)
    ranked = (-(images @ classes.T)).sort(dim=1, stable=True).indices
    for name, cut in (("top1", 1), ("top5", 5)):
        assert got.metrics[name].value == pytest.approx(
            (ranked[:, :cut] == labels[:, None]).any(1).double().mean().item()
        )
    hits = ranked[:, 0] == labels
    recalls = [hits[labels == c].double().mean().item() for c in range(C) if (labels == c).any()]
    assert got.metrics["mean_class_recall"].value == pytest.approx(sum(recalls) / len(recalls))
    assert int(got.num_images.sum()) == len(points)
    assert int(got.hits.sum()) == int(hits.sum())


def test_a_class_is_the_mean_of_its_sentences_each_of_unit_length():
    said = {"big a": [3.0, 0.0], "small a": [0.0, 0.5], "big b": [0.0, 1.0], "small b": [0.0, 2.0]}
    got = classifier(
        lambda texts: torch.tensor([said[text] for text in texts]), Prompts(["a", "b"], ["big {}", "small {}"])
    )
    torch.testing.assert_close(got, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))


def test_two_classes_of_one_name_are_told_by_their_order():
    got = accuracy(torch.eye(2)[[0, 0]], torch.tensor([0, 1]), torch.eye(2)[[0, 0, 1]])
    assert got.hits.tolist() == [1, 0, 0]
    assert got.by_class("aab")[2] == {"class": "b", "images": 0, "hits": 0, "recall": None}


@pytest.mark.parametrize(
    ("template", "sentence"), [("a {}!", "a {c} x!"), ("a {c}!", "a {c} x!"), ("a {} or {}", "a {c} x or {c} x")]
)
def test_a_name_with_braces_is_put_in_as_it_is(template, sentence):
    assert Prompts(["{c} x"], [template]).sentences("{c} x") == [sentence]


def test_prompts_come_from_files_then_from_the_data_then_from_the_paper(tmp_path):
    root = Storage(tmp_path)
    (tmp_path / "classnames.txt").write_text("cat\ndog\n\n")
    assert read_prompts(root, None, None) == Prompts(["cat", "dog"], ["a photo of a {}."])
    (tmp_path / "zeroshot_classification_templates.txt").write_text("the {c}\n")
    (tmp_path / "own.txt").write_text("köttur\r\nhundur")
    assert read_prompts(root, str(tmp_path / "own.txt"), None) == Prompts(["köttur", "hundur"], ["the {c}"])


@pytest.mark.parametrize(
    ("classes", "templates", "words"),
    [("a\nb", "no slot", "no {} where"), ("a", "{}", "two classes"), (None, "{}", "no such file")],
)
def test_prompts_that_cannot_be_are_refused_with_the_mend(tmp_path, classes, templates, words):
    if classes:
        (tmp_path / "classes").write_text(classes)
    (tmp_path / "templates").write_text(templates)
    with pytest.raises(UsageError, match=words):
        read_prompts(Storage(tmp_path), str(tmp_path / "classes"), str(tmp_path / "templates"))


def test_a_label_beyond_the_classes_is_refused():
    with pytest.raises(DatasetError, match="of class 2, but there are 2"):
        accuracy(torch.eye(2), torch.tensor([0, 2]), torch.eye(2))


def test_the_published_prompts_are_open_clips():
    prompts = read_prompts(Storage("."), "imagenet", "openai")
    assert (len(prompts.classes), len(prompts.templates)) == (1000, 80)
    assert (prompts.classes[0], prompts.sentences("dog")[:2]) == (
        "tench",
        ["a bad photo of a dog.", "a photo of many dog."],
    )


def test_the_classifier_is_open_clips_for_the_same_encoder():
    make_importable()
    from open_clip.zero_shot_classifier import build_zero_shot_classifier

    table = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))

    class Model:
        def encode_text(self, tokens, normalize):
            return F.normalize(table[tokens], dim=-1)

    def tokens(texts):
        return torch.tensor([sum(text.encode()) % 100 for text in texts])

    prompts = Prompts(["cat", "dog", "eel"], ["a {}", "the {}", "{}!"])
    want = build_zero_shot_classifier(Model(), tokens, prompts.classes, prompts.templates)
    got = classifier(lambda texts: table[tokens(texts)], prompts)
    torch.testing.assert_close(got, want.T)
