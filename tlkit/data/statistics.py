"""Mean and standard deviation of pictures in one streaming pass."""

from collections.abc import Iterable
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from tlkit.data.preprocess import RGB
from tlkit.errors import DataError

# A channel that never changes has no spread; one grey level keeps the division finite.
SMALLEST_STD = 1 / 255


def channel_statistics(pictures: Iterable[NDArray[np.uint8]]) -> tuple[RGB, RGB]:
    """Mean and population standard deviation of R, G, B over all pixels, in units of 0..1.

    pictures: [H, W, 3] uint8 of any sizes. Counts of the 256 values are added up as integers, so the result is exact
    and does not depend on the order.
    Raises DataError where there is no picture.
    """
    counts = np.zeros((3, 256), np.int64)
    for picture in pictures:
        for channel in range(3):
            counts[channel] += np.bincount(picture[:, :, channel].ravel(), minlength=256)
    if not counts.any():
        raise DataError("there are no pictures to take mean and std from.\n  Check data.source.")
    means, stds = zip(*(_mean_and_std(row) for row in counts), strict=True)
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def _mean_and_std(counts: NDArray[np.int64]) -> tuple[float, float]:
    """Of one channel; counts: [256]. Python integers, so that nothing overflows or cancels."""
    number = int(counts.sum())
    total = sum(value * int(count) for value, count in enumerate(counts))
    squares = sum(value * value * int(count) for value, count in enumerate(counts))
    std = sqrt(number * squares - total * total) / number / 255
    return total / number / 255, max(std, SMALLEST_STD)
