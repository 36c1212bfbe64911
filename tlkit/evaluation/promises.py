"""Promises about new images, kept by a threshold that is chosen on validation: the error of what is answered, the coverage of sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log, log1p
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tlkit.evaluation.calibration import Numbers
from tlkit.evaluation.calibration import probabilities as calibrated
from tlkit.models.inference.trust import CONFIDENCE, Abstain, Conformal, Trust

STEPS = 20
"""Shares of the validation images that are tried, the surest first: 5 %, 10 % ..."""


@dataclass(frozen=True)
class NoPromise:
    """Why a promise can't be kept, as a sentence."""

    reason: str


def choose_threshold(confidence: Numbers, right: NDArray[np.bool_], error: float, groups: Sequence[str] = ()) -> Abstain | NoPromise:
    """Choose the lowest threshold whose error among the answered images stays below `error`, with CONFIDENCE.

    groups: of each image, where images come in groups; then each group counts as one, and the promise is about new groups.

    Shares of the validation images are tested in a fixed order, the surest first, each by the exact binomial (Clopper-Pearson) bound; the
    first that fails ends it. Tested in such an order, no threshold of several needs a stricter bound: the first wrong one, to be chosen,
    would have to pass a test that it fails with CONFIDENCE. The order begins where a share can pass at all.
    Source: Angelopoulos et al. 2021, Learn then Test, section 2.2 (fixed sequence testing), https://arxiv.org/abs/2110.01052
    """
    n = len(right)
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence, mistakes = confidence[order], np.cumsum(~right[order], dtype=np.int64)
    unit = np.unique(np.asarray(groups)[order], return_inverse=True)[1] if groups else np.arange(n)
    # The first image of each group, and so how many groups, or images, are answered.
    answered_units = np.cumsum(np.isin(np.arange(n), np.unique(unit, return_index=True)[1]))
    chosen = None
    for answered in _shares(sorted_confidence, least=int(np.searchsorted(answered_units, fewest_images(error))) + 1):
        wrong = ~right[order][:answered]
        if upper_bound(*(_effective(wrong, unit[:answered]) if groups else (int(wrong.sum()), answered))) > error:
            break
        chosen = answered
    if chosen is None:
        return NoPromise(_why_none_of_groups(int(answered_units[-1]), error) if groups else _why_none(mistakes, error))
    # Half-way to the next image, so that no rounding decides about one.
    threshold = 0.0 if chosen == n else float(sorted_confidence[chosen - 1 : chosen + 1].mean())
    return Abstain(threshold, error, chosen / n, n, groups=len(set(groups)))


def _effective(wrong: NDArray[np.bool_], unit: NDArray[np.int64]) -> tuple[float, float]:
    """Return the mistakes and answers of independent images that would vary as much as the groups' error rates; without any mistake, of
    one image a group.

    Source: Korn and Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts estimated from
    survey data", here one-sided. Of the mean of the groups' rates: where sizes differ, a ratio over all images is decided by a few groups,
    and a promise of 5 % was broken by up to 13 % of made-up data sets.
    """
    from scipy.stats import norm
    from scipy.stats import t as student_t

    answers = np.bincount(unit)
    mistakes, answers = np.bincount(unit, wrong)[answers > 0], answers[answers > 0]
    rates, groups = mistakes / answers, len(answers)
    share = float(rates.mean())
    if groups == 1 or not (variance := float(rates.var(ddof=1)) / groups):
        return share * groups, groups
    few = float(norm.ppf(CONFIDENCE) / student_t.ppf(CONFIDENCE, groups - 1)) ** 2
    number = min(len(wrong), share * (1 - share) / variance * few)
    return share * number, number


def _shares(sorted_confidence: Numbers, *, least: int) -> list[int]:
    """Return the numbers of answered images to test, of which the last differs in confidence from the next image."""
    n = len(sorted_confidence)
    ends = sorted({round(n * step / STEPS) for step in range(1, STEPS + 1)})
    return [end for end in ends if end >= least and (end == n or sorted_confidence[end - 1] > sorted_confidence[end])]


def upper_bound(mistakes: float, answered: float) -> float:
    """Return the error rate that is not exceeded, with CONFIDENCE (Clopper-Pearson, one-sided)."""
    from scipy.stats import beta

    return 1.0 if mistakes >= answered else float(beta.ppf(CONFIDENCE, mistakes + 1, answered - mistakes))


def fewest_images(error: float) -> int:
    """Return how many images without a single mistake show that the error is below `error`."""
    return ceil(log(1 - CONFIDENCE) / log1p(-error))


def _why_none_of_groups(groups: int, error: float) -> str:
    none = f"No threshold keeps the error below {error:g} with {CONFIDENCE:.0%} confidence on validation images of {groups} groups"
    few = groups < fewest_images(error)
    return (
        f"{none}: {f'it takes {fewest_images(error)} or more' if few else 'the surest have too many mistakes, or groups differ too much'}."
    )


