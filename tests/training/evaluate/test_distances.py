"""Distances of clouds against their formulas; Inception from a file alone, and never by a pickle that runs."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import save_file

from infra.errors import UsageError
from tests.training.evaluate.fidelity_inception import FOUND, drawn, pictures
from training.evaluate.distances import SUBSET_SIZE, frechet, inception_score, kernel
from training.evaluate.inception import Inception, network


def cloud(num, dim, seed, shift=0.0):
    chance = np.random.default_rng(seed)
    mix = np.random.default_rng(0).normal(size=(dim, dim))
    return torch.from_numpy(chance.normal(size=(num, dim)) @ mix + shift)


def test_frechet_is_the_distance_of_two_normal_distributions():
    one, two = cloud(80, 6, 1), 1.5 * cloud(50, 6, 2, shift=0.3)
    means, covs = zip(*((x.mean(0).numpy(), np.cov(x.numpy().T)) for x in (one, two)), strict=True)
    root = scipy.linalg.sqrtm(covs[0] @ covs[1]).real
    wanted = ((means[0] - means[1]) ** 2).sum() + np.trace(covs[0] + covs[1] - 2 * root)
    assert frechet(one, two) == pytest.approx(wanted, rel=1e-6)
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet(one, one + 2) == pytest.approx(4 * 6, rel=1e-6)
    fewer = cloud(4, 6, 3)  # a covariance of lower rank than the space
    assert frechet(fewer, one) > 0
    assert frechet(fewer.float(), fewer.float()) == pytest.approx(0, abs=1e-4)


def test_kernel_is_the_unbiased_sum_over_pairs():
    one, two = cloud(7, 4, 1), cloud(7, 4, 2, shift=0.5)

    def k(x, y):
        return (float(x @ y) / 4 + 1) ** 3

    def within(x):
        return sum(k(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)

    across = sum(k(x, y) for x in one for y in two) / 49
    assert kernel(one, two) == pytest.approx(within(one) + within(two) - 2 * across, rel=1e-6)


def test_kernel_of_equal_clouds_is_about_nothing_and_the_same_each_time():
    one, two, far = cloud(SUBSET_SIZE + 200, 3, 1), cloud(SUBSET_SIZE + 200, 3, 2), cloud(SUBSET_SIZE + 200, 3, 3, 1.0)
    state = torch.random.get_rng_state()
    near = kernel(one, two)
    assert abs(near) < 0.1 * kernel(one, far)
    assert kernel(one, two) == near
    assert torch.equal(torch.random.get_rng_state(), state)


def test_inception_score_is_one_of_who_says_the_same_and_the_number_of_classes_of_who_is_sure():
    assert inception_score(torch.zeros(50, 8)) == pytest.approx(1)
    sure = 50 * torch.eye(8)[torch.arange(4000) % 8]
    assert inception_score(sure) == pytest.approx(8, rel=0.02)  # splits are drawn: not all classes stand equally often


@pytest.fixture(scope="module")
def weights():
    return drawn({name: tensor.shape for name, tensor in network().state_dict().items()})


@pytest.mark.parametrize("file", ["weights.pth", "weights.safetensors"])
def test_inception_gives_what_fids_reference_gave_from_either_kind_of_file(weights, tmp_path, file):
    path = tmp_path / file
    torch.save(weights, path) if path.suffix == ".pth" else save_file(weights, path)
    features, logits = Inception(str(path), "cpu")(pictures())
    with np.load(FOUND) as wanted:
        for found, name in ((features, "features"), (logits, "logits")):
            assert wanted[name].std() > 1
            np.testing.assert_allclose(found.numpy(), wanted[name], atol=2e-4 * np.abs(wanted[name]).max())


class Trap:
    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_other_files_are_refused_and_no_pickle_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv.weight": torch.zeros(3)}, "other.pth")
    with pytest.raises(UsageError, match=r"other\.pth: not the weights of Inception-v3"):
        Inception("other.pth", "cpu")
    with open("trap.pth", "wb") as file:
        pickle.dump({"conv.weight": Trap()}, file)
    with pytest.raises(UsageError, match="not read, as more than tensors may lie in it"):
        Inception("trap.pth", "cpu")
    assert not (tmp_path / "trapped").exists()
    with pytest.raises(UsageError, match="there is no such file"):
        Inception("none.pth", "cpu")
