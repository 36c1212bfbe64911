"""torchvision's classification sets by name: found under data.root, or downloaded with torchvision's own checksums."""

import csv
import logging
import re
import shutil
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock
from PIL import Image
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from tlkit.data.samples import Sample, Samples
from tlkit.data.sources.download import download
from tlkit.data.sources.kind import ReadOptions, SourceKind
from tlkit.errors import DataError, Fault, MissingDataError, RecipeError, expected_one_of
from tlkit.files import expanded
from tlkit.recipe.fetched import is_offline
from tlkit.recipe.fields.source import TorchvisionSource

Arguments = Mapping[str, Any]
_TRAIN_TEST = {"train": {"train": True}, "test": {"train": False}}
_SPLITS_2 = {"train": {"split": "train"}, "test": {"split": "test"}}
_SPLITS_3 = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
_TRAIN_VAL = {"train": {"split": "train"}, "val": {"split": "val"}}
_ONE: dict[str, Arguments] = {"": {}}
# Name -> our split -> the constructor's arguments. "" is a set without splits. Sets whose test labels are kept secret have none.
SETS: dict[str, Mapping[str, Arguments]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "QMNIST", "USPS"), _TRAIN_TEST),
    **{
        f"EMNIST/{variant}": {"train": {"split": variant, "train": True}, "test": {"split": variant, "train": False}}
        for variant in ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")
    },
    **dict.fromkeys(("SVHN", "STL10", "Food101", "GTSRB", "StanfordCars"), _SPLITS_2),
    **dict.fromkeys(("Flowers102", "DTD", "FGVCAircraft", "PCAM", "RenderedSST2"), _SPLITS_3),
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Country211": {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
    **dict.fromkeys(("Imagenette", "ImageNet"), _TRAIN_VAL),
    **dict.fromkeys(("EuroSAT", "Caltech101", "Caltech256", "SUN397", "SEMEION"), _ONE),
}
NOT_DOWNLOADABLE = ("ImageNet", "StanfordCars")
LOG = logging.getLogger("tlkit")