def _why_none(mistakes: NDArray[np.int64], error: float) -> str:
    """Say how many validation images would be needed, if the share of mistakes among the surest stays as it is."""
    n = len(mistakes)
    none = f"No threshold keeps the error below {error:g} with {CONFIDENCE:.0%} confidence on {n} validation images"
    shares = sorted({max(1, round(n * step / STEPS)) for step in range(1, STEPS + 1)})
    needed = [found / (end / n) for end in shares if (found := _needed(int(mistakes[end - 1]) / end, error))]
    if not needed:
        return f"{none}: even among the surest {shares[0]} the share of mistakes is no smaller."
    at_least = max(ceil(min(needed)), fewest_images(error))
    return f"{none}: about {_two_digits(at_least)} are needed." if at_least > n else f"{none}: the surest have too many mistakes."


def _needed(rate: float, error: float) -> int | None:
    """Return how many answered images show an error below `error` when this share of them is wrong; None if none do."""
    if rate >= error:
        return None
    low, high = fewest_images(error), 10**7
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if upper_bound(ceil(rate * middle), middle) <= error else (middle + 1, high)
    return low if low < 10**7 else None


def _two_digits(number: int) -> int:
    """Round up: 1234 -> 1300."""
    step = int(10 ** max(0, len(str(number)) - 2))
    return ceil(number / step) * step


def fit_sets(probabilities: Numbers, labels: NDArray[np.int64], coverage: float, groups: Sequence[str] = ()) -> Conformal | NoPromise:
    """Choose how likely a class must be to stand in the set of answers, so that the own class is in it for `coverage` of new images.

    Split conformal prediction with one minus the own class's probability as score (LAC), the smallest sets on average. groups: of each
    image, where images come in groups; then each group counts as one, and the new images are those of new groups.
    Source: Sadinle et al. 2019, https://arxiv.org/abs/1609.00451; Angelopoulos and Bates 2021, section 1, https://arxiv.org/abs/2107.07511;
    for groups Lee, Barber and Willett 2023, https://arxiv.org/abs/2306.06342
    """
    images = len(labels)
    _, unit, sizes = np.unique(np.asarray(groups) if groups else np.arange(images), return_inverse=True, return_counts=True)
    n = len(sizes)
    if ceil((n + 1) * coverage - 1e-9) > n:  # 20 * 0.95 is a little more than 19
        needed, of = ceil(coverage / (1 - coverage) - 1e-9), "groups of validation images" if groups else "validation images"
        return NoPromise(f"Sets with a coverage of {coverage:g} need {needed} {of}, and there are {n}.")
    scores = 1 - probabilities[np.arange(images), labels]
    order = np.argsort(scores, kind="stable")
    held = np.cumsum(1 / sizes[unit[order]])  # groups whose images' own classes are in the set, up to each score
    place = int(np.searchsorted(held, (n + 1) * coverage - 1e-6))
    return Conformal(coverage, float(scores[order][place]), images, groups=n if groups else 0)


def coverage_range(sets: Conformal) -> tuple[float, float]:
    """Return between which shares the coverage is for 95 % of choices by as many validation images: the promise is their mean.

    Of images in groups, as if all images of a group were alike: at most so far apart.

    Source: Vovk 2012, as in Angelopoulos and Bates 2021, section 3.2, https://arxiv.org/abs/2107.07511
    """
    from scipy.stats import beta

    units = sets.groups or sets.pictures
    place = ceil((units + 1) * sets.coverage - 1e-9)
    low, high = beta.ppf([0.025, 0.975], place, units + 1 - place)
    return float(low), float(high)


def measure_promises(trust: Trust, logits: Tensor, labels: NDArray[np.int64]) -> dict[str, Any]:
    """Return what the promises came to on a split: `abstain` and `conformal` where the model has them."""
    found = calibrated(logits, trust.temperature)
    measured: dict[str, Any] = {}
    if trust.abstain:
        answered = found.max(1) >= trust.abstain.threshold
        wrong = int((found.argmax(1) != labels)[answered].sum())
        measured["abstain"] = {
            "threshold": trust.abstain.threshold,
            "promised_error": trust.abstain.error,
            "pictures": len(labels),
            "answered": int(answered.sum()),
            "mistakes": wrong,
            "coverage": float(answered.mean()),
            "error": wrong / max(1, int(answered.sum())),
        }
    if trust.conformal:
        sets = found >= 1 - trust.conformal.quantile
        measured["conformal"] = {
            "promised_coverage": trust.conformal.coverage,
            "pictures": len(labels),
            "coverage": float(sets[np.arange(len(labels)), labels].mean()),
            "mean_size": float(sets.sum(1).mean()),
            "empty": int((sets.sum(1) == 0).sum()),
        }
    return measured
