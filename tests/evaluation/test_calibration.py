"""Temperature, calibration error and its interval, against figures found elsewhere."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tlkit.evaluation.answers import Answers
from tlkit.evaluation.calibration import (
    best_temperature,
    calibration_error,
    calibration_error_interval,
    fit_calibration,
    measure_calibration,
    reliability_bins,
    risk_coverage,
)
from tlkit.recipe.fields.model import Head

HEAD = Head()


def answers(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> Answers:
    return Answers(torch.tensor(logits, dtype=torch.float32), torch.tensor(labels), torch.zeros(len(labels), 1))


def overconfident(n: int, factor: float, seed: int = 0) -> Answers:
    """Logits that are `factor` times those by which the labels were drawn."""
    draws = np.random.default_rng(seed)
    logits = draws.normal(0, 2, (n, 4))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (probabilities.cumsum(1) < draws.random((n, 1))).sum(1)
    return answers(factor * logits, labels)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_factor_by_which_logits_are_too_large(factor: float) -> None:
    assert fit_calibration(overconfident(20_000, factor), task="multiclass", head=HEAD).temperature == pytest.approx(factor, rel=0.05)


def test_the_temperature_is_where_torchs_own_optimizer_finds_it() -> None:
    found = overconfident(500, 2.0)
    log_t = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, tolerance_grad=1e-9)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(found.logits / log_t.exp(), found.labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert fit_calibration(found, task="multiclass", head=HEAD).temperature == pytest.approx(log_t.exp().item(), rel=1e-3)


def test_the_temperature_undoes_a_scale() -> None:
    # Logits of (2, 0) claim 0.88 and are right three times of four: log 3 apart would be honest, so T = 2 / log 3.
    logits = torch.tensor([[2.0, 0.0]] * 4)
    assert best_temperature(logits, torch.tensor([0, 0, 0, 1]), bounds=(0.2, 5)) == pytest.approx(2 / np.log(3), rel=1e-3)


def test_nothing_is_fitted_to_few_images_or_few_mistakes() -> None:
    few = fit_calibration(overconfident(20, 3.0), task="multiclass", head=HEAD)
    assert few.temperature == 1
    assert "20 validation images with" in few.reason
    logits = np.eye(4)[np.arange(200) % 4] * 3
    right = fit_calibration(answers(logits, np.arange(200) % 4), task="multiclass", head=HEAD)
    assert right.temperature == 1
    assert "0 mistakes can't tell a temperature" in right.reason


def test_multilabel_and_heads_without_probabilities_say_so() -> None:
    found = overconfident(100, 2.0)
    assert "one label per image" in fit_calibration(found, task="multilabel", head=HEAD).reason
    assert "A knn head gives scores" in fit_calibration(found, task="multiclass", head=Head(kind="knn")).reason


def test_the_calibration_error_is_that_of_bins_by_hand() -> None:
    confidence = np.repeat([0.6, 0.9], 10)
    right = np.array([1] * 5 + [0] * 5 + [1] * 10, bool)  # accuracies 0.5 and 1.0
    assert calibration_error(confidence, right) == pytest.approx((0.1 + 0.1) / 2)
    assert reliability_bins(confidence, right) == [
        {"confidence": pytest.approx(0.6), "accuracy": 0.5, "count": 10},
        {"confidence": pytest.approx(0.9), "accuracy": 1.0, "count": 10},
    ]


@pytest.mark.parametrize(("gap", "images"), [(0.0, 200), (0.03, 500), (0.1, 300)])
def test_the_interval_of_the_calibration_error_holds_the_true_one(gap: float, images: int) -> None:
    """Confidences that are too high by `gap`, which is the true error. Of 100 intervals at 95 % chance alone leaves out at most 10."""
    held = 0
    for seed in range(100):
        draws = np.random.default_rng(seed)
        truth = draws.uniform(0.4, 0.88, images)
        low, high = calibration_error_interval(truth + gap, draws.random(images) < truth, seed=seed)
        held += low <= gap <= high
    assert held >= 90


def test_risk_against_coverage_by_hand() -> None:
    found = risk_coverage(np.array([0.9, 0.5, 0.8, 0.6]), np.array([True, False, True, True]))
    assert [tuple(point.values()) for point in found] == [(0.25, 0.0), (0.5, 0.0), (0.75, 0.0), (1.0, 0.25)]


def test_calibration_lowers_the_error_on_other_images() -> None:
    calibration = fit_calibration(overconfident(500, 3.0), task="multiclass", head=HEAD)
    measured = measure_calibration(overconfident(2000, 3.0, seed=1), calibration)["calibration"]
    assert measured["ece_after"] < 0.5 * measured["ece_before"]
    assert sum(one["count"] for one in measured["bins_after"]) == 2000
