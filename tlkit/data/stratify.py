"""Dealing out pictures that have any number of labels, so that every split gets its share of each label."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from tlkit.data.samples import Sample

_NO_LABEL = (-1,)
"""Pictures of none of the classes are dealt out in their share too, as if that were a label."""


def deal_by_labels(samples: Sequence[Sample], shares: Mapping[str, float], draws: np.random.Generator) -> dict[str, str]:
    """Id -> split, for train and every split of `shares`; groups stay whole.

    Label by label, the rarest first, each picture goes to the split that lacks most of that label. A label that is in enough
    pictures (or groups) is wanted at least once in every split; training takes what there is of one that isn't.
    shares: of the pictures, below 1 together.
    Source: iterative stratification, Sechidis et al. 2011, algorithm 1, https://doi.org/10.1007/978-3-642-23808-6_10
    """
    units: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        units[sample.unit].append(sample)
    labels = {name: Counter(label for sample in members for label in sample.labels or _NO_LABEL) for name, members in units.items()}
    pictures = Counter[int]()
    for has in labels.values():
        pictures.update(has)
    lacks = _wanted(pictures, Counter(label for has in labels.values() for label in has), shares)
    room = {split: len(samples) * share for split, share in {"train": 1 - sum(shares.values()), **shares}.items()}

    names = sorted(units)
    left = [names[position] for position in draws.permutation(len(names))]
    left.sort(key=lambda name: -len(units[name]))  # Large groups first: small ones fill what they leave open. The sort is stable.
    dealt: dict[str, str] = {}
    while left:
        rarest = min((label for label in pictures if pictures[label]), key=lambda label: (pictures[label], label))
        for name in (name for name in left if rarest in labels[name]):
            split = max(room, key=lambda split: (lacks[split][rarest], room[split]))
            dealt[name] = split
            room[split] -= len(units[name])
            pictures.subtract(labels[name])
            for label, number in labels[name].items():
                lacks[split][label] -= number
        left = [name for name in left if name not in dealt]
    return {sample.id: dealt[sample.unit] for sample in samples}


def _wanted(pictures: Mapping[int, int], units: Mapping[int, int], shares: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """Split -> label -> pictures."""
    wanted: dict[str, dict[int, float]] = {"train": {}, **{split: {} for split in shares}}
    for label, number in pictures.items():
        enough = units[label] > len(shares)
        for split, share in shares.items():
            wanted[split][label] = max(1.0, number * share) if enough else 0.0
        wanted["train"][label] = number - sum(wanted[split][label] for split in shares)
    return wanted
