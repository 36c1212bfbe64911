"""Calibration: one temperature, fitted on validation, so that of the answers given with 90 % about 90 % are right.

It divides all logits of an image by the same number and so never changes an answer: docs/decisions/0014.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor
from torch.nn.functional import cross_entropy

from tlkit.evaluation.answers import Answers
from tlkit.models.inference.trust import Calibration
from tlkit.recipe.fields.model import WITHOUT_PROBABILITIES, Head
from tlkit.recipe.schema import Task
from tlkit.terminal import counted

Numbers = NDArray[np.float64]
FEWEST_IMAGES, FEWEST_MISTAKES = 50, 5
"""Of validation, below which no temperature is fitted. A fit to fewer mistakes than five is one to single images."""
BOUNDS = (0.2, 5.0)
BINS = 10
RESAMPLES = 500
POINTS = 50
"""Of the curve of error by coverage."""


def fit_calibration(validation: Answers, *, task: Task, head: Head) -> Calibration:
    """Fit the temperature by maximum likelihood on validation, within BOUNDS."""
    n = len(validation.labels)
    if reason := why_uncalibrated(task, head):
        return Calibration(1.0, n, reason)
    mistakes = int((validation.logits.argmax(1) != validation.labels).sum())
    if n < FEWEST_IMAGES or mistakes < FEWEST_MISTAKES:
        found = f"{counted(n, 'validation image')} with {counted(mistakes, 'mistake')}"
        return Calibration(1.0, n, f"{found} can't tell a temperature; it takes {FEWEST_IMAGES} with {FEWEST_MISTAKES}.")
    return Calibration(best_temperature(validation.logits.double(), validation.labels, bounds=BOUNDS), n)


def why_uncalibrated(task: Task, head: Head) -> str:
    """Return why a model has no calibrated probabilities, as a sentence; empty where it has."""
    if task == "multilabel":
        return "A temperature is fitted for one label per image; with several, each class has its own threshold, from validation."
    if head.kind in WITHOUT_PROBABILITIES:
        return f"{'An' if head.kind == 'svm' else 'A'} {head.kind} head gives scores that order the classes, and no probabilities."
    return ""


@torch.inference_mode()
def best_temperature(logits: Tensor, labels: Tensor, *, bounds: tuple[float, float]) -> float:
    """Return the divisor of logits [N, K] with the smallest loss.

    Source: Guo et al. 2017, section 4.2, https://arxiv.org/abs/1706.04599
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(lambda log_t: float(cross_entropy(logits / np.exp(log_t), labels)), bounds=np.log(bounds))
    return float(np.exp(found.x))


def probabilities(logits: Tensor, temperature: float) -> Numbers:
    """Return calibrated probabilities, [N, K]."""
    found: Numbers = softmax(logits.double().numpy() / temperature, axis=1)
    return found


def measure_calibration(answers: Answers, calibration: Calibration) -> dict[str, Any]:
    """Return `calibration` and `risk_coverage` of a split, for one label per image, as plain JSON values."""
    labels = answers.labels.numpy()
    right = answers.logits.argmax(1).numpy() == labels
    measured: dict[str, Any] = {"temperature": calibration.temperature, "fitted_on": calibration.pictures}
    if calibration.reason:
        measured["reason"] = calibration.reason
    for when, temperature in (("before", 1.0), ("after", calibration.temperature)):
        confidence = probabilities(answers.logits, temperature).max(1)
        measured[f"ece_{when}"] = calibration_error(confidence, right)
        measured[f"ece_{when}_interval"] = calibration_error_interval(confidence, right)
        measured[f"bins_{when}"] = reliability_bins(confidence, right)
    return {"calibration": measured, "risk_coverage": risk_coverage(confidence, right)}


def calibration_error(confidence: Numbers, right: NDArray[np.bool_]) -> float:
    """Return the expected calibration error: how far confidence and accuracy are apart, averaged over bins of equally many images.

    Source: Nixon et al. 2019 on bins of equal mass, https://arxiv.org/abs/1904.01685
    """
    order = np.argsort(confidence, kind="stable")
    return _binned_error((confidence - right)[order])


def calibration_error_interval(confidence: Numbers, right: NDArray[np.bool_], *, seed: int = 0) -> list[float]:
    """Return its 95 % interval, by resampling images.

    Chance alone parts confidence and accuracy in a bin, so an estimate lies above the true error (by about 0.04 for 1,000 images), and
    resamples lie above the estimate. Hence the upper end is the percentile of resamples, and the lower end reflects them at the estimate;
    it is 0 where a perfectly calibrated model with these confidences may well have such an error, too. Held by the test on drawn answers.
    Source: Davison and Hinkley 1997, section 5.2 (basic interval); Vaicenavicius et al. 2019, section 5 (consistency resampling).
    """
    n, estimate, draws = len(right), calibration_error(confidence, right), np.random.default_rng(seed)
    ordered, order = np.sort(confidence), np.argsort(confidence, kind="stable")
    gaps = (confidence - right)[order]
    number = max(100, min(RESAMPLES, 10**7 // n))
    resampled = [_binned_error(gaps[np.sort(draws.integers(0, n, n))]) for _ in range(number)]
    by_chance = [_binned_error(ordered - (draws.random(n) < ordered)) for _ in range(number)]
    high = np.quantile(resampled, 0.975)
    could_be_perfect = estimate <= np.quantile(by_chance, 0.975)
    return [0.0 if could_be_perfect else max(0.0, float(2 * estimate - high)), float(high)]


def _binned_error(gaps: Numbers) -> float:
    """Return the calibration error of gaps between confidence and right (1 or 0), in the order of confidence."""
    return float(np.abs(np.add.reduceat(gaps, _bin_starts(len(gaps)))).sum() / len(gaps))


def _bin_starts(images: int) -> NDArray[np.int64]:
    """Return where the bins of equally many images begin, at least ten in each."""
    bins = max(1, min(BINS, images // 10))
    return np.arange(bins) * images // bins


def reliability_bins(confidence: Numbers, right: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Return mean confidence, accuracy and count of each bin of equally many images, the least sure first."""
    order = np.argsort(confidence, kind="stable")
    bins = np.split(order, _bin_starts(len(order))[1:])
    return [{"confidence": float(confidence[one].mean()), "accuracy": float(right[one].mean()), "count": len(one)} for one in bins]


def risk_coverage(confidence: Numbers, right: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Return the error among the surest images, for growing shares of all images: what abstaining from the others would give."""
    order = np.argsort(-confidence, kind="stable")
    mistakes = np.cumsum(~right[order])
    n = len(order)
    ends = sorted({max(1, round(n * point / POINTS)) for point in range(1, POINTS + 1)})
    return [{"coverage": end / n, "error": float(mistakes[end - 1]) / end} for end in ends]
