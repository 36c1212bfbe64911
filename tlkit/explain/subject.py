"""What is explained: a model, what it was before fine-tuning, its images, and those that are looked at closely."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Sample, Samples, evenly_spread
from tlkit.data.splits.manifest import samples_of_run
from tlkit.data.splits.run_source import from_start_where_missing
from tlkit.errors import TlkitError
from tlkit.evaluation.predictions import PREDICTIONS, read_predictions
from tlkit.models.classifier import Classifier
from tlkit.models.inference.devices import find_device
from tlkit.models.model_folder import ModelCard, load_with_card
from tlkit.models.weights.load import load_backbone
from tlkit.models.weights.sources import find_weights
from tlkit.recipe.fields.model import Model
from tlkit.recipe.load import load_recipe
from tlkit.recipe.validate import document_of, validated

LOG = logging.getLogger("tlkit")

EXAMPLES = 4
"""Test images that are taken where none is named."""


@dataclass(frozen=True)
class Shown:
    """An image that is looked at closely. pixels: [S, S, C] uint8, as the network sees it. labels: its classes, empty if unknown."""

    name: str
    pixels: NDArray[np.uint8]
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Subject:
    """before: the same network with the weights that fine-tuning began with. samples: of the run, in its splits.

    no_before, no_samples: why there are none.
    """

    place: Path
    classifier: Classifier
    card: ModelCard
    before: Classifier | None
    no_before: str
    samples: Samples | None
    no_samples: str
    images: tuple[Shown, ...] = ()

    @property
    def has_softmax(self) -> bool:
        return self.card.task == "multiclass"

    @property
    def preprocessing(self) -> Preprocessing:
        return self.card.spec

    def normalised(self, images: Sequence[Shown]) -> Tensor:
        """Return what the network sees of images: [B, C, S, S], on its device."""
        pixels = torch.from_numpy(np.stack([image.pixels for image in images])).permute(0, 3, 1, 2)
        return self.preprocessing.normalize(pixels.to(next(self.classifier.parameters()).device))

    def part(self, split: str, most: int) -> Samples | None:
        """Return the images of one split, at most so many, spread evenly over it; None where there are none."""
        found = self.samples.of(split) if self.samples is not None else ()
        return replace(self.samples, samples=evenly_spread(found, most)) if self.samples is not None and found else None


def open_subject(place: Path, images: Sequence[Path], *, device: str, overrides: Sequence[str] = ()) -> Subject:
    """Load the model of a run or a model folder. images: those to look at; none takes a few of the run's test images.

    Raises RunError if there is no model, DataError for an image that can't be read.
    """
    classifier, card = load_with_card(place)
    where = find_device(device)
    before, no_before = _before(place, card)
    samples, no_samples = _samples(place, card, overrides)
    subject = Subject(
        place,
        classifier.to(where),
        card,
        before.to(where) if before is not None else None,
        no_before,
        samples,
        no_samples,
    )
    read = subject.preprocessing.read
    if images:
        shown = tuple(Shown(image.name, read(image), _labels(image, samples)) for image in images)
    else:
        shown = tuple(Shown(sample.id, read(sample.image), sample.labels) for sample in _examples(place, samples))
    return replace(subject, images=shown)


def _before(place: Path, card: ModelCard) -> tuple[Classifier | None, str]:
    """Return the network with the weights that training began with, or why there is none. Asks no network."""
    try:
        model = _model_of(place, card)
        if model.weights == "random":
            return None, "It was trained from random weights, so there is nothing before to compare with."
        size, channels = int(card.preprocessing["image_size"]), len(card.preprocessing["mean"])
        weights = find_weights(model)
        if weights.sha256 != card.weights.get("sha256"):
            return None, f"The weights that training began with are not those at {weights.origin} now (sha256 differs)."
        backbone = load_backbone(model, weights, size, channels=channels, log=lambda line: None)
    except TlkitError as error:
        return None, f"The weights that training began with are not at hand: {str(error).splitlines()[0]}"
    return Classifier(backbone, card.head, card.classes, size, card.spec).eval(), ""


def _model_of(place: Path, card: ModelCard) -> Model:
    """Return `model` of the recipe; of a run's with its paths where they are now."""
    if (place / "recipe.yaml").is_file():
        return load_recipe(place / "recipe.yaml", from_start_where_missing(place)).model
    return validated(Model, document_of(card.recipe["model"]), "model")


def _samples(place: Path, card: ModelCard, overrides: Sequence[str]) -> tuple[Samples | None, str]:
    if not (place / "split.csv").is_file():
        return None, "This is a model folder: only its run folder knows the images that it was trained with."
    try:
        return samples_of_run(place, card.classes, overrides), ""
    except TlkitError as error:
        LOG.warning("%s", error)
        return None, f"The run's images are not at hand: {str(error).splitlines()[0]}"


def _labels(image: Path, samples: Samples | None) -> tuple[int, ...]:
    """Return the labels of a file that is one of the run's images."""
    place = image.resolve()
    found: Iterable[Sample] = samples.samples if samples is not None else ()
    return next((sample.labels for sample in found if isinstance(sample.image, Path) and sample.image.resolve() == place), ())


def _examples(place: Path, samples: Samples | None) -> list[Sample]:
    """Return test images: the surest wrong answers, the least sure right one and the surest; validation images where there is no test."""
    by_id = {sample.id: sample for sample in samples.of("test")} if samples is not None else {}
    if samples is not None and by_id and (place / PREDICTIONS["test"]).is_file():
        answered = (row for row in read_predictions(place, "test", samples.classes) if row["id"] in by_id and row["probability"])
        rows = [row for row in answered if "|" not in row["probability"]]
        rows.sort(key=lambda row: float(row["probability"]))
        wrong = [row for row in rows if row["answer"] != row["label"]]
        right = [row for row in rows if row["answer"] == row["label"]]
        chosen = [*reversed(wrong[-2:]), *right[:1], *right[-1:]]
        if chosen:
            return [by_id[row["id"]] for row in chosen]
    found = list(by_id.values()) or list(samples.of("val") if samples is not None else ())
    return found[:EXAMPLES]
