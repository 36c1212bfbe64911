"""Splits of images with any number of labels."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tlkit.data.samples import Sample, Samples
from tlkit.data.splits.holdout import split_samples, split_warnings
from tlkit.errors import DataError

CLASSES = ("a", "b", "c", "rare")


def made(seed: int = 0, size: int = 400) -> Samples:
    """Labels drawn by themselves with chances 0.5, 0.2, 0.1 and 0.04."""
    drawn = np.random.default_rng(seed).random((size, 4)) < (0.5, 0.2, 0.1, 0.04)
    samples = tuple(Sample(f"{i:04d}", Path("none"), tuple(np.flatnonzero(row).tolist()), "") for i, row in enumerate(drawn))
    return Samples(CLASSES, samples, "multilabel")


def counts(samples: Samples, split: str) -> Counter[int]:
    """Label -> images; -1 for those without any."""
    return Counter(label for sample in samples.of(split) for label in sample.labels or (-1,))


@pytest.mark.parametrize("seed", range(6))
def test_every_split_gets_its_share_of_each_label_and_of_images_without_any(seed: int) -> None:
    whole = made(seed)
    split = split_samples(whole, 0.2, 0.1, seed)
    total = counts(whole, "")
    for name, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        found = counts(split, name)
        assert abs(len(split.of(name)) - 400 * share) <= 8
        # By chance alone, label a would vary by sqrt(200 * 0.2 * 0.8) = 5.7 images in validation.
        assert all(abs(found[label] - total[label] * share) <= 2 for label in total)
        assert min(found[label] for label in range(4)) >= 1


def test_a_label_of_three_images_is_in_all_three_splits_and_one_of_two_trains_and_is_reported() -> None:
    common = tuple(Sample(f"{i:02d}", Path("none"), (0,), "") for i in range(20))
    three = tuple(Sample(f"3{i}x", Path("none"), (1,), "") for i in range(3))
    two = tuple(Sample(f"2{i}x", Path("none"), (2,), "") for i in range(2))
    split = split_samples(Samples(("a", "three", "two"), (*common, *three, *two), "multilabel"), 0.1, 0.1, 0)
    assert [counts(split, name)[1] for name in ("train", "val", "test")] == [1, 1, 1]
    assert [counts(split, name)[2] for name in ("train", "val", "test")] == [2, 0, 0]
    assert [warning.partition(". ")[0] for warning in split_warnings(split)] == [
        "the validation split has no image of: two",
        "the test split has no image of: two",
    ]


def test_groups_stay_whole_and_the_order_of_the_samples_changes_nothing() -> None:
    whole = made()
    grouped = tuple(Sample(s.id, s.image, s.labels, "", f"g{i // 4}") for i, s in enumerate(whole.samples))
    split = split_samples(Samples(CLASSES, grouped, "multilabel"), 0.2, 0.2, 1)
    places: dict[str | None, set[str]] = {}
    for sample in split.samples:
        places.setdefault(sample.group, set()).add(sample.split)
    assert all(len(place) == 1 for place in places.values())
    assert abs(len(split.of("val")) - 80) <= 8
    assert split_samples(Samples(CLASSES, grouped[::-1], "multilabel"), 0.2, 0.2, 1) == split
    assert split_samples(Samples(CLASSES, grouped, "multilabel"), 0.2, 0.2, 2) != split


def test_a_label_that_one_group_holds_alone_trains_and_one_that_only_others_hold_is_refused() -> None:
    alone = tuple(Sample(f"{i}", Path("none"), (0,), "", "all") for i in range(4))
    others = tuple(Sample(f"x{i}", Path("none"), (), "") for i in range(16))
    split = split_samples(Samples(("a", "b"), (*alone, *others, Sample("b", Path("none"), (1,), "")), "multilabel"), 0.2, 0.2, 0)
    assert counts(split, "train")[0] == 4
    with pytest.raises(DataError, match="no training image of b"):
        split_samples(Samples(("a", "b"), (*alone, *others, Sample("b", Path("none"), (1,), "val")), "multilabel"), 0.2, 0.2, 0)
