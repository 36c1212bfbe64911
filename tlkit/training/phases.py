"""The phases, one `trainer.fit` each: own optimizer, own schedule, own wrapping for DDP."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.strategies import ModelParallelStrategy
from rich.console import Console
from torch import nn

from tlkit.data.datamodule import ImageDataModule
from tlkit.data.dataset import processors, worker_count
from tlkit.errors import CacheUnavailable, DataError, Fault, RecipeError, TrainingError
from tlkit.evaluation.metrics import metric_label, primary_metric_of
from tlkit.models.classifier import Classifier
from tlkit.models.split import Suffix
from tlkit.recipe.fields.learning import Mix
from tlkit.recipe.fields.phases import FromStage, Phase, SolvedPhase, Train
from tlkit.recipe.schema import Recipe
from tlkit.system import cache_folder
from tlkit.training.auxiliary import AuxiliaryHeads, build_auxiliary_heads
from tlkit.training.batch_size.out_of_memory import memory_explained
from tlkit.training.cache.activations import ActivationCache
from tlkit.training.callbacks import BestWeights, MetricsTable, ShowProgress, moving_average, save_state
from tlkit.training.checkpointing.callback import Checkpoints, WholeFiles
from tlkit.training.closed_form.solve import solve_head
from tlkit.training.context import RunContext
from tlkit.training.distributed.ranks import is_main_process
from tlkit.training.distributed.sharding import Gathered
from tlkit.training.losses import StartingPoint, build_criterion
from tlkit.training.module import PhaseModule
from tlkit.training.not_finite import NotFinite
from tlkit.training.setup import Setup
from tlkit.training.time_shares import Clock, Setting, TimeShares
from tlkit.training.trainer import build_trainer, fit

LOG = logging.getLogger("tlkit")

BEFORE = "before.safetensors"
"""In `checkpoints`, with `wise_ft`: the classifier when fine-tuning began."""


@dataclass(frozen=True)
class Trained:
    """What the phases left behind. rows: those of metrics.csv. seconds: a phase's name -> its wall-clock time."""

    rows: list[dict[str, Any]]
    best_phase: int
    best_epoch: int
    seconds: dict[str, float]
    device: torch.device
    wise_ft: Mapping[str, Any] | None = None


def phase_name(train: Train) -> str:
    if isinstance(train, str):
        return train
    return f"from {train.from_}" if isinstance(train, FromStage) else f"last {train.last}"


