"""Pictures in folders, one folder a class. Nothing is opened but the folders themselves."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tlkit.data.decode import EXTENSIONS
from tlkit.data.quality.folder_faults import look_through
from tlkit.data.samples import SPLIT_WORDS, Sample, Samples, composed
from tlkit.data.sources.image_files import has_image_ending, is_folder, is_hidden
from tlkit.data.sources.kind import LocalFiles, ReadOptions, SourceCheck, SourceKind, below, image_files
from tlkit.errors import DataError, did_you_mean
from tlkit.recipe.fields.source import FolderSource

_LAYOUT = "Expected {root}/train/CLASS/*.jpg (with val and test folders beside train if you have them), or {root}/CLASS/*.jpg."

log = logging.getLogger("tlkit")


def read_folder(folder: Path) -> Samples:
    """ROOT/train/CLASS/*, ROOT/val/CLASS/*, ROOT/test/CLASS/*, or ROOT/CLASS/* to be split; any depth below CLASS.

    Links are followed. A link that leads nowhere is a picture like others, so that reading it says what is wrong.
    Raises DataError where folders are missing, may not be read, or hold no pictures or fewer than two classes.
    """
    root = _existing_folder(folder)
    splits = _split_folders(root) or {"": root}
    training = splits.get("train", root)
    classes = _classes(training)
    notes = _Notes()
    samples = [sample for split, place in splits.items() for sample in _split_samples(root, place, split, classes, notes)]
    notes.tell(root)
    _check(root, classes, samples, splits)
    return Samples(classes, tuple(samples))


def check_folder(source: FolderSource, options: ReadOptions) -> SourceCheck:
    root = Path(source.folder).expanduser()
    return look_through(root) if root.is_dir() else SourceCheck()


def folder_files(source: FolderSource, samples: Samples) -> LocalFiles:
    return LocalFiles(below(Path(source.folder).expanduser(), image_files(samples)), {"folder": ""})


@dataclass
class _Notes:
    """What can't be read (path -> why), and what isn't because it is no file: pipes, sockets, devices."""

    unreadable: dict[Path, str] = field(default_factory=dict)
    special: list[Path] = field(default_factory=list)

    def tell(self, root: Path) -> None:
        if self.unreadable:
            lines = [f"{place}: the folder can't be read ({why})." for place, why in sorted(self.unreadable.items())]
            raise DataError("\n".join([*lines, "  Give yourself the right to read and enter it, or move it out of " + f"{root}."]))
        if self.special:
            log.warning("%s: not read, since they are no files: %s", root, _some([str(path) for path in self.special]))


def _existing_folder(folder: Path) -> Path:
    root = folder.expanduser()
    if root.is_dir():
        return root
    if root.exists():
        raise DataError(f"data.source.folder: {root} is a file, not a folder.\n  {_LAYOUT.format(root=root.parent)}")
    siblings = [path.name for path in _subfolders(root.parent)] if root.parent.is_dir() else []
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
    names = sorted(composed(folder.name) for folder in _subfolders(training))
    if not names:
        what = "has pictures but no class folders" if _loose_images(training) else "is empty: it has no class folders"
        raise DataError(f"{training}: {what}.\n  Expected one folder a class: {training}/CLASS/*.jpg.")
    if len(names) == 1:
        raise DataError(
            f"{training}: has one class only, {names[0]!r}.\n  A classifier needs at least two class folders: {training}/CLASS/*.jpg."
        )
    odd = [name for name in names if not name.isprintable()]  # The bytes of names that aren't UTF-8 come as lone surrogates.
    if odd:
        shown = ", ".join(repr(os.fsencode(name))[1:] for name in odd)
        raise DataError(f"{training}: the name of a class is not UTF-8 or has signs that can't be printed: {shown}.\n  Rename the folder.")
    return tuple(names)


def _split_samples(root: Path, place: Path, split: str, classes: tuple[str, ...], notes: _Notes) -> Iterator[Sample]:
    labels = {name: label for label, name in enumerate(classes)}
    folders = {composed(folder.name): folder for folder in _subfolders(place)}
    unknown = sorted(set(folders) - set(labels))
    if unknown:
        raise DataError(
            f"{place}: has classes that training lacks: {', '.join(unknown)}. {did_you_mean(unknown[0], classes)}".rstrip()
            + "\n  Give each of them a folder in train, or rename or remove it here."
        )
    if not folders:
        raise DataError(f"{place}: has no class folders.\n  Sort its pictures into {place}/CLASS/, or move it out of {root}.")
    if loose := _loose_images(place):
        log.warning("%s: %d pictures lie beside the class folders and are not read: %s", place, len(loose), _some(loose))
    above = "" if place == root else f"{place.name}/"
    for name, folder in sorted(folders.items()):
        for id_, path in _images(folder, f"{above}{folder.name}/", {_identity(root), _identity(place)}, notes):
            yield Sample(composed(id_), path, (labels[name],), split)


def _images(folder: Path, above: str, seen: set[tuple[int, int]], notes: _Notes) -> Iterator[tuple[str, Path]]:
    """(id, path) of picture files at any depth, a folder at a time.

    above: of the ids. seen: folders that are not entered, so that loops of links end. One scandir a folder, no stat a file: 300,000
    files are listed in seconds.
    """
    waiting = [(folder, above)]
    while waiting:
        place, above = waiting.pop()
        try:
            identity = _identity(place)
            if identity in seen:
                continue
            seen.add(identity)
            folders, files = _listed(place, notes)
        except OSError as error:
            notes.unreadable[place] = error.strerror or str(error)
            continue
        yield from ((above + name, place / name) for name in files)
        waiting += [(place / name, f"{above}{name}/") for name in reversed(folders)]


def _listed(place: Path, notes: _Notes) -> tuple[list[str], list[str]]:
    """Names of folders and of pictures, sorted, without hidden ones."""
    folders, files = [], []
    with os.scandir(place) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if is_folder(entry):
                folders.append(entry.name)
            elif has_image_ending(entry.name):
                if entry.is_symlink() or entry.is_file():
                    files.append(entry.name)
                else:
                    notes.special.append(place / entry.name)
    return sorted(folders), sorted(files)


def _identity(folder: Path) -> tuple[int, int]:
    state = os.stat(folder)
    return state.st_dev, state.st_ino


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if not is_hidden(entry.name) and is_folder(entry))
    except OSError as error:
        raise DataError(
            f"{folder}: the folder can't be read ({error.strerror}).\n  Give yourself the right to read and enter it."
        ) from error


def _loose_images(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not is_hidden(entry.name)]
        return sorted(entry.name for entry in shown if has_image_ending(entry.name) and not is_folder(entry))


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


def _other_files(folder: Path) -> str:
    """` (it has .heic files)`: what lies there instead of pictures."""
    if not folder.is_dir():
        return ""
    endings = sorted({path.suffix.lower() or path.name for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")})
    return f" (it has {', '.join(endings[:4])} files, which are not read)" if endings else ""


def _and_more(names: list[str]) -> str:
    return f", and so are {', '.join(names[1:6])}{' and others' if len(names) > 6 else ''}" if len(names) > 1 else ""


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{' and others' if len(names) > 5 else ''}"


def _extensions_fix() -> str:
    return f"Put pictures into it ({' '.join(sorted(ending[1:] for ending in EXTENSIONS))}), or remove the folder."


KIND = SourceKind(lambda source, options: read_folder(Path(source.folder)), local_files=folder_files, check=check_folder)
