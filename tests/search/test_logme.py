"""LogME, held against the density of the normal distribution that it is the logarithm of."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from tlkit.search.logme import logme


@pytest.mark.parametrize("width", [4, 40])
def test_it_is_the_largest_log_density_of_the_labels(width: int) -> None:
    random = np.random.default_rng(width)
    features = random.normal(size=(24, width))
    target = (features[:, 0] + random.normal(size=24) > 0).astype(float)

    def negative(logs: np.ndarray) -> float:
        alpha, beta = np.exp(logs)
        covariance = np.eye(24) / beta + features @ features.T / alpha
        return -float(multivariate_normal(np.zeros(24), covariance, allow_singular=True).logpdf(target))

    best = -minimize(negative, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 2000}).fun / 24
    assert logme(features, target[:, None]) == pytest.approx(best, abs=2e-3)


def test_features_that_know_the_classes_are_better_than_noise() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 90)
    targets = np.eye(3)[labels]
    knowing = targets @ random.normal(size=(3, 16)) + 0.3 * random.normal(size=(90, 16))
    assert logme(knowing, targets) > logme(random.normal(size=(90, 16)), targets) + 0.1
