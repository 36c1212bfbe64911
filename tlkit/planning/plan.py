"""The plan of a run: what trains at which rate, memory, steps and time."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from tlkit.data.augment import build_augmentation
from tlkit.data.dataset import EpochSampler, TrainingOrder
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Sample, Samples
from tlkit.data.splits.folds import split_by_recipe
from tlkit.errors import MissingDataError, MissingExtraError, MissingWeightsError, TlkitError
from tlkit.evaluation.unknown import FEWEST_IMAGES, training_sample
from tlkit.models.backbones import check_backbone_name, pretrained_cfg
from tlkit.models.image_sizes import border_warning
from tlkit.models.weights.sources import Weights
from tlkit.planning.probe import Memory, MemoryProbe
from tlkit.planning.stages import StageRow, stage_rows
from tlkit.planning.timing import (
    HEAT_MAP,
    IMAGE_S,
    IMPORT_S,
    IMPORTS_S,
    RESULTS_S,
    SolvedTiming,
    Timing,
    time_check,
    time_phase,
    time_solved,
)
from tlkit.planning.trial import Trial, try_phase
from tlkit.recipe.fields.phases import Phase, SolvedPhase
from tlkit.recipe.fields.trust import UnknownScoreName
from tlkit.recipe.schema import Recipe
from tlkit.report.images import LISTED, LOOKED_AT, MOST_IMAGES
from tlkit.training.batch_size.find import with_batch_size
from tlkit.training.optimizers import check_optimizer_name
from tlkit.training.scale_lr import with_scaled_lr
from tlkit.training.setup import build, check_batch_size, gather_what_there_is, trainable_parameters
from tlkit.training.specs import Learning, PhaseSpec, phase_specs
from tlkit.training.trainer import check_devices, seed_everything

PROBED = (2, 4)
"""Images of the two batches that memory is measured on: their difference is what each image costs."""
FEW = 16
MEASURED = 200
"""Images of which the header is read, to know how large the decoded ones are."""
ASSUMED_CLASSES = 10


@dataclass(frozen=True)
class PhasePlan:
    """number: its index in the recipe. timing: None where there are no images to time it on. seconds: of the whole phase.

    again: of the phase in a further fold, which finds in the cache what the first one put there.
    """

    number: int
    phase: Phase
    rows: tuple[StageRow, ...]
    memory: Memory
    timing: Timing | None
    seconds: float | None = None
    again: float | None = None
    beside_all: tuple[int, Memory] | None = None
    """Of a phase with adapters: how many parameters `train: all` would train, and its memory."""

    @property
    def trained(self) -> int:
        return sum(row.trained for row in self.rows)


@dataclass(frozen=True)
class Plan:
    """samples: None where the images are not on this machine; then `classes` is assumed, and steps are unknown.

    weights: where they come from. weights_mean: of the images that they were made with. notes: what was done to them.
    no_images, no_weights: why they are missing, else empty. steps: of the optimizer, in an epoch.
    device_memory: bytes of one device; None if it is unknown.
    decoded: bytes of all decoded training and of all validation images in the cache, from some of them; None where it isn't used.
    phases: those that train by gradients. border: what is not seen of every image, see `border_warning`.
    solved: seconds of each phase that is solved. solved_again: of all of them in a further fold.
    seconds_around: before and after the phases. seconds_once: of them, what a further fold doesn't take again.
    """

    recipe: Recipe
    samples: Samples | None
    weights: str
    no_images: str
    no_weights: str
    classes: int
    normalize: Preprocessing
    weights_mean: tuple[float, ...]
    notes: tuple[str, ...]
    devices: int
    device: str
    device_memory: int | None
    steps: int | None
    phases: tuple[PhasePlan, ...]
    seconds_around: float = 0.0
    seconds_once: float = 0.0
    solved: Mapping[int, float] = field(default_factory=dict)
    solved_again: float = 0.0
    border: str = ""
    decoded: tuple[int, int] | None = None

    @property
    def largest(self) -> PhasePlan | None:
        """Return the phase that needs the most memory."""
        return max(self.phases, key=lambda phase: phase.memory.total, default=None)

    @property
    def seconds(self) -> float:
        """Return the time of the run, or of each fold: its phases, and what comes before and after them."""
        return self.seconds_around + sum(phase.seconds or 0.0 for phase in self.phases) + sum(self.solved.values())

    @property
    def seconds_of_folds(self) -> float:
        """Return the seconds of all folds: each lists and builds, and all import what they need, and compute what is cached, once."""
        around = self.seconds_around - self.seconds_once
        again = around + sum(phase.again or 0.0 for phase in self.phases) + self.solved_again
        return self.seconds + ((self.recipe.data.folds or 1) - 1) * again


def make_plan(recipe: Recipe, *, import_s: float = IMPORT_S) -> Plan:
    """Build what training would build, and try every phase for a few batches on a copy.

    Missing images or weights are replaced by generated ones of the same shape; `no_images` and `no_weights` say why they are missing.
    import_s: seconds that this process has spent on imports: a further process takes as long, and what can't be tried by so much longer
    than where it was measured.
    Raises TlkitError for everything else that would stop the training.
    """
    with TemporaryDirectory(prefix="tlkit-plan-") as folder:
        return _make_plan(with_batch_size(with_scaled_lr(recipe)), Path(folder), import_s)


def _make_plan(recipe: Recipe, folder: Path, import_s: float) -> Plan:
    """Make the plan. folder: for generated images."""
    began = time.perf_counter()
    with recipe.located():
        check_backbone_name(recipe.model.backbone)
        check_optimizer_name(recipe.optimizer.name)
        devices, here = check_devices(recipe.trainer)
        found, weights = gather_what_there_is(recipe.data, recipe.model, recipe.task)
        for one in (found, weights):
            if isinstance(one, TlkitError) and not isinstance(one, MissingDataError | MissingWeightsError | MissingExtraError):
                raise one  # which would stop the training too, wherever it runs
        samples = None if isinstance(found, TlkitError) else split_by_recipe(found, recipe.data, recipe.seed)
        used = Weights("random") if isinstance(weights, TlkitError) else weights
        shown = samples or _made_up(recipe, folder)
        seed_everything(recipe.seed)
        notes: list[str] = []
        # A few images will do: what `normalize: dataset` takes from all of them changes no shape and no time.
        classifier, preprocessing = build(recipe.data, recipe.model, _few(shown), used, log=notes.append)
        augmentation = build_augmentation(recipe.augment, recipe.data.image_size, recipe.data.channels, margin=recipe.data.margin)
        trained = trainable_parameters(recipe.phases, classifier, recipe.model.backbone)
        border = border_warning(recipe.model.backbone, classifier.backbone, recipe.data.image_size)

    trial = Trial(recipe, classifier, preprocessing, augmentation, shown, recipe.data.known_batch_size // devices, here.type)
    started = time.perf_counter() - began
    specs = phase_specs(recipe, trained, len(samples.of("train")) if samples else 0)
    with recipe.located():
        check_batch_size(recipe.data.known_batch_size, classifier, specs, devices)
    phases = [plan_phase(trial, spec, spec.phase, timed=samples is not None) for spec in specs if isinstance(spec.phase, Phase)]
    to_solve = [spec.index for spec in specs if isinstance(spec.phase, SolvedPhase)]
    slowness = import_s / IMPORT_S
    timing = time_solved(trial, slowness=slowness) if to_solve and samples else None
    solved = dict.fromkeys(to_solve, timing) if timing else {}
    # Each further process imports and builds what this one has. What follows is built again for each fold, and not imported.
    processes = import_s + started if devices > 1 and phases else 0.0
    once = processes + (slowness * IMPORTS_S if phases or solved else 0.0)
    timings: list[Timing | SolvedTiming] = [*(phase.timing for phase in phases if phase.timing), *solved.values()]
    check = time_check(trial) if timings else 0.0
    results = seconds_of_results(timings, shown, check=check, unknown=recipe.unknown, slowness=slowness)
    return Plan(
        recipe=recipe,
        samples=samples,
        weights=used.origin,
        no_images=_reason(found),
        no_weights=_reason(weights),
        classes=len(shown.classes),
        normalize=preprocessing,
        weights_mean=tuple(used.normalization.get("mean") or pretrained_cfg(recipe.model.backbone).get("mean") or ()),
        notes=tuple(notes),
        devices=devices,
        device=here.type,
        device_memory=_device_memory(here.type),
        steps=steps_an_epoch(recipe, len(samples.of("train")), devices) if samples else None,
        phases=tuple(with_seconds(phases, recipe, shown, trained, sharing=1 if here.type == "cpu" else devices)),
        seconds_around=started + once + results,
        seconds_once=once,
        solved=seconds_of_solved(solved, phases, shown, trained),
        solved_again=sum(timing.seconds(shown, is_new=False) for timing in solved.values()),
        border=border,
        decoded=_decoded_bytes(trial, devices // recipe.trainer.num_nodes) if _decodes_again(recipe, specs, phases) else None,
    )


def with_seconds(
    phases: Sequence[PhasePlan], recipe: Recipe, samples: Samples, trained: Sequence[frozenset[str]], *, sharing: int
) -> Iterator[PhasePlan]:
    """Yield the phases with the seconds of each. sharing: devices that divide the work: processes on one CPU share its cores."""
    filled: set[object] = set()
    for phase in phases:
        if phase.timing is None:
            yield phase
            continue
        # Phases with the same frozen part share its activations, and all others the decoded images.
        key = trained[phase.number] if phase.timing.is_cached else "decoded"
        # What an earlier phase has trained, and this one holds, is another network in each fold.
        differs = phase.timing.is_cached and not all(earlier <= trained[phase.number] for earlier in trained[: phase.number])
        first, again = (
            phase.timing.seconds(recipe, samples, phase.phase, devices=sharing, is_new=is_new)
            for is_new in (key not in filled, key not in filled and differs)
        )
        filled.add(key)
        yield replace(phase, seconds=first, again=again)


def seconds_of_solved(
    solved: Mapping[int, SolvedTiming], phases: Sequence[PhasePlan], samples: Samples, trained: Sequence[frozenset[str]]
) -> dict[int, float]:
    """Return the seconds of each solved phase. The first one computes the features, unless a phase before it has cached them."""
    cached = [phase.number for phase in phases if phase.timing is not None and phase.timing.is_cached and not trained[phase.number]]
    first = min([*cached, *solved], default=0)
    return {number: timing.seconds(samples, is_new=number == first) for number, timing in solved.items()}


def seconds_of_results(
    timings: Sequence[Timing | SolvedTiming], samples: Samples, *, check: float, unknown: UnknownScoreName, slowness: float
) -> float:
    """Return the seconds to check the images before the phases, and to measure and report after them.

    check: seconds an image, see `time_check`. slowness: see `make_plan`.
    """
    if not timings:
        return 0.0
    test, val = len(samples.of("test")), len(samples.of("val"))
    answered = test
    if not timings[-1].is_cached:
        answered += val + (len(training_sample(samples, seed=0).samples) if unknown == "knn" and val >= FEWEST_IMAGES else 0)
    measure = max(timing.measure for timing in timings)
    shown, mapped = (min(most, test or val) for most in (MOST_IMAGES, LISTED + LOOKED_AT))
    return slowness * (RESULTS_S + IMAGE_S * shown) + check * len(samples.samples) + measure * (answered + HEAT_MAP * mapped)


def batches_an_epoch(recipe: Recipe, images: int, devices: int) -> int:
    """Count the batches of an epoch on each device. images: of the training split."""
    per_device_batch_size = recipe.data.known_batch_size // devices
    sampler = EpochSampler(images, batch_size=per_device_batch_size, order=TrainingOrder(), ranks=devices)
    return ceil(len(sampler) / per_device_batch_size)


def steps_an_epoch(recipe: Recipe, images: int, devices: int) -> int:
    """Count the optimizer's steps in an epoch: Lightning makes the last one from the batches that are left."""
    return ceil(batches_an_epoch(recipe, images, devices) / recipe.optimizer.accumulate)


