"""Arrays that numpy saved: an .npz with images and labels, or an .npy of each. Pickled objects are never read."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from tlkit.data.decode import open_npy
from tlkit.data.samples import Samples
from tlkit.data.sources.arrays import ArrayPart, ImageArray, array_samples, check_images, check_labels
from tlkit.data.sources.kind import LocalFiles, ReadOptions, SourceKind, named_files
from tlkit.errors import DataError, MissingDataError, did_you_mean
from tlkit.files import expanded
from tlkit.recipe.fields.source import NpySource, NpzSource
from tlkit.recipe.schema import Task

# Split -> the names of its images and labels. Keras' mnist.npz has x_train, MedMNIST train_images.
NAMES = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels"), ("X_train", "y_train")),
    "val": (("x_val", "y_val"), ("val_images", "val_labels"), ("X_val", "y_val")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels"), ("X_test", "y_test")),
    "": (("images", "labels"), ("x", "y"), ("X", "y"), ("data", "labels"), ("data", "target")),
}
_DAMAGED = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError)


def read_arrays(source: NpzSource | NpySource, options: ReadOptions) -> Samples:
    """Read every image of an .npz, in its splits; or of an .npy, which is mapped and not read, to be split.

    With task: multilabel, labels are [N, K] of 0 and 1. Raises DataError if arrays are missing, damaged, or don't fit.
    """
    if isinstance(source, NpySource):
        images, labels = _existing(source.npy, "data.source.npy"), _existing(source.labels, "data.source.labels")
        parts = {"": _npy_part(images, labels, options.task)}
        return array_samples(f"data.source.npy: {images}", parts, source.classes, options.task)
    file = _existing(source.npz, "data.source.npz")
    headers = _npz_headers(file)
    pairs = {split: pair for split, known in NAMES.items() if (pair := next((p for p in known if set(p) <= set(headers)), None))}
    if "train" not in pairs and "" not in pairs:
        raise DataError(
            f"data.source.npz: {file} has {', '.join(headers) or 'no arrays'}.\n"
            "  Expected x_train and y_train (with x_test and y_test), train_images and train_labels, or images and labels."
        )
    if "train" in pairs:
        pairs.pop("", None)
    parts = {split: _npz_part(file, pair, headers, options.task) for split, pair in pairs.items()}
    samples = array_samples(f"data.source.npz: {file}", parts, source.classes, options.task)
    return replace(samples, warnings=tuple(_unlabelled(file, pairs, headers)))


def _unlabelled(file: Path, pairs: Mapping[str, tuple[str, str]], headers: Mapping[str, object]) -> Iterator[str]:
    """Warn of held-out images without labels, in whose place others are taken from training."""
    for split, word in (("val", "validation"), ("test", "test")):
        if split not in pairs and (images := next((images for images, _ in NAMES[split] if images in headers), "")):
            labels = dict(NAMES[split])[images]
            yield f"{file}: has {images} and no {labels}, so it is not read; {word} images are taken from training instead"


def array_files(source: NpzSource | NpySource, samples: Samples) -> LocalFiles:
    return named_files({"npz": source.npz} if isinstance(source, NpzSource) else {"npy": source.npy, "labels": source.labels})


def read_npz(file: Path, name: str) -> NDArray[Any]:
    """Raise DataError if the array can't be read, or holds Python objects."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            array: NDArray[Any] = arrays[name]
            return array
    except (*_DAMAGED, OSError) as error:
        raise _unreadable(f"{file}: the array {name}", error) from error


def map_npy(file: Path) -> NDArray[Any]:
    """Map an array from its file. Raises DataError if it is no whole .npy file, or holds Python objects."""
    try:
        return open_npy(file)
    except (*_DAMAGED, OSError) as error:
        raise _unreadable(str(file), error) from error


def _npy_part(images: Path, labels: Path, task: Task) -> ArrayPart:
    array = ImageArray(partial(map_npy, images), str(images))
    check_images(str(images), array.pixels.shape, array.pixels.dtype)
    return ArrayPart(array, check_labels(str(labels), map_npy(labels), len(array.pixels), task))


def _npz_part(file: Path, pair: tuple[str, str], headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]], task: Task) -> ArrayPart:
    """Check shapes and types before anything is unpacked; images are unpacked when the first one is read."""
    images, labels = pair
    shape, dtype = headers[images]
    check_images(f"{file}: {images}", shape, dtype)
    array = ImageArray(partial(read_npz, file, images), f"{file}: {images}")
    return ArrayPart(array, check_labels(f"{file}: {labels}", read_npz(file, labels), shape[0], task))


def _npz_headers(file: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Name -> (shape, type) of each array that has numbers or words. Raises DataError if one promises more than is there."""
    headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                with archive.open(info) as member:
                    shape, dtype = _header(member)
                if not dtype.hasobject and int(np.prod(shape, dtype=object)) * dtype.itemsize > info.file_size:
                    raise ValueError(f"{info.filename} is shorter than its header says")
                headers[info.filename.removesuffix(".npy")] = (shape, dtype)
    except (*_DAMAGED, OSError) as error:
        raise _unreadable(str(file), error) from error
    return headers


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy_format.read_magic(member)
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = read(member)
    return shape, dtype


def _existing(name: str, key: str) -> Path:
    file = expanded(name)
    if file.is_file():
        return file
    siblings: Sequence[str] = [path.name for path in file.parent.glob(f"*{file.suffix}")] if file.parent.is_dir() else []
    error, what = (DataError, "is a folder, not a file") if file.is_dir() else (MissingDataError, "does not exist")
    raise error(f"{key}: {file} {what}.\n  {did_you_mean(file.name, siblings) or f'Looked in {file.parent.resolve()}.'}")


def _unreadable(what: str, error: Exception) -> DataError:
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        why = "holds Python objects, which are not read, since they can run code"
        return DataError(f"{what}: {why}.\n  Save only numbers or strings: .astype(int) or .astype(str).")
    return DataError(f"{what}: can't be read, or is damaged ({error}).\n  Save it again with numpy.savez or numpy.save.")


KIND = SourceKind(read_arrays, local_files=array_files)
