"""A head phase that is solved: the regularised logistic regression on the frozen network's features, to convergence.

With torch's own L-BFGS three weight decays took three times the evaluations of scipy's and five times as long (1,800 images of 1,280
features); a preconditioner made from the features' covariance didn't pay.
"""

import logging
import time
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import linear

from tlkit.data.datamodule import ImageDataModule
from tlkit.data.samples import Samples
from tlkit.evaluation.primary_metric import metric_label, primary_metric_of
from tlkit.models.classifier import Classifier
from tlkit.models.heads import last_linear
from tlkit.recipe.fields.phases import SolvedPhase
from tlkit.recipe.fields.trainer import Cache
from tlkit.training.callbacks.metrics_table import SCORE
from tlkit.training.closed_form.features import features_of
from tlkit.training.objective.metrics import measured, score
from tlkit.training.specs import PhaseSpec

LOG = logging.getLogger("tlkit")

WEIGHT_DECAYS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Values tried if the recipe has none. Features are standardised, so that its size means the same for all backbones."""
PATH_TOLERANCE, TOLERANCE = 1e-5, 1e-6
"""Largest entry of the gradient at the end of the search: to choose a weight decay, and for the shipped head."""
CHUNK = 4096
"""Images whose features are float64 at a time."""
REMEMBERED = 30
"""Number of steps that L-BFGS remembers: 25 % faster than with scipy's 10."""

Split = tuple[Tensor, Tensor]


def solve_head(
    classifier: Classifier, data: ImageDataModule, spec: PhaseSpec, *, criterion: nn.Module, cache: Cache, console: Console
) -> tuple[dict[str, Any], float]:
    """Set the classifier's head to the solution. Returns its row for metrics.csv, but for the phase, and its validation score.

    spec: of a solved phase. criterion: logits, labels -> the mean training loss.
    """
    began = time.perf_counter()
    samples = data.samples
    train, val = features_of(classifier, data, ("train", "val"), cache, console)
    decay = spec.phase.weight_decay if isinstance(spec.phase, SolvedPhase) else None
    weight_decays = WEIGHT_DECAYS if decay is None else (decay,)
    solved = solve(Regression(train, criterion, len(samples.classes)), val, samples, weight_decays, title=spec.title)
    layer = last_linear(classifier.head)
    with torch.no_grad():
        layer.weight.copy_(solved.weight)
        layer.bias.copy_(solved.bias)
        logits, val_logits = solved(train[0]), solved(val[0])
    figures = {**measured("train", samples, logits, train[1], criterion), **measured("val", samples, val_logits, val[1])}
    seconds = round(time.perf_counter() - began, 3)
    LOG.info("%s  solved  train loss %.4f accuracy %.4f  val loss %.4f accuracy %.4f  %.1f s", spec.title, *figures.values(), seconds)
    figure = score(samples, val_logits, val[1])
    return {"epoch": 1, **figures, SCORE: figure, "lr": "", "seconds": seconds}, figure


def solve(regression: "Regression", val: Split, samples: Samples, weight_decays: tuple[float, ...], *, title: str) -> nn.Linear:
    """Return the layer for the weight decay whose mean criterion on validation is lowest.

    Not the one with the best primary metric: on a hundred images many are equal, or differ by chance (docs/experiments.md, "The solved
    head"). weight_decays: from strong to weak; the search for each solution begins at the previous one.
    """
    point, tried = regression.zeros(), []
    for weight_decay in weight_decays if len(weight_decays) > 1 else ():
        point = regression.minimum(point, weight_decay, PATH_TOLERANCE)
        with torch.no_grad():
            logits = regression.layer(point)(val[0])
        tried.append((regression.loss(logits, val[1]), weight_decay, score(samples, logits, val[1]), point))
    if tried:
        figures = "  ".join(f"{weight_decay:g}: {loss:.4f} ({figure:.4f})" for loss, weight_decay, figure, _ in tried)
        LOG.info("%s  validation loss (%s) by weight decay  %s", title, metric_label(primary_metric_of(samples)), figures)
    _, chosen, _, point = min(tried, key=lambda row: row[0], default=(0.0, weight_decays[0], 0.0, point))
    LOG.info("%s  weight decay %g%s", title, chosen, " has the lowest loss; its solution is refined" if tried else "")
    return regression.layer(regression.minimum(point, chosen, TOLERANCE))


