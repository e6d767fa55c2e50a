"""Recall against a reading that holds the whole matrix: ties, shared captions, any chunk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import DatasetError
from training.evaluate.retrieval import CUTS, pair_up, ranks, recall

E = 3


@st.composite
def worlds(draw):
    """Captions of 1 to 8 images, and embeddings of whole numbers: sums are exact, and ties many."""
    captions = draw(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4), min_size=1, max_size=8))
    numbers = st.lists(st.integers(-1, 1), min_size=E, max_size=E)
    images = draw(st.lists(numbers, min_size=len(captions), max_size=len(captions)))
    num_texts = len({text for own in captions for text in own})
    texts = draw(st.lists(numbers, min_size=num_texts, max_size=num_texts))
    return captions, torch.tensor(images).float(), torch.tensor(texts).float()


def by_brute_force(captions, image_emb, text_emb) -> dict[str, float]:
    """Sort, the wrong before the right where they tie, and look for a right one among the first k."""
    texts = list(dict.fromkeys(text for own in captions for text in own))
    near = image_emb.numpy() @ text_emb.numpy().T

    def is_found(scores, is_right, cut) -> bool:
        order = np.lexsort((is_right, -scores))
        return bool(is_right[order[:cut]].any())

    found = {}
    for cut in CUTS:
        of_images = [is_found(near[i], np.array([t in own for t in texts]), cut) for i, own in enumerate(captions)]
        of_captions = [
            is_found(near[:, texts.index(text)], np.array([text in other for other in captions]), cut)
            for own in captions
            for text in dict.fromkeys(own)
        ]
        found |= {f"image_to_text_r{cut}": np.mean(of_images), f"text_to_image_r{cut}": np.mean(of_captions)}
    return found


@given(worlds(), st.integers(1, 9))
def test_recall_in_chunks_is_recall_over_the_whole_matrix(world, chunk):
    captions, image_emb, text_emb = world
    got = recall(image_emb, text_emb, pair_up(captions), chunk)
    assert {name: share.value for name, share in got.items()} == pytest.approx(by_brute_force(*world))
    assert got["image_to_text_r1"].n == len(captions)
    assert got["text_to_image_r1"].n == sum(len(set(own)) for own in captions)


def test_where_every_image_has_captions_of_its_own_it_is_the_published_reading():
    # CLIP_benchmark: of each text the k nearest images hold its own; of each image the k nearest texts hold any of its.
    torch.manual_seed(0)
    num, each, dim = 60, 5, 16
    image_emb = torch.nn.functional.normalize(torch.randn(num, dim), dim=-1)
    text_emb = image_emb.repeat_interleave(each, 0) + torch.randn(num * each, dim) * 0.4
    text_emb = torch.nn.functional.normalize(text_emb, dim=-1)
    near = text_emb @ image_emb.T
    positive = torch.arange(num).repeat_interleave(each)[:, None] == torch.arange(num)
    captions = [[f"{i} {n}" for n in range(each)] for i in range(num)]
    got = recall(image_emb, text_emb, pair_up(captions), chunk=17)
    for cut in CUTS:
        nearest = torch.zeros_like(positive).scatter(1, near.topk(cut, dim=1).indices, True)
        assert got[f"text_to_image_r{cut}"].value == pytest.approx((nearest & positive).any(1).double().mean().item())
        nearest = torch.zeros_like(positive.T).scatter(1, near.T.topk(cut, dim=1).indices, True)
        assert got[f"image_to_text_r{cut}"].value == pytest.approx((nearest & positive.T).any(1).double().mean().item())
    assert 0.2 < got["text_to_image_r1"].value < 0.9  # neither trivial nor hopeless


@given(st.integers(2, 30), st.integers(1, 40))
def test_who_says_the_same_of_everything_finds_nothing(num, chunk):
    right = pair_up([[str(i)] for i in range(num)])
    got = recall(torch.ones(num, E), torch.ones(num, E), right, chunk)
    for name, share in got.items():
        assert share.value == (num <= int(name.rpartition("r")[2]))  # unless there is room for all


def test_a_caption_of_two_images_is_right_for_both():
    right = pair_up([["a frog"], ["a frog", "two frogs"]])
    assert (right.texts, right.num_shared) == (["a frog", "two frogs"], 1)
    got = recall(torch.eye(2), torch.eye(2), right)
    assert got["image_to_text_r1"].value == 1
    assert got["text_to_image_r1"].value == 1


def test_rounding_does_not_decide_between_copies_of_an_image():
    one = torch.nn.functional.normalize(torch.randn(1, 512, generator=torch.Generator().manual_seed(0)), dim=-1)
    copies = torch.cat([one, one * (1 + 1e-7)])
    of_image, of_text = ranks(copies, copies, pair_up([["a"], ["b"]]))
    assert of_image.tolist() == of_text.tolist() == [1, 1]


def test_one_image_with_one_caption_is_found():
    got = recall(torch.ones(1, E), torch.ones(1, E), pair_up([["a"]]))
    assert {share.value for share in got.values()} == {1.0}


def test_images_without_a_caption_are_found_by_nobody_and_ask_nothing():
    got = recall(torch.eye(2), torch.tensor([[0.0, 1.0]]), pair_up([["a"], []]))
    assert got["image_to_text_r1"].n == got["text_to_image_r1"].n == 1
    assert got["text_to_image_r1"].value == 0


def test_nothing_to_retrieve_is_refused():
    with pytest.raises(DatasetError, match="no image with a caption"):
        recall(torch.empty(0, E), torch.empty(0, E), pair_up([]))


def test_never_more_than_a_chunk_of_similarities_is_held(monkeypatch):
    sizes = []
    matmul = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: sizes.append(out := matmul(a, b)) or out)
    recall(torch.randn(100, E), torch.randn(100, E), pair_up([[str(i)] for i in range(100)]), chunk=8)
    assert sizes
    assert max(each.numel() for each in sizes) <= 64