def plan_phase(trial: Trial, spec: PhaseSpec, phase: Phase, *, timed: bool) -> PhasePlan:
    """Try a phase on two batches for its memory, and on some more for its time."""
    trial.classifier.train_only(spec.trained, spec.batchnorm)
    rows, memory, seconds_per_image = _probed(trial, spec)
    timing = time_phase(trial, spec, seconds_per_image) if timed else None
    return PhasePlan(spec.index, phase, rows, memory, timing, beside_all=_all(trial, spec, phase) if phase.adapter else None)


def _probed(trial: Trial, spec: PhaseSpec) -> tuple[tuple[StageRow, ...], Memory, float]:
    """Return what trains in a phase, its memory, and the seconds that a training step takes for each image."""
    probe, recipe = MemoryProbe(), trial.recipe
    for size in PROBED:
        data = trial.data(trial.samples, size)
        limits = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0}
        module = try_phase(trial.classifier, data, Learning.of(recipe), spec, callback=probe, **limits)
    memory = probe.memory(module, trial.batch_size, copies=(recipe.ema is not None) + (recipe.loss.l2_sp > 0))
    return tuple(stage_rows(module, probe.groups)), memory, probe.seconds


def _all(trial: Trial, spec: PhaseSpec, phase: Phase) -> tuple[int, Memory]:
    """Return how many parameters `train: all` would train in this phase, and its memory."""
    trained = frozenset(name for name, _ in trial.classifier.backbone.named_parameters())
    rows, memory, _ = _probed(trial, replace(spec, phase=phase.model_copy(update={"train": "all"}), trained=trained))
    return sum(row.trained for row in rows), memory


