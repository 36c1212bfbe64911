"""Images in folders, one folder a class. Nothing is opened but the folders themselves, and files whose names have no ending."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tlkit.data.quality.folder_faults import look_through
from tlkit.data.samples import Sample, Samples, composed, is_printable
from tlkit.data.sources.image_files import UnusedImages, file_use, has_image_ending, is_folder, is_hidden
from tlkit.data.sources.kind import LocalFiles, ReadOptions, SourceCheck, SourceKind, below, image_files
from tlkit.data.sources.layout import EXPECTED, Layout, LayoutName, find_layout, nested_root, split_of, subfolders
from tlkit.errors import DataError, MissingDataError, did_you_mean
from tlkit.files import expanded
from tlkit.recipe.fields.source import FolderSource


def read_folder(folder: Path, layout: LayoutName = "auto") -> Samples:
    """Read ROOT/train/CLASS/*, ROOT/val/CLASS/*, ROOT/test/CLASS/*, or ROOT/CLASS/* to be split; any depth below CLASS.

    Links are followed. A link that leads nowhere is an image like others, so that reading it says what is wrong.
    Raises DataError if folders are missing, can't be read, or have no images or fewer than two classes.
    """
    root = _existing_folder(folder)
    found = find_layout(root, layout)
    _check_spellings(found)
    classes = _classes(found)
    for split, place in found.places.items():
        _check_split(found, split, place, classes)
    notes = _Notes()
    for place in dict.fromkeys(found.places.values()):
        notes.loose += [(place / name).relative_to(root).as_posix() for name in _loose_images(place)]
    labels = {name: label for label, name in enumerate(classes)}
    samples = tuple(
        Sample(composed(id_), path, (labels[name],), split)
        for split, folders in found.folders.items()
        for name, place in sorted(folders.items())
        for id_, path in _images(found, split, place, notes)
    )
    notes.raise_unreadable(root)
    _check(found, classes, samples)
    empty = sorted(set(found.places) - {sample.split for sample in samples})
    notes.empty = [f"{found.places[split].name} has no images: {split} images are taken from training instead" for split in empty]
    return Samples(classes, samples, warnings=(*found.warnings, *(f"{root}: {text}" for text in notes.warnings())))


def check_folder(source: FolderSource, options: ReadOptions) -> SourceCheck:
    root = expanded(source.folder)
    return look_through(root, source.layout) if root.is_dir() else SourceCheck()


def folder_files(source: FolderSource, samples: Samples) -> LocalFiles:
    return LocalFiles(below(expanded(source.folder), image_files(samples)), {"folder": ""})


@dataclass
class _Notes:
    """What was met on the way through the folders.

    unreadable: path -> why. special: pipes, sockets, devices. loose: images beside class folders. splits: folders below a class that are
    called after a split. empty: splits without an image.
    """

    unreadable: dict[Path, str] = field(default_factory=dict)
    special: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    unused: UnusedImages = field(default_factory=UnusedImages)

    def raise_unreadable(self, root: Path) -> None:
        if self.unreadable:
            lines = [f"{place}: the folder can't be read ({why})." for place, why in sorted(self.unreadable.items())]
            raise DataError("\n".join([*lines, f"  Change its permissions so that you can read and enter it, or move it out of {root}."]))

    def warnings(self) -> Iterator[str]:
        if self.special:
            yield f"not read, since they are no files: {_some(self.special)}"
        if self.loose:
            number = "1 image is" if len(self.loose) == 1 else f"{len(self.loose)} images are"
            yield f"{number} beside the class folders and not read: {_some(self.loose)}"
        if self.splits:
            yield (
                f"folders in a class are named after splits, and all their images belong to the class: {_some(self.splits)}. "
                "If they are splits, every class needs a train folder: data.source.layout=class/split."
            )
        yield from self.empty
        if text := str(self.unused):
            yield text


def _existing_folder(folder: Path) -> Path:
    root = expanded(folder)
    if root.is_dir():
        return root
    if root.exists():
        raise DataError(f"data.source.folder: {root} is a file, not a folder.\n  {EXPECTED.format(root=root.parent)}")
    siblings = [path.name for path in subfolders(root.parent)] if root.parent.is_dir() else []
    hint = did_you_mean(root.name, siblings) or f"Looked in {root.parent.resolve()}."
    raise MissingDataError(f"data.source.folder: the folder {root} does not exist.\n  {hint}")


def _classes(layout: Layout) -> tuple[str, ...]:
    """Return the classes sorted by code point, so that every machine numbers them alike."""
    training = layout.places[layout.training]
    names = sorted(layout.folders[layout.training])
    if not names:
        what = "has images but no class folders" if _loose_images(training) else "is empty: it has no class folders"
        raise DataError(f"{training}: {what}.\n  Expected one folder a class: {training}/CLASS/*.jpg.")
    if len(names) == 1:
        hint = nested_root([layout.folders[layout.training][names[0]]])
        raise DataError(
            f"{training}: has one class only, {names[0]!r}.\n"
            f"  {f'A classifier needs at least two class folders: {training}/CLASS/*.jpg. {hint}'.rstrip()}"
        )
    odd = [name for name in names if not is_printable(name)]  # The bytes of names that aren't UTF-8 come as lone surrogates.
    if odd:
        shown = ", ".join(ascii(name) if _is_utf8(name) else repr(os.fsencode(name))[1:] for name in odd)
        raise DataError(f"{training}: the name of a class is not UTF-8 or has unprintable characters: {shown}.\n  Rename the folder.")
    return tuple(names)


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= sign <= "\udfff" for sign in name)


def _check_spellings(layout: Layout) -> None:
    """Raise DataError for two class folders with one name: as `é` in one sign and as `e` with an accent, which look the same."""
    for place in dict.fromkeys(layout.places.values()):
        names = Counter(composed(folder.name) for folder in subfolders(place))
        if twice := [name for name, number in names.items() if number > 1]:
            raise DataError(f"{place / twice[0]}: two folders have this name in two Unicode spellings.\n  Join them in one folder.")


def _check_split(layout: Layout, split: str, place: Path, classes: tuple[str, ...]) -> None:
    unknown = sorted(set(layout.folders[split]) - set(classes))
    if unknown:
        raise DataError(
            f"{place}: has classes that training lacks: {', '.join(unknown)}. {did_you_mean(unknown[0], classes)}".rstrip()
            + "\n  Give each of them a folder in train, or rename or remove it here."
        )


def _images(layout: Layout, split: str, folder: Path, notes: _Notes) -> Iterator[tuple[str, Path]]:
    """Yield (id, path) of the images of a class at any depth, a folder at a time, and note what else is there.

    One scandir a folder, no stat a file: 300,000 files are listed in seconds. Folders that were read already aren't entered, so that
    loops of links end.
    """
    root = layout.root
    seen = {_identity(root), _identity(layout.places[split])}
    waiting = [(folder, f"{folder.relative_to(root).as_posix()}/")]
    while waiting:
        place, above = waiting.pop()
        try:
            identity = _identity(place)
            if identity in seen:
                continue
            seen.add(identity)
            folders, files = _listed(place, above, notes)
        except OSError as error:
            notes.unreadable[place] = error.strerror or str(error)
            continue
        yield from ((above + name, place / name) for name in files)
        waiting += [(place / name, f"{above}{name}/") for name in reversed(folders)]
        if place == folder and not split:
            notes.splits += [above + name for name in folders if split_of(name)]


def _listed(place: Path, above: str, notes: _Notes) -> tuple[list[str], list[str]]:
    """Return the names of folders and of images, sorted, without hidden ones."""
    folders, files = [], []
    with os.scandir(place) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if is_folder(entry):
                folders.append(entry.name)
            elif not (entry.is_symlink() or entry.is_file()):
                if has_image_ending(entry.name):
                    notes.special.append(str(place / entry.name))
            elif (use := file_use(entry.path)) == "image":
                files.append(entry.name)
            elif use == "unused":
                notes.unused.add(above + entry.name)
    return sorted(folders), sorted(files)


def _identity(folder: Path) -> tuple[int, int]:
    state = os.stat(folder)
    return state.st_dev, state.st_ino


def _loose_images(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not is_hidden(entry.name)]
        return sorted(entry.name for entry in shown if has_image_ending(entry.name) and not is_folder(entry))


def _check(layout: Layout, classes: tuple[str, ...], samples: tuple[Sample, ...]) -> None:
    """Check that every class has an image to train on, and that ids are unique."""
    training, root = layout.training, layout.root
    trained = Counter(sample.label for sample in samples if sample.split == training)
    if empty := [name for label, name in enumerate(classes) if not trained[label]]:
        place = layout.folders[training][empty[0]]
        raise DataError(
            f"{place}: the class folder is empty{_other_files(place)}{_and_more(empty)}.\n"
            "  Put images into it (.jpg, .png and others that Pillow reads), or remove the folder."
        )
    if len({sample.id for sample in samples}) != len(samples):
        twice = next(name for name, number in Counter(sample.id for sample in samples).items() if number > 1)
        raise DataError(f"{root / twice}: two files have this name in two Unicode spellings.\n  Rename one of them.")


def _other_files(folder: Path) -> str:
    """Name what is there instead of images: ` (it has .heic files, which are not read)`."""
    endings = sorted({path.suffix.lower() or path.name for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")})
    return f" (it has {', '.join(endings[:4])} files, which are not read)" if endings else ""


def _and_more(names: list[str]) -> str:
    return f", and so are {', '.join(names[1:6])}{' and others' if len(names) > 6 else ''}" if len(names) > 1 else ""


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{' and others' if len(names) > 5 else ''}"


KIND = SourceKind(lambda source, options: read_folder(Path(source.folder), source.layout), local_files=folder_files, check=check_folder)
