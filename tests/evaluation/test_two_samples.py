"""Tests of two samples raise a false alarm as rarely as they say, and find differences that are there."""

import numpy as np
import pytest

from tlkit.evaluation.two_samples import feature_test, holm, share_test, value_test


def p_values(draws: np.random.Generator, shift: float) -> list[float]:
    """Two halves of one set of 120 images, the second moved by `shift`: features, called classes and brightness as they hang together."""
    features = draws.normal(size=(120, 8))
    features[60:] += shift
    called = np.clip(features[:, 0].round() + 2, 0, 4).astype(np.int64)
    seed = int(draws.integers(1000))
    return [
        feature_test(features[:60], features[60:], seed=seed),
        share_test(called[:60], called[60:], 5, seed=seed),
        value_test(features[:60, 1], features[60:, 1]),
        value_test(np.ones(60), np.ones(60)),
    ]


def test_halves_of_one_set_rarely_differ_and_moved_ones_do() -> None:
    """Of 100 comparisons at 5 %, more than 10 false alarms are one chance in a hundred."""
    alarms = [min(holm(p_values(np.random.default_rng(seed), 0.0))) < 0.05 for seed in range(100)]
    assert sum(alarms) <= 10
    found = [min(holm(p_values(np.random.default_rng(seed), 1.0))) < 0.05 for seed in range(10)]
    assert all(found)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5]) == [0.5]


def test_the_share_test_agrees_with_scipys_chi_square_where_counts_are_large() -> None:
    from scipy.stats import chi2_contingency

    draws = np.random.default_rng(3)
    first, second = draws.integers(0, 3, 400), draws.choice(3, 400, p=[0.38, 0.31, 0.31])
    table = np.stack([np.bincount(first, minlength=3), np.bincount(second, minlength=3)])
    assert share_test(first, second, 4) == pytest.approx(chi2_contingency(table).pvalue, abs=0.05)


@pytest.mark.parametrize(("known", "new"), [(16, 78), (50, 333), (97, 203)])
def test_what_is_the_same_of_every_image_never_differs(known: int, new: int) -> None:
    """By floating-point sums, 1 / N added N times is not 1, and the order of the permutations decided the p-value."""
    assert share_test(np.zeros(known, np.int64), np.zeros(new, np.int64), 3) == 1
    assert feature_test(np.full((known, 2), 0.6), np.full((new, 2), 0.6)) == 1
