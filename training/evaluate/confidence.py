"""How sure a share is: 95 % intervals for shares of hits, of independent trials, of trials in clusters, of classes.

One formula, Wilson's, over the number of independent trials that the given ones are worth. It stays in [0, 1] and has
a width at shares of 0 and 1, too.
Sources: Wilson, JASA 22 (1927) 209; for clusters Korn and Graubard, Survey Methodology 24 (1998) 193, who put the
effective sample size into a binomial interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor

RESAMPLES = 1000  # of the bootstrap
Z = 1.959963984540054  # of the normal distribution, 95 % within


@dataclass(frozen=True)
class Share:
    """A share in [0, 1] or a mean, its interval where one is known, and the number of trials."""

    value: float
    low: float | None
    high: float | None
    n: int

    def facts(self) -> dict[str, float | int | None]:
        """JSON-ready."""
        return asdict(self)


def share_of_hits(hits: Tensor, trials: Tensor) -> Share | None:
    """hits, trials: (clusters,) numbers; trials of one cluster may depend on each other. None without a trial.

    With one trial a cluster it is Wilson's interval. The variance is that of a ratio of two sums, without the factor
    n / (n − 1), which would break that.
    """
    hits, trials = hits.double().cpu(), trials.double().cpu()
    n = int(trials.sum())
    if not n:
        return None
    value = hits.sum().item() / n
    variance = ((hits - value * trials) ** 2).sum().item() / n**2
    num_clusters = int((trials > 0).sum())
    # Where all hit or none does, the trials tell nothing of how they depend on each other: a cluster counts once.
    worth = value * (1 - value) / variance if variance > 0 else num_clusters
    return Share(value, *_wilson(value, min(worth, n)), n)


def mean_of_classes(hits: Tensor, trials: Tensor) -> Share | None:
    """Mean over classes of the share of hits in each; classes without a trial are left out. None without a trial.

    Worth C² / Σ 1/n trials, for C classes of n trials each: all of them where the classes are of one size.
    """
    hits, trials = hits.double().cpu()[trials.cpu() > 0], trials.double().cpu()[trials.cpu() > 0]
    if not len(trials):
        return None
    value = (hits / trials).mean().item()
    return Share(value, *_wilson(value, len(trials) ** 2 / (1 / trials).sum().item()), int(trials.sum()))


def mean_of(values: Sequence[float]) -> Share | None:
    """A mean of independent values that need not lie in [0, 1]; between the bootstrap's percentiles. None of no value.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if not len(values):
        return None
    found, chance = np.asarray(values, np.float64), np.random.default_rng(0)
    means = [found[chance.integers(len(found), size=len(found))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Share(float(found.mean()), float(low), float(high), len(found))


def _wilson(value: float, n: float) -> tuple[float, float]:
    middle = (value + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(value * (1 - value) / n + Z * Z / (4 * n * n))
    # Rounding must not put the share outside of its own interval.
    return max(0.0, min(value, middle - half)), min(1.0, max(value, middle + half))
