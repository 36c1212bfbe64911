"""Metrics of a phase: accuracy, and the score that chooses the best epoch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MultilabelAccuracy, MultilabelAveragePrecision

from tlkit.data.samples import Samples
from tlkit.evaluation.metrics import balanced_accuracy, class_counts
from tlkit.evaluation.primary_metric import PrimaryMetric, primary_metric_of
from tlkit.recipe.schema import Task
from tlkit.training.objective.losses import plain_loss

UNCHECKED: dict[str, Any] = {"validate_args": False}
"""torchmetrics' checks of every batch wait for the device; labels come from tlkit's own classes."""


class MeanLoss(Metric):
    """The mean over images of batches' mean losses.

    Own, because torchmetrics' MeanMetric (1.9.0) forgets the weights with nan_strategy="disable", and else looks for nan in every step, for
    which it waits for the device.
    of_finite: leaves out batches whose loss is NaN or infinite, as training does or ends.
    """

    def __init__(self, *, of_finite: bool = False) -> None:
        super().__init__()
        self._of_finite = of_finite
        self.total: Tensor
        self.images: Tensor
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, images: int) -> None:
        loss = loss.detach().float()
        counts = loss.isfinite() if self._of_finite else torch.ones_like(loss, dtype=torch.bool)
        self.total += torch.where(counts, loss, 0.0) * images
        self.images += counts * images

    def compute(self) -> Tensor:
        return self.total / self.images


class BalancedAccuracy(Metric):
    """`balanced_accuracy` of all images that were counted.

    Own, because torchmetrics' macro recall (1.9.0) needs images * classes² * 8 bytes a batch where torch has to be deterministic, and takes
    a class without images for one of recall 0 as soon as it is called.
    """

    def __init__(self, classes: int, **settings: Any) -> None:
        super().__init__(**settings)
        self._classes = classes
        self.hits: Tensor
        self.images: Tensor
        for state in ("hits", "images"):
            self.add_state(state, torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Update with logits [B, K] and labels [B]."""
        hits, _, images = class_counts(logits.argmax(1), labels, self._classes)
        self.hits += hits
        self.images += images

    def compute(self) -> Tensor:
        return balanced_accuracy(self.hits, self.images)


@dataclass(frozen=True)
class Scoring:
    """Settings of metrics. classes: their number. primary_metric: chooses the best epoch.

    alone: this process has seen all images, so that the metrics are not synchronised with others.
    """

    task: Task
    classes: int
    primary_metric: PrimaryMetric
    alone: bool = False

    @classmethod
    def of(cls, samples: Samples, *, alone: bool = False) -> Self:
        return cls(samples.task, len(samples.classes), primary_metric_of(samples), alone)

    def accuracy(self) -> Metric:
        """Create the accuracy metric; for multilabel the share of right answers, over images and classes, at probability 0.5."""
        kind = MultilabelAccuracy if self.task == "multilabel" else MulticlassAccuracy
        metric: Metric = kind(self.classes, average="micro", sync_on_compute=not self.alone, **UNCHECKED)
        return metric

    def score(self) -> Metric:
        """Return the primary metric as a metric of torchmetrics: from 0 to 1, higher is better."""
        settings = {**UNCHECKED, "sync_on_compute": not self.alone}
        if self.primary_metric == "mean_average_precision":
            return MultilabelAveragePrecision(self.classes, average="macro", thresholds=None, **settings)
        if self.primary_metric == "balanced_accuracy":
            return BalancedAccuracy(self.classes, sync_on_compute=not self.alone)
        return MulticlassAccuracy(self.classes, average="micro", **settings)

    def count(self, metric: Metric, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [B, K], labels [B] or [B, K]; mixed labels count as their larger part."""
        if self.task == "multilabel":
            # torchmetrics would take logits that all lie in 0..1 for probabilities.
            metric.update(logits.sigmoid(), (labels > 0.5).to(torch.int64))
        else:
            metric.update(logits, labels if labels.ndim == 1 else labels.argmax(1))


def score(samples: Samples, logits: Tensor, labels: Tensor) -> float:
    """Return the primary metric of a whole split's logits [N, K] and labels."""
    scoring = Scoring.of(samples, alone=True)
    metric = scoring.score()
    scoring.count(metric, logits, labels)
    return float(metric.compute())


@torch.inference_mode()
def measured(
    split: str, samples: Samples, logits: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = plain_loss
) -> dict[str, float]:
    """Return `SPLIT/loss` and `SPLIT/accuracy` of a whole split's logits and labels, as in metrics.csv."""
    scoring = Scoring.of(samples, alone=True)
    accuracy = scoring.accuracy()
    scoring.count(accuracy, logits, labels)
    return {f"{split}/loss": float(loss(logits, labels)), f"{split}/accuracy": float(accuracy.compute())}
