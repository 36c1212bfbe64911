"""The statistics of two models on the same images, held against hand arithmetic, scipy and simulation."""

import itertools

import numpy as np
import pytest
from scipy.stats import bootstrap

from tlkit.search.paired import effective_number, mcnemar_mid_p, paired_interval, randomization_p


@pytest.mark.parametrize(("gained", "lost", "p"), [(7, 1, 10 / 256), (1, 7, 10 / 256), (1, 5, 8 / 64), (0, 0, 1.0), (4, 4, 1.0)])
def test_mcnemar_mid_p_is_that_of_the_paper(gained: int, lost: int, p: float) -> None:
    # Fagerland et al. 2013, table 1: airway hyper-responsiveness before and after, 1 and 7 discordant pairs, mid-p 0.0391.
    assert mcnemar_mid_p(gained, lost) == pytest.approx(p, abs=1e-12)


def alike(count: int) -> tuple[np.ndarray, list[str]]:
    return np.full(count, 1 / count), [""] * count


def test_the_interval_is_that_of_scipys_bootstrap() -> None:
    difference = np.array([1] * 30 + [-1] * 12 + [0] * 258)
    weights, strata = alike(300)
    low, high = paired_interval(difference, weights, strata, seed=1)
    expected = bootstrap((difference,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(0)).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.006)


def test_images_that_are_there_twice_in_groups_add_nothing() -> None:
    difference = np.array([1] * 30 + [-1] * 12 + [0] * 258)
    single = paired_interval(difference, *alike(300), seed=1)
    twice = np.concatenate([difference, difference])
    grouped = paired_interval(twice, *alike(600), [*range(300), *range(300)], seed=1)
    ungrouped = paired_interval(twice, *alike(600), seed=1)
    assert grouped == pytest.approx(single, abs=0.006)
    assert ungrouped[1] - ungrouped[0] == pytest.approx((single[1] - single[0]) / 2**0.5, rel=0.1)


def test_randomization_gives_the_share_of_all_exchanges() -> None:
    difference, strata = np.array([1, 1, 1, 1, -1, 1, 0, 1]), ["a", "a", "a", "b", "b", "b", "b", "b"]
    weights = np.where(np.array(strata) == "a", 1 / 6, 1 / 10)  # balanced accuracy of 3 and 5 images
    terms = (difference * weights)[difference != 0]
    sums = [abs(np.dot(signs, terms)) for signs in itertools.product((-1, 1), repeat=len(terms))]
    exact = np.mean([value >= abs(terms.sum()) - 1e-12 for value in sums])
    assert randomization_p(difference, weights, strata, seed=0) == pytest.approx(exact, abs=0.02)
    assert randomization_p(difference, weights, strata, range(8), seed=0) == pytest.approx(exact, abs=0.02)


def test_images_that_count_unlike_are_worth_fewer() -> None:
    assert effective_number(np.full(40, 1 / 40)) == pytest.approx(40)
    assert effective_number(np.full(40, 1 / 40), [i // 4 for i in range(40)]) == pytest.approx(10)
    # Balanced accuracy of 500 and 5 images: 2^2 / (1/500 + 1/5).
    assert effective_number(np.array([1 / 1000] * 500 + [1 / 10] * 5)) == pytest.approx(4 / (1 / 500 + 1 / 5))


def test_equal_models_are_seldom_distinguished_and_better_ones_often() -> None:
    random, images = np.random.default_rng(0), 1000

    def p_of(gain: float) -> float:
        hard = random.beta(1.2, 0.25, images)  # how likely a model classifies each image correctly
        first, second = random.random(images) < hard, random.random(images) < np.clip(hard + gain, 0, 1)
        return mcnemar_mid_p(int((second & ~first).sum()), int((first & ~second).sum()))

    false_alarms = np.mean([p_of(0) < 0.05 for _ in range(200)])
    assert false_alarms <= 0.07
    assert np.mean([p_of(0.06) < 0.05 for _ in range(200)]) > 0.5
