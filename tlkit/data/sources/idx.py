"""MNIST's own files as they are: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-.., packed with gzip or not."""

import gzip
import logging
import os
import zlib
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tlkit.data.samples import Samples
from tlkit.data.sources.arrays import ArrayPart, ImageArray, array_samples, check_images, check_labels
from tlkit.data.sources.kind import LocalFiles, ReadOptions, SourceKind
from tlkit.errors import DataError, MissingDataError, did_you_mean
from tlkit.files import expanded
from tlkit.recipe.fields.source import IdxSource

SPLITS = {"train": "train", "t10k": "test"}
_UBYTE = 8
# No gzip file unpacks to more than this many times its size: what a header promises beyond that is damage.
_MOST_PACKED = 1032
_FASHION_MNIST_LABELS = "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"
_FASHION_MNIST = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

log = logging.getLogger("tlkit")


def read_idx(source: IdxSource, options: ReadOptions) -> Samples:
    """Read the pairs of a folder: train, and t10k as the test split where it is there.

    Without `classes`, classes are called by their numbers; those of Fashion-MNIST, known by its labels, by their names.
    Raises DataError for missing, cut off or damaged files, and for pairs that don't fit.
    """
    folder = expanded(source.idx)
    files = _files(folder)
    parts: dict[str, ArrayPart] = {}
    for start, split in SPLITS.items():
        if f"{start}-images" in files:
            images, labels = files[f"{start}-images"], read_idx_file(files[f"{start}-labels"], dimensions=1)
            array = ImageArray(partial(read_idx_file, images, dimensions=3), str(images))
            check_images(str(images), array.pixels.shape, array.pixels.dtype)
            check_labels(str(files[f"{start}-labels"]), labels, len(array.pixels), "multiclass")
            parts[split] = ArrayPart(array, labels)
    return array_samples(f"data.source.idx: {folder}", parts, source.classes or _known_names(parts["train"].labels), "multiclass")


def idx_files(source: IdxSource, samples: Samples) -> LocalFiles:
    folder = expanded(source.idx)
    return LocalFiles([(file, file.name) for file in sorted(folder.iterdir()) if "ubyte" in file.name], {"idx": ""})


def read_idx_file(file: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Return the array of an IDX file of bytes; mapped, not read, where it isn't packed.

    Raises DataError if it is something else, cut off, or longer than its header says.
    Source: the IDX format, http://yann.lecun.com/exdb/mnist: two zero bytes, the type (8: bytes), the number of dimensions, each
    dimension as a big-endian uint32, then the values.
    """
    try:
        size = file.stat().st_size
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as content:
            shape = _shape(file, content.read(4 + 4 * dimensions), dimensions)
            count = int(np.prod(shape, dtype=object))
            if file.suffix != ".gz":
                _check_length(file, size - 4 - 4 * dimensions, count)
                return np.memmap(file, np.uint8, "r", offset=4 + 4 * dimensions, shape=shape) if count else np.zeros(shape, np.uint8)
            if count > _MOST_PACKED * size:
                raise DataError(f"{file}: its header promises {count:,} values, more than {size:,} packed bytes can hold.\n  {_FETCH}")
            return _unpacked(file, content, count).reshape(shape)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        if str(error).startswith("Not a gzipped file"):
            raise DataError(f"{file}: is not packed with gzip.\n  Take .gz off its name, or fetch it again.") from error
        raise DataError(f"{file}: is cut off or damaged ({error}).\n  {_FETCH}") from error
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error.strerror or error}).\n  Check its permissions.") from error


_FETCH = "Fetch or copy the file again."


def _shape(file: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    wanted = bytes((0, 0, _UBYTE, dimensions))
    if header[:4] != wanted:
        what = "images, [N, H, W]" if dimensions == 3 else "labels, [N]"
        hint = " It is packed with gzip: give its name the ending .gz." if header[:2] == b"\x1f\x8b" else ""
        came = f"begins with {header[:4].hex(' ')}" if header else "is empty"
        raise DataError(f"{file}: is no IDX file of {what}: it {came}.\n  Expected {wanted.hex(' ')}.{hint}")
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"{file}: is cut off within its header.\n  {_FETCH}")
    return tuple(int(number) for number in np.frombuffer(header, ">u4", dimensions, 4))


def _unpacked(file: Path, content: gzip.GzipFile | IO[bytes], count: int) -> NDArray[np.uint8]:
    """Read the values into one array, without a copy beside it."""
    values = np.empty(count, np.uint8)
    filled = 0
    while filled < count and (read := content.readinto(values.data[filled:])):  # type: ignore[union-attr]  # which IO lacks
        filled += read
    _check_length(file, filled + len(content.read(1)), count)
    return values


def _check_length(file: Path, came: int, expected: int) -> None:
    if came < expected:
        raise DataError(f"{file}: is cut off: it has {came:,} values, and its header says {expected:,}.\n  {_FETCH}")
    if came > expected:
        raise DataError(f"{file}: has more than the {expected:,} values that its header says.\n  {_FETCH}")


def _files(folder: Path) -> dict[str, Path]:
    """Return `train-images` -> its file; unpacked files are preferred to packed ones. Raises DataError if one of a pair is missing."""
    if not folder.is_dir():
        siblings = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        error, what = (DataError, "is a file, not a folder") if folder.exists() else (MissingDataError, "does not exist")
        hint = did_you_mean(folder.name, siblings) or "Expected the folder that holds train-images-idx3-ubyte and the others."
        raise error(f"data.source.idx: {folder} {what}.\n  {hint}")
    names = set(os.listdir(folder))
    files: dict[str, Path] = {}
    for start in SPLITS:
        for what, dimensions in (("images", 3), ("labels", 1)):
            spellings = [f"{start}-{what}{sign}idx{dimensions}-ubyte{ending}" for ending in ("", ".gz") for sign in "-."]
            files |= {f"{start}-{what}": folder / name for name in spellings[::-1] if name in names}
    lacking = [f"{start}-{what}" for start in SPLITS for what in ("images", "labels") if f"{start}-{what}" not in files]
    begun = {name.partition("-")[0] for name in files} | {"train"}
    missing = [name for name in lacking if name.partition("-")[0] in begun]
    if missing:
        wanted = ", ".join(f"{name}-idx{3 if 'images' in name else 1}-ubyte" for name in missing)
        raise MissingDataError(f"data.source.idx: {folder} lacks {wanted} (with or without .gz).\n  {_elsewhere(folder, names)}")
    return files


def _elsewhere(folder: Path, names: set[str]) -> str:
    below = next((path.parent for path in sorted(folder.glob("*/train-images*")) + sorted(folder.glob("*/*/train-images*"))), None)
    if below:
        return f"Did you mean {below}?"
    return f"It has {', '.join(sorted(names)[:8])}." if names else "It is empty."


def _known_names(labels: NDArray[Any]) -> tuple[str, ...]:
    """Return Fashion-MNIST's class names if these are its 60,000 labels, by their sha256; otherwise none."""
    if sha256(labels.tobytes()).hexdigest() != _FASHION_MNIST_LABELS:
        return ()
    log.info("the labels are Fashion-MNIST's: classes have its names")
    return _FASHION_MNIST


KIND = SourceKind(read_idx, local_files=idx_files)
