"""`tlkit evaluate RUN`: the shipped model measured again on the images that its run kept for it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tlkit.data.dataset import ImageDataset, make_loader
from tlkit.data.preprocess import Preprocessing
from tlkit.data.progress import progress, progress_console
from tlkit.data.quality.on_bad import without_bad_of
from tlkit.data.samples import Samples, groups_of
from tlkit.data.splits.manifest import changed_images, check_run_folder, samples_of_run
from tlkit.data.splits.run_source import recipe_of_run
from tlkit.errors import DataError, RunError, as_written
from tlkit.evaluation.answers import Answers, split_answers
from tlkit.evaluation.calibration import why_uncalibrated
from tlkit.evaluation.fit_trust import FittedTrust, measure_trust
from tlkit.evaluation.intervals import multiclass_intervals, multilabel_intervals
from tlkit.evaluation.metrics import measure, measure_multilabel
from tlkit.evaluation.predictions import PREDICTIONS, prediction_rows, read_predictions
from tlkit.evaluation.primary_metric import named_primary_metric, primary_metric_of
from tlkit.evaluation.run_metrics import read_metrics
from tlkit.evaluation.test_time_augmentation import Tta, averaged, views_of, with_views
from tlkit.models.classifier import Classifier
from tlkit.models.inference.batches import infer
from tlkit.models.inference.devices import find_device
from tlkit.models.model_folder import ModelCard, load_with_card
from tlkit.recipe.schema import Recipe
from tlkit.terminal import counted

LOG = logging.getLogger("tlkit")


def measure_logits(logits: Tensor, labels: Tensor, *, samples: Samples, split: str, thresholds: Sequence[float]) -> dict[str, Any]:
    """Return the metrics of a split's logits [N, K] and labels, and which of them is the primary one.

    Raises RunError if logits are NaN or infinite, with the number of images and the first of them.
    """
    bad = (~logits.isfinite()).any(1).nonzero().flatten().tolist()
    if bad:
        raise RunError(
            f"The model answers NaN or infinity for {len(bad)} of {len(logits)} {split} images, so it can't be measured. The first:"
            f" {samples.of(split)[bad[0]].id}\n  Its activations overflow there: train again with a lower lr, or data.normalize=weights."
        )
    multilabel = samples.task == "multilabel"
    figures = measure_multilabel(logits, labels, samples.classes, thresholds) if multilabel else measure(logits, labels, samples.classes)
    groups = groups_of(samples.of(split))
    if multilabel:
        figures["intervals"] = multilabel_intervals(logits.double().sigmoid(), labels, thresholds, samples.classes, groups)
    else:
        figures["intervals"] = multiclass_intervals(logits.argmax(1), labels, samples.classes, groups)
    if groups:
        figures["groups"] = len(set(groups))
        figures |= {f"{name}_interval": figures["intervals"][name] for name in ("accuracy", "exact_match") if f"{name}_interval" in figures}
    return {**named_primary_metric(primary_metric_of(samples)), **figures}


def evaluate(
    run: str | PathLike[str], *, split: str = "test", tta: Tta | None = None, device: str = "auto", overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure the model of a finished run again, on the images that the run kept for it.

    Args:
        run: The run folder. Images are read where the run's recipe says, from the current folder or the one in which the run was started,
            and split as in its split.csv.
        split: test, val or train.
        tta: Average the probabilities over several views of each image: flip (mirrored too), crops (corners and centre too), or a number
            of views as the recipe augments them. None looks at each image once.
        device: cpu, cuda, cuda:1, mps, or auto for an accelerator where there is one.
        overrides: `KEY=VALUE` of the recipe's data, where the images are elsewhere now: data.source.folder=/photos.

    Returns:
        The metrics as metrics.json has them for a split, plain JSON values; under `tta` those with test-time augmentation. Images with
        another content than in the run are measured with a warning, and are in `changed`. With the recipe's `on_bad: skip`, images that
        can't be read any more are left out, and are in `skipped`: id -> reason.

    Raises:
        RunError: It is no run folder, or its model is damaged.
        DataError: Images of the split are gone, can't be read, or there are none.
        DeviceError: This machine doesn't have the device.
    """
    opened = open_split(Path(run), split, device=device, overrides=overrides)
    classifier, card, recipe, samples = opened.classifier, opened.card, opened.recipe, opened.samples
    preprocessing, batch_size = opened.preprocessing, recipe.data.known_batch_size
    skipped = {"skipped": {skipped.sample.id: skipped.reason for skipped in samples.skipped}} if recipe.data.on_bad == "skip" else {}
    beside = {**skipped, **({"changed": opened.changed} if opened.changed else {})}
    what, number = f"measuring on {split}", len(samples.of(split))
    if tta is None:
        is_test = split == "test"  # calibration and promises were fitted on the others
        with progress(progress_console(), what, number) as advance:
            answers = split_answers(classifier, samples, split, preprocessing, batch_size=batch_size, features=is_test, on_batch=advance)
        found = measure_logits(answers.logits, answers.labels, samples=samples, split=split, thresholds=card.thresholds)
        why = why_uncalibrated(card.task, card.head)
        trust = FittedTrust(card.trust, {"calibration": why} if why else {})
        return {**found, **(measure_trust(trust, answers) if is_test else {}), **beside}
    views = views_of(tta, recipe, preprocessing, samples.of(split))
    loader = make_loader(ImageDataset(samples.of(split), preprocessing, multi_hot=samples.multi_hot), batch_size=batch_size)
    with progress(progress_console(), f"{what}, {len(views)} views of each", number * len(views), unit="views") as advance:
        logits, labels = infer(classifier, with_views(loader, views), preprocessing, on_batch=advance)
    plain, mean = averaged(logits, batch_size, len(views), multilabel=samples.task == "multilabel")
    labels = torch.cat([block[: len(block) // len(views)] for block in torch.split(labels, batch_size * len(views))])
    measured_as: Any = {"samples": samples, "split": split, "thresholds": card.thresholds}
    with_tta = {"kind": tta, "views": len(views), **measure_logits(mean.float(), labels, **measured_as)}
    if samples.task == "multiclass":
        right, right_with = plain.argmax(1) == labels, mean.argmax(1) == labels
        with_tta |= {"gained": int((right_with & ~right).sum()), "lost": int((right & ~right_with).sum())}
    return {**measure_logits(plain, labels, **measured_as), "tta": with_tta, **beside}


@dataclass(frozen=True)
class OpenSplit:
    """A run's model on its device, and its images in the splits of split.csv. changed: ids of those of the split, see `changed_images`."""

    classifier: Classifier
    card: ModelCard
    recipe: Recipe
    samples: Samples
    changed: list[str]

    @property
    def preprocessing(self) -> Preprocessing:
        return self.card.spec

    def answers(self, split: str) -> Answers:
        """Return the model's answers on one of the splits, without features."""
        batch_size = self.recipe.data.known_batch_size
        return split_answers(self.classifier, self.samples, split, self.preprocessing, batch_size=batch_size, features=False)

    def rows(self, split: str) -> list[dict[str, str]]:
        """Return the model's answers with calibrated probabilities, as predictions.csv of a run has them."""
        logits = self.answers(split).logits / self.card.trust.temperature
        return prediction_rows(logits, self.samples.of(split), self.card.classes, self.card.thresholds)


def open_split(run: Path, split: str, *, device: str = "auto", overrides: Sequence[str] = ()) -> OpenSplit:
    """Load a run's model and find the images of a split. Raises what `evaluate` raises."""
    check_run_folder(run)
    place = find_device(device)
    classifier, card = load_with_card(run)
    classifier.to(place)
    recipe = recipe_of_run(run, overrides)
    samples = samples_of_run(run, card.classes, overrides)
    if recipe.data.on_bad == "skip":
        samples = without_bad_of(samples, split, recipe.data)
    if not samples.of(split):
        raise DataError(f"{run / 'split.csv'} has no images in the split '{split}'.\n  Choose another with --split.")
    changed = changed_images(run, samples, split)
    if changed:
        which = f"{len(changed)} of {len(samples.of(split))} {split} images have another content than in the run, such as {changed[0]}"
        LOG.warning("%s: the figures are not those of the run's images", which)
    return OpenSplit(classifier, card, recipe, samples, changed)


def answers_on(run: Path, split: str) -> list[dict[str, str]]:
    """Return an answer for each image of a split, as the run has kept them; otherwise the model answers again."""
    with as_written(run / "metrics.json"):
        classes = read_metrics(run)[split]["per_class"]
    try:
        return read_predictions(run, split, classes)
    except FileNotFoundError:  # of an earlier version, or of validation where there is a test split
        pass
    opened = open_split(run, split)
    if skipped := opened.samples.skipped:
        what = f"{counted(len(skipped), f'{split} image')} can't be read any more, the first {skipped[0].sample.id}: {skipped[0].reason}"
        raise RunError(f"{run} has no {PREDICTIONS[split]} with its answers, and {what}.\n  Restore what can't be read, or train it again.")
    return opened.rows(split)
