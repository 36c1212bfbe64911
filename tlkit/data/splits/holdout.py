"""Which image trains, validates and tests: seeded, stratified, whole groups, written down with hashes."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from tlkit.data.file_facts import FileFacts, file_key
from tlkit.data.samples import Sample, Samples, groups_of
from tlkit.data.sources.classes import odd_classes
from tlkit.data.splits.stratify import counts_of_share, hold_out, split_by_labels, units_of_labels
from tlkit.errors import ON_BAD_HINT, DataError
from tlkit.files import sha256_of, write_csv
from tlkit.recipe.fields.data import Data

COLUMNS = ("id", "class", "split", "group", "sha256")
_HASHING_THREADS = 4
ROUNDED = 0.1
"""Part of a share by which the split may differ without a word, and by one image in any case."""


def split_samples(samples: Samples, validation: float, test: float, seed: int) -> Samples:
    """Return the samples with every split filled in: train, val, test; sorted by id, independent of their order.

    A split that the source has stays as it is. The others are cut from its training split, stratified by class or, for multilabel,
    label by label, groups kept whole; validation and test are shares of that training split before the cuts, 0 for no test split.
    Raises DataError if a class has too few images to be in every split, or none to train on.
    """
    ordered = tuple(sorted(samples.samples, key=lambda sample: sample.id))
    pool = [sample for sample in ordered if sample.split in ("", "train")]
    _check_all_can_be_learned(samples, pool)
    present = {sample.split for sample in ordered}
    shares = {"test": test if "test" not in present else 0.0, "val": validation if "val" not in present else 0.0}
    wanted = {split: share for split, share in shares.items() if share > 0}
    if samples.task == "multilabel":
        new = split_by_labels(pool, wanted, np.random.default_rng(seed))
    else:
        _check_enough(pool, samples.classes, wanted)
        new = _split_by_class(pool, wanted, seed)
    if len(pool) < 2:
        raise DataError("too few images to train: the training split has fewer than 2.\n  Add images.")
    result = replace(
        samples, drawn=frozenset(wanted), samples=tuple(replace(sample, split=new.get(sample.id, sample.split)) for sample in ordered)
    )
    _check_every_class(result, wanted)
    return result


def _split_by_class(pool: Sequence[Sample], wanted: Mapping[str, float], seed: int) -> dict[str, str]:
    """Return id -> split."""
    assigned = dict.fromkeys((sample.id for sample in pool), "train")
    rest = pool
    for number, (split, share) in enumerate(wanted.items()):
        still_to_come = len(wanted) - number  # splits that need an image of each class after this one, training among them
        counts = counts_of_share(pool, rest, share, still_to_come)
        held = hold_out(rest, counts, still_to_come, np.random.default_rng((seed, number)))
        assigned.update(dict.fromkeys(held, split))
        rest = [sample for sample in rest if sample.id not in held]
    return assigned


def _check_all_can_be_learned(samples: Samples, pool: Sequence[Sample]) -> None:
    """Check that each class of the source has a training image."""
    trained = {label for sample in pool for label in sample.labels}
    if missing := [name for label, name in enumerate(samples.classes) if label not in trained]:
        raise DataError(
            f"no training image of {shortened(missing)}: validation or test alone can't teach a class.\n"
            "  Move images of every class into the training split, or remove the class."
        )


def _check_enough(pool: Sequence[Sample], classes: Sequence[str], wanted: Mapping[str, float]) -> None:
    """Check that each class is large enough. Counts groups if there are groups, since a group can't be in two splits."""
    units = units_of_labels(pool)
    need = 1 + len(wanted)
    short = [f"{name} ({len(units[label])})" for label, name in enumerate(classes) if len(units[label]) < need]
    if short:
        unit = "groups" if any(sample.group for sample in pool) else "images"
        raise DataError(
            f"too few images to split: {shortened(short)} - "
            f"each class needs at least {need} {unit}, one each for {', '.join(('train', *sorted(wanted, reverse=True)))}.\n"
            "  Add images, remove these classes, or bring val and test folders of your own"
            + (" (data.test=0 leaves the test split out)." if "test" in wanted else ".")
        )


def _check_every_class(samples: Samples, wanted: Mapping[str, float]) -> None:
    """Check that every split has every class; only groups with several classes, and labels of very few images, can fail here."""
    have = {(sample.split, label) for sample in samples.samples for label in sample.labels}
    missing = [
        f"{name} in {split}" for split in ("train", *wanted) for label, name in enumerate(samples.classes) if (split, label) not in have
    ]
    if missing and (samples.task == "multiclass" or any(words.endswith(" in train") for words in missing)):
        raise DataError(
            f"too few images to split: whole groups leave no image of {shortened(missing)}.\n"
            "  Use more or smaller groups, a larger data.validation or data.test, or bring val and test splits of your own."
        )


