"""Mean and standard deviation of images, by channel or by pixel, in one streaming pass. Exact: values are added up as integers."""

from collections.abc import Iterable
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from tlkit.errors import DataError

PerChannel = tuple[float, ...]
"""One value a channel: R G B, or those of images with other channels in their order."""

# A channel that never changes has no spread; one grey level keeps the division finite.
SMALLEST_STD = 1 / 255
_NO_IMAGES = "there are no images to take mean and std from.\n  Check data.source."


def channel_statistics(images: Iterable[NDArray[np.uint8]]) -> tuple[PerChannel, PerChannel]:
    """Return the mean and population standard deviation of each channel over all pixels, in units of 0..1.

    images: [H, W, C] uint8 of any sizes. The result does not depend on their order.
    Raises DataError if there is no image.
    """
    counts: NDArray[np.int64] | None = None
    for image in images:
        found = value_counts(image)
        counts = found if counts is None else counts + found
    if counts is None:
        raise DataError(_NO_IMAGES)
    return of_counts(counts)


def value_counts(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count each of the 256 values in each channel, [C, 256]; image: [H, W, C]."""
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(image, 2, 0)])


def of_counts(counts: NDArray[np.int64]) -> tuple[PerChannel, PerChannel]:
    """Return the mean and population standard deviation of each channel, 0..1; counts: [C, 256]."""
    means, stds = zip(*(_mean_and_std(row) for row in counts), strict=True)
    return means, stds


def pixel_statistics(images: Iterable[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], PerChannel]:
    """Return the mean image, [S, S, C], and for each channel the standard deviation of all pixels from it, in units of 0..1.

    images: [S, S, C] uint8. Raises DataError if there is no image.
    """
    total: NDArray[np.int64] | None = None
    squares: NDArray[np.int64] | None = None
    number = 0
    for image in images:
        wide = image.astype(np.int64)
        channels = np.square(wide).sum((0, 1))
        total, squares = (wide, channels) if total is None or squares is None else (total + wide, squares + channels)
        number += 1
    if total is None or squares is None:
        raise DataError(_NO_IMAGES)
    about_zero = np.square(total.astype(np.float64) / number).sum((0, 1)) * number
    std = np.sqrt(np.maximum(0.0, squares - about_zero) / (number * total.shape[0] * total.shape[1])) / 255
    return (total / number / 255).astype(np.float32), tuple(max(float(value), SMALLEST_STD) for value in std)


def _mean_and_std(counts: NDArray[np.int64]) -> tuple[float, float]:
    """Return mean and std of one channel; counts: [256]. Python integers, so that nothing overflows or cancels."""
    number = int(counts.sum())
    total = sum(value * int(count) for value, count in enumerate(counts))
    squares = sum(value * value * int(count) for value, count in enumerate(counts))
    std = sqrt(number * squares - total * total) / number / 255
    return total / number / 255, max(std, SMALLEST_STD)
