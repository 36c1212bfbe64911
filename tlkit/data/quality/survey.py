"""What images there are: counts, sizes, formats, mean and std, in one pass that holds one image per thread. No torch."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlkit.data.preprocess import Read, resized
from tlkit.data.samples import Sample, Samples
from tlkit.data.statistics import PerChannel, of_counts, value_counts
from tlkit.errors import DataError
from tlkit.system import processors

LARGEST_MEAN = 256
"""Default of the mean image's longer side, in pixels."""
MAX_THREADS = 8
MAX_NAMED = 20
"""Images that can't be read: so many are kept by name."""

Size = tuple[int, int]
"""Width and height."""


@dataclass
class Survey:
    """values: of each split, how often each value is in each channel, [C, 256]. total: sum of the images at one size, [H, W, C].

    formats: `JPEG RGB`, as in the files. sizes: as the network's images are upright. unreadable: id -> why, the first MAX_NAMED.
    """

    images: int = 0
    sizes: Counter[Size] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    values: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    total: NDArray[np.int64] | None = None
    unreadable: dict[str, str] = field(default_factory=dict)
    failed: int = 0

    def add(self, split: str, image: NDArray[np.uint8], kind: str, mean_size: Size) -> None:
        height, width = image.shape[:2]
        self.images += 1
        self.sizes[width, height] += 1
        self.formats[kind] += 1
        found = value_counts(image)
        self.values[split] = self.values[split] + found if split in self.values else found
        fitted = image if (width, height) == mean_size else resized(image, mean_size, Image.Resampling.BILINEAR)
        self.total = fitted.astype(np.int64) if self.total is None else self.total + fitted

    def join(self, other: "Survey") -> None:
        self.images += other.images
        self.sizes += other.sizes
        self.formats += other.formats
        for split, values in other.values.items():
            self.values[split] = self.values[split] + values if split in self.values else values
        if other.total is not None:
            self.total = other.total if self.total is None else self.total + other.total
        self.unreadable |= other.unreadable
        self.failed += other.failed

    def mean_and_std(self, split: str | None = None) -> tuple[PerChannel, PerChannel]:
        """Return mean and std of each channel over all pixels, 0..1, of one split or of all."""
        return of_counts(self.values[split] if split is not None else np.sum(list(self.values.values()), axis=0))

    def mean_picture(self) -> NDArray[np.float64]:
        """Return the mean of all images, stretched to one size, [H, W, C] in 0..1. Raises DataError if there is no image."""
        if self.total is None:
            raise DataError("none of the images can be read.\n  `tlkit data check` says why.")
        return self.total / self.images / 255


def survey(samples: Samples, *, read: Read, mean_size: Size | None = None, on_image: Callable[[int], None] = lambda images: None) -> Survey:
    """Measure all images in one pass, in threads. on_image is called with the number of images that are done.

    read: the decoder, with its settings. mean_size: of the mean image; by default that of the first image, at most LARGEST_MEAN.
    An image that can't be read is counted, named and left out.
    """
    size = mean_size or _first_size(samples.samples, read)
    threads = min(MAX_THREADS, processors())
    found = Survey()

    def share(number: int) -> Survey:
        own = Survey()
        for done, sample in enumerate(samples.samples[number::threads], 1):
            _look_at(sample, own, read, size)
            if done % 50 == 0 or done == len(samples.samples[number::threads]):
                on_image(50 if done % 50 == 0 else done % 50)
        return own

    with ThreadPoolExecutor(threads) as pool:
        for own in pool.map(share, range(threads)):
            found.join(own)
    found.unreadable = dict(sorted(found.unreadable.items())[:MAX_NAMED])
    return found


def _look_at(sample: Sample, survey: Survey, read: Read, mean_size: Size) -> None:
    try:
        image, kind = _opened(sample, read)
    except DataError as error:
        survey.failed += 1
        if len(survey.unreadable) < MAX_NAMED:
            survey.unreadable[sample.id] = str(error)
        return
    survey.add(sample.split, image, kind, mean_size)


@dataclass
class _Noted:
    """An image that a function gives, with what it was before it was decoded."""

    image: Callable[[], Image.Image | NDArray[Any]]
    kind: str = ""

    def __call__(self) -> Image.Image | NDArray[Any]:
        given = self.image()
        self.kind = f"{given.format or 'array'} {given.mode}" if isinstance(given, Image.Image) else "array"
        return given

    def __str__(self) -> str:
        return str(self.image)


def _opened(sample: Sample, read: Read) -> tuple[NDArray[np.uint8], str]:
    """Return the image, and its format and mode before it was decoded: `PNG L`."""
    if not isinstance(sample.image, Path):
        noted = _Noted(sample.image)
        return read(noted), noted.kind
    image = read(sample.image)
    if sample.image.suffix.lower() == ".npy":
        return image, "npy"
    with Image.open(sample.image) as header:
        return image, f"{header.format} {header.mode}"


def _first_size(samples: Sequence[Sample], read: Read) -> Size:
    for sample in samples:
        try:
            height, width = _opened(sample, read)[0].shape[:2]
        except DataError:
            continue
        scale = min(1.0, LARGEST_MEAN / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))
    return LARGEST_MEAN, LARGEST_MEAN


def spread(counts: Mapping[float, int]) -> dict[str, float]:
    """Return the minimum, median and maximum of counted values."""
    number, seen = sum(counts.values()), 0
    for value in sorted(counts):
        seen += counts[value]
        if 2 * seen >= number:
            return {"min": min(counts), "median": value, "max": max(counts)}
    return {}
