"""What looks like a slip in a plan: warnings, and notes that cost nothing to know."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tlkit.byte_sizes import bytes_in_words
from tlkit.data.samples import LARGEST_FOLD
from tlkit.data.splits import split_warnings
from tlkit.models.backbones import pretrained_cfg
from tlkit.recipe.schema import Recipe
from tlkit.recipe.summary import recipe_notes, recipe_warnings
from tlkit.training.plan import ASSUMED_CLASSES, PhasePlan, Plan, batches_an_epoch

FEW_PICTURES = 10
FAR = 2
"""Times: a picture size that differs by more from the weights' own shows other detail than they learned from."""
VANISHING = 1e-3
"""Share of the phase's rate: what learns slower stands still."""


@dataclass(frozen=True)
class Remark:
    kind: Literal["warning", "note"]
    text: str


def remarks(plan: Plan) -> list[Remark]:
    """The most important first."""
    warnings = [*_missing(plan), *_memory(plan), *_normalize(plan), *_size(plan.recipe), *_classes(plan), *_steps(plan)]
    warnings += [*_random_features(plan.recipe), *(split_warnings(plan.samples) if plan.samples else ())]
    warnings += [text for phase in plan.phases for text in (*_rates(phase), *_parameters(plan, phase))]
    notes = [*(f"weights: {text}" for text in plan.notes), *recipe_notes(plan.recipe)]
    notes += [text for phase in plan.phases for text in _augmented_head(plan.recipe, phase)]
    return [*(Remark("warning", text) for text in warnings), *(Remark("note", text) for text in notes)]


def _missing(plan: Plan) -> Iterator[str]:
    if plan.no_pictures:
        yield f"no pictures: steps and times are unknown, and {ASSUMED_CLASSES} classes are assumed.\n{plan.no_pictures}"
    if plan.no_weights:
        yield f"no weights: planned with random ones of the same shape.\n{plan.no_weights}"


def _memory(plan: Plan) -> Iterator[str]:
    if plan.largest and plan.device_memory and plan.largest.memory.total > plan.device_memory:
        needs, has = bytes_in_words(plan.largest.memory.total), bytes_in_words(plan.device_memory)
        fix = "Use a smaller data.batch_size with optimizer.accumulate, or train fewer stages."
        yield f"phases[{plan.largest.number}] needs about {needs} on each device, which has {has}. {fix}"


def _normalize(plan: Plan) -> Iterator[str]:
    mean = ", ".join(f"{value:.3f}" for value in plan.weights_mean)
    yield from (f"{warning} They were trained with mean {mean}." if mean else warning for warning in recipe_warnings(plan.recipe))
    if plan.recipe.model.weights != "random" and plan.recipe.data.normalize == "none" and not recipe_warnings(plan.recipe):
        fix = f"They were trained with mean {mean}: use `normalize: weights`." if mean else "Use `normalize: weights`."
        yield f"data.normalize = 'none' feeds the weights numbers that they have never seen. {fix}"


def _size(recipe: Recipe) -> Iterator[str]:
    _, height, _ = pretrained_cfg(recipe.model.backbone).get("input_size") or (0, 0, 0)
    size = recipe.data.image_size
    if recipe.model.weights != "random" and height and max(size / height, height / size) > FAR:
        yield f"data.image_size = {size} is far from the {height} px that the weights were made at."


def _classes(plan: Plan) -> Iterator[str]:
    if plan.samples is None:
        return
    counts = Counter(label for sample in plan.samples.of("train") for label in sample.labels)
    name = plan.samples.classes.__getitem__
    (most, pictures), (least, fewest) = counts.most_common()[0], counts.most_common()[-1]
    if pictures > LARGEST_FOLD * fewest and plan.recipe.imbalance == "none":
        fix = "Set `imbalance: loss_weights`, and read the macro figures."
        yield f"classes differ more than {LARGEST_FOLD}-fold: {name(most)} has {pictures} training pictures, {name(least)} {fewest}. {fix}"
    if skipped := len(plan.samples.skipped):
        yield f"{skipped} pictures can't be read, and data.on_bad = 'skip' leaves them out. See them with: tlkit data check RECIPE"
    few = [f"{name(label)} ({number})" for label, number in reversed(counts.most_common()) if number < FEW_PICTURES]
    if few:
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        yield f"too few training pictures to learn a class from: {', '.join(few[:5])}{more}. Add some, or join classes."


def _steps(plan: Plan) -> Iterator[str]:
    if plan.samples is None:
        return
    train, recipe = len(plan.samples.of("train")), plan.recipe
    batch_size = recipe.data.known_batch_size
    if batch_size > train:
        yield f"data.batch_size = {batch_size} is more than the {train} training pictures: an epoch is one step of {train}."
    batches = batches_an_epoch(recipe, train, plan.devices)
    if recipe.optimizer.accumulate > batches:
        yield f"optimizer.accumulate = {recipe.optimizer.accumulate}, but an epoch has {batches} batches: a step is made of those."


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
    """Once, for the phase that trains most."""
    if plan.samples is None or phase is not max(plan.phases, key=lambda other: other.trained):
        return
    train = len(plan.samples.of("train"))
    if phase.trained > train:
        fix = "Watch the validation loss; augment, weight_decay and early_stopping hold it back from learning by heart."
        yield f"phases[{phase.number}] trains {phase.trained:,} parameters on {train:,} pictures. {fix}"


def _augmented_head(recipe: Recipe, phase: PhasePlan) -> Iterator[str]:
    if recipe.augment and phase.phase.train == "head":
        yield f"phases[{phase.number}] trains the head alone on augmented pictures: each goes through the frozen backbone in every epoch."
