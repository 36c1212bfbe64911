"""`data.on_bad`: images that can't be read end a run, or are left out of it, and each is listed."""

import logging
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tlkit.data.decode import header
from tlkit.data.progress import progress, progress_console
from tlkit.data.quality.decode_results import decode_results
from tlkit.data.samples import Sample, Samples, Skipped
from tlkit.data.sources.read import read_source
from tlkit.errors import ON_BAD_HINT, DataError, MissingDataError
from tlkit.files import expanded, write_csv
from tlkit.recipe.fields.data import Data
from tlkit.recipe.schema import Task

COLUMNS = ("id", "class", "split", "reason")
SHOWN = 5
_SEVERAL_FRAMES = frozenset({".gif", ".tif", ".tiff", ".webp", ".avif", ".apng"})

log = logging.getLogger("tlkit")


def read_images(data: Data, task: Task) -> Samples:
    """Return the source's samples; with `on_bad: skip` without those that can't be read, see leave_out_bad."""
    skips = data.on_bad == "skip"
    samples = read_source(data.source, expanded(data.root), task, keep_missing=skips)
    log_warnings(samples)
    return leave_out_bad(samples, data) if skips else samples


def log_warnings(samples: Samples) -> None:
    """Log what reading the source has found, where no run or plan reports it."""
    for text in samples.warnings:
        log.warning("%s", text)


def leave_out_bad(samples: Samples, data: Data) -> Samples:
    """Return the samples without the images that can't be read, which are in `skipped`.

    Raises DataError if a class, or a split of the source, would have no image left.
    """
    samples = without_bad(samples, data)
    lost = [*lost_classes(samples), *_lost_splits(samples)]
    if lost:
        files = [skipped.sample.image for skipped in samples.skipped]
        is_elsewhere = not samples.samples and all(isinstance(file, Path) and not file.exists() for file in files)
        raise (MissingDataError if is_elsewhere else DataError)(
            "\n".join(lost) + "\n  `tlkit data check` says what is wrong with each image. Fix some, or remove the class or split."
        )
    return samples


def without_bad(samples: Samples, data: Data) -> Samples:
    """Decode every image, unless the result is known from an earlier time. Those that can't be read are in `skipped`."""
    bad = find_bad(samples, data)
    ids = {skipped.sample.id for skipped in bad}
    return replace(samples, samples=tuple(s for s in samples.samples if s.id not in ids), skipped=samples.skipped + bad)


def find_bad(samples: Samples, data: Data) -> tuple[Skipped, ...]:
    """Return the images that can't be read: all are decoded, unless the result is known from an earlier time."""
    with progress(progress_console(), "images checked", len(samples.samples)) as advance:
        results = decode_results([sample.image for sample in samples.samples], data, advance)
    return tuple(Skipped(s, found.problem, found.fix) for s, found in zip(samples.samples, results, strict=True) if found.problem)


def refuse_bad(samples: Samples, data: Data) -> None:
    """Raise DataError that names the images of any split that can't be read, before hours of training end at one of them."""
    if not (bad := find_bad(samples, data)):
        return
    counts = Counter(skipped.sample.split for skipped in bad)
    splits = ", ".join(f"{counts[split]} {split}" for split in ("train", "val", "test") if counts[split])
    first = "\n".join(f"    {skipped.sample.id}: {skipped.reason}." for skipped in bad[:SHOWN])
    more = f"\n    and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    # The fix for most of them: a key of the recipe, where all images have another number of channels.
    fixes = Counter(skipped.fix for skipped in bad if skipped.fix).most_common(1)
    fix = "".join(f"\n  {words}" for words, number in fixes if number > 1 or len(bad) == 1)
    total = len(samples.samples)
    raise DataError(f"{len(bad)} of {total} images can't be read ({splits}), so nothing is trained:\n{first}{more}{fix}\n  {ON_BAD_HINT}")


def without_bad_of(samples: Samples, split: str, data: Data) -> Samples:
    """Leave out the images of one split that can't be read; `skipped` has them."""
    checked = without_bad(replace(samples, samples=samples.of(split)), data)
    others = tuple(sample for sample in samples.samples if sample.split != split)
    skipped = tuple(skipped for skipped in checked.skipped if skipped.sample.split == split)
    return replace(samples, samples=others + checked.samples, skipped=skipped)


def lost_classes(samples: Samples) -> Iterator[str]:
    """Yield a line for each class without any image left to train on."""
    left = {label for sample in samples.samples if sample.split in ("", "train") for label in sample.labels}
    lost = Counter(label for skipped in samples.skipped if skipped.sample.split in ("", "train") for label in skipped.sample.labels)
    for label in sorted(lost.keys() - left):
        number = f"none of its {lost[label]} images" if lost[label] > 1 else "its one image can't be read, and none"
        yield f"class '{samples.classes[label]}': {number} can be read."


def _lost_splits(samples: Samples) -> Iterator[str]:
    """Yield a line for each split without any readable image; otherwise a new split would be drawn from training."""
    left = {sample.split for sample in samples.samples}
    for split in sorted({skipped.sample.split for skipped in samples.skipped} - left - {"", "train"}):
        yield f"the {split} split: none of its images can be read."


def write_skipped(samples: Samples, file: Path) -> None:
    """Write a row for each image that was left out, with the reason."""
    left_out = ((skipped.sample, skipped.reason) for skipped in samples.skipped)
    rows = ({"id": s.id, "class": samples.label_text(s), "split": s.split, "reason": reason} for s, reason in left_out)
    write_csv(file, COLUMNS, rows)


def several_frames(samples: Collection[Sample]) -> list[str]:
    """Return the ids of the files with several frames or pages, of which only the first is used."""
    files = [
        (sample.id, sample.image) for sample in samples if isinstance(sample.image, Path) and sample.image.suffix.lower() in _SEVERAL_FRAMES
    ]
    with ThreadPoolExecutor() as threads:
        return [id_ for (id_, _), (_, frames) in zip(files, threads.map(lambda file: header(file[1]), files), strict=True) if frames > 1]
