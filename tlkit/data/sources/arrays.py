"""Images in one array, and labels that are numbers: what idx, npz and npy have in common."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlkit.data.samples import Sample, Samples
from tlkit.data.sources.classes import number_classes
from tlkit.errors import DataError
from tlkit.recipe.schema import Task


class ImageArray:
    """[N, H, W] or [N, H, W, C] uint8 or uint16, in memory once or mapped from its file; an image is a view of it.

    Forked worker processes share it. To those that are started, only `load` travels, which they call for themselves.
    """

    def __init__(self, load: Callable[[], NDArray[Any]], name: str) -> None:
        self.load, self.name = load, name
        self._pixels: NDArray[Any] | None = None

    @property
    def pixels(self) -> NDArray[Any]:
        if self._pixels is None:
            self._pixels = self.load()
        return self._pixels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}


@dataclass(frozen=True, slots=True)
class ArrayImage:
    array: ImageArray
    index: int

    def __call__(self) -> Image.Image | NDArray[Any]:
        """Return a Pillow image for grey, RGB or RGBA; for other numbers of channels an array, [H, W, C]."""
        pixels: NDArray[Any] = self.array.pixels[self.index]
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        whole_bytes = pixels.dtype == np.uint8
        if pixels.ndim == 2 or (whole_bytes and pixels.shape[2] in (3, 4)):
            return Image.fromarray(np.ascontiguousarray(pixels))
        return pixels

    def __str__(self) -> str:
        return f"{self.array.name}[{self.index}]"


@dataclass(frozen=True)
class ArrayPart:
    """One split: its images and its labels, [N] or, for multilabel, [N, K] of 0 and 1."""

    images: ImageArray
    labels: NDArray[Any]


def check_images(name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    """Raise DataError unless these are images: [N, H, W] or [N, H, W, C] of uint8 or uint16."""
    words = " x ".join(map(str, shape)) or "one number"
    if len(shape) not in (3, 4) or 0 in shape:
        raise DataError(f"{name}: its shape, {words}, is not that of images.\n  Expected N x H x W, or N x H x W x C.")
    if len(shape) == 4 and (shape[3] > 256 or (shape[1] in (1, 3, 4) and shape[3] > 4)):
        raise DataError(
            f"{name}: its shape, {words}, would be images of {shape[3]} channels.\n"
            "  Expected N x H x W x C, the channels last: images.transpose(0, 2, 3, 1)."
        )
    if dtype.hasobject:
        raise DataError(f"{name}: holds Python objects, which are not read, since they can run code.\n  Save images of one size, as uint8.")
    if dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise DataError(
            f"{name}: holds {dtype}, which has no known range.\n"
            "  Save the images as uint8 (0 to 255) or uint16 (0 to 65535); from 0..1: (images * 255).round().astype('uint8')."
        )


def check_labels(name: str, labels: NDArray[Any], images: int, task: Task) -> NDArray[Any]:
    """Return the labels as [N], or [N, K] for multilabel; [N, 1] is taken as [N]. Raises DataError for any other shape or number."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if len(labels.shape) != (2 if task == "multilabel" else 1):
        words = " x ".join(map(str, labels.shape)) or "one number"
        one_hot = ": if one-hot, labels.argmax(1)" if labels.ndim == 2 else ""
        fix = f"one label for each image{one_hot}; for several labels set task to multilabel"
        if task == "multilabel":
            fix = "N x K of 0 and 1"
        raise DataError(f"{name}: the shape of the labels is {words}.\n  Expected {fix}.")
    if labels.dtype.kind not in "iubU":
        fix = {"S": "np.char.decode(labels, 'utf-8')", "f": "labels.astype(int), if all of them are whole"}.get(labels.dtype.kind, "")
        raise DataError(f"{name}: the labels are {labels.dtype}.\n  Expected whole numbers or words{fix and f': {fix}'}.")
    if task == "multilabel" and not np.isin(labels, (0, 1)).all():
        raise DataError(f"{name}: the labels are not all 0 or 1.\n  Expected 1 for each class that an image shows, and 0 for others.")
    if len(labels) != images:
        raise DataError(f"{name}: has {len(labels):,} labels for {images:,} images.\n  Expected as many of both: are they of one set?")
    return labels


def array_samples(place: str, parts: Mapping[str, ArrayPart], names: Sequence[str], task: Task) -> Samples:
    """Return samples with ids such as `train/000042`. names: of the labels 0, 1, 2 ..; without them a class is named by its number."""
    raw = {split: list(_labels(part.labels)) for split, part in parts.items()}
    classes, numbers = number_classes(place, raw, names, task)
    return Samples(
        classes,
        tuple(
            Sample(f"{split or 'all'}/{index:06d}", ArrayImage(part.images, index), tuple(numbers[label] for label in labels), split)
            for split, part in parts.items()
            for index, labels in enumerate(raw[split])
        ),
        task,
    )


def _labels(labels: NDArray[Any]) -> Iterator[tuple[int | str, ...]]:
    if labels.ndim == 2:
        return (tuple(np.flatnonzero(row).tolist()) for row in labels)
    return ((label,) for label in labels.tolist())
