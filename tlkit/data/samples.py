"""The one sample type: what every source gives and everything after it takes."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:  # `tlkit predict ARTIFACT` needs what is below where pydantic may be missing
    from tlkit.recipe.schema import Task

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What a folder or a cell calls a split, in lower case -> the split."""
LABEL_SEPARATOR = "|"
T = TypeVar("T")
LARGEST_FOLD = 5
"""Classes that differ more in their training images are uneven: accuracy is then mostly about the large ones."""
ImageSource = Path | Callable[[], Image.Image | NDArray[Any]]
"""A file, or a function that gives the image; numbers, [H, W, C] uint8 or uint16, where Pillow has no such image.

A function that has the bytes of an image file gives them by read_bytes, as a Path does. It travels to worker processes: it
holds a place to read from, never the data itself. As text it says where the image is.
"""


def composed(name: str) -> str:
    """Compose Unicode: macOS gives decomposed names, Linux composed ones, and a class or image must have the same name on both."""
    return unicodedata.normalize("NFC", name)


def is_printable(name: str) -> bool:
    """Return whether a name can be shown: the joiners that emoji, Persian and Hindi words contain are part of them."""
    return name.replace("\u200c", "").replace("\u200d", "").isprintable()


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image. id is unique in its source and stays the same between machines.

    labels: indices into the classes, ascending; one for multiclass, any number for multilabel.
    split: train, val, test, or empty where it is still to be split.
    group: images of one group (one patient, one video) are never in different splits.
    """

    id: str
    image: ImageSource
    labels: tuple[int, ...]
    split: str
    group: str | None = None

    @property
    def label(self) -> int:
        """Return the one label of a multiclass image."""
        (only,) = self.labels
        return only

    @property
    def unit(self) -> str:
        """Return what is never divided between splits: the group, or the image itself."""
        return f"group {self.group}" if self.group is not None else f"id {self.id}"


@dataclass(frozen=True)
class Skipped:
    """An image that `data.on_bad: skip` has left out."""

    sample: Sample
    reason: str
    fix: str = ""


@dataclass(frozen=True)
class Samples:
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    task: "Task" = "multiclass"
    drawn: frozenset[str] = frozenset()
    """Splits that the seed decides about; the others are the source's own."""
    source_size: int = 0
    """Images of the source, where `data.limit` has left some out; else 0."""
    fold: tuple[int, int] | None = None
    """The validating fold of a cross-validation, counted from 1, and the number of folds."""

    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()
    """What reading the source has found, and its user should know: for the log, the plan and the report."""

    def of(self, split: str) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.split == split)

    def training_counts(self) -> tuple[int, ...]:
        """Count the training images of each class, [K]."""
        found = Counter(label for sample in self.of("train") for label in sample.labels)
        return tuple(found[label] for label in range(len(self.classes)))

    @property
    def multi_hot(self) -> int:
        """Return K if an image has any number of labels, 0 if it has one."""
        return len(self.classes) if self.task == "multilabel" else 0

    def label_text(self, sample: Sample) -> str:
        """Return the classes of an image as the column of a csv has them: `hat|bag`."""
        return LABEL_SEPARATOR.join(self.classes[label] for label in sample.labels)


def evenly_spread(items: Sequence[T], most: int) -> tuple[T, ...]:
    """Return at most so many of the items in their order, spread evenly from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return tuple(items[place] for place in places.tolist())


def groups_of(samples: Sequence[Sample]) -> list[str]:
    """Return the group of each image, a single image being its own; empty where the data have no groups."""
    return [sample.unit for sample in samples] if any(sample.group is not None for sample in samples) else []
