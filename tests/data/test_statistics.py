import numpy as np
import pytest

from tlkit.data.statistics import channel_statistics, pixel_statistics
from tlkit.errors import DataError


def test_mean_and_std_equal_numpys_over_all_pixels() -> None:
    draws = np.random.default_rng(0)
    images = [draws.integers(0, 200, (h, w, 3), dtype=np.uint8) for h, w in ((5, 7), (1, 1), (30, 2))]
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.float64) / 255
    mean, std = channel_statistics(iter(images))
    assert mean == pytest.approx(pixels.mean(axis=0), abs=1e-6)
    assert std == pytest.approx(pixels.std(axis=0), abs=1e-6)


def test_the_order_of_images_changes_nothing() -> None:
    images = [np.full((3, 3, 3), value, np.uint8) for value in (0, 7, 255)]
    assert channel_statistics(images) == channel_statistics(images[::-1])


def test_a_channel_that_never_changes_keeps_a_std_that_can_be_divided_by() -> None:
    mean, std = channel_statistics([np.full((4, 4, 3), 51, np.uint8)])
    assert mean == pytest.approx((0.2, 0.2, 0.2))
    assert std == (1 / 255,) * 3


def test_no_images_is_an_error() -> None:
    with pytest.raises(DataError, match="no images"):
        channel_statistics([])


@pytest.mark.parametrize("channels", [1, 6])
def test_every_channel_is_measured(channels: int) -> None:
    draws = np.random.default_rng(0)
    images = [draws.integers(0, 200, (h, w, channels), dtype=np.uint8) for h, w in ((5, 7), (30, 2))]
    pixels = np.concatenate([image.reshape(-1, channels) for image in images]).astype(np.float64) / 255
    mean, std = channel_statistics(images)
    assert mean == pytest.approx(pixels.mean(axis=0), abs=1e-6)
    assert std == pytest.approx(pixels.std(axis=0), abs=1e-6)


def test_the_mean_image_and_the_std_about_it_equal_numpys() -> None:
    images = np.random.default_rng(0).integers(0, 200, (50, 6, 6, 3), dtype=np.uint8)
    mean, std = pixel_statistics(iter(images))
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(0), atol=1e-6)
    assert std == pytest.approx(np.sqrt(np.square(scaled - scaled.mean(0)).mean((0, 1, 2))), abs=1e-6)


def test_images_that_are_all_the_same_have_a_std_that_can_be_divided_by() -> None:
    assert pixel_statistics([np.full((2, 2, 1), 51, np.uint8)] * 3)[1] == (1 / 255,)
    with pytest.raises(DataError, match="no images"):
        pixel_statistics([])
