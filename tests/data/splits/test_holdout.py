import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkit.data.samples import Sample, Samples
from tlkit.data.splits.holdout import hash_images, manifest_rows, read_manifest, share_warnings, split_samples, write_manifest
from tlkit.errors import DataError
from tlkit.recipe.load import load_recipe

ABC = ("a", "b", "c")


def made(*counts: int, split: str = "", group_of: int = 0) -> Samples:
    """counts: images a class. group_of: images a group, within a class."""
    samples = [
        Sample(f"{ABC[label]}/{number:04d}", Path("none"), (label,), split, f"{label}-{number // group_of}" if group_of else None)
        for label, count in enumerate(counts)
        for number in range(count)
    ]
    return Samples(ABC[: len(counts)], tuple(samples))


def counts(samples: Samples, split: str) -> list[int]:
    found = Counter(sample.label for sample in samples.of(split))
    return [found[label] for label in range(len(samples.classes))]


def test_counts_are_as_asked_by_largest_remainder() -> None:
    # 10 % of 105, 55, 15 is 10.5, 5.5, 1.5: 17.5 in all, rounded 18; whole parts 16, two more for the first equal remainders.
    split = split_samples(made(105, 55, 15), 0.1, 0.0, 0)
    assert counts(split, "val") == [11, 6, 1]
    assert counts(split, "train") == [94, 49, 14]
    assert counts(split, "test") == [0, 0, 0]


def test_validation_and_test_are_shares_of_the_whole_training_split() -> None:
    split = split_samples(made(100, 100), 0.2, 0.1, 0)
    assert (counts(split, "train"), counts(split, "val"), counts(split, "test")) == ([70, 70], [20, 20], [10, 10])


@pytest.mark.parametrize("seed", range(8))
def test_every_split_has_every_class_and_every_image_is_in_one_split(seed: int) -> None:
    whole = made(37, 3, 8)
    split = split_samples(whole, 0.1, 0.1, seed)
    assert sorted(s.id for s in split.samples) == sorted(s.id for s in whole.samples)
    for name in ("train", "val", "test"):
        assert min(counts(split, name)) >= 1


def test_the_order_of_the_samples_changes_nothing_and_the_seed_does() -> None:
    whole = made(50, 50)
    mixed = list(whole.samples)
    random.Random(1).shuffle(mixed)
    assert split_samples(Samples(whole.classes, tuple(mixed)), 0.2, 0.2, 3) == split_samples(whole, 0.2, 0.2, 3)
    assert split_samples(whole, 0.2, 0.2, 4) != split_samples(whole, 0.2, 0.2, 3)


def test_splits_of_the_source_stay_as_they_are() -> None:
    training, test = made(20, 20, split="train"), made(2, 2, split="test")
    both = Samples(training.classes, training.samples + tuple(Sample(f"t{s.id}", s.image, s.labels, "test") for s in test.samples))
    split = split_samples(both, 0.25, 0.5, 0)
    assert (counts(split, "train"), counts(split, "val"), counts(split, "test")) == ([15, 15], [5, 5], [2, 2])


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_never_torn_apart(seed: int) -> None:
    split = split_samples(made(60, 40, 20, group_of=4), 0.2, 0.2, seed)
    places: dict[str, set[str]] = {}
    for sample in split.samples:
        places.setdefault(str(sample.group), set()).add(sample.split)
    assert all(len(names) == 1 for names in places.values())
    assert (counts(split, "val"), counts(split, "test")) == ([12, 8, 4], [12, 8, 4])


def test_too_few_images_are_refused_with_names_numbers_and_fix() -> None:
    with pytest.raises(DataError, match="too few images to split") as raised:
        split_samples(made(10, 2, 1), 0.1, 0.1, 0)
    message = str(raised.value)
    assert "b (2), c (1)" in message
    assert "at least 3 images, one each for train, val, test" in message
    assert "data.test=0" in message


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(DataError, match="at least 3 groups"):
        split_samples(made(10, 10, group_of=10), 0.1, 0.1, 0)


def image(value: int) -> Image.Image:
    return Image.fromarray(np.full((2, 2), value, np.uint8))


@pytest.mark.parametrize(
    ("numbers", "group_of", "shares", "said"),
    [
        # A quarter of six images is 1.5; each class of two keeps one in training.
        ((2, 2, 2), 0, (0.25, 0.0), ["data.validation = 0.25 would be 2 of 6 images, and the validation split has 3: each class has to"]),
        ((4, 4, 4), 0, (0.05, 0.1), ["0.05 would be 1 of 12 images, and the validation split has 3", "0.1 would be 1 of 12"]),
        (
            (9, 9, 9),
            3,
            (0.25, 0.0),
            ["7 of 27 images, and the validation split has 9: groups stay whole, and each class has to be in every split. Use more or"],
        ),
        ((20, 20, 3), 0, (0.1, 0.1), []),  # 4.3 are asked for, and five are one more
        ((100, 55, 15), 0, (0.1, 0.2), []),
    ],
)
def test_a_share_that_cannot_be_kept_is_said(numbers: tuple[int, ...], group_of: int, shares: tuple[float, float], said: list[str]) -> None:
    data = load_recipe("quickstart", [f"data.validation={shares[0]}", f"data.test={shares[1]}"]).data
    warnings = [*share_warnings(split_samples(made(*numbers, group_of=group_of), *shares, 0), data)]
    assert len(warnings) == len(said)
    assert all(words in warning for words, warning in zip(said, warnings, strict=True))


def test_the_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    odd = tmp_path / 'odd, "name"\n.png'
    image(1).save(odd)
    samples = Samples(("a", "b"), (Sample("odd\n,", odd, (0,), "train", "g"), Sample("f", lambda: image(3), (1,), "val")))
    rows = manifest_rows(samples, hash_images(samples))
    write_manifest(rows, tmp_path / "split.csv")
    assert read_manifest(tmp_path / "split.csv") == rows
    assert (tmp_path / "split.csv").read_text().splitlines()[0] == "id,class,split,group,sha256"
    # printf '\3\3\3\3' | sha256sum
    assert rows[1]["sha256"] == "5d7c2f3d9613121977266f80ec7258fa83cb534f57aadebdf4e41b8dfd8aaa53"
    assert sorted(path.name for path in tmp_path.iterdir()) == [odd.name, "split.csv"]


def test_a_foreign_file_is_not_taken_for_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="Expected id,class,split,group,sha256"):
        read_manifest(tmp_path / "split.csv")
    with pytest.raises(DataError, match="can't be read"):
        read_manifest(tmp_path / "no.csv")


def test_an_image_that_vanished_is_named(tmp_path: Path) -> None:
    samples = Samples(("a", "b"), (Sample("x", tmp_path / "x.png", (0,), "train"),))
    with pytest.raises(DataError, match=r"x\.png: the image can't be read"):
        hash_images(samples)