def _decodes_again(recipe: Recipe, specs: Sequence[PhaseSpec], phases: Sequence[PhasePlan]) -> bool:
    """Return whether a phase trains on images themselves and another epoch comes after its first: then decoded images are cached."""
    epochs_left = {spec.index: spec.epochs_left for spec in specs}
    live = [phase.number for phase in phases if phase.timing is not None and not phase.timing.is_cached]
    return recipe.cache.use and any(epochs_left[number] > 1 for number in live)


def _decoded_bytes(trial: Trial, processes: int) -> tuple[int, int]:
    """Return the bytes of all decoded training and of all validation images, from the size of some. processes: each has its own cache."""
    data = trial.data(trial.samples, trial.batch_size)
    train, val = (data.decoded_bytes(split, most=MEASURED).mean() * len(trial.samples.of(split)) for split in ("train", "val"))
    return round(train) * processes, round(val) * processes


def _reason(found: object) -> str:
    return str(found) if isinstance(found, TlkitError) else ""


def _few(samples: Samples) -> Samples:
    return Samples(samples.classes, samples.of("train")[:FEW], samples.task)


def _made_up(recipe: Recipe, folder: Path) -> Samples:
    """Generate a grey image for each of ten classes, if nothing is known of the real ones. folder: where they are written."""
    side, channels = recipe.data.image_size, recipe.data.channels
    image = folder / "grey.npy"
    np.save(image, np.full((side, side, channels), 128, np.uint8))
    samples = tuple(Sample(f"made up {label}", image, (label,), "train") for label in range(ASSUMED_CLASSES))
    return Samples(tuple(map(str, range(ASSUMED_CLASSES))), samples, recipe.task)


def _device_memory(device: str) -> int | None:
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if device == "cpu" else None
    except (AttributeError, ValueError):  # Windows has no sysconf
        return None
