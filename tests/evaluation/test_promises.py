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


@pytest.mark.parametrize(("number", "at_least"), [(5, 0), (80, 100)])
def test_the_promised_error_is_kept_where_a_fifth_of_the_groups_is_hard(number: int, at_least: int) -> None:
    """Half of the answers in hard groups are wrong: 0.1 of all, whatever the threshold. A promise of 0.08 is false, one of 0.2 is true."""
    false = true = 0
    groups = [str(group) for group in np.repeat(np.arange(number), 50)]
    for seed in range(200):
        draws = np.random.default_rng(seed)
        right = draws.random(50 * number) > np.repeat(0.5 * (draws.random(number) < 0.2), 50)
        confidence = draws.random(50 * number)
        false += isinstance(choose_threshold(confidence, right, 0.08, groups), Abstain)
        true += isinstance(choose_threshold(confidence, right, 0.2, groups), Abstain)
    assert false <= 0.05 * 200  # of 5 groups it was a third, where images counted
    assert true >= at_least


@pytest.mark.parametrize(("number", "hard"), [(65, 0.1), (160, 0.04)])
def test_a_promise_is_kept_where_groups_differ_in_size(number: int, hard: float) -> None:
    """In hard groups 51 % of the answers are wrong, so of all groups the error is 0.51 of their share. A promise just below it is false."""
    false = 0
    for seed in range(200):
        draws = np.random.default_rng(seed)
        sizes = draws.geometric(1 / 20, number)
        wrong = draws.random(sizes.sum()) < np.repeat(0.51 * (draws.random(number) < hard), sizes)
        groups = np.repeat(np.arange(number), sizes).astype(str).tolist()
        false += isinstance(choose_threshold(draws.random(len(wrong)), ~wrong, 0.51 * hard - 1e-4, groups), Abstain)
    assert false <= 0.07 * 200  # 5 %, with two standard errors of so few draws; 11 to 14 % where large groups count for more


def test_groups_of_one_image_are_images() -> None:
    draws = np.random.default_rng(0)
    confidence, right = draws.random(300), draws.random(300) > 0.05
    names = [str(number) for number in range(300)]
    of_groups, of_images = (choose_threshold(confidence, right, 0.1, groups) for groups in (names, ()))
    assert isinstance(of_groups, Abstain)
    assert isinstance(of_images, Abstain)
    assert of_groups.coverage == pytest.approx(of_images.coverage, abs=0.05)  # by a normal approximation, and exactly
    probabilities, labels = draws.dirichlet(np.ones(3), 300), draws.integers(0, 3, 300)
    sets = [fit_sets(probabilities, labels, 0.9, groups) for groups in (names, ())]
    assert all(isinstance(each, Conformal) for each in sets)
    assert sets[0].quantile == sets[1].quantile  # type: ignore[union-attr]


def test_too_few_groups_say_how_many_are_needed() -> None:
    groups = [str(number % 5) for number in range(200)]
    found = choose_threshold(np.linspace(0.5, 1, 200), np.ones(200, bool), 0.1, groups)
    assert isinstance(found, NoPromise)
    assert found.reason.endswith("on validation images of 5 groups: it takes 29 or more.")  # 0.9 ** 29 < 0.05
    sets = fit_sets(np.full((200, 2), 0.5), np.zeros(200, int), 0.9, groups)
    assert isinstance(sets, NoPromise)
    assert "need 9 groups of validation images, and there are 5" in sets.reason


def test_sets_hold_the_own_class_for_images_of_new_groups() -> None:
    """Groups differ in how likely their own class is, and in size; of small ones there are most."""
    coverages = []
    for seed in range(300):
        draws = np.random.default_rng(seed)
        sizes = draws.choice([2, 5, 40], 40, p=[0.5, 0.4, 0.1])
        own = np.clip(np.repeat(draws.beta(6, 2, 40), sizes) + draws.normal(0, 0.05, sizes.sum()), 0.01, 0.99)
        groups = np.repeat(np.arange(40), sizes)
        labels, probabilities = np.zeros(len(own), int), np.stack([own, 1 - own], 1)
        known = groups < 30
        sets = fit_sets(probabilities[known], labels[known], 0.9, groups[known].astype(str).tolist())
        assert isinstance(sets, Conformal)
        held = own[~known] >= 1 - sets.quantile
        coverages.append(np.mean([held[groups[~known] == group].mean() for group in range(30, 40)]))
    assert 0.89 <= np.mean(coverages) <= 0.94


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
