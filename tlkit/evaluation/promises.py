"""Promises about new images, kept by a threshold that is chosen on validation: the error of what is answered, the coverage of sets."""

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


def choose_threshold(confidence: Numbers, right: NDArray[np.bool_], error: float) -> Abstain | NoPromise:
    """Choose the lowest threshold whose error among the answered images stays below `error`, with CONFIDENCE.

    Shares of the validation images are tested in a fixed order, the surest first, each by the exact binomial (Clopper-Pearson) bound; the
    first that fails ends it. Tested in such an order, no threshold of several needs a stricter bound: the first wrong one, to be chosen,
    would have to pass a test that it fails with CONFIDENCE. The order begins where a share can pass at all.
    Source: Angelopoulos et al. 2021, Learn then Test, section 2.2 (fixed sequence testing), https://arxiv.org/abs/2110.01052
    """
    n = len(right)
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence, mistakes = confidence[order], np.cumsum(~right[order], dtype=np.int64)
    chosen = None
    for answered in _shares(sorted_confidence, least=fewest_images(error)):
        if upper_bound(int(mistakes[answered - 1]), answered) > error:
            break
        chosen = answered
    if chosen is None:
        return NoPromise(_why_none(mistakes, error))
    # Half-way to the next image, so that no rounding decides about one.
    threshold = 0.0 if chosen == n else float(sorted_confidence[chosen - 1 : chosen + 1].mean())
    return Abstain(threshold, error, chosen / n, n)


def _shares(sorted_confidence: Numbers, *, least: int) -> list[int]:
    """Return the numbers of answered images to test, of which the last differs in confidence from the next image."""
    n = len(sorted_confidence)
    ends = sorted({round(n * step / STEPS) for step in range(1, STEPS + 1)})
    return [end for end in ends if end >= least and (end == n or sorted_confidence[end - 1] > sorted_confidence[end])]


def upper_bound(mistakes: int, answered: int) -> float:
    """Return the error rate that is not exceeded, with CONFIDENCE (Clopper-Pearson, one-sided)."""
    from scipy.stats import beta

    return 1.0 if mistakes >= answered else float(beta.ppf(CONFIDENCE, mistakes + 1, answered - mistakes))


def fewest_images(error: float) -> int:
    """Return how many images without a single mistake show that the error is below `error`."""
    return ceil(log(1 - CONFIDENCE) / log1p(-error))


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


def fit_sets(probabilities: Numbers, labels: NDArray[np.int64], coverage: float) -> Conformal | NoPromise:
    """Choose how likely a class must be to stand in the set of answers, so that the own class is in it for `coverage` of new images.

    Split conformal prediction with one minus the own class's probability as score (LAC), the smallest sets on average.
    Source: Sadinle et al. 2019, https://arxiv.org/abs/1609.00451; Angelopoulos and Bates 2021, section 1, https://arxiv.org/abs/2107.07511
    """
    n = len(labels)
    place = ceil((n + 1) * coverage - 1e-9)  # 20 * 0.95 is a little more than 19
    if place > n:
        return NoPromise(
            f"Sets with a coverage of {coverage:g} need {ceil(coverage / (1 - coverage) - 1e-9)} validation images, and there are {n}."
        )
    scores = np.sort(1 - probabilities[np.arange(n), labels])
    return Conformal(coverage, float(scores[place - 1]), n)


def coverage_range(sets: Conformal) -> tuple[float, float]:
    """Return between which shares the coverage is for 95 % of choices by as many validation images: the promise is their mean.

    Source: Vovk 2012, as in Angelopoulos and Bates 2021, section 3.2, https://arxiv.org/abs/2107.07511
    """
    from scipy.stats import beta

    place = ceil((sets.pictures + 1) * sets.coverage - 1e-9)
    low, high = beta.ppf([0.025, 0.975], place, sets.pictures + 1 - place)
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
