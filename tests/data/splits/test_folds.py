from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tlkit.data.samples import Sample, Samples
from tlkit.data.splits.folds import split_by_recipe, split_into_folds
from tlkit.data.splits.holdout import split_samples, split_warnings
from tlkit.data.splits.subset import limit_samples
from tlkit.errors import DataError
from tlkit.recipe.fields.data import Data

ABC = ("a", "b", "c")


def made(*counts: int, split: str = "", group_of: int = 0, start: int = 0) -> Samples:
    """counts: images a class. group_of: images a group, within a class. start: number of the first image."""
    samples = [
        Sample(f"{ABC[label]}/{number:04d}", Path("none"), (label,), split, f"{label}-{number // group_of}" if group_of else None)
        for label, count in enumerate(counts)
        for number in range(start, start + count)
    ]
    return Samples(ABC[: len(counts)], tuple(samples))


def mixed_groups(seed: int) -> Samples:
    """90 groups of 1 to 6 images, each with images of one, two or three classes."""
    samples = []
    for group in range(90):
        for image in range(1 + (group * 7 + seed) % 6):
            label = (group + (image % (1 + group % 3))) % 3
            samples.append(Sample(f"{group:03d}/{image}", Path("none"), (label,), "", f"patient {group}"))
    return Samples(ABC, tuple(samples))


def together(*parts: Samples) -> Samples:
    return Samples(parts[0].classes, tuple(sample for part in parts for sample in part.samples))


def counts(samples: Samples, split: str) -> list[int]:
    found = Counter(sample.label for sample in samples.of(split))
    return [found[label] for label in range(len(samples.classes))]


def torn_groups(samples: Samples) -> int:
    places: dict[str | None, set[str]] = {}
    for sample in samples.samples:
        places.setdefault(sample.group, set()).add(sample.split)
    return sum(len(splits) > 1 for splits in places.values())


def data(**values: Any) -> Data:
    return Data.model_validate({"source": {"folder": "none"}, **values})


def test_no_group_is_on_two_sides_over_100_seeds() -> None:
    whole = mixed_groups(0)
    for seed in range(100):
        split = split_samples(whole, 0.2, 0.2, seed)
        assert torn_groups(split) == 0
        assert all(min(counts(split, name)) >= 1 for name in ("train", "val", "test"))
        limited = split_by_recipe(whole, data(limit=150, validation=0.2, test=0.2), seed)
        assert torn_groups(limited) == 0
        kept = {sample.group for sample in limited.samples}
        assert sum(sample.group in kept for sample in whole.samples) == len(limited.samples)  # whole groups, or none of them


def test_folds_tear_no_group_apart_over_100_seeds() -> None:
    whole = mixed_groups(1)
    for seed in range(100):
        folds = split_into_folds(whole, 3, 0.2, seed)
        assert all(torn_groups(fold) == 0 for fold in folds)
        assert len({frozenset(sample.id for sample in fold.of("test")) for fold in folds}) == 1


@pytest.mark.parametrize("group_of", [0, 2])
def test_every_image_outside_the_test_split_validates_once(group_of: int) -> None:
    folds = split_into_folds(made(50, 30, 20, group_of=group_of), 5, 0.2, 0)
    assert [fold.fold for fold in folds] == [(i, 5) for i in range(1, 6)]
    validated = Counter(sample.id for fold in folds for sample in fold.of("val"))
    outside = {sample.id for sample in folds[0].samples} - {sample.id for sample in folds[0].of("test")}
    assert set(validated) == outside
    assert set(validated.values()) == {1}
    # 80 images are left beside the test split: 40, 24 and 16; a fifth of each is 8, 4.8 and 3.2.
    for fold in folds:
        near = [(8, 8), (4, 5), (3, 4)] if not group_of else [(6, 10), (2, 6), (2, 4)]
        assert all(low <= found <= high for found, (low, high) in zip(counts(fold, "val"), near, strict=True))
        assert counts(fold, "test") == [10, 6, 4]


def test_folds_depend_on_the_seed_and_not_on_the_order_of_the_source() -> None:
    whole = made(20, 20)
    assert split_into_folds(Samples(whole.classes, whole.samples[::-1]), 4, 0.2, 0) == split_into_folds(whole, 4, 0.2, 0)
    assert split_into_folds(whole, 4, 0.2, 1) != split_into_folds(whole, 4, 0.2, 0)


def test_images_of_several_labels_are_folded_label_by_label() -> None:
    samples = tuple(Sample(f"{i:03d}", Path("none"), ((0,), (0, 1), (1, 2), ())[i % 4], "") for i in range(120))
    folds = split_into_folds(Samples(ABC, samples, "multilabel"), 3, 0.0, 0)
    for fold in folds:
        found = Counter(label for sample in fold.of("val") for label in sample.labels)
        assert [found[label] for label in range(3)] == pytest.approx([20, 20, 10], abs=1)
    assert Counter(sample.id for fold in folds for sample in fold.of("val")).total() == 120


def test_more_folds_than_a_class_has_images_are_refused() -> None:
    with pytest.raises(DataError, match=r"data.folds = 5, but beside the test split there are fewer images than folds of: b \(4\)"):
        split_into_folds(made(50, 5), 5, 0.1, 0)
    with pytest.raises(DataError, match=r"fewer groups than folds of: b \(3\)"):
        split_into_folds(made(50, 20, group_of=5), 5, 0.25, 0)


