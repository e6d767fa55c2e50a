"""Intervals: Wilson's for independent trials, wider for trials that depend on each other, never without a width."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.evaluate.confidence import mean_of_classes, share_of_hits

CLUSTERS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted), min_size=1, max_size=50)


def independent(hits: int, n: int):
    return share_of_hits(torch.arange(n) < hits, torch.ones(n))


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_of_independent_trials_it_is_wilsons(hits, n, low, high):
    share = independent(hits, n)
    assert share.value == hits / n
    assert (share.low, share.high) == pytest.approx((low, high), abs=5e-5)


def test_wilsons_bounds_solve_his_equation():
    share = independent(37, 50)
    for bound in (share.low, share.high):
        assert abs(share.value - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 50), abs=1e-6)


@given(CLUSTERS)
def test_the_share_lies_in_its_interval_and_the_interval_in_0_to_1(clusters):
    hits, trials = torch.tensor(clusters).unbind(1)
    share = share_of_hits(hits, trials)
    if share is None:
        assert not trials.sum()
    else:
        assert 0 <= share.low <= share.value <= share.high <= 1
        assert share.low < share.high
        assert share.n == trials.sum()


@given(st.integers(1, 40), st.integers(0, 40), st.integers(2, 9))
def test_trials_that_repeat_each_other_are_worth_one(n, hits, times):
    alone, repeated = (
        independent(min(hits, n), n),
        share_of_hits((torch.arange(n) < hits) * times, torch.full((n,), times)),
    )
    assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high))
    assert repeated.n == n * times


def test_dependent_trials_are_covered_as_often_as_the_interval_says():
    rng = np.random.default_rng(0)
    of_image = rng.beta(1, 1, (400, 200, 1))  # how easy each of 200 images is
    hits = torch.from_numpy((rng.random((400, 200, 5)) < of_image).sum(2))
    shares = [share_of_hits(row, torch.full((200,), 5)) for row in hits]
    covered = np.mean([share.low <= 0.5 <= share.high for share in shares])
    assert 0.92 < covered < 0.98  # 400 runs: standard error .011
    naive = [independent(int(row.sum()), 1000) for row in hits]
    assert np.mean([share.low <= 0.5 <= share.high for share in naive]) < 0.85


def test_classes_of_one_size_give_the_accuracys_interval():
    hits, trials = torch.tensor([3, 10, 7]), torch.tensor([10, 10, 10])
    classes, all_of_them = mean_of_classes(hits, trials), independent(20, 30)
    assert (classes.value, classes.low, classes.high, classes.n) == pytest.approx(
        (all_of_them.value, all_of_them.low, all_of_them.high, 30)
    )


def test_a_class_without_an_image_has_no_say():
    assert mean_of_classes(torch.tensor([1, 0]), torch.tensor([2, 0])) == mean_of_classes(
        torch.tensor([1]), torch.tensor([2])
    )


def test_a_class_of_few_images_makes_the_mean_less_sure():
    few = mean_of_classes(torch.tensor([50, 1]), torch.tensor([100, 2]))
    many = mean_of_classes(torch.tensor([26, 25]), torch.tensor([52, 50]))
    assert few.high - few.low > 2 * (many.high - many.low)


@pytest.mark.parametrize("share", [share_of_hits, mean_of_classes])
def test_without_a_trial_there_is_no_share(share):
    assert share(torch.zeros(3), torch.zeros(3)) is None
