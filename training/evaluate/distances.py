"""How far are drawn pictures from real ones, as two clouds of features? Fréchet, kernel, and Inception's own score.

Arithmetic is torchmetrics'. Which network's features are compared is the caller's: CLIP's, or Inception's (FID, KID).
Sources: FID, arXiv 1706.08500; KID, arXiv 1801.01401; Inception score, arXiv 1606.03498.
"""

# Shapes: N real and M drawn pictures, D features, K classes

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from infra.torchvision_here import make_importable

DISTANCES = ("clip_frechet", "clip_kernel", "fid", "inception_score")  # metrics that are no shares
SUBSETS, SUBSET_SIZE = 100, 1000  # KID's
SPLITS = 10  # the Inception score's


class _Given(nn.Module):
    """Features that have been computed already."""

    def __init__(self, num: int) -> None:
        super().__init__()
        self.num_features = num

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet(real: Tensor, drawn: Tensor) -> float:
    """(N, D), (M, D), two rows at least of each → the distance of two normal distributions, 0 or more.

    It shrinks as rows grow in number: compare distances of equal numbers only.
    """
    make_importable()
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(real.shape[1])).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(drawn.double(), real=False)
    return float(metric.compute())


def kernel(real: Tensor, drawn: Tensor) -> float:
    """(N, D), (M, D) → squared maximum mean discrepancy under a cubic kernel, unbiased: of equal clouds 0 on average.

    Of more than SUBSET_SIZE rows the mean over SUBSETS drawn ones, the same ones each time.
    """
    make_importable()
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(real), len(drawn))
    subsets, size = (SUBSETS, SUBSET_SIZE) if size > SUBSET_SIZE else (1, size)
    with _quiet():
        metric = KernelInceptionDistance(feature=_Given(real.shape[1]), subsets=subsets, subset_size=size)
    metric.update(real.double(), real=True)
    metric.update(drawn.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean, _ = metric.compute()
    return float(mean)


def inception_score(logits: Tensor) -> float:
    """(M, K), of at least SPLITS pictures → 1 to K: how sure of each picture, and how various over all of them."""
    make_importable()
    from torchmetrics.image.inception import InceptionScore

    with _quiet():
        metric = InceptionScore(feature=_Given(logits.shape[1]), splits=SPLITS)
    metric.update(logits.double())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean, _ = metric.compute()
    return float(mean)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warning that it keeps the features, which are kept anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `")
        yield
