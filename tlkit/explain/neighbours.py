"""Nearest training images: what the network finds alike."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Nearest:
    """rows: of the training images, [N, k], the nearest first. distances: [N, k], 1 - cosine of the features."""

    rows: NDArray[np.int64]
    distances: NDArray[np.float32]


def nearest_images(features: Tensor, of_training: Tensor) -> Nearest:
    """Find the six training images whose features are nearest by angle. features: [N, F], of_training: [M, F]."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=min(6, len(of_training)), metric="cosine").fit(of_training.numpy())
    distances, rows = index.kneighbors(features.numpy())
    return Nearest(rows, distances)
