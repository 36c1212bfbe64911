"""Where pictures and labels come from: folders, tables, torchvision's data sets and the bundled sample. Nothing is decoded here."""

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tlkit.data.csv_source import read_csv
from tlkit.data.decode import EXTENSIONS
from tlkit.data.samples import SPLIT_WORDS, Sample, Samples
from tlkit.errors import DataError, did_you_mean
from tlkit.recipe.schema import BundledSource, CsvSource, FolderSource, Task, TorchvisionSource
from tlkit.shipped import shipped

_LAYOUT = "Expected {root}/train/CLASS/*.jpg (with val and test folders beside train if you have them), or {root}/CLASS/*.jpg."

log = logging.getLogger("tlkit")


def read_source(source: FolderSource | CsvSource | TorchvisionSource | BundledSource, root: Path, task: Task = "multiclass") -> Samples:
    """Every picture of a source with its label and, where the source has them, its split; root: where downloads lie or go.

    task: only a csv can give a picture more than one label.
    Raises DataError where the source is missing, empty, or has fewer than two classes.
    """
    if isinstance(source, FolderSource):
        return read_folder(Path(source.folder))
    if isinstance(source, CsvSource):
        return read_csv(Path(source.csv), task)
    if isinstance(source, BundledSource):
        return read_folder(shipped(f"data/{source.bundled}"))
    # torchvision takes over a second to import, and folders don't need it.
    from tlkit.data.torchvision_sets import read_torchvision

    return read_torchvision(source.torchvision, root)


def read_folder(folder: Path) -> Samples:
    """ROOT/train/CLASS/*, ROOT/val/CLASS/*, ROOT/test/CLASS/*, or ROOT/CLASS/* to be split; any depth below CLASS."""
    root = _existing_folder(folder)
    splits = _split_folders(root) or {"": root}
    training = splits.get("train", root)
    classes = _classes(training)
    samples = [sample for split, place in splits.items() for sample in _split_samples(root, place, split, classes)]
    _check(root, classes, samples, splits)
    return Samples(classes, tuple(samples))


def _existing_folder(folder: Path) -> Path:
    root = folder.expanduser()
    if root.is_dir():
        return root
    if root.exists():
        raise DataError(f"data.source.folder: {root} is a file, not a folder.\n  {_LAYOUT.format(root=root.parent)}")
    siblings = [path.name for path in root.parent.iterdir() if path.is_dir()] if root.parent.is_dir() else []
    hint = did_you_mean(root.name, siblings) or f"Looked in {root.parent.resolve()}."
    raise DataError(f"data.source.folder: the folder {root} does not exist.\n  {hint}")


def _split_folders(root: Path) -> dict[str, Path]:
    """Split name -> folder, or nothing where the folders of root are classes."""
    folders = {folder.name: folder for folder in _subfolders(root)}
    named = {name: folder for name, folder in folders.items() if name in SPLIT_WORDS}
    if not any(_subfolders(folder) for folder in named.values()):
        return {}
    if "train" not in named:
        raise DataError(f"{root}: has {' and '.join(sorted(named))} but no train folder.\n  {_LAYOUT.format(root=root)}")
    splits: dict[str, Path] = {}
    for name, folder in named.items():
        split = SPLIT_WORDS[name]
        if split in splits:
            raise DataError(f"{root}: {splits[split].name} and {name} both mean validation.\n  Keep one of them.")
        splits[split] = folder
    ignored = sorted(set(folders) - set(named))
    if ignored:
        log.warning("%s: only train, val and test are read; not read: %s", root, ", ".join(ignored))
    return splits


def _classes(training: Path) -> tuple[str, ...]:
    """Sorted by code point, so that every machine numbers them alike."""
    names = sorted(_nfc(folder.name) for folder in _subfolders(training))
    if not names:
        loose = next(_pictures(training), None)
        what = "has pictures but no class folders" if loose else "is empty: it has no class folders"
        raise DataError(f"{training}: {what}.\n  Expected one folder a class: {training}/CLASS/*.jpg.")
    if len(names) == 1:
        raise DataError(
            f"{training}: has one class only, {names[0]!r}.\n  A classifier needs at least two class folders: {training}/CLASS/*.jpg."
        )
    return tuple(names)


def _split_samples(root: Path, place: Path, split: str, classes: tuple[str, ...]) -> Iterator[Sample]:
    labels = {name: label for label, name in enumerate(classes)}
    folders = {_nfc(folder.name): folder for folder in _subfolders(place)}
    unknown = sorted(set(folders) - set(labels))
    if unknown:
        raise DataError(
            f"{place}: has classes that training lacks: {', '.join(unknown)}. {did_you_mean(unknown[0], classes)}".rstrip()
            + "\n  Give each of them a folder in train, or rename or remove it here."
        )
    if not folders:
        raise DataError(f"{place}: has no class folders.\n  Sort its pictures into {place}/CLASS/, or move it out of {root}.")
    for name, folder in sorted(folders.items()):
        for path in _pictures(folder):
            yield Sample(_nfc(path.relative_to(root).as_posix()), path, (labels[name],), split)


def _check(root: Path, classes: tuple[str, ...], samples: list[Sample], splits: Iterable[str]) -> None:
    """Every class has a picture to train on, and no id comes twice."""
    counts = Counter((sample.split, sample.label) for sample in samples)
    training = "train" if "train" in splits else ""
    empty = [name for label, name in enumerate(classes) if not counts[training, label]]
    if empty:
        place = root / training / empty[0]
        raise DataError(f"{place}: the class folder is empty{_other_files(place)}{_and_more(empty)}.\n  {_extensions_fix()}")
    if len({sample.id for sample in samples}) != len(samples):
        twice = next(name for name, number in Counter(sample.id for sample in samples).items() if number > 1)
        raise DataError(f"{root / twice}: two files have this name in two Unicode spellings.\n  Rename one of them.")


def _pictures(folder: Path) -> Iterator[Path]:
    """Picture files at any depth, sorted; hidden ones and loops of symbolic links are left out."""
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        state = os.stat(place)
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(files) if _is_picture(name))


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _other_files(folder: Path) -> str:
    """` (it has .heic files)`: what lies there instead of pictures."""
    if not folder.is_dir():
        return ""
    endings = sorted({path.suffix.lower() or path.name for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")})
    return f" (it has {', '.join(endings[:4])} files, which are not read)" if endings else ""


def _and_more(names: list[str]) -> str:
    return f", and so are {', '.join(names[1:6])}{' and others' if len(names) > 6 else ''}" if len(names) > 1 else ""


def _extensions_fix() -> str:
    return f"Put pictures into it ({' '.join(sorted(ending[1:] for ending in EXTENSIONS))}), or remove the folder."


def _nfc(name: str) -> str:
    """macOS gives decomposed names, Linux composed ones; a class must be the same word on both."""
    return unicodedata.normalize("NFC", name)
