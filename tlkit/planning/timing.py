"""The time of a phase, measured on a few images as in the run, warmed up and with its caches."""

import time
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.nn.functional import one_hot

from tlkit.data.datamodule import ImageDataModule
from tlkit.data.dataset import worker_count
from tlkit.data.decode import Decoding, decoded_size
from tlkit.data.progress import progress_console
from tlkit.data.samples import Samples, evenly_spread
from tlkit.errors import CacheUnavailable, DataError
from tlkit.models.classifier import Classifier
from tlkit.models.heads import last_linear
from tlkit.models.split import Suffix
from tlkit.planning.probe import Stopwatch
from tlkit.planning.trial import Trial
from tlkit.recipe.fields.learning import Schedule
from tlkit.recipe.fields.phases import Phase
from tlkit.recipe.schema import Recipe
from tlkit.system import cache_folder, caching_in
from tlkit.training.closed_form.features import features_of
from tlkit.training.closed_form.solve import Regression
from tlkit.training.objective.objective import Objective, build_objective
from tlkit.training.outputs.log import warnings_only
from tlkit.training.phases import build_module, cached_inputs
from tlkit.training.specs import Learning, PhaseSpec
from tlkit.training.trainer import build_trial_trainer, fit_unsaved

TRIAL_S = 0.25
"""How long one pass over the images of a trial takes, about."""
COLD = 3
"""Factor by how much longer the very first step takes than those after it, about."""
WARM_UP = 4
"""Images that a cache is filled with first."""
EPOCHS = 2
"""The first one warms up and decodes, the last one is what most of a run is like."""
MOST_BATCHES = 3
CHECKED = 8
EVALUATIONS = 480
"""Evaluations of the loss that L-BFGS needs: with 1,500 images of ten classes 457 along the path of weight decays, and 526 for a weak one
alone; with 270 images, where each costs little, 133 and 65."""
MOST_PRODUCTS = 50_000_000
"""Largest number of products in one evaluation on generated features."""
IMPORT_S = 6.0
"""Seconds to import what a run needs before it begins, on the two cores on which the following were measured."""
IMPORTS_S = 1.2
"""Seconds to import the rest, which trains, draws and measures: once, also with folds."""
RESULTS_S = 0.5
"""Seconds to write the model folder, read it again, and draw the curves."""
IMAGE_S = 0.0012
"""Seconds to read, shrink and encode an image of the report."""
HEAT_MAP = 4
"""Times the forward pass of an image: what a heat map of the report takes, which goes forward and back, and is drawn."""
SOLVER_S = 1.0
"""Seconds to import scikit-learn and scipy."""


@dataclass(frozen=True)
class Timing:
    """Seconds an image. once: to compute what is cached of it; 0 where nothing is. first, later: to load it, in the first epoch and others.

    step: to train on it. validate: to validate it. is_cached: whether its activations take its place.
    """

    once: float
    first: float
    later: float
    step: float
    validate: float
    is_cached: bool

    def seconds(self, recipe: Recipe, samples: Samples, phase: Phase, *, devices: int, is_new: bool) -> float:
        """Return the seconds of the whole phase. devices: that share the work. is_new: whether no earlier phase has filled its cache."""
        train, val = len(samples.of("train")), len(samples.of("val"))
        processes = 0 if self.is_cached else worker_count(recipe.data.workers, train)

        def epoch(loading: float) -> float:
            # Worker processes load while the network works; without them one waits for the other.
            both = [loading / processes, self.step] if processes else [loading + self.step]
            return train * max(both) + val * (self.validate + loading / max(1, processes))

        first = epoch(self.first if is_new else self.later)
        once = self.once * (len(samples.samples) if samples.drawn else train + val) if is_new else 0.0
        return (once + first + (phase.epochs - 1) * epoch(self.later)) / devices

    @property
    def measure(self) -> float:
        """Measure the seconds to decode and classify an image, with nothing cached."""
        return self.once if self.is_cached else self.first + self.validate


@dataclass(frozen=True)
class SolvedTiming:
    """Seconds of a head phase that is solved. first: to load an image. once: to load it and compute its features. solve: of the search."""

    first: float
    once: float
    solve: float
    is_cached: bool = True

    @property
    def measure(self) -> float:
        return self.once

    def seconds(self, samples: Samples, *, is_new: bool) -> float:
        """Return the seconds of the whole phase. is_new: whether no earlier phase has computed the features."""
        return self.solve + (self.once * (len(samples.of("train")) + len(samples.of("val"))) if is_new else 0.0)


def time_check(trial: Trial) -> float:
    """Return the seconds to check that an image can be read, and as long once more to compare it with other splits."""
    few, how = evenly_spread(trial.samples.samples, CHECKED), Decoding.of(trial.recipe.data)
    began = time.perf_counter()
    for sample in few:
        with suppress(DataError):
            decoded_size(sample.image, how)
    return 2 * (time.perf_counter() - began) / len(few)


def time_phase(trial: Trial, spec: PhaseSpec, seconds_per_image: float) -> Timing:
    """Return what each image costs in a phase. seconds_per_image: of a training step, to choose how many are tried."""
    data = _few(trial, seconds_per_image)
    with TemporaryDirectory(prefix="tlkit-plan-") as folder, caching_in(Path(folder)), warnings_only():
        return _timed(trial, spec, data)