_FAILURES = (OSError, RuntimeError, ImportError, EOFError, ValueError, HTTPException, tarfile.TarError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Archive:
    """folder: where torchvision looks for it, below its root. md5: None where torchvision has none."""

    folder: str
    url: str
    md5: str | None

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def archives_of(name: str) -> list[Archive]:
    """Return what torchvision 0.29 downloads for a set; nothing for PCAM, which it gets by gdown, and for what it can't download."""
    with (files(__package__) / "torchvision_archives.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["set"] == name.partition("/")[0]]
    return [Archive(row["folder"], row["url"], row["md5"] or None) for row in rows]


@dataclass(frozen=True)
class TorchvisionImage:
    """One image of a set, decoded when called."""

    dataset: Any
    index: int

    def __call__(self) -> Image.Image:
        image: Image.Image = self.dataset[self.index][0]
        return image

    @property
    def file(self) -> Path | None:
        """Return the file that the image is decoded from, if the set lists its files: torchvision's classes name the list differently."""
        for name in ("samples", "_samples", "_image_files", "_images"):
            if len(entries := getattr(self.dataset, name, None) or ()) == len(self.dataset):
                entry = entries[self.index]
                return Path(entry[0] if isinstance(entry, tuple) else entry)
        return None

    def __str__(self) -> str:
        return f"{type(self.dataset).__name__}[{self.index}]"


def read_torchvision(source: TorchvisionSource, options: ReadOptions) -> Samples:
    """Return the set under root, which is downloaded into it first where it isn't there.

    Raises RecipeError for an unknown name, and DataError if the set is neither there nor can be downloaded.
    """
    name = source.torchvision
    if name not in SETS:
        variants = [known for known in SETS if known.startswith(f"{name}/")]
        fix = f"Expected one of: {', '.join(variants)}." if variants else expected_one_of(name, sorted(SETS))
        problem = "needs one of its variants." if variants else "is not a classification set of torchvision."
        raise RecipeError([Fault("data.source.torchvision", f"= '{name}' {problem}", fix)])
    root = expanded(options.root)
    new_root = not root.exists()
    try:
        try:
            parts = _open(name, root)
        except _FAILURES as error:
            parts = _fetch(name, root, missing=error)
    finally:
        if new_root:
            _remove_if_empty(root)  # Some sets (Caltech101) make their folder before they look into it.
    return _samples(parts)


def _open(name: str, root: Path, *, download: bool = False) -> dict[str, Any]:
    """Split -> torchvision's data set."""
    make = getattr(datasets, name.partition("/")[0])
    more = {} if name in NOT_DOWNLOADABLE else {"download": download}  # SEMEION's is True where it isn't given
    return {split: make(root=str(root), **arguments, **more) for split, arguments in SETS[name].items()}


def _samples(parts: Mapping[str, Any]) -> Samples:
    """Return the samples; classes without any image (EMNIST/letters lists an `N/A`) are left out."""
    labels = {split: _labels(dataset) for split, dataset in parts.items()}
    numbers = sorted(set().union(*labels.values()))
    names = _class_names(next(iter(parts.values())), numbers)
    new = {number: label for label, number in enumerate(numbers)}
    return Samples(
        tuple(names[number] for number in numbers),
        tuple(
            Sample(f"{split or 'all'}/{index:06d}", TorchvisionImage(dataset, index), (new[label],), split)
            for split, dataset in parts.items()
            for index, label in enumerate(labels[split])
        ),
    )


def _labels(dataset: Any) -> list[int]:
    """Return the labels without decoding an image, where the set stores them apart: torchvision's classes name them differently."""
    for name in ("targets", "labels", "_labels", "y"):
        values = getattr(dataset, name, None)
        if values is not None and len(values) == len(dataset):
            return [int(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]
    pairs = getattr(dataset, "_samples", None)
    if pairs is not None and len(pairs) == len(dataset):
        return [int(label) for _, label in pairs]
    LOG.info("%s keeps no list of labels: reading all of its %d images for them", type(dataset).__name__, len(dataset))
    return [int(dataset[index][1]) for index in range(len(dataset))]


def _class_names(dataset: Any, numbers: Sequence[int]) -> dict[int, str]:
    """Return number -> name, unique; the number itself if torchvision has no names. ImageNet has two classes named crane."""
    known = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or ()
    plain = {n: ", ".join(known[n]) if isinstance(known[n], tuple) else str(known[n]) for n in numbers if n < len(known)}
    times = Counter(plain.values())
    return {n: str(n) if n not in plain else plain[n] if times[plain[n]] == 1 else f"{plain[n]} ({n})" for n in numbers}


def _fetch(name: str, root: Path, *, missing: Exception) -> dict[str, Any]:
    """Download the set beside its place and move it there when it is complete, so that an unfinished download is never used."""
    if name in NOT_DOWNLOADABLE:
        raise MissingDataError(
            f"data.source.torchvision: {name} is not in {root.resolve()}, and torchvision can't download it ({_one_line(missing)}).\n"
            "  Put its files there as torchvision's documentation says, set data.root to their folder, or use data.source.folder."
        )
    unfinished, lock = (root / f".{name.replace('/', '-')}.{ending}" for ending in ("unfinished", "lock"))
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            try:
                return _open(name, root)  # Another process may have brought it meanwhile.
            except _FAILURES:
                pass
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            _bring_archives(name, root, unfinished)
            _open(name, unfinished, download=True)  # finds every archive there, and unpacks it
            _move_in(unfinished, root)
            return _open(name, root)
    except (*_FAILURES, DataError) as error:
        lock.unlink(missing_ok=True)  # Kept after a success: another process may be waiting for it.
        if isinstance(error, DataError):
            raise
        raise MissingDataError(
            f"data.source.torchvision: {name} is incomplete in {root.resolve()} and could not be prepared there: {_one_line(error)}.\n"
            "  Repair or remove what is there, set data.root to another folder, or use data.source.folder."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _bring_archives(name: str, root: Path, unfinished: Path) -> None:
    """Put every archive of the set where torchvision expects it: a link to the user's copy under root, or a download.

    Raises DataError if it can't be downloaded, or has another checksum than torchvision expects.
    """
    archives = archives_of(name)
    if not archives and is_offline():
        raise OSError("--offline makes no network calls")
    for archive in archives:
        place = unfinished / archive.folder / archive.name
        place.parent.mkdir(parents=True, exist_ok=True)
        own = next((path for path in (root / archive.folder / archive.name, root / archive.name) if path.is_file()), None)
        if own is not None:
            _check_own(own, archive)
            place.symlink_to(own.resolve())
            continue
        try:
            if is_offline():
                raise OSError("--offline makes no network calls")
            LOG.info("downloading %s", archive.url)
            download(archive.url, place)
            if not check_integrity(place, archive.md5):
                raise OSError("what came is damaged or cut off (its checksum is not the right one)")
        except (OSError, HTTPException) as error:
            raise MissingDataError(
                f"data.source.torchvision: {name} is not in {root.resolve()}, and {urlsplit(archive.url).hostname} did not give it "
                f"({archive.url}): {_one_line(error)}.\n"
                f"  Put {archive.name} into {root / archive.folder}, "
                f"set data.root to the folder that has {name}, or use data.source.folder."
            ) from error


def _check_own(file: Path, archive: Archive) -> None:
    """Raise DataError if the file that the user has put there is another one than torchvision's."""
    if check_integrity(file, archive.md5):
        return
    use = f"use data.source={{idx: {file.parent}}}, which reads it as it is" if "ubyte" in file.name else "use data.source.folder"
    raise DataError(
        f"data.source.torchvision: {file} is damaged, or packed by somebody else: its checksum is not torchvision's.\n"
        f"  Fetch it again from {archive.url}, or {use}."
    )


def _remove_if_empty(folder: Path) -> None:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        _remove_if_empty(path)
    if not any(folder.iterdir()):
        folder.rmdir()


def _move_in(unfinished: Path, root: Path) -> None:
    """Move whole folders at a time if root has none of that name."""
    for path in sorted(unfinished.iterdir()):
        place = root / path.name
        if path.is_symlink():
            continue
        if path.is_dir() and place.is_dir():
            _move_in(path, place)
        elif path.is_dir():
            _without_links(path)
            path.replace(place)
        else:
            path.replace(place)


def _without_links(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_symlink():
            path.unlink()


def _one_line(error: Exception) -> str:
    """Return the message of an error in one line, without what urllib puts around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines).strip("<>").removeprefix("urlopen error ").rstrip(".")
    return re.sub(r"^\[Errno -?\d+\] ", "", text) or type(error).__name__


KIND = SourceKind(read_torchvision, origin=lambda source: "downloaded")
