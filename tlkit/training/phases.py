"""The phases, one `trainer.fit` each: own optimizer, own schedule, own wrapping for DDP."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any, Self

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.strategies import ModelParallelStrategy
from rich.console import Console

from tlkit.data.datamodule import ImageDataModule
from tlkit.data.dataset import worker_count
from tlkit.errors import CacheUnavailable, Fault, RecipeError, TrainingError
from tlkit.evaluation.primary_metric import metric_label, primary_metric_of
from tlkit.models.classifier import Classifier
from tlkit.models.split import Suffix
from tlkit.recipe.fields.learning import Mix
from tlkit.recipe.fields.phases import Phase
from tlkit.recipe.fields.trainer import Cache, CheckpointEvery
from tlkit.report.report import RUNS_IN_EVERY_EPOCH
from tlkit.system import cache_folder, processors
from tlkit.terminal import counted
from tlkit.training.cache.activations import ActivationCache
from tlkit.training.callbacks.best_weights import BestWeights, moving_average, save_state
from tlkit.training.callbacks.gradient_norms import GradientNorms
from tlkit.training.callbacks.metrics_table import MetricsTable
from tlkit.training.callbacks.not_finite import NotFinite
from tlkit.training.callbacks.time_shares import Clock, Setting, TimeShares
from tlkit.training.checkpointing.callback import Checkpoints, WholeFiles
from tlkit.training.closed_form.solve import solve_head
from tlkit.training.context import RunContext
from tlkit.training.distributed.ranks import is_main_process
from tlkit.training.distributed.sharding import Gathered
from tlkit.training.module import PhaseModule
from tlkit.training.objective.auxiliary import AuxiliaryHeads
from tlkit.training.objective.metrics import Scoring
from tlkit.training.objective.objective import Objective, build_objective
from tlkit.training.optimizers import Optimization
from tlkit.training.outputs.live_table import ShowProgress
from tlkit.training.outputs.loggers import opened_loggers
from tlkit.training.setup import Setup
from tlkit.training.specs import Learning, PhaseSpec
from tlkit.training.trainer import Writes, build_trainer, fit

LOG = logging.getLogger("tlkit")

BEFORE = "before.safetensors"
"""File in `checkpoints`, with `wise_ft`: the classifier before fine-tuning."""


@dataclass(frozen=True)
class Trained:
    """The result of the phases. rows: those of metrics.csv. seconds: a phase's name -> its wall-clock time.

    best_phase, best_epoch: counted from 1.
    """

    rows: list[dict[str, Any]]
    best_phase: int
    best_epoch: int
    seconds: dict[str, float]
    device: torch.device
    wise_ft: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Training:
    """State that is kept from one phase of a run to the next."""

    setup: Setup
    context: RunContext
    objective: Objective
    best: BestWeights
    table: MetricsTable
    checkpoints: Checkpoints

    @classmethod
    def begin(cls, setup: Setup, every: CheckpointEvery, context: RunContext) -> Self:
        """Build it, and put it into the state of the checkpoint that the run goes on from, if it does."""
        objective = build_objective(setup.learning, setup.classifier, setup.samples)
        if is_main_process():
            context.checkpoints.mkdir(exist_ok=True)
        best = BestWeights(context.checkpoints / "best.safetensors", setup.classifier)
        table = MetricsTable(context.folder / "metrics.csv", primary_metric_of(setup.samples))
        checkpoints = Checkpoints(setup.classifier, objective.auxiliary, best, table, every=every, context=context)
        if context.resumed is not None:
            checkpoints.go_on(context.resumed.checkpoint, context.resumed.state)
        return cls(setup, context, objective, best, table, checkpoints)


def train_phases(training: Training) -> Trained:
    """Train phase after phase; the classifier is left with the weights of the best epoch of all.

    Raises KeyboardInterrupt after a signal, with the best weights and a checkpoint in `run/checkpoints`.
    """
    best, checkpoints, specs = training.best, training.checkpoints, training.setup.phases
    for spec in specs:
        if spec.index < checkpoints.phase:
            continue  # done before
        checkpoints.begin_phase(spec)
        if isinstance(spec.phase, Phase):
            train_phase(training, spec, spec.phase)
        else:
            solve_phase(training, spec)
        checkpoints.end_phase(spec)
    if is_main_process() and specs and not isfinite(best.score):
        raise TrainingError("No epoch had a validation loss that is a number, so there is no model to ship.\n  Lower the phases' lr.")
    if is_main_process() and best.file.is_file():
        best.restore()
    return Trained(training.table.rows, best.phase, best.epoch, checkpoints.seconds, training.setup.devices.here)


def solve_phase(training: Training, spec: PhaseSpec) -> None:
    """Solve the head, in the main process alone: where the next phase wraps the network, DDP gives its weights to all others."""
    setup, context = training.setup, training.context
    classifier = setup.classifier
    training.checkpoints.set_trainable_names(frozenset(f"head.{name}" for name in classifier.head.state_dict()))
    if is_main_process():
        row, score = solve_head(
            classifier.to(setup.devices.here),
            setup.data,
            spec,
            criterion=training.objective.criterion,
            cache=setup.cache,
            console=context.console,
        )
        training.table.add(row, writes=True)
        training.best.update(score, row["val/loss"], row["epoch"], keeps=True)


def train_phase(training: Training, spec: PhaseSpec, phase: Phase) -> None:
    """Freeze, build, cache and fit."""
    classifier, data, learning = training.setup.classifier, training.setup.data, training.setup.learning
    keep_start(training, spec)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(data.seed + spec.index)  # adapters begin with the same numbers on one process and on many
        classifier.train_only(spec.trained, spec.batchnorm, phase.adapter)
    training.checkpoints.set_trainable_names(classifier.changing)
    data.first_epoch = spec.epochs_before
    clock = Clock()
    folder = training.context.folder
    progress = ShowProgress(training.context.console, spec, training.best, primary_metric_of(training.setup.samples))
    with (
        opened_loggers(spec.trainer.logger, folder, f"phase{spec.number}") as loggers,
        compiling_explained(spec, phase),
        closing(progress),
    ):
        trainer = build_trainer(
            spec.trainer,
            epochs=phase.epochs,
            optimizer=learning.optimizer,
            callbacks=phase_callbacks(training, spec, progress),
            writes=Writes(folder, WholeFiles(training.checkpoints), loggers),
            profiler=clock,
        )
        inputs, suffix = inputs_of_phase(training, spec, trainer)
        if suffix is None:
            cache_decoded(data, training.setup.cache, spec, trainer.num_devices)
        setting = setting_of(training, phase, trainer, kept=suffix is not None)
        trainer.callbacks.append(TimeShares(clock, title=spec.title, setting=setting))  # type: ignore[attr-defined]
        module = build_module(classifier, data, training.objective, learning, phase, suffix)
        fit(trainer, module, inputs, training.context.stop, checkpoint=training.checkpoints.resumed_file)
    classifier.merge_adapters()
    log_early_end(trainer, learning, spec, phase, training.setup)


def keep_start(training: Training, spec: PhaseSpec) -> None:
    """Save the weights that the phase begins with, if they are to be blended with those that it ends with."""
    file = training.context.checkpoints / BEFORE
    if spec.keeps_start and not file.exists() and is_main_process():
        save_state(training.setup.classifier, file)


def phase_callbacks(training: Training, spec: PhaseSpec, progress: ShowProgress) -> list[Callback]:
    """Return the callbacks of a phase, in the order in which Lightning calls them.

    `Gathered` is first: with fsdp it fills the classifier, whose weights BestWeights saves. The moving average comes after BestWeights, and
    so swaps the averaged weights out, when validation ends, only after they were saved.
    """
    setup, learning, context = training.setup, training.setup.learning, training.context
    callbacks: list[Callback] = [Gathered(setup.classifier)] if spec.trainer.strategy == "fsdp" else []
    callbacks += [
        training.best,
        training.table,
        progress,
        NotFinite(spec.trainer.on_nan, setup.samples.of("train"), context.folder / "not_finite.csv", phase=spec.number),
    ]
    if early := learning.early_stopping:
        callbacks.append(EarlyStopping("val/score", mode="max", patience=early.patience, min_delta=early.min_delta))
    if spec.trainer.log_gradients:
        callbacks.append(GradientNorms(context.folder, setup.classifier, spec.number))
    if learning.ema:
        callbacks.append(moving_average(learning.ema))
    return [*callbacks, *context.callbacks, training.checkpoints]


def build_module(
    classifier: Classifier, data: ImageDataModule, objective: Objective, learning: Learning, phase: Phase, suffix: Suffix | None = None
) -> PhaseModule:
    """Return the phase for Lightning. classifier: frozen as the phase says already."""
    return PhaseModule(
        classifier,
        objective,
        Scoring.of(data.samples),
        Optimization(phase, learning.optimizer, learning.schedule.of_phase(phase.train)),
        normalize=data.preprocessing.normalizer(),
        suffix=suffix,
    )


def inputs_of_phase(training: Training, spec: PhaseSpec, trainer: lightning.Trainer) -> tuple[lightning.LightningDataModule, Suffix | None]:
    """Return the images; or, where the frozen part has to run only once, its activations and the layers that come after it."""
    setup, cache = training.setup, training.setup.cache
    if not cache.use or setup.classifier.trains_whole_backbone:
        return setup.data, None
    auxiliary, mix, console = training.objective.auxiliary, setup.learning.mix, training.context.console
    try:
        return cached_inputs(setup.classifier, setup.data, cache, auxiliary, mix, trainer=trainer, console=console)
    except CacheUnavailable as why:
        LOG.info("%s  %s: %s", spec.title, RUNS_IN_EVERY_EPOCH, why)
        return setup.data, None


def cached_inputs(
    classifier: Classifier,
    data: ImageDataModule,
    cache: Cache,
    auxiliary: AuxiliaryHeads | None,
    mix: Mix,
    *,
    trainer: lightning.Trainer,
    console: Console,
) -> tuple[lightning.LightningDataModule, Suffix]:
    """Return the activations of the frozen part and the layers that come after it. Raises CacheUnavailable."""
    if mix != Mix():
        raise CacheUnavailable("mix blends images in every epoch")
    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise CacheUnavailable("with trainer.strategy = fsdp blocks are gathered when the whole network runs")
    if auxiliary is not None and auxiliary.follow(classifier):
        raise CacheUnavailable("an auxiliary head uses layers before those that train")
    # The trainer's word, not the recipe's: on a CPU Lightning takes bf16-mixed for 16-mixed.
    device, precision = trainer.strategy.root_device, str(trainer.precision)
    cached = ActivationCache(classifier, data, cache, device=device, precision=precision, console=console)
    return cached.splits(), cached.suffix


def cache_decoded(data: ImageDataModule, cache: Cache, spec: PhaseSpec, processes: int) -> None:
    """Let a phase that needs the images themselves decode each of them once, if they are needed again."""
    if not cache.use or spec.epochs_left < 2:
        return
    try:
        data.cache_decoded(cache_folder(), budget_gb=cache.budget_gb, processes=processes)
    except CacheUnavailable as why:
        LOG.info("%s  its images are decoded in every epoch: %s", spec.title, why)


def setting_of(training: Training, phase: Phase, trainer: lightning.Trainer, *, kept: bool) -> Setting:
    """Return the setting for quicker_with. kept: whether cached activations of the frozen part replace images."""
    classifier, data = training.setup.classifier, training.setup.data
    return Setting(
        device=trainer.strategy.root_device.type,
        precision=str(trainer.precision),
        epochs=phase.epochs,
        workers=worker_count(data.workers, len(data.samples.of("train"))),
        processors=processors(),
        runs_frozen=not kept and not classifier.trains_whole_backbone,
        decodes=not kept and not data.uses_decoded_cache and phase.epochs > 1,
        augments=data.augmentation is not None,
        mixes=training.setup.learning.mix != Mix(),
        cache=training.setup.cache,
    )


def log_early_end(trainer: lightning.Trainer, learning: Learning, spec: PhaseSpec, phase: Phase, setup: Setup) -> None:
    if learning.early_stopping and trainer.current_epoch < phase.epochs:
        metric, patience = metric_label(primary_metric_of(setup.samples)), learning.early_stopping.patience
        LOG.info("%s ended early: no better validation %s for %s", spec.title, metric, counted(patience, "epoch"))


@contextmanager
def compiling_explained(spec: PhaseSpec, phase: Phase) -> Iterator[None]:
    """Raise RecipeError in place of torch's own account of what it couldn't compile."""
    try:
        yield
    except Exception as error:
        if not (phase.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # The first line of a failed backend says only which one it was.
        why = lines[1 if lines and lines[0].endswith("raised:") and len(lines) > 1 else 0] if lines else type(error).__name__
        fix = "Set it to false; or install a C++ compiler such as g++, if that is what is missing."
        raise RecipeError([Fault(f"{spec.key}.compile", f"= true can't be done here: {why}", fix)]) from error
