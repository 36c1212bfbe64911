"""The one sample type: what every source gives and everything after it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tlkit.recipe.schema import Task

# What a folder or a cell calls a split -> the split.
SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled picture. id is unique in its source and stays the same between machines.

    labels: indices into the classes, ascending; one for multiclass, any number for multilabel.
    split: train, val, test, or empty where it is still to be split.
    group: pictures of one group (one patient, one video) never lie in different splits.
    """

    id: str
    image: Path | Callable[[], Image.Image]
    labels: tuple[int, ...]
    split: str
    group: str | None = None

    @property
    def label(self) -> int:
        """The one label of a multiclass picture."""
        (only,) = self.labels
        return only


@dataclass(frozen=True)
class Samples:
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    task: Task = "multiclass"

    def of(self, split: str) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.split == split)
