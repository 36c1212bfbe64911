"""What `tlkit init` sees of a source before it writes a recipe for it. Headers of many images are read, and few images are decoded."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from statistics import median
from typing import Any

import numpy as np

from tlkit.data.decode import decode, image_size
from tlkit.data.samples import LABEL_SEPARATOR, Sample, Samples
from tlkit.data.sources.layout import deeper_folders, find_layout
from tlkit.data.sources.read import read_source
from tlkit.data.splits.holdout import hash_images
from tlkit.errors import DataError
from tlkit.files import expanded
from tlkit.recipe.schema import Recipe, Task

MOST_SIZED, MOST_DECODED, MOST_HASHED = 2_000, 64, 20_000
"""Images whose size is read, that are decoded, and that are compared byte by byte; of more a part is taken, by chance."""
LONG = 2.0
"""Times as long as wide: `resize: crop` shows less than half of such an image."""


@dataclass(frozen=True)
class Groups:
    """What the names of files have in common before their last `_` or `-`: `patient_03` of `patient_03_img7.jpg`."""

    count: int
    example: str
    of: Mapping[str, str]
    """Image id -> group."""


@dataclass(frozen=True)
class Facts:
    """What there is. counts: class -> images to train on, before anything is held out. splits: the source's, "" is none yet.

    short_side: the median, in pixels. long: share of images with one side more than twice the other.
    channels: 1 where all images that were decoded are grey, 3 for colours, else as many as they have.
    duplicates: images whose bytes another one has too; None where there are too many to compare, or one can't be opened.
    """

    source: Mapping[str, Any]
    task: Task
    counts: Mapping[str, int]
    splits: Mapping[str, int]
    images: int
    short_side: int
    long: float
    is_square: bool
    channels: int
    duplicates: int | None
    unreadable: tuple[str, ...]
    groups: Groups | None
    warnings: tuple[str, ...]
    samples: Samples

    @property
    def training(self) -> int:
        """Count the images of the training split, before anything is held out."""
        return self.splits.get("train", 0) + self.splits.get("", 0)

    @property
    def smallest(self) -> int:
        return min(self.counts.values())

    @property
    def imbalance(self) -> float:
        return max(self.counts.values()) / max(1, self.smallest)


def look_at(source: Mapping[str, Any], *, root: str = "data") -> Facts:
    """Look at a source. source: as `data.source` in a recipe. Raises RecipeError or DataError if it can't be trained on."""
    source, samples = _found(source, root)
    _check_level(source)
    drawn = np.random.default_rng(0).permutation(len(samples.samples))
    some = [samples.samples[row] for row in drawn[:MOST_SIZED]]
    sizes = [size for sample in some if all(size := image_size(sample.image))]
    channels, unreadable = _decoded(some[:MOST_DECODED])
    if not sizes:
        raise DataError(f"none of {len(some)} images can be read.\n  `tlkit data check` says why, one by one.")
    pool = [sample for sample in samples.samples if sample.split in ("", "train")]
    counted = Counter(label for sample in pool for label in sample.labels)
    return Facts(
        source=source,
        task=samples.task,
        counts={name: counted[label] for label, name in enumerate(samples.classes)},
        splits=Counter(sample.split for sample in samples.samples),
        images=len(samples.samples),
        short_side=round(median(min(size) for size in sizes)),
        long=sum(max(size) > LONG * min(size) for size in sizes) / len(sizes),
        is_square=all(width == height for width, height in sizes),
        channels=channels,
        duplicates=_duplicates(samples) if len(samples.samples) <= MOST_HASHED else None,
        unreadable=tuple(unreadable),
        groups=None if any(sample.group for sample in pool) else find_groups(samples),
        warnings=samples.warnings,
        samples=samples,
    )


def find_groups(samples: Samples) -> Groups | None:
    """Return the groups that file names suggest; None where they suggest none.

    A group's name has a digit. There are at least twice as many groups as classes and less than 0.7 as many as images: `cat_001` is a
    class and a number, and `0001_a` beside `0002_a` is one image of each.
    """
    names = {sample.id: PurePosixPath(sample.id).stem for sample in samples.samples}
    of = {id_: found[1] for id_, name in names.items() if (found := re.fullmatch(r"(.*\d.*)[_-][^_-]+", name))}
    if len(of) < 0.9 * len(names):
        return None
    groups = Counter(of.values())
    if not 2 * len(samples.classes) <= len(groups) <= 0.7 * len(names):
        return None
    return Groups(len(groups), min(groups), of)


def with_groups(samples: Samples, groups: Groups) -> Samples:
    """Return the samples with the group that the name of each suggests."""
    return replace(samples, samples=tuple(replace(sample, group=groups.of.get(sample.id)) for sample in samples.samples))


def _found(source: Mapping[str, Any], root: str) -> tuple[Mapping[str, Any], Samples]:
    """Return the source and what is in it; of a table whose columns have other usual names, the source with these."""
    try:
        return source, _read(source, root)
    except DataError as error:
        if not error.meant or set(error.meant) <= set(source):
            raise
        return _found({**source, **error.meant}, root)


def _read(source: Mapping[str, Any], root: str) -> Samples:
    """Read the source, with one label an image if it can be; with several where its table has several."""
    whole = {"name": "init", "data": {"source": source, "root": root}, "model": {"backbone": "resnet18"}}
    recipe = Recipe.from_dict({**whole, "phases": [{"train": "head", "epochs": 1, "lr": 1.0}]})
    place = expanded(recipe.data.root)
    try:
        samples = read_source(recipe.data.source, place)
    except DataError:
        if not {"csv", "parquet", "webdataset"} & set(source):
            raise
        try:
            several = read_source(recipe.data.source, place, "multilabel")
        except DataError:
            several = None
        if several is None or all(len(sample.labels) == 1 for sample in several.samples):
            raise
        return several
    if any(LABEL_SEPARATOR in name for name in samples.classes):
        return read_source(recipe.data.source, place, "multilabel")
    return samples


def _check_level(source: Mapping[str, Any]) -> None:
    """Raise DataError for a folder of folders of folders, of which nobody can say what the classes are."""
    if "folder" not in source or source.get("layout"):
        return
    folder = expanded(str(source["folder"]))
    below = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    layout = find_layout(folder)
    classes = [place for folders in layout.folders.values() for place in folders.values()]
    inner = deeper_folders(layout)
    if not inner:
        return
    names = ", ".join(str(path.relative_to(folder)) for path in inner[:3])
    raise DataError(
        f"{folder}: no class folder has images itself, they are a level or more below: {names}.\n"
        f"  Name the folder whose folders are the classes, such as {below[0] if below else folder}; or if {len(classes)} classes such as "
        f"'{classes[0].name}' are meant: tlkit init '{{folder: {source['folder']}, layout: class}}'."
    )


def _decoded(samples: Sequence[Sample]) -> tuple[int, list[str]]:
    """Return how many channels the images have, and which of them can't be read."""
    grey, unreadable, channels = True, [], 3
    for sample in samples:
        try:
            pixels = decode(sample.image)
        except DataError as error:
            if "channels" in error.meant:
                channels, grey = int(error.meant["channels"]), False
            else:
                unreadable.append(sample.id)
            continue
        grey = grey and bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())
    return (1 if grey and len(unreadable) < len(samples) else channels), unreadable


def _duplicates(samples: Samples) -> int | None:
    """Return how many images are there already; None if a file can't be opened."""
    try:
        hashes = hash_images(samples).values()
    except DataError:
        return None
    return len(hashes) - len(set(hashes))
