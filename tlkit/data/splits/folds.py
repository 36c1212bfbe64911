"""How a recipe divides its images: `data.limit` first, then three splits or, with `data.folds`, three splits for each fold."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tlkit.data.samples import Sample, Samples
from tlkit.data.splits.holdout import shortened, split_samples
from tlkit.data.splits.stratify import split_by_labels, units_of_labels
from tlkit.data.splits.subset import limit_samples
from tlkit.errors import DataError
from tlkit.recipe.fields.data import Data
from tlkit.terminal import counted


def split_by_recipe(samples: Samples, data: Data, seed: int, *, fold: int = 1) -> Samples:
    """Return the images that a run uses, every split filled in. fold: the one that validates, counted from 1.

    Raises DataError if a class has too few images for it.
    """
    if data.limit is not None:
        present = {sample.split for sample in samples.samples}
        drawn = (data.test > 0 and "test" not in present) + (data.folds or (1 + ("val" not in present)))
        samples = limit_samples(samples, data.limit, seed, least=drawn)
    if data.folds is None:
        return split_samples(samples, data.validation, data.test, seed)
    return split_into_folds(samples, data.folds, data.test, seed)[fold - 1]


def split_into_folds(samples: Samples, folds: int, test: float, seed: int) -> list[Samples]:
    """Return the samples once for each fold, whose images are its validation split; test is the same in all of them.

    Every image that isn't in the test split validates in one fold. Stratified by class or, for multilabel, label by label;
    groups are kept whole. test: share held out first, where the source has no test split.
    Raises DataError if the source has a validation split, or if a class has fewer images (or groups) than there are folds.
    """
    if own := len(samples.of("val")):
        raise DataError(
            f"data.folds = {folds}, but the source has a validation split of its own ({counted(own, 'image')}).\n"
            "  Remove data.folds to validate on that split, or put its images into the training split to validate on every fold."
        )
    held = split_samples(samples, 0.0, test, seed)
    pool = held.of("train")
    _check_enough(pool, samples.classes, folds)
    fold_of = _assign_folds(pool, folds, seed, multilabel=samples.task == "multilabel")
    divided = [
        replace(
            held,
            drawn=held.drawn | {"val"},
            fold=(number, folds),
            samples=tuple(replace(s, split="val") if fold_of.get(s.id) == number else s for s in held.samples),
        )
        for number in range(1, folds + 1)
    ]
    for number, one in enumerate(divided, 1):
        if missing := [name for name, count in zip(one.classes, one.training_counts(), strict=True) if not count]:
            raise DataError(
                f"data.folds = {folds}: whole groups leave no image of {shortened(missing)} to train on in fold {number}.\n"
                "  Use fewer folds, or more and smaller groups."
            )
    return divided


def _assign_folds(pool: Sequence[Sample], folds: int, seed: int, *, multilabel: bool) -> dict[str, int]:
    """Return id -> the fold, from 1, in whose validation split the image is."""
    if multilabel:
        names = {str(number): 1 / folds for number in range(2, folds + 1)}
        assigned = split_by_labels(pool, names, np.random.default_rng((seed, folds)))
        return {name: 1 if place == "train" else int(place) for name, place in assigned.items()}
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    grouped = any(sample.group is not None for sample in pool)
    splitter = (StratifiedGroupKFold if grouped else StratifiedKFold)(folds, shuffle=True, random_state=seed)
    labels, units = [sample.label for sample in pool], [sample.unit for sample in pool]
    parts = enumerate(splitter.split(np.zeros(len(pool)), labels, units if grouped else None), 1)
    return {pool[row].id: number for number, (_, held_out) in parts for row in held_out}


def _check_enough(pool: Sequence[Sample], classes: Sequence[str], folds: int) -> None:
    units = units_of_labels(pool)
    if short := [f"{name} ({len(units[label])})" for label, name in enumerate(classes) if len(units[label]) < folds]:
        what = "groups" if any(sample.group is not None for sample in pool) else "images"
        raise DataError(
            f"data.folds = {folds}, but beside the test split there are fewer {what} than folds of: {shortened(short)}.\n"
            f"  Use fewer folds, add {what}, or remove these classes."
        )
