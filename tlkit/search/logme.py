"""LogME: how well features explain labels, without training anything."""

import numpy as np
from numpy.typing import NDArray

STEPS = 30
CONVERGED = 1e-4
"""Of the ratio of the two precisions, relative."""


def logme(features: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """Return the log evidence of a linear model per image, at the precisions that maximise it, as a mean over classes.

    features: [N, F]. targets: [N, K] of 0 and 1. Larger is better; only figures on the same images can be compared.

    Source: You et al. 2021, algorithm 1, https://arxiv.org/abs/2102.11005
    """
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    return float(np.mean([_evidence(left, singular**2, features.shape[1], target) for target in targets.T]))


def _evidence(left: NDArray[np.float64], squares: NDArray[np.float64], width: int, target: NDArray[np.float64]) -> float:
    """Return the log evidence. left: [N, R], squares: of the singular values [R], width: F."""
    images = len(target)
    projected = (left.T @ target) ** 2
    outside = max(0.0, float(target @ target - projected.sum()))
    alpha = beta = 1.0
    for _ in range(STEPS):
        ratio = alpha / beta
        effective = float((squares / (squares + ratio)).sum())
        weights = float((squares * projected / (ratio + squares) ** 2).sum())
        residual = float((projected / (1 + squares / ratio) ** 2).sum()) + outside
        alpha, beta = effective / max(weights, 1e-12), (images - effective) / max(residual, 1e-12)
        if abs(alpha / beta - ratio) <= CONVERGED * ratio:
            break
    return _log_evidence(alpha, beta, squares, projected, outside, images=images, width=width) / images


def _log_evidence(
    alpha: float, beta: float, squares: NDArray[np.float64], projected: NDArray[np.float64], outside: float, *, images: int, width: int
) -> float:
    """Return log p(target) for weights of precision alpha and noise of precision beta."""
    weights = float((squares * projected / (alpha / beta + squares) ** 2).sum())
    residual = float((projected / (1 + squares * beta / alpha) ** 2).sum()) + outside
    log_determinant = float(np.log(alpha + beta * squares).sum()) + (width - len(squares)) * np.log(alpha)
    terms = width * np.log(alpha) + images * np.log(beta) - log_determinant - beta * residual - alpha * weights
    return float(terms - images * np.log(2 * np.pi)) / 2
