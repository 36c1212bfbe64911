"""Two models on the same images: the interval of their difference, and how likely chance alone makes one as large."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

RESAMPLES = 10_000
CHUNK = 4_000_000
"""Numbers that are held at once, of resamples times groups."""


def mcnemar_mid_p(gained: int, lost: int) -> float:
    """Return the mid-p value of McNemar's test, two-sided.

    gained, lost: images that only the second model, and only the first, classifies correctly.

    Source: Fagerland, Lydersen and Laake 2013, https://doi.org/10.1186/1471-2288-13-91
    """
    smaller, discordant = min(gained, lost), gained + lost
    p = 2 * binom.cdf(smaller, discordant, 0.5) - binom.pmf(smaller, discordant, 0.5)
    return float(min(p, 1.0)) if gained != lost else 1.0


def effective_number(weights: NDArray[np.float64], groups: Sequence[object] | None = None) -> float:
    """Return how many images, or groups, would make the weighted sum as sure if all counted alike (Kish 1965). Arguments as below."""
    shares = weights if groups is None else np.bincount(np.unique(np.asarray(groups), return_inverse=True)[1], weights)
    return 1 / float((shares**2).sum())


def paired_interval(
    difference: NDArray[np.int_],
    weights: NDArray[np.float64],
    strata: Sequence[object],
    groups: Sequence[object] | None = None,
    *,
    seed: int,
) -> tuple[float, float]:
    """Return the 95 % interval of the weighted sum of the differences, by the percentiles of a paired bootstrap.

    difference: of each image, 1 where only the second model is right, -1 where only the first is, else 0 [N]. weights: what an image
    counts [N]; their sum is 1. strata: images are drawn within theirs (a class, where each class counts alike). groups: drawn as a whole,
    across strata, since images of one patient or one video are not independent.
    Time grows with N, and with RESAMPLES times the strata or the groups.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3
    """
    random = np.random.default_rng(seed)
    if groups is not None:
        sums, shares = _per_group(difference, weights, groups)
        drawn = np.concatenate(list(_ratios(sums, shares, random)))
    else:
        drawn = np.zeros(RESAMPLES)
        for weight, values in _strata(difference, weights, strata):
            count = len(values)
            better, worse = int((values > 0).sum()), int((values < 0).sum())
            counts = random.multinomial(count, [better / count, worse / count, (count - better - worse) / count], RESAMPLES)
            drawn += weight * (counts[:, 0] - counts[:, 1])
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def randomization_p(
    difference: NDArray[np.int_],
    weights: NDArray[np.float64],
    strata: Sequence[object],
    groups: Sequence[object] | None = None,
    *,
    seed: int,
) -> float:
    """Return the two-sided p-value of the weighted sum of the differences, where the two models' answers are exchanged at random.

    Arguments as for `paired_interval`; the answers of a group are exchanged together.

    Source: Noreen 1989, Computer-Intensive Methods for Testing Hypotheses, chapter 2
    """
    random = np.random.default_rng(seed)
    observed = abs(float(difference @ weights))
    if groups is not None:
        sums = _per_group(difference, weights, groups)[0]
        sums = sums[sums != 0]
        chunks = _chunks(len(sums))
        drawn = np.concatenate([(2 * random.integers(0, 2, (rows, len(sums))) - 1) @ sums for rows in chunks])
    else:
        drawn = np.zeros(RESAMPLES)
        for weight, values in _strata(difference, weights, strata):
            discordant = int((values != 0).sum())
            drawn += weight * (2 * random.binomial(discordant, 0.5, RESAMPLES) - discordant)
    as_large = int((np.abs(drawn) >= observed - 1e-12).sum())
    return (1 + as_large) / (1 + RESAMPLES)


def _strata(difference: NDArray[np.int_], weights: NDArray[np.float64], strata: Sequence[object]) -> list[tuple[float, NDArray[np.int_]]]:
    """Return each stratum's weight of an image and its differences."""
    _, first, number = np.unique(np.asarray(strata), return_index=True, return_inverse=True)
    order = np.argsort(number, kind="stable")
    parts = np.split(difference[order], np.cumsum(np.bincount(number))[:-1])
    return list(zip(weights[first].tolist(), parts, strict=True))


def _per_group(
    difference: NDArray[np.int_], weights: NDArray[np.float64], groups: Sequence[object]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    number = np.unique(np.asarray(groups), return_inverse=True)[1]
    sums, shares = (np.bincount(number, values).astype(np.float64) for values in (difference * weights, weights))
    return sums, shares


def _ratios(sums: NDArray[np.float64], shares: NDArray[np.float64], random: np.random.Generator) -> "list[NDArray[np.float64]]":
    """Return the weighted mean difference of RESAMPLES draws of the groups."""
    counts = (random.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), rows) for rows in _chunks(len(sums)))
    return [drawn @ sums / (drawn @ shares) for drawn in counts]


def _chunks(groups: int) -> list[int]:
    rows = max(1, CHUNK // max(1, groups))
    return [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
