"""Unknown images: which training images ship to compare new ones with, and the score above which an image is unlike them."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import normalize

from tlkit.data.samples import Samples
from tlkit.evaluation.answers import Answers
from tlkit.models.inference.trust import Trust, Unknown
from tlkit.models.inference.unknown import UnknownScore

PER_CLASS, LARGEST_SAMPLE = 50, 2000
"""Training images whose features ship. Of the quickstart, 200 a class tell unknown images no better: docs/trust.md."""
NEIGHBOURS = 5
KNOWN_SHARE = 0.95
"""Of validation images that stay below the threshold."""
FEWEST_IMAGES = 20
"""Of validation, below which its 95 % isn't known."""


def training_sample(samples: Samples, *, seed: int) -> Samples:
    """Return training images drawn class by class, as many of each as there are up to PER_CLASS, and LARGEST_SAMPLE in all."""
    draws = np.random.default_rng(seed)
    by_class: dict[int, list[int]] = {}
    training = samples.of("train")
    for place in draws.permutation(len(training)).tolist():
        by_class.setdefault(training[place].labels[0] if training[place].labels else -1, []).append(place)
    number = max(1, min(PER_CLASS, LARGEST_SAMPLE // len(by_class)))
    chosen = sorted(place for places in by_class.values() for place in places[:number])[:LARGEST_SAMPLE]
    return replace(samples, samples=tuple(training[place] for place in chosen))


def fit_knn(validation: Answers, training: Answers) -> Trust:
    """Return the k-th neighbour distance with its sample. training: the answers on `training_sample`."""
    sample = normalize(training.features).half()
    score = UnknownScore(sample, min(NEIGHBOURS, len(sample)))
    threshold = threshold_of(score, validation)
    return Trust(unknown=Unknown("knn", threshold, len(validation.labels), score.neighbours), training_sample=sample.numpy())


def fit_energy(validation: Answers) -> Trust:
    return Trust(unknown=Unknown("energy", threshold_of(UnknownScore(None), validation), len(validation.labels)))


def threshold_of(score: UnknownScore, validation: Answers) -> float:
    """Return the score that KNOWN_SHARE of new images like those of validation stay below: an order statistic, corrected for its number."""
    found = np.sort(scores(score, validation))
    n = len(found)
    return float(found[min(n, int(np.ceil((n + 1) * KNOWN_SHARE))) - 1])


def scores(score: UnknownScore, answers: Answers) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    with torch.inference_mode():
        blocks = zip(torch.split(answers.features, 4096), torch.split(answers.logits, 4096), strict=True)
        return torch.cat([score(features, logits)[:, 0] for features, logits in blocks]).double().numpy()


def share_above(trust: Trust, answers: Answers) -> float:
    """Return the share of images that are called unknown: of known ones about 5 %."""
    score = UnknownScore.of(trust)
    if score is None or trust.unknown is None:
        return 0.0
    return float((scores(score, answers) > trust.unknown.threshold).mean())
