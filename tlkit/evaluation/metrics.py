"""What a classifier is worth, from its logits and the true labels. torchmetrics does the counting."""

from collections.abc import Sequence
from math import sqrt
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from tlkit.data.samples import LARGEST_FOLD, Samples

PrimaryMetric = Literal["accuracy", "balanced_accuracy", "mean_average_precision"]
"""The figure that chooses the best epoch and stands first in every result."""


def primary_metric_of(samples: Samples) -> PrimaryMetric:
    """Mean average precision for multilabel: it needs no threshold, and those are chosen after training.

    For one label a picture, accuracy, or balanced accuracy (the mean of the classes' recalls) if classes differ more than five-fold.
    """
    if samples.task == "multilabel":
        return "mean_average_precision"
    counts = samples.training_counts()
    return "balanced_accuracy" if max(counts) > LARGEST_FOLD * min(counts) else "accuracy"


def metric_label(primary_metric: PrimaryMetric) -> str:
    return primary_metric.replace("_", " ")


def measure(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Plain JSON values. logits [N, K], labels [N].

    `accuracy_interval` is the 95 % interval that N pictures allow. `topK_accuracy` is there where K classes leave something to
    miss: k = 5, or one less than the classes. `macro` is the mean over classes, `balanced_accuracy` that of the recalls of classes
    with pictures. `confusion[i][j]` counts pictures of class i that were called j. Precision of a class that was never called is 0.
    """
    # A second to import, which a run that can't start shouldn't wait for.
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_confusion_matrix,
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
    )

    k = len(classes)
    counts = multiclass_confusion_matrix(logits, labels, k)
    correct, total = int(counts.diagonal().sum()), len(labels)
    per_class = {
        "precision": multiclass_precision(logits, labels, k, average="none"),
        "recall": multiclass_recall(logits, labels, k, average="none"),
        "f1": multiclass_f1_score(logits, labels, k, average="none"),
    }
    top = min(5, k - 1)
    return {
        "pictures": total,
        "accuracy": correct / total,
        "accuracy_interval": wilson_interval(correct, total),
        "error": 1 - correct / total,
        "balanced_accuracy": float(per_class["recall"][counts.sum(1) > 0].mean()),
        **({f"top{top}_accuracy": float(multiclass_accuracy(logits, labels, k, average="micro", top_k=top))} if top > 1 else {}),
        "loss": float(cross_entropy(logits, labels)),
        "macro": {name: float(values.mean()) for name, values in per_class.items()},
        "per_class": {
            name: {"pictures": int(counts[i].sum()), **{metric: float(values[i]) for metric, values in per_class.items()}}
            for i, name in enumerate(classes)
        },
        "confusion": counts.tolist(),
    }


def measure_multilabel(logits: Tensor, labels: Tensor, classes: Sequence[str], thresholds: Sequence[float]) -> dict[str, Any]:
    """Plain JSON values. logits [N, K], labels [N, K] of 0 and 1, thresholds [K]: probabilities above which a class is called.

    `accuracy` is the share of right answers among all N * K, `exact_match` the share of pictures with every answer right.
    Average precision needs no threshold; it is None for a class without pictures, and the mean leaves such classes out. Precision of a
    class that was never called, and recall of one without pictures, are 0.
    """
    from torchmetrics.functional.classification import binary_average_precision

    truth = labels.bool()
    probabilities = logits.double().sigmoid()
    called = probabilities > torch.tensor(thresholds, dtype=torch.float64)
    right = called == truth
    hits, called_count, true_count = (counted.sum(0) for counted in (called & truth, called, truth))  # [K]
    per_class = _precision_recall_f1(hits, called_count, true_count)
    micro = _precision_recall_f1(hits.sum(), called_count.sum(), true_count.sum())
    average_precision = [
        float(binary_average_precision(probabilities[:, i], truth[:, i].int())) if number else None for i, number in enumerate(true_count)
    ]
    known = [value for value in average_precision if value is not None]
    exact = int(right.all(1).sum())
    return {
        "pictures": len(labels),
        "mean_average_precision": sum(known) / max(len(known), 1),
        "accuracy": float(right.double().mean()),
        "exact_match": exact / len(labels),
        "exact_match_interval": wilson_interval(exact, len(labels)),
        "loss": float(binary_cross_entropy_with_logits(logits, labels)),
        "macro": {name: float(values.mean()) for name, values in per_class.items()},
        "micro": {name: float(value) for name, value in micro.items()},
        "per_class": {
            name: {
                "pictures": int(true_count[i]),
                "average_precision": average_precision[i],
                **{metric: float(values[i]) for metric, values in per_class.items()},
                "threshold": thresholds[i],
            }
            for i, name in enumerate(classes)
        },
    }


def _precision_recall_f1(hits: Tensor, called: Tensor, true: Tensor) -> dict[str, Tensor]:
    """Counts of pictures -> shares; 0 where there is nothing to share."""
    return {
        "precision": hits / called.clamp(min=1),
        "recall": hits / true.clamp(min=1),
        "f1": 2 * hits / (called + true).clamp(min=1),
    }


def best_thresholds(logits: Tensor, labels: Tensor) -> tuple[float, ...]:
    """For each class the probability above which calling it gives the best F1; 0.5 for a class without pictures.

    logits [N, K], labels [N, K] of 0 and 1. A threshold lies half-way between two pictures, so that no rounding decides about one;
    of equally good ones, it is the highest.
    """
    probabilities = logits.double().sigmoid().numpy()
    return tuple(_best_threshold(scores, truth) for scores, truth in zip(probabilities.T, labels.numpy().T, strict=True))


def _best_threshold(scores: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    """Of one class; scores and truth: [N]."""
    if not truth.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked = np.append(scores[order], 0.0)
    f1 = 2 * np.cumsum(truth[order]) / (np.arange(1, len(truth) + 1) + truth.sum())  # when the first 1, 2, ... pictures are called
    f1[ranked[:-1] == ranked[1:]] = -1  # pictures of one score are called together or not at all
    last = int(f1.argmax())
    return float((ranked[last] + ranked[last + 1]) / 2)


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> list[float]:
    """[low, high] of a proportion; z = 1.96 for 95 %.

    Source: Wilson 1927, in Agresti and Coull 1998, eq. 2, https://doi.org/10.2307/2685469
    """
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return [(centre - spread) / (1 + z * z / trials), (centre + spread) / (1 + z * z / trials)]
