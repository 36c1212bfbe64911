"""Images in tar shards, for data larger than memory. Shards are read where they are: nothing is ever unpacked.

An index of where each image begins lets the shards be read in any order, and so by the seeded order, the splits and the exact
epochs that every other source has. webdataset's own loading streams whole shards: see docs/decisions/0008.
"""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob
from io import BytesIO
from itertools import islice
from pathlib import Path

from PIL import Image

from tlkit.data.decode import image_formats
from tlkit.data.samples import Sample, Samples
from tlkit.data.sources.classes import Label, number_classes
from tlkit.data.sources.kind import LocalFiles, ReadOptions, SourceCheck, SourceKind, below, path_inside
from tlkit.data.sources.tables.columns import meant_separator
from tlkit.data.sources.tar_index import Entry, ShardFault, ShardIndex, as_label, shard_index
from tlkit.errors import DataError, MissingDataError, MissingExtraError, did_you_mean
from tlkit.files import expanded
from tlkit.recipe.fields.source import WebDatasetSource
from tlkit.recipe.schema import Task

MOST_SHARDS = 100_000
MOST_FAULTS, MOST_PLACES = 50, 3
"""Number of kinds of faults that are listed, and of further places of each; for more, their number is given."""
_LOGGED_EVERY_S = 10.0

log = logging.getLogger("tlkit")

Entries = Mapping[str, Mapping[Path, Sequence[Entry]]]
"""Split -> shard -> its images."""


@dataclass(frozen=True, slots=True)
class TarImage:
    """An image file inside a tar: `size` bytes from `offset` on."""

    shard: Path
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        with self.shard.open("rb", buffering=0) as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __call__(self) -> Image.Image:
        return Image.open(BytesIO(self.read_bytes()), formats=image_formats())

    def __str__(self) -> str:
        return f"{self.shard}, at byte {self.offset}"


def read_webdataset(source: WebDatasetSource, options: ReadOptions) -> Samples:
    """Read every image of the shards, by an index that is kept in root. Ids are `train-000.tar:KEY`.

    Raises DataError with everything that is wrong with the shards: missing, cut off, packed, members without image or label.
    """
    entries, faults, warnings = _entries(_shards(source), options.root, options.task)
    if faults:
        lines = list(_by_kind(faults))
        more = f"\n... and {len(lines) - MOST_FAULTS:,} more." if len(lines) > MOST_FAULTS else ""
        fix = "  Write these shards again: for each image KEY.jpg with KEY.cls, KEY.json (its key label) or KEY.txt beside it."
        raise DataError("\n".join(lines[:MOST_FAULTS]) + f"{more}\n{fix}")
    if options.task == "multilabel":
        entries = _separated(entries, source)
    labels = {split: [entry.labels for found in shards.values() for entry in found] for split, shards in entries.items()}
    classes, numbers = number_classes(f"data.source.webdataset: {source.webdataset}", labels, source.classes, options.task)
    return Samples(classes, tuple(_samples(entries, numbers)), options.task, warnings=warnings)