def test_a_validation_split_of_the_source_and_folds_are_refused() -> None:
    with pytest.raises(DataError, match=r"validation split of its own \(8 images\)") as raised:
        split_into_folds(together(made(20, 20, split="train"), made(4, 4, split="val", start=100)), 5, 0.1, 0)
    assert "Remove data.folds to validate on that split" in str(raised.value)


def test_a_limit_is_met_exactly_and_keeps_the_shares_of_classes() -> None:
    limited = limit_samples(made(600, 300, 100), 100, 0)
    assert [Counter(sample.label for sample in limited.samples)[label] for label in range(3)] == [60, 30, 10]
    assert limited.source_size == 1000
    assert len(limit_samples(made(600, 300, 100), 0.05, 0).samples) == 50
    assert limit_samples(made(6, 3), 100, 0) == made(6, 3)


def test_a_limit_keeps_the_shares_of_the_sources_splits() -> None:
    source = together(made(60, 60, split="train"), made(20, 20, split="val", start=100), made(20, 20, split="test", start=200))
    limited = split_by_recipe(source, data(limit=50), 0)
    assert [counts(limited, split) for split in ("train", "val", "test")] == [[15, 15], [5, 5], [5, 5]]


def test_a_rare_class_keeps_what_it_needs_to_be_split() -> None:
    limited = split_by_recipe(made(600, 390, 10), data(limit=100), 0)
    assert len(limited.samples) == 100
    assert [min(counts(limited, split)) for split in ("train", "val", "test")] == [1, 1, 1]


def test_a_limit_that_is_too_small_to_be_split_says_what_would_do() -> None:
    with pytest.raises(DataError, match=r"data.limit = 7 leaves 7 images .*3 classes need 3 each.\n  Expected at least 9."):
        split_by_recipe(made(50, 50, 50), data(limit=7), 0)
    assert len(split_by_recipe(made(50, 50, 50), data(limit=9), 0).samples) == 9
    with pytest.raises(DataError, match="Expected at least 18"):  # five for the folds and one for the test split
        split_by_recipe(made(50, 50, 50), data(limit=9, folds=5), 0)
    assert len(split_by_recipe(made(50, 50, 50), data(limit=18, folds=5), 0).samples) == 18


def test_a_limit_takes_large_and_small_groups_alike() -> None:
    samples = [
        Sample(f"{kind}/{group}/{number}", Path("x"), (group % 2,), "", f"{kind}{group}")
        for kind, groups, size in (("large", 10, 40), ("small", 100, 4))
        for group in range(groups)
        for number in range(size)
    ]
    whole = Samples(ABC[:2], tuple(samples))
    kept = [limit_samples(whole, 200, seed).samples for seed in range(100)]
    assert all(180 <= len(images) <= 220 for images in kept)
    shares = [sum(sample.id.startswith("large") for sample in images) / len(images) for images in kept]
    assert 0.35 < sum(shares) / len(shares) < 0.65  # half of all images are in large groups
    assert min(shares) < 0.3
    assert max(shares) > 0.6
    assert all(abs(sum(sample.label for sample in images) - len(images) / 2) <= 10 for images in kept)


def test_limits_of_one_seed_are_the_same_and_of_another_differ() -> None:
    whole = made(100, 100)
    assert limit_samples(whole, 20, 0) == limit_samples(Samples(whole.classes, whole.samples[::-1]), 20, 0)
    assert limit_samples(whole, 20, 0) != limit_samples(whole, 20, 1)


def test_images_of_several_labels_are_limited_label_by_label() -> None:
    samples = tuple(Sample(f"{i:03d}", Path("none"), ((0,), (0, 1), (1, 2), ())[i % 4], "") for i in range(120))
    limited = limit_samples(Samples(ABC, samples, "multilabel"), 0.25, 0)
    found = Counter(label for sample in limited.samples for label in sample.labels)
    assert [found[label] for label in range(3)] == pytest.approx([15, 15, 7.5], abs=1)


def test_a_class_without_training_images_is_an_error_whatever_the_source() -> None:
    with pytest.raises(DataError, match="no training image of c"):
        split_samples(together(made(9, 9, 0, split="train"), made(2, 2, 2, split="test", start=50)), 0.2, 0.2, 0)


def test_a_class_that_a_held_out_split_lacks_is_a_warning_whatever_the_source() -> None:
    source = together(made(9, 9, 9, split="train"), made(2, 2, 0, split="val", start=50), made(2, 0, 0, split="test", start=70))
    assert split_warnings(split_samples(source, 0.2, 0.2, 0)) == [
        "the validation split has no image of: c. Its figures say nothing about them.",
        "the test split has no image of: b, c. Its figures say nothing about them.",
    ]


def test_a_group_that_the_source_itself_tears_apart_is_a_warning() -> None:
    train, test = made(9, 9, split="train", group_of=3), made(2, 2, split="test", group_of=3)
    both = Samples(ABC[:2], train.samples + tuple(Sample(f"t{s.id}", s.image, s.labels, s.split, s.group) for s in test.samples))
    assert split_warnings(split_samples(both, 0.2, 0.2, 0)) == [
        "2 groups are in more than one split of the source: 0-0, 1-0. Accuracy will look too good."
    ]
