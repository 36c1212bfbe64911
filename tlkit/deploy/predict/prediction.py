"""What a model says of one image."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tlkit.models.inference.trust import NOT_SURE, UNLIKE, Trust

NOT_FINITE = "the model answers NaN for this image."


@dataclass(frozen=True)
class Prediction:
    """probabilities: [K], in the model's order; they sum to 1, but for multilabel. logits: where the model gives them.

    error: why the file has none of these. thresholds: of a multilabel model, one a class.
    """

    path: str
    probabilities: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    logits: tuple[float, ...] = ()
    error: str | None = None
    thresholds: tuple[float, ...] = ()
    unknown: float | None = None
    """How unlike the training images it is, where the model has such a score."""

    def ranked(self, classes: Sequence[str], top_k: int) -> list[tuple[str, float]]:
        """Return the top_k classes with their probabilities, the likeliest first."""
        best: list[int] = np.argsort(-self.probabilities, kind="stable")[:top_k].tolist()
        return [(classes[i], float(self.probabilities[i])) for i in best]

    def called(self, classes: Sequence[str]) -> list[tuple[str, float]]:
        """Return the classes of a multilabel model that are above their thresholds, the likeliest first."""
        above = {classes[i] for i in np.flatnonzero(self.probabilities > np.array(self.thresholds)).tolist()}
        return [(name, p) for name, p in self.ranked(classes, len(classes)) if name in above]

    def abstains(self, least: float | None) -> bool:
        """Check whether no class is as likely as `least`, so that none is predicted."""
        return least is not None and not self.thresholds and float(self.probabilities.max()) < least

    def is_unknown(self, trust: Trust) -> bool:
        """Check whether the image is unlike any of training."""
        return trust.unknown is not None and self.unknown is not None and self.unknown > trust.unknown.threshold

    def note(self, trust: Trust, least: float | None) -> str:
        """Return `not sure`, `unlike any training image` or both; empty where the answer stands as it is."""
        return "; ".join(words for words, holds in ((NOT_SURE, self.abstains(least)), (UNLIKE, self.is_unknown(trust))) if holds)

    def likely(self, classes: Sequence[str], trust: Trust) -> list[str]:
        """Return the conformal set, the likeliest first: the classes of which one is the image's own, for the promised share of images."""
        if trust.conformal is None:
            return []
        return [name for name, probability in self.ranked(classes, len(classes)) if probability >= 1 - trust.conformal.quantile]
