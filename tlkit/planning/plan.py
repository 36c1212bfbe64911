"""The plan of a run: what trains at which rate, memory, steps, time, and likely mistakes."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor, sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback

from tlkit.data.augment import Augmentation, build_augmentation
from tlkit.data.datamodule import ImageDataModule
from tlkit.data.dataset import EpochSampler, TrainingOrder
from tlkit.data.preprocess import Preprocessing
from tlkit.data.quality.value_range import range_warning
from tlkit.data.samples import LARGEST_FOLD, Sample, Samples
from tlkit.data.splits.folds import split_by_recipe
from tlkit.data.splits.holdout import split_warnings
from tlkit.errors import TlkitError
from tlkit.files import format_bytes
from tlkit.models.backbones import check_backbone_name, pretrained_cfg, sizes_by_features
from tlkit.models.classifier import Classifier
from tlkit.models.freeze import NORMS_WITH_STATISTICS
from tlkit.models.image_sizes import border_warning
from tlkit.models.weights import Weights
from tlkit.planning.probe import Memory, MemoryProbe
from tlkit.planning.timing import IMPORTS_S, PROCESS_S, RESULTS_S, SolvedTiming, Timing, Trial
from tlkit.planning.trial import try_phase
from tlkit.recipe.fields.phases import Phase, SolvedPhase
from tlkit.recipe.schema import Recipe
from tlkit.recipe.summary import recipe_notes, recipe_warnings
from tlkit.terminal import counted
from tlkit.training.batch_size.find import with_batch_size
from tlkit.training.module import PhaseModule
from tlkit.training.optimizers import check_optimizer_name
from tlkit.training.phases import check_batch_size
from tlkit.training.scale_lr import with_scaled_lr
from tlkit.training.setup import build, gather_what_there_is, trainable_parameters
from tlkit.training.specs import Learning, PhaseSpec, phase_specs
from tlkit.training.trainer import check_devices, seed_everything

PROBED = (2, 4)
"""Images of the two batches that memory is measured on: their difference is what each image costs."""
FEW = 16
MEASURED = 200
"""Images of which the header is read, to know how large the decoded ones are."""
ASSUMED_CLASSES = 10


@dataclass(frozen=True)
class StageRow:
    """One stage in one phase.

    trained: how many of its parameters train. batchnorm: `adapts`, `held` or, without such layers, nothing.
    lr, weight_decay: None where nothing trains; weight_decay is that of its matrices and kernels.
    """

    name: str
    parameters: int
    trained: int
    batchnorm: str
    lr: float | None
    weight_decay: float | None


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
    """samples: None where the images can't be read; then `classes` is assumed, and steps are unknown.

    weights: where they come from. weights_mean: of the images that they were made with. notes: what was done to them.
    no_images, no_weights: why they are missing, else empty. steps: of the optimizer, in an epoch.
    device_memory: bytes of one device; None if it is unknown.
    decoded: bytes of all decoded training and of all validation images in the cache, from some of them; None where it isn't used.
    phases: those that train by gradients. border: what is not seen of every image, see `border_warning`.
    solved: seconds of each phase that is solved. solved_again: of all of them in a further fold.
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
        """Return the seconds of all folds, which import what they need, and compute what is cached, once."""
        around = max(0.0, self.seconds_around - IMPORTS_S)
        again = around + sum(phase.again or 0.0 for phase in self.phases) + self.solved_again
        return self.seconds + ((self.recipe.data.folds or 1) - 1) * again


def make_plan(recipe: Recipe) -> Plan:
    """Build what training would build, and try every phase for a few batches on a copy.

    Missing images or weights are replaced by generated ones of the same shape; `no_images` and `no_weights` say why they are missing.
    Raises TlkitError for everything else that would stop the training.
    """
    with TemporaryDirectory(prefix="tlkit-plan-") as folder:
        return _make_plan(with_batch_size(with_scaled_lr(recipe)), Path(folder))


