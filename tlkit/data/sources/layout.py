"""How a folder of images is laid out: ROOT/SPLIT/CLASS, ROOT/CLASS/SPLIT or ROOT/CLASS. Where it could be either, says what was assumed."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tlkit.data.samples import SPLIT_WORDS, composed
from tlkit.data.sources.image_files import has_image_ending, is_folder, is_hidden
from tlkit.errors import DataError

LayoutName = Literal["auto", "split/class", "class/split", "class"]
EXPECTED = "Expected {root}/train/CLASS/*.jpg (with val and test folders beside train if you have them), or {root}/CLASS/*.jpg."
UNLABELLED = frozenset({"all", "data", "images", "imgs", "test", "unknown", "unlabeled", "unlabelled"})
"""What people call the one folder that a split of images without labels has."""
_MORE = re.compile(r"([ _-]?(data|dataset|dir|folder|images|imgs|set|split|\d))+$")
_IMAGES = frozenset({"image", "images", "img", "imgs"})
_MASKS = frozenset({"annotations", "gt", "labels", "mask", "masks", "segmentations"})


@dataclass
class Layout:
    """folders: split -> class -> its folder; the empty split is still to be split. places: split -> the folder that messages name.

    warnings: what was assumed, and what isn't read.
    """

    root: Path
    folders: dict[str, dict[str, Path]] = field(default_factory=dict)
    places: dict[str, Path] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def training(self) -> str:
        return "train" if "train" in self.folders else ""

    def warn(self, text: str) -> None:
        self.warnings.append(f"{self.root}: {text}")


def split_of(name: str) -> str:
    """Return the split that a folder is called after, or the empty string: `Train`, `testing`, `training_set`, `val2017`."""
    word = name.strip().casefold()
    return SPLIT_WORDS.get(word) or SPLIT_WORDS.get(_MORE.sub("", word), "")


def find_layout(root: Path, asked: LayoutName = "auto") -> Layout:
    """Find the layout of a folder. Raises DataError if the folder can't be read, isn't as asked, or would train on splits as classes."""
    folders = subfolders(root)
    named = [folder for folder in folders if split_of(folder.name)]
    others = [folder for folder in folders if folder not in named]
    if asked == "split/class" or (asked == "auto" and _are_splits(named, others)):
        return _splits(root, named, others)
    if asked == "class/split" or (asked == "auto" and _have_splits(folders)):
        return _splits_below(root, folders, assumed=asked == "auto")
    if asked == "auto":
        _check_not_splits(root, named, others)
        _check_no_splits_of_one_name(root, folders)
    layout = Layout(root, {"": _by_class(folders)}, {"": root})
    if asked == "auto" and (inner := deeper_folders(layout)):
        layout.warn(
            f"no class folder has images itself: they are a level or more below, such as in {inner[0].relative_to(root)}, and all belong "
            f"to the classes {_names(folders)}. If the folders below are the classes, name the folder above them: {inner[0].parent}; "
            "if not: data.source.layout=class."
        )
    words = {folder.name.casefold() for folder in folders}
    if asked == "auto" and len(words) == 2 and words & _IMAGES and words & _MASKS:
        layout.warn(f"{_names(folders)} are read as two classes. If the one has the masks of the other, these images have no labels here.")
    if asked == "auto" and named:
        one = len(named) == 1
        what = "is read as a class, since it has" if one else "are read as classes, since they have"
        fix = "If it is a split, sort its" if one else "If they are splits, sort their"
        layout.warn(
            f"{_names(named)} {what} images and no class folders. {fix} images into class folders; if not: data.source.layout=class."
        )
    return layout


def _are_splits(named: Sequence[Path], others: Sequence[Path]) -> bool:
    """Check for split folders: folders of classes. Beside class folders with images, a folder that has images itself is a class."""
    beside = any(has_images(folder) for folder in others)
    return any(subfolders(folder) and not (beside and has_images(folder)) for folder in named)


def _have_splits(folders: Sequence[Path]) -> bool:
    """Check whether every class folder has folders named after splits, one of them for training. Usually decided after the first."""
    return bool(folders) and all("train" in {split_of(below.name) for below in subfolders(folder)} for folder in folders)


def _splits(root: Path, named: Sequence[Path], others: Sequence[Path]) -> Layout:
    places: dict[str, Path] = {}
    for folder in named:
        split = split_of(folder.name)
        if split in places:
            word = {"train": "training", "val": "validation"}.get(split, split)
            problem = f"{root}: {places[split].name} and {folder.name} both mean {word}."
            raise DataError(f"{problem}\n  Keep one of them. If they are classes: data.source.layout=class.")
        places[split] = folder
    if "train" not in places:
        problem = f"{root}: has {' and '.join(sorted(folder.name for folder in named)) or 'no split folders'} but no train folder."
        raise DataError(f"{problem}\n  {EXPECTED.format(root=root)} If they are classes: data.source.layout=class.")
    layout = Layout(root, places=places, folders={split: _by_class(subfolders(place)) for split, place in places.items()})
    classes = layout.folders["train"]
    for split in [split for split in places if split != "train"]:
        below = list(layout.folders[split])
        if not below or (len(below) == 1 and below[0] not in classes and below[0].casefold() in UNLABELLED):
            _leave_out_unlabelled(layout, split)
    if others:
        also = " If they are classes, as train then is: data.source.layout=class." if any(map(has_images, others)) else ""
        if not also and len(places) < 3 and any(map(subfolders, others)):
            also = " A split among them has to be named val or test."
        read = "is read as a split" if len(named) == 1 else "are read as splits"
        layout.warn(f"only {_names(named)} {read}; not read: {_names(others)}.{also}")
    return layout


def _leave_out_unlabelled(layout: Layout, split: str) -> None:
    """Leave out a split whose images have no labels, since it has no class folders."""
    place = layout.places.pop(split)
    del layout.folders[split]
    word = {"val": "validation"}.get(split, split)
    layout.warn(
        f"{place.name} has no class folders, so its images have no labels and are not read; {word} images are taken from "
        f"{layout.places['train'].name} instead. `tlkit predict RUN {place}` answers for them; to measure on them, sort them into "
        f"{place.name}/CLASS."
    )


def _splits_below(root: Path, folders: Sequence[Path], *, assumed: bool) -> Layout:
    layout = Layout(root)
    read: set[str] = set()
    for folder in folders:
        name = composed(folder.name)
        for below in subfolders(folder):
            if split := split_of(below.name):
                classes = layout.folders.setdefault(split, {})
                if name in classes:
                    raise DataError(f"{folder}: {classes[name].name} and {below.name} mean one split.\n  Keep one of them.")
                classes[name] = below
                read.add(below.name)
                layout.places.setdefault(split, root)
            elif has_images(below):
                layout.warn(f"{name}/{below.name} is beside the folders of splits, and is not read.")
        if has_images(folder):
            layout.warn(f"{name} has images beside its folders of splits: they are not read.")
    if "train" not in layout.folders:
        raise DataError(f"{root}: no class folder has a train folder.\n  Expected {root}/CLASS/train/*.jpg: data.source.layout.")
    if assumed:
        layout.warn(f"every class folder has {_and(sorted(read))}: read as splits. If they aren't: data.source.layout=class.")
    return layout


def _check_not_splits(root: Path, named: Sequence[Path], others: Sequence[Path]) -> None:
    """Raise DataError if there is nothing but splits: nobody wants a classifier of train against test."""
    if not named or any(has_images(folder) or subfolders(folder) for folder in others) or not any(has_images(folder) for folder in named):
        return
    has = "has images and no class folders" if len(named) == 1 else "have images and no class folders"
    raise DataError(
        f"{root}: {_names(named)} {has}, so the images have no labels.\n"
        f"  Sort them into {root}/{named[0].name}/CLASS/, or name the labels in a table: data.source={{csv: FILE}}. "
        "If these are the classes: data.source.layout=class."
    )


def _check_no_splits_of_one_name(root: Path, folders: Sequence[Path]) -> None:
    """Raise DataError for `flowers_train` and `flowers_test`: folders whose names differ only in a split."""
    splits, rests = set(), set()
    for folder in folders:
        words = re.split(r"[ ._-]+", folder.name.casefold())
        splits.add(next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), ""))
        rests.add(tuple(word for word in words if word not in SPLIT_WORDS))
    if len(rests) == 1 and len(splits) > 1 and "train" in splits and "" not in splits:
        raise DataError(
            f"{root}: {_names(folders)} seem to be splits, not classes.\n"
            "  Call them train, val and test, with a folder for each class in them. If these are the classes: data.source.layout=class."
        )


def deeper_folders(layout: Layout) -> list[Path]:
    """Return folders below the class folders, if none of these has images itself: their names may be the classes that are meant."""
    classes = [place for folders in layout.folders.values() for place in folders.values()]
    if any(map(has_images, classes)):
        return []
    return [below for place in classes for below in subfolders(place)]


def _by_class(folders: Iterable[Path]) -> dict[str, Path]:
    return {composed(folder.name): folder for folder in folders}


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder. Raises DataError if it can't be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if not is_hidden(entry.name) and is_folder(entry))
    except OSError as error:
        raise DataError(
            f"{folder}: the folder can't be read ({error.strerror}).\n  Change its permissions so that you can read and enter it."
        ) from error


def has_images(folder: Path) -> bool:
    """Check whether the folder itself contains images, by their endings."""
    try:
        with os.scandir(folder) as entries:
            return any(has_image_ending(entry.name) and not is_hidden(entry.name) and not is_folder(entry) for entry in entries)
    except OSError:
        return False


def nested_root(folders: Sequence[Path]) -> str:
    """Return `Did you mean ROOT/DATA?` for the first folder with several folders, where each above it has one only."""
    while len(folders) == 1:
        place, folders = folders[0], subfolders(folders[0])
        if len(folders) > 1:
            return f"Did you mean {place}?"
    return ""


def _names(folders: Iterable[Path]) -> str:
    return _and([folder.name for folder in folders])


def _and(names: Sequence[str]) -> str:
    first = names[:5] if len(names) > 6 else names
    rest = f" and {len(names) - 5} more" if len(names) > 6 else ""
    return (", ".join(first) + rest) if rest or len(first) < 2 else f"{', '.join(first[:-1])} and {first[-1]}"
