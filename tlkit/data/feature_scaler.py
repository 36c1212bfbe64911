"""Features with mean 0 and about the same spread: what linear classifiers on them are fitted to."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import StandardScaler

LEAST_SHARE = 0.3
"""Of the upper quartile of all standard deviations. Measured: docs/experiments.md, "The solved head"."""


class FeatureScaler(StandardScaler):  # type: ignore[misc]
    """scikit-learn's StandardScaler, but with a lower bound for what a feature is divided by.

    A network has features that are nearly constant in the training images. Divided by their standard deviation, one image in which they
    aren't would be classified by them alone. The quartile, since a few features of a transformer can be far larger than all others.
    """

    def partial_fit(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        super().partial_fit(X, y, sample_weight)
        deviations: NDArray[np.float64] = np.sqrt(self.var_)
        scale = np.maximum(deviations, LEAST_SHARE * np.quantile(deviations, 0.75))
        self.scale_ = np.where(scale > 0, scale, 1.0)
        return self
