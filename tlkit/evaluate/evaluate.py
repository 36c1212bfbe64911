"""`tlkit evaluate RUN`: the shipped model measured again on the pictures that its run kept for it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tlkit.data.pictures import make_loader
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import LABEL_SEPARATOR, Samples
from tlkit.data.sources import read_source
from tlkit.data.splits import read_manifest
from tlkit.errors import DataError, RunError, expected_one_of
from tlkit.evaluate.metrics import lead_of, measure, measure_multilabel
from tlkit.evaluate.views import Tta, averaged, views_of, with_views
from tlkit.models.checkpoint import load_model
from tlkit.models.classifier import Classifier
from tlkit.models.inference import infer
from tlkit.recipe.load import load_recipe
from tlkit.recipe.schema import Task


def measure_split(
    classifier: Classifier,
    samples: Samples,
    split: str,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    thresholds: Sequence[float] = (),
    on_batch: Callable[[int], None] = lambda pictures: None,
) -> dict[str, Any]:
    """Metrics of one split, by the loop and the preprocessing that predict uses. The classifier stays on its device.

    `lead` names the figure that says most, given how the training split is. thresholds: of each class, for multilabel.
    """
    loader = make_loader(samples.of(split), preprocessing, batch_size=batch_size, multi_hot=samples.multi_hot)
    logits, labels = infer(classifier, loader, preprocessing.normalize, on_batch=on_batch)
    return measure_logits(logits, labels, samples, thresholds)


def measure_logits(logits: Tensor, labels: Tensor, samples: Samples, thresholds: Sequence[float]) -> dict[str, Any]:
    """The metrics of a split's logits [N, K] and labels, and which of them leads."""
    multilabel = samples.task == "multilabel"
    figures = measure_multilabel(logits, labels, samples.classes, thresholds) if multilabel else measure(logits, labels, samples.classes)
    return {"lead": lead_of(samples), **figures}


def evaluate_run(run: Path, split: str, tta: Tta | None = None) -> dict[str, Any]:
    """Metrics of the run's model on one of its splits, as split.csv has them; and under `tta` those with test-time augmentation.

    Raises RunError if this is no run folder, DataError if pictures of the split are gone or the split is empty.
    """
    if not (run / "split.csv").is_file():
        if (run / "fold_1").is_dir():
            raise RunError(f"{run} is a cross-validation, with a run for each fold.\n  Name one of them, such as {run / 'fold_1'}.")
        raise RunError(f"{run} is not a run folder: it has no split.csv. Expected one such as runs/quickstart/001.")
    classifier, card = load_model(run)
    recipe = load_recipe(run / "recipe.yaml")
    samples = _as_split(read_source(recipe.data.source, Path(recipe.data.root), recipe.task), run / "split.csv", card.classes)
    if not samples.of(split):
        raise DataError(f"{run / 'split.csv'} has no pictures in the split '{split}'.\n  Choose another with --split.")
    preprocessing, batch_size = Preprocessing.from_json(card.preprocessing, card.mean_picture), recipe.data.known_batch_size
    if tta is None:
        return measure_split(classifier, samples, split, preprocessing, batch_size=batch_size, thresholds=card.thresholds)
    views = views_of(tta, recipe, preprocessing)
    loader = make_loader(samples.of(split), preprocessing, batch_size=batch_size, multi_hot=samples.multi_hot)
    logits, labels = infer(classifier, with_views(loader, views), preprocessing.normalize)
    plain, mean = averaged(logits, batch_size, len(views), multilabel=samples.task == "multilabel")
    labels = torch.cat([block[: len(block) // len(views)] for block in torch.split(labels, batch_size * len(views))])
    with_tta = {"kind": tta, "views": len(views), **measure_logits(mean.float(), labels, samples, card.thresholds)}
    if samples.task == "multiclass":
        right, right_with = plain.argmax(1) == labels, mean.argmax(1) == labels
        with_tta |= {"gained": int((right_with & ~right).sum()), "lost": int((right & ~right_with).sum())}
    return {**measure_logits(plain, labels, samples, card.thresholds), "tta": with_tta}


def _as_split(samples: Samples, manifest: Path, classes: tuple[str, ...]) -> Samples:
    """The source's pictures in the splits that the run trained with."""
    by_id = {sample.id: sample for sample in samples.samples}
    rows = read_manifest(manifest)
    missing = [row["id"] for row in rows if row["id"] not in by_id]
    if missing:
        raise DataError(
            f"{len(missing)} pictures of {manifest} are no longer in the data source. The first: {missing[0]}\n"
            "  Put them back, or evaluate on the machine that has them."
        )
    number = {name: label for label, name in enumerate(classes)}
    unknown = sorted({name for row in rows for name in _names(row["class"], samples.task)} - set(classes))
    if unknown:
        raise DataError(
            f"{manifest}: the class '{unknown[0]}' is not one of the model's. {expected_one_of(unknown[0], classes)}\n"
            "  Evaluate with the split.csv that the run has written."
        )
    found = [
        replace(by_id[row["id"]], labels=tuple(number[name] for name in _names(row["class"], samples.task)), split=row["split"])
        for row in rows
    ]
    return Samples(classes, tuple(found), samples.task)


def _names(cell: str, task: Task) -> list[str]:
    """The classes in a cell of split.csv."""
    return [name for name in cell.split(LABEL_SEPARATOR) if name] if task == "multilabel" else [cell]
