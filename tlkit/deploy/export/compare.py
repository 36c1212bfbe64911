"""How far two sets of probabilities are from each other. Uses only numpy, so that an artifact can be verified anywhere."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.floating[Any]]
"""[N, K]"""


def compare(expected: Probabilities, found: Probabilities, thresholds: Sequence[float] = ()) -> dict[str, float]:
    """Return the share of images with the same answer, and the largest and mean difference of a probability.

    thresholds: of a multilabel model, whose answer is all classes above them; else the answer is the likeliest class.
    """
    differences = np.abs(expected.astype(np.float64) - found.astype(np.float64))
    same = answers(expected, thresholds) == answers(found, thresholds)
    return {
        "agreement": float(same.reshape(len(same), -1).all(1).mean()),
        "max_difference": float(differences.max()),
        "mean_difference": float(differences.mean()),
    }


def answers(probabilities: Probabilities, thresholds: Sequence[float]) -> NDArray[Any]:
    """Return the likeliest class of each image, [N]; for multilabel whether it has each class, [N, K]."""
    if thresholds:
        predicted: NDArray[Any] = probabilities > np.array(thresholds)
        return predicted
    best: NDArray[Any] = probabilities.argmax(1)
    return best


def accuracy(probabilities: Probabilities, labels: NDArray[Any], thresholds: Sequence[float] = ()) -> float:
    """Return the share of images classified correctly, for multilabel in every class. labels: [N], or [N, K] of 0 and 1."""
    right = answers(probabilities, thresholds) == labels
    return float(right.reshape(len(right), -1).all(1).mean())


def score_label(task: str) -> str:
    """Return what `accuracy` is called elsewhere: of a multilabel model, accuracy is the share of right answers among all N * K."""
    return "exact match" if task == "multilabel" else "accuracy"


def generated_images(image_size: int, channels: int) -> list[NDArray[np.uint8]]:
    """Generate images, [H, W, C] each, by integer arithmetic, the same on every machine. Wide, high and small ones also test resizing."""
    sizes = ((image_size + image_size // 3, image_size), (image_size + 1, 2 * image_size - 1), (image_size // 2 + 1, image_size // 2 + 1))
    made = []
    for number, (height, width) in enumerate(sizes):
        rows, columns, channel = np.ogrid[:height, :width, :channels]
        values = rows * (number + 1) + columns * 2 + channel * 60 + (rows // 8 + columns // 8) % 2 * 90
        made.append((values % 256).astype(np.uint8))
    return made
