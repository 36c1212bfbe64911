"""Whether two samples come from one population: tests whose rate of false alarms is what they say."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
PERMUTATIONS = 499
"""A p-value is then a multiple of 1 / 500, and holds exactly."""


def feature_test(first: Numbers, second: Numbers, *, seed: int = 0) -> float:
    """Return the p-value of equal feature distributions, [N, F] and [M, F]: maximum mean discrepancy, by permutations.

    The kernel is Gaussian, its width the median distance.
    Source: Gretton et al. 2012, sections 2 and 8, https://jmlr.org/papers/v13/gretton12a.html
    """
    from scipy.spatial.distance import pdist, squareform

    squared = squareform(pdist(np.concatenate([first, second]), "sqeuclidean"))
    median = np.median(squared[np.triu_indices_from(squared, 1)])
    kernel = np.exp(-squared / max(float(median), 1e-12))
    signs = _signs(len(first), len(second), seed)
    found = np.einsum("pn,pn->p", signs @ kernel, signs)
    return _p_value(found)


def share_test(first: NDArray[np.int64], second: NDArray[np.int64], classes: int, *, seed: int = 0) -> float:
    """Return the p-value of equal shares of K classes, [N] and [M]: chi-square, by permutations, which small counts don't upset."""
    together = np.concatenate([first, second])
    one_hot = np.eye(classes)[together]
    expected = one_hot.mean(0)
    seen = expected > 0
    differences = _signs(len(first), len(second), seed) @ one_hot[:, seen]  # of the shares
    return _p_value((differences**2 / expected[seen]).sum(1))


def value_test(first: Numbers, second: Numbers) -> float:
    """Return the p-value of equal distributions of a number, [N] and [M]: Kolmogorov-Smirnov, which ties make only more cautious."""
    from scipy.stats import ks_2samp

    return float(ks_2samp(first, second, method="auto").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number: with no difference at all, one of them is below 0.05 in at most 5 % of cases.

    Source: Holm 1979, https://www.jstor.org/stable/4615733
    """
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(np.asarray(p_values)[order] * np.arange(len(order), 0, -1))
    adjusted: list[float] = np.minimum(1.0, stepped)[np.argsort(order)].tolist()
    return adjusted


def _signs(n: int, m: int, seed: int) -> Numbers:
    """Return weights 1/N and -1/M of the images, first as they are and then in random order: [1 + PERMUTATIONS, N + M]."""
    draws = np.random.default_rng(seed)
    weights = np.concatenate([np.full(n, 1 / n), np.full(m, -1 / m)])
    return np.stack([weights, *(draws.permutation(weights) for _ in range(PERMUTATIONS))])


def _p_value(found: Numbers) -> float:
    """Return the share of statistics, of order 1, that are at least the first, which is that of the data; itself among them."""
    return float((found >= found[0] - 1e-12).mean())  # rounding makes no difference where all images are alike
