"""Promises hold on drawn answers as often as they say, and what can't be promised says what it would take."""

import numpy as np
import pytest
from scipy.stats import binomtest

from tlkit.evaluation.promises import NoPromise, choose_threshold, coverage_range, fewest_images, fit_sets, upper_bound
from tlkit.models.inference.trust import Abstain, Conformal


def test_the_bound_is_scipys_one_sided_exact_interval() -> None:
    for mistakes, answered in ((0, 10), (3, 200), (12, 30)):
        expected = binomtest(mistakes, answered, alternative="less").proportion_ci(0.95, method="exact").high
        assert upper_bound(mistakes, answered) == pytest.approx(expected)
    assert fewest_images(0.02) == 149  # 0.98 ** 149 is the first power below 0.05
    assert upper_bound(0, 149) <= 0.02 < upper_bound(0, 148)


def test_the_promised_error_is_broken_in_at_most_five_of_a_hundred_draws() -> None:
    """An image's answer is right with its confidence squared, so the error above a threshold t is 1 - (1 + t + t^2) / 3."""
    broken = answered = 0
    for seed in range(300):
        draws = np.random.default_rng(seed)
        confidence = draws.random(500)
        chosen = choose_threshold(confidence, draws.random(500) < confidence**2, 0.2)
        if isinstance(chosen, Abstain):
            answered += 1
            broken += 1 - (1 + chosen.threshold + chosen.threshold**2) / 3 > 0.2
    assert answered >= 150
    assert broken <= 0.05 * 300


def test_all_images_are_answered_where_that_keeps_the_promise() -> None:
    confidence = np.linspace(0.5, 1, 200)
    chosen = choose_threshold(confidence, np.ones(200, bool), 0.02)
    assert isinstance(chosen, Abstain)
    assert (chosen.threshold, chosen.coverage) == (0.0, 1.0)


def test_the_threshold_lies_between_two_images() -> None:
    right = np.arange(100) >= 50  # the surer half is right
    chosen = choose_threshold(np.linspace(0.01, 1, 100), right, 0.1)
    assert isinstance(chosen, Abstain)
    assert 0.45 <= chosen.coverage <= 0.55
    assert chosen.threshold * 100 % 1 == pytest.approx(0.5)


def test_too_few_images_say_how_many_are_needed() -> None:
    found = choose_threshold(np.linspace(0.5, 1, 100), np.ones(100, bool), 0.02)
    assert isinstance(found, NoPromise)
    assert found.reason == ("No threshold keeps the error below 0.02 with 95% confidence on 100 validation images: about 150 are needed.")
    hopeless = choose_threshold(np.linspace(0.5, 1, 500), np.arange(500) % 2 == 0, 0.02)
    assert isinstance(hopeless, NoPromise)
    assert "even among the surest" in hopeless.reason


def test_sets_hold_the_own_class_as_often_as_promised() -> None:
    coverages = []
    for seed in range(200):
        draws = np.random.default_rng(seed)
        probabilities = draws.dirichlet(np.full(5, 0.5), 1200)
        labels = (probabilities.cumsum(1) < draws.random((1200, 1))).sum(1).clip(max=4)
        sets = fit_sets(probabilities[:200], labels[:200], 0.9)
        assert isinstance(sets, Conformal)
        coverages.append((probabilities[np.arange(200, 1200), labels[200:]] >= 1 - sets.quantile).mean())
    assert np.mean(coverages) == pytest.approx(0.9, abs=0.01)


def test_the_quantile_is_the_corrected_order_statistic_by_hand() -> None:
    own = np.arange(1, 20) / 20  # 19 images: ceil(20 * 0.95) = 19, the largest score
    sets = fit_sets(np.stack([own, 1 - own], 1), np.zeros(19, int), 0.95)
    assert isinstance(sets, Conformal)
    assert sets.quantile == pytest.approx(1 - 1 / 20)
    few = fit_sets(np.stack([own, 1 - own], 1)[:18], np.zeros(18, int), 0.95)
    assert isinstance(few, NoPromise)
    assert "need 19 validation images, and there are 18" in few.reason


def test_few_images_choose_sets_of_very_different_coverage() -> None:
    # By hand: with the largest of 19 scores as the bound, the coverage is the largest of 19 uniform numbers, P(X < x) = x^19.
    assert coverage_range(Conformal(0.95, 0.5, 19)) == pytest.approx((0.025 ** (1 / 19), 0.975 ** (1 / 19)))
    low, high = coverage_range(Conformal(0.9, 0.5, 100_000))
    assert (round(low, 2), round(high, 2)) == (0.9, 0.9)