def split_warnings(samples: Samples) -> list[str]:
    """Return what reading the source warned of, and what makes figures say less than they seem to.

    The latter: one class in two spellings, classes that a held-out split lacks, groups in two splits.
    """
    odd = list(odd_classes(samples.classes))
    alike = [f"'{name}' and '{other}'" for name, other in odd if other]
    found = list(samples.warnings)
    found += [f"these classes look alike and count as different ones: {shortened(alike)}. Join them if they are the same."] if alike else []
    found += [f"the class '{name}' is a class like others. If it means no label, remove its images." for name, other in odd if not other]
    for split, words in (("val", "validation"), ("test", "test")):
        held_out = samples.of(split)
        have = {label for sample in held_out for label in sample.labels}
        missing = [name for label, name in enumerate(samples.classes) if label not in have]
        if held_out and missing:
            found.append(f"the {words} split has no image of: {shortened(missing)}. Its figures say nothing about them.")
    sides: dict[str, set[str]] = defaultdict(set)
    for sample in samples.samples:
        if sample.group is not None:
            sides[sample.group].add(sample.split)
    if torn := sorted(group for group, splits in sides.items() if len(splits) > 1):
        count = f"{len(torn)} groups are" if len(torn) > 1 else "a group is"
        found.append(f"{count} in more than one split of the source: {shortened(torn)}. Accuracy will look too good.")
    return found


def share_warnings(samples: Samples, data: Data) -> Iterator[str]:
    """Say which split of the recipe's is much larger or smaller than its share, since classes or groups are small."""
    pool = sum(sample.split in {"train", *samples.drawn} for sample in samples.samples)
    why, more = "each class has to be in every split", "Bring more images of small classes"
    if groups_of(samples.samples):
        why, more = "groups stay whole, and each class has to be in every split", "Use more or smaller groups"
    for split, key, share in (("val", "validation", data.validation), ("test", "test", data.test)):
        if split not in samples.drawn or (split == "val" and samples.fold):
            continue
        made, asked = len(samples.of(split)), share * pool
        if abs(made - asked) > max(1, ROUNDED * asked):
            yield (
                f"data.{key} = {share:g} would be {asked:.0f} of {pool} images, and the {key} split has {made}: {why}. "
                f"{more}, or splits of your own."
            )


def shortened(names: Sequence[str]) -> str:
    return f"{', '.join(names[:10])}{' and others' if len(names) > 10 else ''}"


def hash_images(samples: Samples) -> dict[str, str]:
    """Return an image's id -> the sha256 of its file or, without a file, of its pixels. Raises DataError if one can't be read.

    Hashes of files are cached by path, size and times.
    """
    images = samples.samples
    keys = [file_key(sample.image) for sample in images]
    with closing(FileFacts("sha256")) as facts, ThreadPoolExecutor(_HASHING_THREADS) as threads:
        hashes = [facts.get(key) if key else None for key in keys]
        unknown = [row for row, known in enumerate(hashes) if known is None]
        for row, found in zip(unknown, threads.map(lambda row: _hash(images[row]), unknown), strict=True):
            hashes[row] = found
            if (key := keys[row]) is not None:
                facts.put(key, found)
    return {sample.id: str(found) for sample, found in zip(images, hashes, strict=True)}


def manifest_rows(samples: Samples, hashes: Mapping[str, str]) -> list[dict[str, str]]:
    """Return a row per image, as in split.csv."""
    return [
        {"id": s.id, "class": samples.label_text(s), "split": s.split, "group": s.group or "", "sha256": hashes[s.id]}
        for s in samples.samples
    ]


def write_manifest(rows: Iterable[Mapping[str, str]], path: Path) -> None:
    """Write split.csv whole or not at all. rows: by `manifest_rows`."""
    write_csv(path, COLUMNS, rows)


def read_manifest(path: Path) -> list[dict[str, str]]:
    """Read the rows of split.csv: id, class, split, group, sha256. Raises DataError if it is no such file."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise DataError(
                    f"{path}: the columns are {reader.fieldnames}.\n  Expected {','.join(COLUMNS)}, as `tlkit finetune` writes."
                )
            rows = list(reader)
            if damaged := next((number for number, row in enumerate(rows, 1) if None in row or None in row.values()), None):
                raise csv.Error(f"row {damaged} has not {len(COLUMNS)} values")
            return rows
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: the split manifest can't be read ({error}).\n  Expected the split.csv of a run.") from error


def _hash(sample: Sample) -> str:
    try:
        if isinstance(sample.image, Path):
            return sha256_of(sample.image)
        if hasattr(sample.image, "read_bytes"):
            return sha256(sample.image.read_bytes()).hexdigest()
        return sha256(np.asarray(sample.image()).tobytes()).hexdigest()
    except OSError as error:
        raise DataError(
            f"{sample.image}: the image can't be read ({error.strerror}).\n  Restore it or remove it.\n  {ON_BAD_HINT}"
        ) from error