def train_phases(recipe: Recipe, setup: Setup, context: RunContext) -> Trained:
    """Train phase after phase; the classifier is left with the weights of the best epoch of all.

    Raises KeyboardInterrupt after a signal, with the best weights and a checkpoint in `run/checkpoints`.
    """
    classifier, data, trained, device = setup.classifier, setup.data, setup.trained, setup.devices.here
    run, console, stop, began, resumed = context.folder, context.console, context.stop, context.began, context.resumed
    checkpoints = run / "checkpoints"
    if is_main_process():
        checkpoints.mkdir(exist_ok=True)
    # Made once, so that they go on from one phase to the next.
    auxiliary = build_auxiliary_heads(classifier.backbone, len(data.samples.classes), recipe.model.auxiliary_loss)
    if auxiliary is not None:
        check_compile(recipe)
    primary_metric = primary_metric_of(data.samples)
    best = BestWeights(checkpoints / "best.safetensors", classifier)
    table = MetricsTable(run / "metrics.csv")
    start = StartingPoint(classifier, recipe.loss.l2_sp) if recipe.loss.l2_sp else None
    every = recipe.trainer.checkpoint_every
    saves = Checkpoints(checkpoints, classifier, best, table, auxiliary, every=every, stop=stop, began=began)
    if resumed is not None:
        saves.go_on(resumed.checkpoint, resumed.state)
    for number, phase in recipe.run_phases.items():
        if number < saves.phase:
            continue  # done before
        saves.begin_phase(number)
        name = f"phase {number + 1} {phase_name(phase.train)}"
        title = f"phase {number + 1}/{len(recipe.phases)} {phase_name(phase.train)}"
        if isinstance(phase, SolvedPhase):
            saves.set_trainable_names(frozenset(f"head.{name}" for name in classifier.head.state_dict()))
            # The first process alone: where the next phase wraps the network, DDP gives its weights to all others.
            if is_main_process():
                row, score = solve_head(classifier.to(device), data, recipe, phase, title=title, console=console)
                table.add(row, writes=True)
                best.update(score, row["val/loss"], epoch=0, keeps=True)
            saves.end_phase(name)
            continue
        if recipe.wise_ft and phase.train != "head" and not (checkpoints / BEFORE).exists() and is_main_process():
            save_state(classifier, checkpoints / BEFORE)
        classifier.train_only(trained[number], phase.batchnorm)
        saves.set_trainable_names(classifier.changing)
        data.first_epoch = sum(earlier.epochs for i, earlier in recipe.gradient_phases.items() if i < number)
        callbacks = [
            *([Gathered(classifier)] if recipe.trainer_of(phase).strategy == "fsdp" else []),
            best,
            table,
            ShowProgress(console, phase_title=title, primary_metric=primary_metric),
            NotFinite(recipe.trainer.on_nan, data.samples.of("train"), run / "not_finite.csv", phase=number),
            *_of_recipe(recipe),
            saves,
        ]
        trainer = build_trainer(
            recipe.trainer_of(phase),
            epochs=phase.epochs,
            optimizer=recipe.optimizer,
            phase_name=f"phase{number + 1}",
            callbacks=callbacks,
            files=WholeFiles(saves),
            out=run,
            profiler=(clock := Clock()),
        )
        check_batch_size(classifier, data.batch_size // trainer.world_size)
        inputs, suffix = inputs_of_phase(classifier, data, recipe, auxiliary, trainer=trainer, title=title, console=console)
        if suffix is None:
            cache_decoded(data, recipe, number, trainer.num_devices, title=title)
        setting = setting_of(classifier, data, recipe, phase, trainer, kept=suffix is not None)
        trainer.callbacks.append(TimeShares(clock, title=title, setting=setting))  # type: ignore[attr-defined]
        with compiling_explained(recipe, number), memory_explained(recipe, title):
            module = build_module(classifier, data, recipe, phase, auxiliary, start, suffix)
            fit(trainer, module, inputs, stop, checkpoint=saves.resumed_file)
        if recipe.early_stopping and trainer.current_epoch < phase.epochs:
            metric, patience = metric_label(primary_metric), recipe.early_stopping.patience
            LOG.info("%s ended early: no better validation %s for %d epochs", title, metric, patience)
        saves.end_phase(name)
    if is_main_process() and recipe.run_phases and not isfinite(best.score):
        raise TrainingError("No epoch had a validation loss that is a number, so there is no model to ship.\n  Lower the phases' lr.")
    if is_main_process() and best.file.is_file():
        best.restore()
    return Trained(table.rows, best.phase, best.epoch, saves.seconds, device)


def build_module(
    classifier: Classifier,
    data: ImageDataModule,
    recipe: Recipe,
    phase: Phase,
    auxiliary: AuxiliaryHeads | None = None,
    start: StartingPoint | None = None,
    suffix: Suffix | None = None,
) -> PhaseModule:
    """classifier: frozen as the phase says already. auxiliary, start: made before the first phase, None where the recipe has none."""
    return PhaseModule(
        classifier,
        len(data.samples.classes),
        normalize=data.preprocessing.normalize,
        phase=phase,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        task=recipe.task,
        criterion=build_criterion(recipe.loss, recipe.imbalance, data.samples),
        primary_metric=primary_metric_of(data.samples),
        mix=recipe.mix,
        auxiliary=auxiliary,
        start=start,
        suffix=suffix,
    )


def inputs_of_phase(
    classifier: Classifier,
    data: ImageDataModule,
    recipe: Recipe,
    auxiliary: AuxiliaryHeads | None,
    *,
    trainer: lightning.Trainer,
    title: str,
    console: Console,
) -> tuple[lightning.LightningDataModule, Suffix | None]:
    """The pictures; or, where the frozen part has to run only once, its activations and the layers that come after it.

    classifier: frozen as the phase says already.
    """
    if not recipe.cache.use or classifier.trains_whole_backbone:
        return data, None
    try:
        if recipe.mix != Mix():
            raise CacheUnavailable("mix blends pictures in every epoch")
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise CacheUnavailable("with trainer.strategy = fsdp a block is put together when the whole network runs")
        if auxiliary is not None and auxiliary.follow(classifier):
            raise CacheUnavailable("an auxiliary head looks at layers before what trains")
        # The trainer's word, not the recipe's: on a CPU Lightning takes bf16-mixed for 16-mixed.
        device, precision = trainer.strategy.root_device, str(trainer.precision)
        kept = ActivationCache(classifier, data, recipe.cache, device=device, precision=precision, console=console)
        return kept.splits(), kept.suffix
    except CacheUnavailable as why:
        LOG.info("%s  its frozen part runs in every epoch: %s", title, why)
        return data, None


def cache_decoded(data: ImageDataModule, recipe: Recipe, number: int, processes: int, *, title: str) -> None:
    """Lets a phase that needs the pictures themselves decode each of them once, if they are needed again."""
    passes = sum(phase.epochs for i, phase in recipe.gradient_phases.items() if i >= number)
    if not recipe.cache.use or passes < 2:
        return
    try:
        data.cache_decoded(cache_folder(), budget_gb=recipe.cache.budget_gb, processes=processes)
    except CacheUnavailable as why:
        LOG.info("%s  its pictures are decoded in every epoch: %s", title, why)


def setting_of(
    classifier: Classifier, data: ImageDataModule, recipe: Recipe, phase: Phase, trainer: lightning.Trainer, *, kept: bool
) -> Setting:
    """kept: whether activations of the frozen part take the place of pictures."""
    return Setting(
        device=trainer.strategy.root_device.type,
        precision=str(trainer.precision),
        epochs=phase.epochs,
        workers=worker_count(data.workers, len(data.samples.of("train"))),
        processors=processors(),
        runs_frozen=not kept and not classifier.trains_whole_backbone,
        decodes=not kept and not data.uses_decoded_cache and phase.epochs > 1,
        augments=data.augmentation is not None,
        mixes=recipe.mix != Mix(),
        cache=recipe.cache,
    )


def check_compile(recipe: Recipe) -> None:
    """Raises RecipeError for a phase that is to be compiled, although auxiliary heads listen to layers within."""
    with recipe.located():
        for number, phase in recipe.gradient_phases.items():
            if phase.compile:
                problem = f"= true, but auxiliary heads of {recipe.model.backbone} listen to its layers, which compiling merges."
                raise RecipeError([Fault(f"phases[{number}].compile", problem, "Remove it, or set model.auxiliary_loss to 0.")])


@contextmanager
def compiling_explained(recipe: Recipe, number: int) -> Iterator[None]:
    """Raises RecipeError in place of torch's own account of what it couldn't compile."""
    try:
        yield
    except Exception as error:
        if not (recipe.gradient_phases[number].compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # The first line of a failed backend says only which one it was.
        why = lines[1 if lines and lines[0].endswith("raised:") and len(lines) > 1 else 0] if lines else type(error).__name__
        fix = "Set it to false; or install a C++ compiler such as g++, if that is what is missing."
        with recipe.located():
            raise RecipeError([Fault(f"phases[{number}].compile", f"= true can't be done here: {why}", fix)]) from error


def check_batch_size(classifier: Classifier, per_device_batch_size: int) -> None:
    """a_device: pictures a step on one device. Raises DataError where batch-norm would have one number to take statistics of."""
    trained_norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in classifier.modules())
    if trained_norms and per_device_batch_size < 2:
        raise DataError(
            f"data.batch_size gives {per_device_batch_size} pictures a step to each device, and batch-norm needs two or more to train.\n"
            "  Use a larger data.batch_size, or fewer devices."
        )


def _of_recipe(recipe: Recipe) -> list[Callback]:
    """The callbacks that a recipe asks for. The average comes after BestWeights, which sees it so while it is swapped in."""
    asked: list[Callback] = []
    if early := recipe.early_stopping:
        asked.append(EarlyStopping("val/score", mode="max", patience=early.patience, min_delta=early.min_delta))
    return [*asked, moving_average(recipe.ema)] if recipe.ema else asked
