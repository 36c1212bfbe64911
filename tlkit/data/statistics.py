"""Mean and standard deviation of pictures in one streaming pass."""

from collections.abc import Iterable
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from tlkit.data.preprocess import PerChannel
from tlkit.errors import DataError

# A channel that never changes has no spread; one grey level keeps the division finite.
SMALLEST_STD = 1 / 255


def channel_statistics(pictures: Iterable[NDArray[np.uint8]]) -> tuple[PerChannel, PerChannel]:
    """Mean and population standard deviation of each channel over all pixels, in units of 0..1.

    pictures: [H, W, C] uint8 of any sizes. Counts of the 256 values are added up as integers, so the result is exact
    and does not depend on the order.
    Raises DataError where there is no picture.
    """
    counts: NDArray[np.int64] | None = None
    for picture in pictures:
        found = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(picture, 2, 0)])
        counts = found if counts is None else counts + found
    if counts is None:
        raise DataError("there are no pictures to take mean and std from.\n  Check data.source.")
    means, stds = zip(*(_mean_and_std(row) for row in counts), strict=True)
    return means, stds


def _mean_and_std(counts: NDArray[np.int64]) -> tuple[float, float]:
    """Of one channel; counts: [256]. Python integers, so that nothing overflows or cancels."""
    number = int(counts.sum())
    total = sum(value * int(count) for value, count in enumerate(counts))
    squares = sum(value * value * int(count) for value, count in enumerate(counts))
    std = sqrt(number * squares - total * total) / number / 255
    return total / number / 255, max(std, SMALLEST_STD)