def _by_kind(faults: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield a line for each kind of fault: the first, and how many more there are, with some of their places.

    faults: (place, problem). Problems are of one kind if only their numbers differ.
    """
    kinds: dict[str, list[tuple[str, str]]] = {}
    for place, problem in faults:
        kinds.setdefault(re.sub(r"[\d,]+", "", problem), []).append((place, problem))
    for (place, problem), *others in kinds.values():
        places = ", ".join(other for other, _ in others[:MOST_PLACES]) + (", .." if len(others) > MOST_PLACES else "")
        yield f"{place}: {problem}" if not others else f"{place}: {problem.removesuffix('.')} (and {len(others):,} more such: {places})."


def _separated(entries: Entries, source: WebDatasetSource) -> Entries:
    """Separate the labels by data.source.separator. Raises DataError if there is none and another sign than | seems to be meant."""
    sign = source.separator
    if sign is None:
        written = {str(label) for shards in entries.values() for found in shards.values() for entry in found for label in entry.labels}
        if meant := meant_separator(written):
            example = min(text for text in written if meant in text)
            raise DataError(
                f"data.source.webdataset: {source.webdataset}: labels seem to be separated by '{meant}': '{example}' would be one class.\n"
                f"  Set data.source.separator='{meant}', or data.source.separator='|' if these are the names of classes."
            )
        return entries
    return {
        split: {shard: [replace(entry, labels=_parts(entry.labels, sign)) for entry in found] for shard, found in shards.items()}
        for split, shards in entries.items()
    }


def _parts(labels: tuple[Label, ...], sign: str) -> tuple[Label, ...]:
    return tuple(
        part for label in labels for part in ([label] if isinstance(label, int) else map(as_label, label.split(sign))) if part != ""
    )


def check_webdataset(source: WebDatasetSource, options: ReadOptions) -> SourceCheck:
    """Return all images found in the shards, despite any faults."""
    entries, _, _ = _entries(_shards(source), options.root, options.task)
    return SourceCheck({id_: image for id_, image, _, _ in _images(entries)})


def webdataset_files(source: WebDatasetSource, samples: Samples) -> LocalFiles:
    """Return the shards at their places below the folder that contains all of them: the ids of images depend on these."""
    patterns = {"webdataset": source.webdataset, **{key: text for key, text in (("val", source.val), ("test", source.test)) if text}}
    shards = [shard for key, text in patterns.items() for shard in find_shards(text, "train" if key == "webdataset" else key)]
    above = os.path.commonpath([shard.absolute().parent for shard in shards])
    keys = {key: path_inside(os.path.abspath(str(expanded(text))), above) for key, text in patterns.items()}
    return LocalFiles(below(Path(above), shards), keys)


def _shards(source: WebDatasetSource) -> dict[str, list[Path]]:
    """Return split -> its shards; the empty split if there is only one pattern."""
    patterns = {"train": source.webdataset, "val": source.val, "test": source.test}
    shards = {split: find_shards(pattern, split) for split, pattern in patterns.items() if pattern is not None}
    if len(shards) == 1:
        return {"": shards["train"]}
    _check_apart(shards)
    return shards


def _samples(entries: Entries, numbers: Mapping[Label, int]) -> Iterator[Sample]:
    same: dict[tuple[int, ...], tuple[int, ...]] = {}  # one tuple for all images of a class
    for id_, image, written, split in _images(entries):
        labels = tuple(sorted({numbers[label] for label in written}))
        yield Sample(id_, image, same.setdefault(labels, labels), split)


def _images(entries: Entries) -> Iterator[tuple[str, TarImage, tuple[Label, ...], str]]:
    """Yield (id, image, labels as written, split)."""
    above = Path(os.path.commonpath([shard.absolute().parent for shards in entries.values() for shard in shards]))
    for split, shards in entries.items():
        for shard, found in shards.items():
            name = shard.absolute().relative_to(above).as_posix()
            for entry in found:
                yield f"{name}:{entry.key}", TarImage(shard, entry.offset, entry.size), entry.labels, split


def _entries(shards: Mapping[str, Sequence[Path]], root: Path, task: Task) -> tuple[Entries, list[tuple[str, str]], tuple[str, ...]]:
    """Return the entries, everything that is wrong with the shards, and what to warn of. Logs how far it is where that takes long.

    root: what the index is kept below.
    """
    folder = expanded(root) / "webdataset_index"
    faults: list[tuple[str, str]] = []
    indices: list[tuple[Path, ShardIndex]] = []
    found: dict[str, dict[Path, Sequence[Entry]]] = {split: {} for split in shards}
    total, done, logged = sum(map(len, shards.values())), 0, time.monotonic()
    for split, files in shards.items():
        for shard in files:
            try:
                index = shard_index(shard, folder, task)
                indices.append((shard, index))
                found[split][shard] = index.entries
            except ShardFault as fault:
                faults += fault.faults
                found[split][shard] = fault.entries
            done += 1
            if time.monotonic() - logged > _LOGGED_EVERY_S:
                log.info("indexed %d of %d shards", done, total)
                logged = time.monotonic()
    return found, faults, tuple(_warnings(indices))


def _warnings(indices: Sequence[tuple[Path, ShardIndex]]) -> Iterator[str]:
    links = sum(index.links for _, index in indices)
    if links:
        shard = next(shard for shard, index in indices if index.links)
        yield f"{shard}: {links:,} {'link is' if links == 1 else 'links are'} not followed"
    unused = sum(index.unused[1] for _, index in indices)
    if unused:
        shard, index = next((shard, index) for shard, index in indices if index.unused[1])
        number = "1 image is" if unused == 1 else f"{unused:,} images are"
        yield f"{shard}: {number} not used, such as {index.unused[0]}: beside the image of its key, and without a label of its own"


def _check_apart(shards: Mapping[str, Sequence[Path]]) -> None:
    seen: dict[Path, str] = {}
    for split, files in shards.items():
        for shard in files:
            if seen.setdefault(shard.resolve(), split) != split:
                problem = f"data.source: {shard} is in {seen[shard.resolve()]} and in {split}."
                raise DataError(f"{problem}\n  A shard belongs to one split: correct the patterns.")


def find_shards(pattern: str, split: str) -> list[Path]:
    """Return the sorted files of a pattern. Raises DataError if one is missing, or the pattern names no local files."""
    key = f"data.source.{'webdataset' if split == 'train' else split}"
    if re.match(r"\w{2,}:", pattern) or "::" in pattern:
        problem = f"{key}: '{pattern}' is not a pattern of files on this machine."
        raise DataError(f"{problem}\n  Copy the shards to this machine, and name them as shards/train-{{000..009}}.tar.")
    named = [str(expanded(name)) for name in _expanded(pattern, key)]
    found = [Path(match) for name in named for match in (sorted(glob(name)) if re.search(r"[*?\[]", name) else [name])]
    if not found:
        raise MissingDataError(f"{key}: no file is like '{pattern}'.\n  Expected tar files, such as shards/train-{{000..009}}.tar.")
    if missing := [path for path in found if not path.is_file()]:
        beside = [path.name for path in missing[0].parent.glob("*.tar")] if missing[0].parent.is_dir() else []
        hint = did_you_mean(missing[0].name, beside) or f"{missing[0].parent} has {len(beside)} .tar files."
        names = f"{', '.join(map(str, missing[:5]))}{' and others' if len(missing) > 5 else ''}"
        raise MissingDataError(f"{key}: {len(missing)} of {len(found)} shards don't exist: {names}.\n  {hint}")
    return sorted(set(found))


def _expanded(pattern: str, key: str) -> list[str]:
    """Expand `a-{0..2}.tar` to a-0.tar, a-1.tar, a-2.tar, as webdataset does."""
    try:
        import braceexpand
    except ImportError as error:
        raise MissingExtraError("webdataset", "stream", "data.source.webdataset") from error
    try:
        names = list(islice(braceexpand.braceexpand(pattern), MOST_SHARDS + 1))
    except ValueError as error:
        raise DataError(f"{key}: '{pattern}' has a brace without its partner.\n  Write it as shards/train-{{000..009}}.tar.") from error
    if len(names) > MOST_SHARDS:
        raise DataError(f"{key}: '{pattern}' names more than {MOST_SHARDS:,} files.\n  Check the numbers in braces.")
    return names


KIND = SourceKind(read_webdataset, local_files=webdataset_files, check=check_webdataset)
