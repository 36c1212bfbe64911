"""Features are standardised, and those that are nearly constant aren't blown up."""

import numpy as np
import pytest

from tlkit.data.feature_scaler import FeatureScaler


def test_a_feature_is_divided_by_its_deviation_but_by_no_less_than_0_3_of_the_upper_quartile() -> None:
    # Deviations 0, 0.001, 1, 2 and 3; their upper quartile is 2, and 0.3 of it 0.6.
    x = np.array([[5, -0.001, -1, 8, -3], [5, 0.001, 1, 12, 3]])
    scaler = FeatureScaler().fit(x)
    np.testing.assert_allclose(scaler.scale_, [0.6, 0.6, 1, 2, 3])
    np.testing.assert_allclose(scaler.transform(x)[1], [0, 0.001 / 0.6, 1, 1, 1])


def test_parts_of_the_images_give_the_same_as_all() -> None:
    x = np.random.default_rng(0).normal(size=(100, 20)) * np.geomspace(1e-6, 10, 20)
    whole, parts = FeatureScaler().fit(x), FeatureScaler()
    for part in np.split(x, 4):
        parts.partial_fit(part)
    np.testing.assert_allclose(parts.scale_, whole.scale_, rtol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 7.0])
def test_constant_features_alone_stay_finite(constant: float) -> None:
    scaled = FeatureScaler().fit_transform(np.full((4, 3), constant))
    np.testing.assert_array_equal(scaled, 0)
