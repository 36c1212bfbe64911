"""Classical classifiers on the features: fitted by scikit-learn after all phases."""

import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tlkit.data.samples import Samples
from tlkit.evaluation.calibration import best_temperature
from tlkit.evaluation.primary_metric import metric_label, primary_metric_of
from tlkit.models.heads import NearestNeighbours
from tlkit.recipe.fields.model import Head
from tlkit.training.callbacks.metrics_table import SCORE, named_score, write_metrics_table
from tlkit.training.closed_form.features import features_of
from tlkit.training.context import RunContext
from tlkit.training.objective.metrics import measured, score
from tlkit.training.phases import Trained
from tlkit.training.setup import Setup

LOG = logging.getLogger("tlkit")

C_PATHS = {"svm": (1e-5, 1e-4, 1e-3, 1e-2), "logistic": (1e-4, 1e-3, 1e-2, 1e-1, 1.0)}
"""Values tried for C if the recipe has none. Features are standardised first, so that its size means the same for all backbones.

A larger C costs an svm ten times the time, and on thousand features all training images are separated long before.
"""


def fit_classical_head(setup: Setup, head: Head, trained: Trained, *, phase: int, context: RunContext) -> Trained:
    """Replace the classifier's head by one that scikit-learn fits. metrics.csv gets a row for it, as phase `phase`.

    Training images are taken as they are, without augmentation.
    """
    began = time.perf_counter()
    classifier, data, cache = setup.classifier, setup.data, setup.cache
    classifier.to(trained.device)
    (features, labels), (val_features, val_labels) = features_of(classifier, data, ("train", "val"), cache, context.console)
    fitted = fit_head(head, (features, labels), (val_features, val_labels), data.samples)
    with torch.inference_mode():
        logits, val_logits = fitted(features), fitted(val_features)
    classifier.head = fitted.to(trained.device)
    seconds = round(time.perf_counter() - began, 3)
    row = {
        "phase": phase,
        "epoch": 1,
        **measured("train", data.samples, logits, labels),
        **measured("val", data.samples, val_logits, val_labels),
        SCORE: score(data.samples, val_logits, val_labels),
        "lr": "",
        "seconds": seconds,
    }
    rows = [*trained.rows, named_score(row, primary_metric_of(data.samples))]
    write_metrics_table(rows, context.folder / "metrics.csv")
    LOG.info("%s  train accuracy %.4f  val accuracy %.4f  %.1f s", head.kind, row["train/accuracy"], row["val/accuracy"], seconds)
    return replace(trained, rows=rows, best_phase=phase, best_epoch=1, seconds={**trained.seconds, head.kind: seconds})


@torch.no_grad()
def fit_head(head: Head, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], samples: Samples) -> nn.Module:
    """Fit the head to features [N, F] and labels [N].

    svm and logistic become one linear layer. Without a C in the recipe the logistic regression with the lowest validation loss is taken; of
    svms, whose margins are no probabilities, the one with the best primary metric on validation, of equals the smallest C, and they are
    divided by the temperature that fits validation best.
    """
    (features, labels), classes = train, len(samples.classes)
    if head.kind == "knn":
        neighbours = NearestNeighbours(features.shape[1], classes, head.neighbours)
        neighbours.remember(features, labels)
        return neighbours
    val_features, val_labels = val
    candidates = list(_linear_candidates(head, features.numpy(), labels.numpy(), classes))
    logits = [layer(val_features) for _, layer in candidates]
    scores = [score(samples, found, val_labels) for found in logits]
    losses = [float(cross_entropy(found, val_labels)) for found in logits]
    chosen = scores.index(max(scores)) if head.kind == "svm" else losses.index(min(losses))
    c, best = candidates[chosen]
    LOG.info("%s  C %g: validation %s %.4f", head.kind, c, metric_label(primary_metric_of(samples)), scores[chosen])
    if head.kind == "svm":
        temperature = best_temperature(best(val_features), val_labels, bounds=(0.01, 100))
        best.weight.data.div_(temperature)
        best.bias.data.div_(temperature)
    return nn.Sequential(nn.Dropout(0.0), best)


def _linear_candidates(
    head: Head, features: NDArray[np.float32], labels: NDArray[np.int64], classes: int
) -> Iterator[tuple[float, nn.Linear]]:
    """Yield C and its linear layer, from the strongest regularisation to the weakest."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    from tlkit.data.feature_scaler import FeatureScaler

    scaler = FeatureScaler().fit(features)
    standardised = scaler.transform(features)
    for c in C_PATHS[head.kind] if head.c is None else (head.c,):
        # dual: twice as quick as the primal with 1,800 images of 1,280 features (scikit-learn 1.9).
        model = LogisticRegression(C=c, max_iter=1000) if head.kind == "logistic" else LinearSVC(C=c, dual=True, random_state=0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(standardised, labels)
        if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
            LOG.warning("%s  C %g: scikit-learn stopped before it had converged", head.kind, c)
        yield c, _folded(model.coef_, model.intercept_, scaler, classes)


def _folded(coef: NDArray[np.float64], intercept: NDArray[np.float64], scaler: Any, classes: int) -> nn.Linear:
    """Convert scikit-learn's classifier of standardised features to a layer on the features themselves.

    For two classes scikit-learn has one row, the second class's; half of it each way gives the same probabilities by softmax.
    """
    if len(coef) == 1:
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    weight = coef / scaler.scale_
    bias = intercept - weight @ scaler.mean_
    layer = nn.Linear(coef.shape[1], classes)
    layer.weight.data.copy_(torch.from_numpy(weight))
    layer.bias.data.copy_(torch.from_numpy(bias))
    return layer
