"""Likely mistakes in what a recipe plans, and what is worth a note."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import floor
from typing import Literal

from tlkit.data.preprocess import larger_side
from tlkit.data.quality.value_range import range_warning
from tlkit.data.samples import LARGEST_FOLD
from tlkit.data.splits.holdout import share_warnings, split_warnings
from tlkit.files import format_bytes
from tlkit.models.backbones import pretrained_cfg, sizes_by_features
from tlkit.planning.plan import ASSUMED_CLASSES, PhasePlan, Plan, batches_an_epoch
from tlkit.recipe.schema import Recipe
from tlkit.recipe.summary import precision_warning, recipe_notes, recipe_warnings
from tlkit.terminal import counted
from tlkit.training.specs import ENOUGH_FOR_STATISTICS

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
    warnings += [*precision_warning(plan.recipe, plan.device), *_value_range(plan), *_random_features(plan.recipe)]
    warnings += [*share_warnings(plan.samples, plan.recipe.data), *split_warnings(plan.samples)] if plan.samples else []
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
        statistics = f"; batch-norm is planned as below {ENOUGH_FOR_STATISTICS:,} training images" if _keeps_statistics(plan) else ""
        yield f"no images: steps and times are unknown, and {ASSUMED_CLASSES} classes are assumed{statistics}.\n{plan.no_images}"
    if plan.no_weights:
        yield f"no weights: planned with random ones of the same shape.\n{plan.no_weights}"


def _keeps_statistics(plan: Plan) -> bool:
    """Return whether `batchnorm: auto` holds the statistics of layers that train."""
    phases = [phase for phase in plan.phases if phase.phase.batchnorm == "auto"]
    return any(row.trained and row.batchnorm == "held" for phase in phases for row in phase.rows)


def _memory(plan: Plan) -> Iterator[str]:
    if plan.largest and plan.device_memory and plan.largest.memory.total > plan.device_memory:
        needs, has = format_bytes(plan.largest.memory.total), format_bytes(plan.device_memory)
        fix = "Use a smaller data.batch_size with optimizer.accumulate, or train fewer stages."
        yield f"phases[{plan.largest.number}] needs about {needs} on each device, which has {has}. {fix}"


def _margin(plan: Plan) -> Iterator[str]:
    margin, budget = plan.recipe.data.margin, plan.recipe.cache.budget_gb * 1e9
    if plan.decoded is None or margin == 1 or not plan.recipe.augment or sum(plan.decoded) <= budget:
        return
    (train, val), size = plan.decoded, plan.recipe.data.image_size
    largest = larger_side(size, margin)
    # `Preprocessing.larger_bytes` counts up to three pixels of a long side more than there are, which is more of a small image.
    fitting = [side for side in range(size, largest, 2) if train * side * (side + 3) <= (budget - val) * largest * (largest + 2)]
    fix = f"Lower it to {floor(100 * fitting[-1] / size) / 100:g}, or raise" if fitting else "Raise"
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