class Regression:
    """The mean criterion + weight_decay / 2 * |weights|² of a linear layer on standardised features; biases aren't decayed.

    A point is the layer's weights [K * F] and, after them, biases [K], flat and in float64 as scipy wants them.
    With one label per image and nothing but cross-entropy, weight_decay is 1 / (N * C) of scikit-learn's LogisticRegression.
    """

    def __init__(self, train: Split, criterion: nn.Module, classes: int) -> None:
        """Set up the problem. train: features [N, F] and labels, [N] or [N, K]. criterion: logits, labels -> mean loss of a batch."""
        from tlkit.data.feature_scaler import FeatureScaler

        self._features, labels = train
        # Inference made them: a clone can have a gradient beside it.
        self._labels = labels.double() if labels.is_floating_point() else labels.clone()
        # A copy: the criterion itself goes on in 32 bits.
        self._criterion, self._classes = deepcopy(criterion).double(), classes
        scaler = FeatureScaler()
        for features in torch.split(self._features, CHUNK):
            scaler.partial_fit(features.numpy())
        self._mean, self._scale = torch.from_numpy(scaler.mean_), torch.from_numpy(scaler.scale_)

    def loss(self, logits: Tensor, labels: Tensor) -> float:
        """Return the mean criterion of a whole split's logits [N, K], without the penalty."""
        return float(self._criterion(logits.double(), labels.double() if labels.is_floating_point() else labels))

    def zeros(self) -> NDArray[np.float64]:
        return np.zeros(self._classes * (len(self._mean) + 1))

    def minimum(self, start: NDArray[np.float64], weight_decay: float, tolerance: float) -> NDArray[np.float64]:
        """Find the point at which no entry of the gradient is larger than the tolerance."""
        from scipy.optimize import minimize
        from threadpoolctl import ThreadpoolController

        options = {"gtol": tolerance, "ftol": 0.0, "maxiter": 10_000, "maxfun": 20_000, "maxcor": REMEMBERED}
        # Between two evaluations scipy's BLAS would wait for work on all processors, and torch not have them: with two, 333 images took
        # five times as long (scipy 1.17). Only the BLAS of scipy's own wheel: another may be torch's too.
        with ThreadpoolController().select(prefix="libscipy_openblas").limit(limits=1):
            found = minimize(self.loss_and_gradient, start, args=(weight_decay,), jac=True, method="L-BFGS-B", options=options)
        if np.abs(found.jac).max() > 10 * tolerance:
            LOG.warning("weight decay %g: stopped before it had converged: %s", weight_decay, found.message)
        solution: NDArray[np.float64] = found.x
        return solution

    def loss_and_gradient(self, point: NDArray[np.float64], weight_decay: float) -> tuple[float, NDArray[np.float64]]:
        flat = torch.tensor(point, requires_grad=True)
        decay = weight_decay / 2 * flat[: -self._classes].square().sum()
        total, (gradient,) = decay.item(), torch.autograd.grad(decay, flat)
        for features, labels in zip(torch.split(self._features, CHUNK), torch.split(self._labels, CHUNK), strict=True):
            loss = self._criterion(linear(features.double(), *self._on_features(flat)), labels) * (len(labels) / len(self._labels))
            total += loss.item()
            gradient = gradient + torch.autograd.grad(loss, flat)[0]
        return total, gradient.numpy()

    @torch.no_grad()
    def layer(self, point: NDArray[np.float64]) -> nn.Linear:
        """Return the layer on the features without standardisation."""
        weight, bias = self._on_features(torch.from_numpy(point))
        layer = nn.Linear(len(self._mean), self._classes)
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        return layer

    def _on_features(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight [K, F] and bias [K], with the standardisation folded in."""
        weight = point[: -self._classes].view(self._classes, -1) / self._scale
        return weight, point[-self._classes :] - weight @ self._mean
