"""The one sample type: what every source gives and everything after it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled picture. id is unique in its source and stays the same between machines.

    label: index into the classes. split: train, val, test, or empty where it is still to be split.
    group: pictures of one group (one patient, one video) never lie in different splits.
    """

    id: str
    image: Path | Callable[[], Image.Image]
    label: int
    split: str
    group: str | None = None


@dataclass(frozen=True)
class Samples:
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]

    def of(self, split: str) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.split == split)
