"""Distribute images so that every split gets its share of each class or, where images have any number of them, of each label."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import floor

import numpy as np

from tlkit.data.samples import Sample

_NO_LABEL = (-1,)
"""Images of none of the classes are assigned in their share too, as if that were a label."""


def split_by_labels(samples: Sequence[Sample], shares: Mapping[str, float], draws: np.random.Generator) -> dict[str, str]:
    """Return id -> split, for train and every split of `shares`; groups stay whole.

    Label by label, the rarest first, each image goes to the split that lacks most of that label. A label in enough
    images (or groups) is wanted at least once in every split; otherwise all its images go to training.
    shares: of the images, below 1 together.

    Source: iterative stratification, Sechidis et al. 2011, algorithm 1, https://doi.org/10.1007/978-3-642-23808-6_10
    """
    units = by_unit(samples)
    labels = {name: Counter(label for sample in members for label in sample.labels or _NO_LABEL) for name, members in units.items()}
    images = Counter[int]()
    for has in labels.values():
        images.update(has)
    lacks = _wanted(images, Counter(label for has in labels.values() for label in has), shares)
    room = {split: len(samples) * share for split, share in {"train": 1 - sum(shares.values()), **shares}.items()}

    left = _large_first(units, draws)
    assigned: dict[str, str] = {}
    while left:
        rarest = min((label for label in images if images[label]), key=lambda label: (images[label], label))
        for name in (name for name in left if rarest in labels[name]):
            split = max(room, key=lambda split: (lacks[split][rarest], room[split]))
            assigned[name] = split
            room[split] -= len(units[name])
            images.subtract(labels[name])
            for label, number in labels[name].items():
                lacks[split][label] -= number
        left = [name for name in left if name not in assigned]
    return {sample.id: assigned[sample.unit] for sample in samples}


def by_unit(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Return the images of each group, a single image being its own."""
    units: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        units[sample.unit].append(sample)
    return units


def units_of_labels(samples: Iterable[Sample]) -> defaultdict[int, set[str]]:
    """Return the groups, or single images, that each label is in; empty for a label of none."""
    units = defaultdict[int, set[str]](set)
    for sample in samples:
        for label in sample.labels:
            units[label].add(sample.unit)
    return units


def _large_first(units: Mapping[str, Sequence[Sample]], draws: np.random.Generator) -> list[str]:
    """Shuffle the groups, large ones first: small ones fill what they leave open."""
    names = sorted(units)
    return sorted((names[position] for position in draws.permutation(len(names))), key=lambda name: -len(units[name]))


def _wanted(images: Mapping[int, int], units: Mapping[int, int], shares: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """Split -> label -> images."""
    wanted: dict[str, dict[int, float]] = {"train": {}, **{split: {} for split in shares}}
    for label, number in images.items():
        enough = units[label] > len(shares)
        for split, share in shares.items():
            wanted[split][label] = max(1.0, number * share) if enough else 0.0
        wanted["train"][label] = number - sum(wanted[split][label] for split in shares)
    return wanted


def counts_of_share(pool: Sequence[Sample], rest: Sequence[Sample], share: float, left_after: int) -> dict[int, int]:
    """Return label -> images to hold out of `rest`: in total the integer nearest to share * pool, by largest remainder, at least one each.

    left_after: images of each class that must stay.
    """
    sizes, available = Counter(sample.label for sample in pool), Counter(sample.label for sample in rest)
    labels = sorted(sizes)
    most = {label: available[label] - left_after for label in labels}
    counts = {label: min(max(1, floor(sizes[label] * share)), most[label]) for label in labels}
    missing = floor(len(pool) * share + 0.5) - sum(counts.values())
    by_remainder = sorted(labels, key=lambda label: (-(sizes[label] * share % 1), label))
    for label in by_remainder:
        if missing > 0 and counts[label] < most[label] and counts[label] <= sizes[label] * share:
            counts[label] += 1
            missing -= 1
    return counts


def hold_out(rest: Sequence[Sample], counts: Mapping[int, int], left_after: int, draws: np.random.Generator) -> set[str]:
    """Return the ids to hold out. Without groups the counts are exact; with groups as close as whole groups allow."""
    members = by_unit(rest)
    open_ = Counter(counts)
    units_left = Counter(label for group in members.values() for label in {sample.label for sample in group})
    held: set[str] = set()
    for name in _large_first(members, draws):
        has = Counter(sample.label for sample in members[name])
        gain = sum(abs(open_[label]) - abs(open_[label] - number) for label, number in has.items())
        if gain > 0 and all(units_left[label] > left_after for label in has):
            held.update(sample.id for sample in members[name])
            open_.subtract(has)
            units_left.subtract(has.keys())
    return held