def time_solved(trial: Trial, *, slowness: float) -> SolvedTiming:
    """Return what a solved head phase costs: features of a few images, and a few evaluations of the loss on made-up ones.

    slowness: times by which an import takes longer than where SOLVER_S was measured.
    """
    copied = deepcopy(trial.classifier).to(trial.device)
    criterion = build_objective(Learning.of(trial.recipe), copied, trial.samples).criterion.cpu()
    warm = _module(trial, trial.samples, WARM_UP)
    data = _few(trial, _features_s(trial, copied, warm) / WARM_UP)
    images = len(data.samples.of("train"))
    # What it costs to begin is the same for few images and for many.
    once = max(0.0, _features_s(trial, copied, data) - _features_s(trial, copied, warm)) / max(1, images - WARM_UP)
    began = time.perf_counter()
    for _ in data.whole("train"):
        pass
    first = (time.perf_counter() - began) / images
    per_evaluation = _evaluation_s(trial, criterion, last_linear(copied.head).in_features)
    return SolvedTiming(first, once, slowness * SOLVER_S + EVALUATIONS * per_evaluation)


def _features_s(trial: Trial, classifier: Classifier, data: ImageDataModule) -> float:
    began = time.perf_counter()
    features_of(classifier, data, ["train"], trial.recipe.cache.model_copy(update={"use": False}), progress_console(quiet=True))
    return time.perf_counter() - began


def _evaluation_s(trial: Trial, criterion: nn.Module, features: int) -> float:
    """Return the seconds of one evaluation of the loss and its gradient, on made-up features, of a part where classes are many."""
    train, classes = len(trial.samples.of("train")), len(trial.samples.classes)
    images = max(1, min(train, MOST_PRODUCTS // (features * classes)))
    draws = torch.Generator().manual_seed(trial.recipe.seed)
    labels = torch.randint(classes, (images,), generator=draws)
    if trial.samples.task == "multilabel":
        labels = one_hot(labels, classes).float()
    regression = Regression((torch.randn(images, features, generator=draws), labels), criterion, classes)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        regression.loss_and_gradient(regression.zeros(), 1.0)
        seconds.append(time.perf_counter() - began)
    return min(seconds) * train / images


def _few(trial: Trial, seconds_per_image: float) -> ImageDataModule:
    """Return a few images: a CPU takes about as long per image in a small batch; a GPU doesn't, and is fast enough for full batches."""
    on_cpu = max(3 * WARM_UP, int(COLD * TRIAL_S / max(seconds_per_image, 1e-6)))
    affordable = on_cpu if trial.device == "cpu" else MOST_BATCHES * trial.batch_size
    train = evenly_spread(trial.samples.of("train"), min(affordable, MOST_BATCHES * trial.batch_size))
    val = evenly_spread(trial.samples.of("val"), max(2, len(train) // 2))
    few = Samples(trial.samples.classes, (*train, *val), trial.samples.task)
    return _module(trial, few, len(train))


def _module(trial: Trial, samples: Samples, images: int) -> ImageDataModule:
    """Return the data module of so many training and validation images."""
    few = replace(samples, samples=(*samples.of("train")[:images], *samples.of("val")[:images]))
    data = trial.data(few, max(2, min(trial.batch_size, images // 2)))
    data.hashes = {sample.id: sample.id for sample in few.samples}
    return data


def _timed(trial: Trial, spec: PhaseSpec, data: ImageDataModule) -> Timing:
    recipe, phase = trial.recipe, trial.recipe.gradient_phases[spec.index].model_copy(update={"compile": False})
    learning = replace(Learning.of(recipe), schedule=Schedule(name="constant", warmup=0.0))
    copied = deepcopy(trial.classifier)
    copied.train_only(spec.trained, spec.batchnorm, phase.adapter)
    objective = build_objective(learning, copied, trial.samples)
    watch = Stopwatch()
    trainer = build_trial_trainer(recipe.trainer_of(phase), optimizer=recipe.optimizer, callbacks=[watch], max_epochs=EPOCHS)
    inputs, suffix, once = _inputs(trial, copied, data, objective, trainer)
    fit_unsaved(trainer, build_module(copied, data, objective, learning, phase, suffix), inputs)
    images, per_epoch = len(data.samples.of("train")), len(watch.training) // EPOCHS
    return Timing(
        once=once / max(1, len(data.samples.samples) - 2 * WARM_UP),
        first=sum(watch.loading[:per_epoch]) / images,
        later=sum(watch.loading[-per_epoch:]) / images,
        step=median(watch.training[1:]) / min(data.batch_size, images),
        validate=median(watch.validating),
        is_cached=suffix is not None,
    )


def _inputs(
    trial: Trial, classifier: Classifier, data: ImageDataModule, objective: Objective, trainer: Trainer
) -> tuple[LightningDataModule, Suffix | None, float]:
    """Return what a phase is fed with, the layers after what is cached, and the seconds that caching took."""
    # A budget that a few images exceed where all of them would.
    share = len(data.samples.samples) / len(trial.samples.samples)
    cache = trial.recipe.cache.model_copy(update={"budget_gb": trial.recipe.cache.budget_gb * share})
    if not cache.use:
        return data, None, 0.0
    console, mix = progress_console(quiet=True), trial.recipe.mix
    with suppress(CacheUnavailable):
        if classifier.trains_whole_backbone:
            raise CacheUnavailable("nothing is frozen")
        began = time.perf_counter()
        few = _module(trial, data.samples, WARM_UP)
        cached_inputs(classifier, few, cache, objective.auxiliary, mix, trainer=trainer, console=console)
        warm = time.perf_counter()
        inputs, suffix = cached_inputs(classifier, data, cache, objective.auxiliary, mix, trainer=trainer, console=console)
        # What it costs to begin is the same for few images and for many.
        return inputs, suffix, max(0.0, time.perf_counter() - warm - (warm - began))
    with suppress(CacheUnavailable):
        data.cache_decoded(cache_folder(), budget_gb=cache.budget_gb)
    return data, None, 0.0
