import pickle
import random

import cv2
import numpy as np
import pytest

from tlkit.data.augment import Augmentation, build_augmentation
from tlkit.errors import RecipeError
from tlkit.recipe.augmentations import NEEDS_MORE_THAN_GREY, NEEDS_RGB, NEEDS_RGB_OR_GREY, read_augment
from tlkit.recipe.schema import Transform

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def built(*transforms: tuple[str, dict[str, object]], size: int = 48) -> Augmentation:
    augmentation = build_augmentation([Transform(name=name, arguments=arguments) for name, arguments in transforms], size)
    assert augmentation is not None
    return augmentation


def faults(*transforms: tuple[str, dict[str, object]]) -> list[str]:
    with pytest.raises(RecipeError) as raised:
        built(*transforms)
    assert all(fault.key.startswith("augment[") for fault in raised.value.faults)
    return [str(fault) for fault in raised.value.faults]


MANY = (
    ("HorizontalFlip", {"p": 0.5}),
    ("Rotate", {"limit": 15}),
    ("Affine", {"scale": [0.9, 1.1], "translate_percent": 0.1}),
    ("GaussNoise", {}),
    ("CoarseDropout", {"fill": "random"}),
    ("ElasticTransform", {}),
)


def test_the_same_seed_gives_the_same_picture_whatever_came_before() -> None:
    one, other = built(*MANY), built(*MANY)
    expected = [one(PICTURE, seed=(0, 1, index)) for index in range(10)]
    for index in reversed(range(10)):
        random.seed(index)
        np.random.seed(index)
        cv2.setRNGSeed(index)
        other(PICTURE, seed=(9, 9, index))
        assert np.array_equal(other(PICTURE, seed=(0, 1, index)), expected[index])


def test_seed_epoch_and_index_each_change_the_picture() -> None:
    augmentation = built(("Rotate", {"limit": 90, "p": 1.0}))
    seeds = [(seed, epoch, index) for seed in range(3) for epoch in range(3) for index in range(3)]
    assert len({augmentation(PICTURE, seed=seed).tobytes() for seed in seeds}) == len(seeds)


def test_a_copy_in_another_process_draws_the_same() -> None:
    augmentation = built(*MANY)
    copy = pickle.loads(pickle.dumps(augmentation))
    for index in range(5):
        assert np.array_equal(copy(PICTURE, seed=(1, 2, index)), augmentation(PICTURE, seed=(1, 2, index)))


def test_transforms_draw_independently_of_each_other() -> None:
    # Both flips with p 0.5: with one seed for each transform they would always come together.
    augmentation = built(("HorizontalFlip", {"p": 0.5}), ("VerticalFlip", {"p": 0.5}))
    kinds = [PICTURE, PICTURE[:, ::-1], PICTURE[::-1], PICTURE[::-1, ::-1]]
    drawn = [augmentation(PICTURE, seed=(0, 0, index)) for index in range(400)]
    times = [sum(np.array_equal(picture, kind) for picture in drawn) for kind in kinds]
    assert sum(times) == 400
    assert all(65 < number < 135 for number in times)  # 100 each; 4 standard deviations are 35


def test_the_picture_handed_in_is_not_changed() -> None:
    before = PICTURE.copy()
    built(*MANY)(PICTURE, seed=(0, 0, 0))
    assert np.array_equal(PICTURE, before)


def test_no_transforms_are_no_augmentation() -> None:
    assert build_augmentation([], 32) is None


def test_unknown_names_get_the_nearest_one() -> None:
    (message,) = faults(("Rotat", {}))
    assert message.startswith("augment[0].Rotat is not a transform of albumentations")
    assert "Did you mean 'Rotate'?" in message


def test_unknown_arguments_are_faults_and_get_the_nearest_one() -> None:
    (message,) = faults(("Rotate", {"limt": 3}))
    assert "has no argument 'limt'" in message
    assert "Did you mean 'limit'?" in message


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("HorizontalFlip", {"p": 3}, "p: input should be less than or equal to 1"),
        ("Rotate", {"limit": "x"}, "limit: input should be a valid tuple"),
        ("RandomCrop", {}, "height: field required"),
        ("CoarseDropout", {"num_holes_range": [3, 1]}, "num_holes_range: first value should be less than"),
        ("Normalize", {}, "gives float32 numbers instead of 8-bit pictures"),
        ("RandomCrop", {"height": 20, "width": 30}, "changes the picture from 48 x 48 x 3 to 20 x 30 x 3"),
    ],
)
def test_values_that_cannot_be_are_faults_in_plain_words(name: str, arguments: dict[str, object], words: str) -> None:
    (message,) = faults((name, arguments))
    assert words in message
    assert "\n  " in message


def test_all_faults_come_at_once_with_their_positions() -> None:
    first, second = faults(("Rotat", {}), ("HorizontalFlip", {}), ("Rotate", {"limt": 3}))
    assert first.startswith("augment[0].Rotat ")
    assert second.startswith("augment[2].Rotate ")


@pytest.mark.parametrize("name", ["RandomRotate90", "ToSepia", "MedianBlur"])
def test_transforms_without_a_schema_of_their_own_can_be_made(name: str) -> None:
    assert built((name, {"p": 1.0}))(PICTURE, seed=(0, 0, 0)).shape == PICTURE.shape


@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_what_check_refuses_for_a_number_of_channels_is_what_albumentations_can_not_do(channels: int) -> None:
    """The other way round too: all that is let through by name can be built, but for what needs arguments."""
    for name in sorted(NEEDS_RGB | NEEDS_MORE_THAN_GREY | NEEDS_RGB_OR_GREY):
        refused = bool(read_augment([name], channels)[1])
        transform = [Transform(name=name, arguments={"p": 1.0})]
        if not refused:
            augmentation = build_augmentation(transform, 48, channels)
            assert augmentation is not None
            assert augmentation(np.zeros((48, 48, channels), np.uint8), seed=(0, 0, 0)).shape == (48, 48, channels)
        elif channels > 1 and (name, channels) != ("RGBShift", 2):  # on grey pictures albumentations lets some do nothing
            with pytest.raises(
                RecipeError, match=rf"augment\[0\]\.{name} fails on a picture of 48 x 48 x {channels}(.|\n)*data\.channels=3"
            ):
                build_augmentation(transform, 48, channels)
    for name in ("HorizontalFlip", "Rotate", "Affine", "GaussNoise", "RandomBrightnessContrast", "CoarseDropout", "RandomResizedCrop"):
        assert not read_augment([name], channels)[1]
        arguments = {"size": [48, 48]} if name == "RandomResizedCrop" else {}
        assert build_augmentation([Transform(name=name, arguments=arguments)], 48, channels) is not None
