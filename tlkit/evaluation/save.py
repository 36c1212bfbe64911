"""A classifier that a program has trained itself, saved as a model folder: written, read back, and measured as it was read."""

from collections import Counter
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.data.samples import Samples
from tlkit.errors import BackboneError, DataError, RunError
from tlkit.evaluation.answers import Answers, split_answers
from tlkit.evaluation.evaluate import measure_logits
from tlkit.evaluation.fit_trust import TrustOptions, fit_trust, measure_trust
from tlkit.evaluation.primary_metric import named_primary_metric, recorded_primary_metric
from tlkit.evaluation.unknown import training_sample
from tlkit.files import expanded
from tlkit.models.classifier import Classifier
from tlkit.models.inference.trust import Calibration, Trust
from tlkit.models.model_folder import ModelCard, check_can_ship, load_with_card, update_metrics, update_trust, write_model_folder
from tlkit.models.weights.state_files import not_finite

if TYPE_CHECKING:
    from tlkit.data.datamodule import ImageDataModule


NOT_FITTED = "It was saved without validation images to fit a temperature to."


def save_model(classifier: Classifier, folder: str | PathLike[str], *, data: "ImageDataModule | None" = None) -> dict[str, Any]:
    """Save a classifier that you trained in your own Trainer as a model folder, as `finetune` writes one.

    `load_model`, `predict` and `tlkit serve` take the folder; `export` takes it with `images`.

    Args:
        classifier: From `create_classifier` or `load_model`, with one label per image. Adapters are merged into its weights.
        folder: The model folder. One that is there already is replaced when the new one is whole.
        data: Measure what was saved, as it is read back, on these validation and test splits, and fit its temperature and its threshold for
            unknown images on validation. None leaves it without figures, and its probabilities as trained, which tlkit.json says.

    Returns:
        The metrics, as metrics.json of a run has them under `test` and `val`; empty without `data`. The folder's tlkit.json has them, too.

    Raises:
        BackboneError: The classifier was put together by hand, has several labels per image, or can't be read back by timm.
        DataError: The data have other classes, or an image can't be read.
        RunError: The weights are NaN or infinite, or `folder` holds something else.
    """
    classifier.merge_adapters()
    target, card = expanded(folder), card_of(classifier)
    if target.exists() and not (target / "tlkit.json").is_file() and (not target.is_dir() or any(target.iterdir())):
        raise RunError(f"{target} is there already and is no model folder.\n  Choose another folder, or remove it yourself.")
    if data is not None and data.classes != classifier.classes:
        raise DataError(f"The data's classes are {data.classes}, and the classifier's are {classifier.classes}.")
    if found := not_finite(classifier.state_dict()):
        raise RunError(f"The classifier would answer NaN, so it is not saved: {found}.")
    write_model_folder(target, classifier, card)
    metrics = measured(target, data) if data is not None else {}
    update_metrics(target, metrics)
    return metrics


def card_of(classifier: Classifier) -> ModelCard:
    """Describe the classifier for its model folder. Raises BackboneError if it can't be."""
    origin, preprocessing = classifier.origin, classifier.preprocessing
    if origin is None or preprocessing is None:
        raise BackboneError("This classifier was put together by hand, and can't be built again.\n  Make it by create_classifier(..).")
    if origin.task == "multilabel":
        raise BackboneError("This classifier has several labels per image, and their thresholds would be old.\n  Train it by finetune(..).")
    check_can_ship(origin.backbone, origin.head, classifier, len(classifier.classes), preprocessing.image_size, features=origin.features)
    return ModelCard(
        backbone=origin.backbone,
        head=origin.head,
        classes=classifier.classes,
        preprocessing=preprocessing.to_json(),
        mean_picture=preprocessing.mean_picture,
        recipe={},
        weights=origin.weights,
        metrics={},
        features=origin.features,
        trust=Trust(calibration=Calibration(reason=NOT_FITTED)),
    )


def measured(folder: Path, data: "ImageDataModule") -> dict[str, Any]:
    """Return the metrics of a model folder on the validation and the test split, from their files on; it gets what validation fits."""
    classifier, card = load_with_card(folder)
    samples, preprocessing = data.samples, card.spec

    def answers(images: Samples, split: str) -> Answers:
        return split_answers(classifier, images, split, preprocessing, batch_size=data.batch_size)

    of_splits = {split: answers(samples, split) for split in ("test", "val") if samples.of(split)}
    found = {
        split: measure_logits(each.logits, each.labels, samples=samples, split=split, thresholds=()) for split, each in of_splits.items()
    }
    if "val" in of_splits:
        options = TrustOptions(abstain=None, unknown="knn" if samples.of("train") else "off")
        fitted = fit_trust(card, of_splits["val"], options, training=lambda: answers(training_sample(samples, seed=data.seed), "train"))
        update_trust(folder, fitted.trust)
        if "test" in found:
            found["test"] |= measure_trust(fitted, of_splits["test"])
    primary = named_primary_metric(recorded_primary_metric(list(found.values())[-1])) if found else {}
    return {**found, **primary, "pictures": dict(Counter(sample.split for sample in samples.samples))}
