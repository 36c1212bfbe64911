"""What a classifier is worth, from its logits and the true labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from tlkit.evaluation.intervals import wilson_interval

DENSE_CLASSES = 200
"""Up to so many classes `confusion` is a whole table. Of more it would have millions of zeros: `confusion_cells` has what isn't zero."""


def measure(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of a split as plain JSON values. logits [N, K], labels [N].

    `accuracy_interval` is the 95 % interval that N images allow. `topK_accuracy` is there where K classes leave something to miss: k = 5,
    or one less than the classes. `macro` is the mean over classes. Precision of a class that was never predicted is 0.
    `confusion[i][j]` counts images of class i that were predicted as j; of more than DENSE_CLASSES classes `confusion_cells` has a row
    [i, j, count] for each count above 0. Time and memory grow with N * K, as the logits do, and nothing with K squared.
    """
    k, total, predicted = len(classes), len(labels), logits.argmax(1)
    hits, predicted_counts, true_counts = class_counts(predicted, labels, k)
    per_class = _precision_recall_f1(hits, predicted_counts, true_counts)
    correct, top = int(hits.sum()), min(5, k - 1)
    return {
        "pictures": total,
        "accuracy": correct / total,
        "accuracy_interval": wilson_interval(correct, total),
        "error": 1 - correct / total,
        "balanced_accuracy": float(balanced_accuracy(hits, true_counts)),
        **({f"top{top}_accuracy": int((logits.topk(top).indices == labels[:, None]).sum()) / total} if top > 1 else {}),
        "loss": float(cross_entropy(logits, labels)),
        "macro": {name: float(values.mean()) for name, values in per_class.items()},
        "per_class": _rows(classes, pictures=true_counts, **per_class),
        **_confusion(predicted, labels, k),
    }


def class_counts(predicted: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each class how many images were predicted rightly, were predicted, and are true: three times [K].

    torchmetrics 1.9 would compare all images with all K * K pairs of classes wherever torch has to be deterministic.
    """
    hits, predicted_counts, true_counts = (
        torch.bincount(each, minlength=classes) for each in (labels[predicted == labels], predicted, labels)
    )
    return hits, predicted_counts, true_counts


def balanced_accuracy(hits: Tensor, true_counts: Tensor) -> Tensor:
    """Return the mean of the recalls of the classes that have images, as scikit-learn's `balanced_accuracy_score` does.

    hits, true_counts: of each class [K], by `class_counts`. It chooses the best epoch and is what the report shows.
    """
    known = true_counts > 0
    return (hits[known].double() / true_counts[known]).mean()


def _confusion(predicted: Tensor, labels: Tensor, classes: int) -> dict[str, Any]:
    pairs = labels * classes + predicted
    if classes <= DENSE_CLASSES:
        return {"confusion": torch.bincount(pairs, minlength=classes * classes).view(classes, classes).tolist()}
    cells, counts = torch.unique(pairs, return_counts=True)
    return {"confusion_cells": torch.stack([cells // classes, cells % classes, counts], 1).tolist()}


def _rows(classes: Sequence[str], **columns: Tensor | Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Return a row of plain values for each class."""
    values = [column.tolist() if isinstance(column, Tensor) else column for column in columns.values()]
    return {name: dict(zip(columns, row, strict=True)) for name, *row in zip(classes, *values, strict=True)}


def measure_multilabel(logits: Tensor, labels: Tensor, classes: Sequence[str], thresholds: Sequence[float]) -> dict[str, Any]:
    """Return plain JSON values. logits [N, K], labels [N, K] of 0 and 1, thresholds [K]: probabilities above which a class is predicted.

    `accuracy` is the share of right answers among all N * K, `exact_match` the share of images with every answer right.
    Average precision needs no threshold; it is None for a class without images, and the mean leaves such classes out. Precision of a
    class that was never predicted, and recall of one without images, are 0.
    """
    from torchmetrics.functional.classification import binary_average_precision

    truth = labels.bool()
    probabilities = logits.double().sigmoid()
    predicted = probabilities > torch.tensor(thresholds, dtype=torch.float64)
    right = predicted == truth
    hits, predicted_count, true_count = (counted.sum(0) for counted in (predicted & truth, predicted, truth))  # [K]
    per_class = _precision_recall_f1(hits, predicted_count, true_count)
    micro = _precision_recall_f1(hits.sum(), predicted_count.sum(), true_count.sum())
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
        "per_class": _rows(classes, pictures=true_count, average_precision=average_precision, **per_class, threshold=thresholds),
    }


def _precision_recall_f1(hits: Tensor, predicted: Tensor, true: Tensor) -> dict[str, Tensor]:
    """Return shares of counts of images; 0 where there is nothing to share."""
    return {
        "precision": hits.double() / predicted.clamp(min=1),
        "recall": hits.double() / true.clamp(min=1),
        "f1": 2 * hits.double() / (predicted + true).clamp(min=1),
    }


def best_thresholds(logits: Tensor, labels: Tensor) -> tuple[float, ...]:
    """Return for each class the probability above which calling it gives the best F1; 0.5 for a class without images.

    logits [N, K], labels [N, K] of 0 and 1. A threshold is half-way between two images, so that no rounding decides about one;
    of equally good ones, it is the highest.
    """
    probabilities = logits.double().sigmoid().numpy()
    return tuple(_best_threshold(scores, truth) for scores, truth in zip(probabilities.T, labels.numpy().T, strict=True))


def _best_threshold(scores: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    """Choose the threshold of one class; scores and truth: [N]."""
    if not truth.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked = np.append(scores[order], 0.0)
    f1 = 2 * np.cumsum(truth[order]) / (np.arange(1, len(truth) + 1) + truth.sum())  # when the first 1, 2, ... images are predicted
    f1[ranked[:-1] == ranked[1:]] = -1  # images of one score are predicted together or not at all
    last = int(f1.argmax())
    return float((ranked[last] + ranked[last + 1]) / 2)