def _make_plan(recipe: Recipe, folder: Path) -> Plan:
    """Make the plan. folder: for generated images."""
    began = time.perf_counter()
    with recipe.located():
        check_backbone_name(recipe.model.backbone)
        check_optimizer_name(recipe.optimizer.name)
        devices, here = check_devices(recipe.trainer)
        found, weights = gather_what_there_is(recipe.data, recipe.model, recipe.task)
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

    trial = _Trial(recipe, classifier, preprocessing, augmentation, shown, recipe.data.known_batch_size // devices, here.type)
    started = time.perf_counter() - began
    specs = phase_specs(recipe, trained)
    phases = [trial.plan_phase(spec, spec.phase, timed=samples is not None) for spec in specs if isinstance(spec.phase, Phase)]
    to_solve = [spec.index for spec in specs if isinstance(spec.phase, SolvedPhase)]
    timing = Trial(**vars(trial)).time_solved() if to_solve and samples else None
    solved = dict.fromkeys(to_solve, timing) if timing else {}
    # Each further process imports and builds what this one has.
    processes = PROCESS_S + started if devices > 1 and phases else 0.0
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
        seconds_around=started
        + processes
        + seconds_of_results([*(phase.timing for phase in phases if phase.timing), *solved.values()], shown),
        solved=seconds_of_solved(solved, phases, shown, trained),
        solved_again=sum(timing.seconds(shown, is_new=False) for timing in solved.values()),
        border=border,
        decoded=trial.decoded() if samples and recipe.cache.use and phases else None,
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


def seconds_of_results(timings: Sequence[Timing | SolvedTiming], samples: Samples) -> float:
    """Return the seconds to compare the splits before the phases, and to measure and report after them."""
    if not timings:
        return 0.0
    decode = max(timing.first for timing in timings)
    measured = len(samples.of("test")) + (0 if timings[-1].is_cached else len(samples.of("val")))
    return RESULTS_S + IMPORTS_S + decode * len(samples.samples) + max(timing.measure for timing in timings) * measured


def batches_an_epoch(recipe: Recipe, images: int, devices: int) -> int:
    """Count the batches of an epoch on each device. images: of the training split."""
    per_device_batch_size = recipe.data.known_batch_size // devices
    sampler = EpochSampler(images, batch_size=per_device_batch_size, order=TrainingOrder(), ranks=devices)
    return ceil(len(sampler) / per_device_batch_size)


def steps_an_epoch(recipe: Recipe, images: int, devices: int) -> int:
    """Count the optimizer's steps in an epoch: Lightning makes the last one from the batches that are left."""
    return ceil(batches_an_epoch(recipe, images, devices) / recipe.optimizer.accumulate)


@dataclass
class _Trial:
    """The inputs of a trial of a phase. batch_size: of one device."""

    recipe: Recipe
    classifier: Classifier
    preprocessing: Preprocessing
    augmentation: Augmentation | None
    samples: Samples
    batch_size: int
    device: str

    def plan_phase(self, spec: PhaseSpec, phase: Phase, *, timed: bool) -> PhasePlan:
        self.classifier.train_only(spec.trained, phase.batchnorm)
        check_batch_size(self.classifier, self.batch_size)
        probe = MemoryProbe()
        for size in PROBED:
            module = self._try(spec, probe, size, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
        memory = self._memory(probe, module)
        rows = tuple(stage_rows(module, probe.groups))
        timing = Trial(**vars(self)).time(spec.index, spec.trained, probe.seconds) if timed else None
        return PhasePlan(spec.index, phase, rows, memory, timing, beside_all=self._all(spec, phase) if phase.adapter else None)

    def _all(self, spec: PhaseSpec, phase: Phase) -> tuple[int, Memory]:
        """Return how many parameters `train: all` would train in this phase, and its memory."""
        probe, trained = MemoryProbe(), frozenset(name for name, _ in self.classifier.backbone.named_parameters())
        spec = replace(spec, phase=phase.model_copy(update={"train": "all"}), trained=trained)
        for size in PROBED:
            module = self._try(spec, probe, size, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
        return sum(row.trained for row in stage_rows(module, probe.groups)), self._memory(probe, module)

    def _memory(self, probe: MemoryProbe, module: PhaseModule) -> Memory:
        return probe.memory(module, self.batch_size, copies=(self.recipe.ema is not None) + (self.recipe.loss.l2_sp > 0))

    def decoded(self) -> tuple[int, int]:
        """Return the bytes of all decoded training and of all validation images, from the size of some."""
        data = self._data(self.batch_size)
        train, val = (data.decoded_bytes(split, most=MEASURED).mean() * len(self.samples.of(split)) for split in ("train", "val"))
        return round(train), round(val)

    def _data(self, batch_size: int) -> ImageDataModule:
        return ImageDataModule(
            self.samples,
            self.preprocessing,
            self.augmentation,
            batch_size=batch_size,
            workers=0,
            seed=self.recipe.seed,
            balanced=self.recipe.imbalance == "sampler",
        )

    def _try(self, spec: PhaseSpec, callback: Callback, batch_size: int, **limits: int) -> PhaseModule:
        return try_phase(self.classifier, self._data(batch_size), Learning.of(self.recipe), spec, callback=callback, **limits)


def stage_rows(module: PhaseModule, groups: Sequence[dict[str, Any]]) -> list[StageRow]:
    """Return a row per stage in forward order, then the head and any auxiliary heads. groups: the optimizer's."""
    classifier = module.classifier
    backbone = dict(classifier.backbone.named_parameters())
    parts = {stage.name: [backbone[name] for name in stage.parameters] for stage in classifier.stages}
    parts["head"] = list(classifier.head.parameters())
    if module.auxiliary is not None:
        parts["auxiliary"] = list(module.auxiliary.parameters())
    norms = {
        f"{path}.{name}": part
        for path, part in classifier.backbone.named_modules()
        if isinstance(part, NORMS_WITH_STATISTICS)
        for name, _ in part.named_parameters(recurse=False)
    }
    stages = {stage.name: stage.parameters for stage in classifier.stages}
    rows = []
    for name, parameters in parts.items():
        own = [group for group in groups if group["name"] == name]
        adapting = {norms[parameter].training for parameter in stages.get(name, ()) if parameter in norms}
        rows.append(
            StageRow(
                name,
                parameters=sum(parameter.numel() for parameter in parameters),
                trained=sum(parameter.numel() for group in own for parameter in group["params"]),
                batchnorm=" and ".join({True: "adapts", False: "held"}[training] for training in sorted(adapting)),
                lr=own[0]["lr"] if own else None,
                weight_decay=max(group["weight_decay"] for group in own) if own else None,
            )
        )
    return rows


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


FEW_IMAGES = 10
FAR = 2
"""Times: an image size that differs by more from the weights' own shows other detail than they learned from."""
VANISHING = 1e-3
"""Share of the phase's rate below which a stage hardly learns."""


@dataclass(frozen=True)
class Remark:
    kind: Literal["warning", "note"]
    text: str


def remarks(plan: Plan) -> list[Remark]:
    """Return the remarks, the most important first."""
    warnings = [*_missing(plan), *_memory(plan), *_margin(plan), *_normalize(plan), *_size(plan), *_classes(plan), *_steps(plan)]
    warnings += [*_value_range(plan), *_random_features(plan.recipe), *(split_warnings(plan.samples) if plan.samples else ())]
    warnings += [text for phase in plan.phases for text in (*_rates(phase), *_parameters(plan, phase))]
    notes = [*(f"weights: {text}" for text in plan.notes), *_dense_layers(plan.recipe), *recipe_notes(plan.recipe)]
    notes += [text for phase in plan.phases for text in (*_augmented_head(plan.recipe, phase), *_adapters(phase))]
    return [*(Remark("warning", text) for text in warnings), *(Remark("note", text) for text in notes)]


def _dense_layers(recipe: Recipe) -> Iterator[str]:
    sizes = sizes_by_features(recipe.model.backbone, recipe.data.image_size, channels=recipe.data.channels)
    if sizes:
        chosen = recipe.model.features
        other, size = next((other, size) for other, size in sizes.items() if other != chosen)
        words = f"{recipe.model.backbone} has {sizes[chosen]:,} parameters below the head, and {size:,} with {other}."
        yield f"model.features = '{chosen}': {words}"


def _missing(plan: Plan) -> Iterator[str]:
    if plan.no_images:
        yield f"no images: steps and times are unknown, and {ASSUMED_CLASSES} classes are assumed.\n{plan.no_images}"
    if plan.no_weights:
        yield f"no weights: planned with random ones of the same shape.\n{plan.no_weights}"


def _memory(plan: Plan) -> Iterator[str]:
    if plan.largest and plan.device_memory and plan.largest.memory.total > plan.device_memory:
        needs, has = format_bytes(plan.largest.memory.total), format_bytes(plan.device_memory)
        fix = "Use a smaller data.batch_size with optimizer.accumulate, or train fewer stages."
        yield f"phases[{plan.largest.number}] needs about {needs} on each device, which has {has}. {fix}"


def _margin(plan: Plan) -> Iterator[str]:
    margin, budget = plan.recipe.data.margin, plan.recipe.cache.budget_gb * 1e9
    if plan.decoded is None or margin == 1 or not plan.recipe.augment or sum(plan.decoded) <= budget:
        return
    train, val = plan.decoded
    fits = floor(100 * margin * sqrt(max(0.0, budget - val) / train)) / 100
    fix = f"Lower it to {fits:g}, or raise" if fits >= 1 else "Raise"
    place = plan.recipe.place_of("data.margin")
    yield (
        f"{f'{place}: ' if place else ''}data.margin = {margin:g} makes {format_bytes(sum(plan.decoded))} of decoded images, and "
        f"cache.budget_gb is {plan.recipe.cache.budget_gb:g}: they are decoded in every epoch. {fix} cache.budget_gb."
    )


def _normalize(plan: Plan) -> Iterator[str]:
    mean = ", ".join(f"{value:.3f}" for value in plan.weights_mean)
    yield from (f"{warning} They were trained with mean {mean}." if mean else warning for warning in recipe_warnings(plan.recipe))
    if plan.recipe.model.weights != "random" and plan.recipe.data.normalize == "none" and not recipe_warnings(plan.recipe):
        fix = f"They were trained with mean {mean}: use `normalize: weights`." if mean else "Use `normalize: weights`."
        yield f"data.normalize = 'none' feeds the weights inputs that they were not trained on. {fix}"


def _size(plan: Plan) -> Iterator[str]:
    recipe = plan.recipe
    if plan.border:
        yield plan.border
    _, height, _ = pretrained_cfg(recipe.model.backbone).get("input_size") or (0, 0, 0)
    size = recipe.data.image_size
    if recipe.model.weights != "random" and height and max(size / height, height / size) > FAR:
        yield f"data.image_size = {size} is far from the {height} px that the weights were trained at."


def _classes(plan: Plan) -> Iterator[str]:
    if plan.samples is None:
        return
    counts = Counter(label for sample in plan.samples.of("train") for label in sample.labels)
    name = plan.samples.classes.__getitem__
    (most, images), (least, fewest) = counts.most_common()[0], counts.most_common()[-1]
    if images > LARGEST_FOLD * fewest and plan.recipe.imbalance == "none":
        fix = "Set `imbalance: loss_weights`, and read the macro figures."
        numbers = f"{name(most)} has {counted(images, 'training image')}, {name(least)} {fewest}"
        yield f"classes differ more than {LARGEST_FOLD}-fold: {numbers}. {fix}"
    if skipped := len(plan.samples.skipped):
        number = counted(skipped, "image that can't be read is", "images that can't be read are")
        yield f"{number} left out, by data.on_bad = 'skip'. See: tlkit data check RECIPE"
    few = [f"{name(label)} ({number})" for label, number in reversed(counts.most_common()) if number < FEW_IMAGES]
    if few:
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        yield f"too few training images to learn a class from: {', '.join(few[:5])}{more}. Add some, or join classes."


def _steps(plan: Plan) -> Iterator[str]:
    if plan.samples is None:
        return
    train, recipe = len(plan.samples.of("train")), plan.recipe
    batch_size = recipe.data.known_batch_size
    if batch_size > train:
        yield f"data.batch_size = {batch_size} is more than the {counted(train, 'training image')}: an epoch is one step of {train}."
    batches = batches_an_epoch(recipe, train, plan.devices)
    if recipe.optimizer.accumulate > batches:
        number = counted(batches, "batch", "batches")
        yield f"optimizer.accumulate = {recipe.optimizer.accumulate}, but an epoch has {number}: a step is made of fewer."


def _value_range(plan: Plan) -> Iterator[str]:
    if plan.samples is not None and (warning := range_warning([sample.image for sample in plan.samples.of("train")], plan.recipe.data)):
        yield warning


def _random_features(recipe: Recipe) -> Iterator[str]:
    for number, phase in recipe.run_phases.items():
        if phase.train != "head" or recipe.model.weights != "random":
            return
        yield f"phases[{number}] trains a head on a backbone that has learned nothing. Use `train: all`, or pretrained weights."


def _rates(phase: PhasePlan) -> Iterator[str]:
    slow = [row for row in phase.rows if row.lr is not None and row.lr < VANISHING * phase.phase.lr]
    if slow:
        key = "layer_decay" if phase.phase.layer_decay is not None else "backbone_lr"
        names = slow[0].name if len(slow) == 1 else f"{slow[0].name} to {slow[-1].name}"
        lowest = f"{slow[0].lr:.1e}{' or little more' if len(slow) > 1 else ''}"
        fix = f"Raise {key}, or leave them frozen with {{from: STAGE}}."
        yield f"phases[{phase.number}].{key} = {getattr(phase.phase, key)} leaves {names} a rate of {lowest}. {fix}"


def _parameters(plan: Plan, phase: PhasePlan) -> Iterator[str]:
    """Describe the parameters once, for the phase that trains most."""
    if plan.samples is None or phase is not max(plan.phases, key=lambda other: other.trained):
        return
    train = len(plan.samples.of("train"))
    if phase.trained > train:
        fix = "Watch the validation loss; augment, weight_decay and early_stopping help against overfitting."
        yield f"phases[{phase.number}] trains {phase.trained:,} parameters on {counted(train, 'image')}. {fix}"


def _adapters(phase: PhasePlan) -> Iterator[str]:
    if phase.beside_all is None:
        return
    trained, memory = phase.beside_all
    beside = f"{trained:,} parameters and {format_bytes(memory.total)}"
    yield f"phases[{phase.number}] trains {phase.trained:,} parameters in {format_bytes(phase.memory.total)}; `train: all` needs {beside}."


def _augmented_head(recipe: Recipe, phase: PhasePlan) -> Iterator[str]:
    if recipe.augment and phase.phase.train == "head":
        yield f"phases[{phase.number}] trains only the head on augmented images: each goes through the frozen backbone in every epoch."
