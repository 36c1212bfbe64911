"""`data.limit`: a part of the images for a quick trial, with the classes, the splits and the groups of the whole."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tlkit.data.samples import Sample, Samples
from tlkit.data.splits.stratify import by_unit, counts_of_share, split_by_labels
from tlkit.errors import DataError
from tlkit.terminal import counted


def limit_samples(samples: Samples, limit: int | float, seed: int, *, least: int = 1) -> Samples:
    """Keep `limit` images, or that share of them: the same part of each split of the source, stratified, with groups kept whole.

    least: images (or groups) of each class that have to stay to be split.
    Without groups the number is met exactly. Raises DataError if it is too small for that.
    """
    number = len(samples.samples)
    share = limit if isinstance(limit, float) else limit / number
    if share >= 1:
        return samples
    ordered = sorted(samples.samples, key=lambda sample: sample.id)
    parts = {split: [sample for sample in ordered if _part(sample) == split] for split in ("train", "val", "test")}
    present = len({sample.label for sample in parts["train"]}) if samples.task == "multiclass" else 0
    if present * least > round(share * len(parts["train"])):
        asked = f"{limit} leaves {counted(round(share * len(parts['train'])), 'image')} to train on and to split"
        raise DataError(
            f"data.limit = {asked}; {present} classes need {least} each.\n"
            f"  Expected at least {-(-present * least * number // len(parts['train']))}."
        )
    kept: set[str] = set()
    for place, (split, part) in enumerate(parts.items()):
        draws = np.random.default_rng((seed, place))
        if samples.task == "multilabel":
            assigned = split_by_labels(part, {"kept": share}, draws)
            kept.update(name for name, where in assigned.items() if where == "kept")
        elif part:
            kept |= _kept(part, share, least if split == "train" else 1, draws)
    return replace(samples, source_size=number, samples=tuple(sample for sample in ordered if sample.id in kept))


def _part(sample: Sample) -> str:
    """Return the part that an image is counted in: images that are still to be split and training images are one part."""
    return sample.split or "train"


def _kept(part: Sequence[Sample], share: float, least: int, draws: np.random.Generator) -> set[str]:
    """Return the ids to keep."""
    counts = Counter(counts_of_share(part, part, share, left_after=0))
    sizes = Counter(sample.label for sample in part)
    counts |= Counter({label: min(least, size) for label, size in sizes.items()})
    # What rare classes were given beyond their share comes from the largest.
    while counts.total() > max(round(share * len(part)), least * len(sizes)):
        label, _ = max(counts.items(), key=lambda item: (item[1], -item[0]))
        counts[label] -= 1
    kept = _drawn(part, counts, draws)
    return kept | _missing_groups(part, kept, least)


def _drawn(part: Sequence[Sample], counts: Mapping[int, int], draws: np.random.Generator) -> set[str]:
    """Return the ids of whole groups, large and small ones, in random order: first those that fit, then those that come closer."""
    members = by_unit(part)
    names = sorted(members)
    has = {name: Counter(sample.label for sample in group) for name, group in members.items()}
    open_, kept = Counter(counts), dict.fromkeys(names, False)
    for fitting in (True, False):
        for name in (names[position] for position in draws.permutation(len(names))):
            gain = sum(abs(open_[label]) - abs(open_[label] - number) for label, number in has[name].items())
            if not kept[name] and gain > 0 and (not fitting or all(open_[label] >= number for label, number in has[name].items())):
                kept[name] = True
                open_.subtract(has[name])
    return {sample.id for name in names if kept[name] for sample in members[name]}


def _missing_groups(part: Sequence[Sample], kept: set[str], least: int) -> set[str]:
    """Return the ids of the smallest groups that, with those kept, give every class as many groups as it must have, or all that it has."""
    members = by_unit(part)
    have = Counter(label for group in members.values() for label in {sample.label for sample in group if sample.id in kept})
    added: set[str] = set()
    for _, name in sorted((len(group), name) for name, group in members.items() if group[0].id not in kept):
        labels = {sample.label for sample in members[name]}
        if any(have[label] < least for label in labels):
            added.update(sample.id for sample in members[name])
            have.update(labels)
    return added
