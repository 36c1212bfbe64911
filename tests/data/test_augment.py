import pickle
import random

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from tlkit.data.augment import Augmentation, build_augmentation
from tlkit.errors import RecipeError
from tlkit.recipe.augmentations import NEEDS_MORE_THAN_GREY, NEEDS_RGB, NEEDS_RGB_OR_GREY, PRESETS, read_augment, transforms
from tlkit.recipe.fields.augment import AUTO_AUGMENT, Transform

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)


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
    ("randaugment", {"num_ops": 2, "magnitude": 9}),
    ("trivialaugment", {}),
)


def test_the_same_seed_gives_the_same_image_whatever_came_before() -> None:
    one, other = built(*MANY), built(*MANY)
    expected = [one(IMAGE, seed=(0, 1, index)) for index in range(10)]
    for index in reversed(range(10)):
        random.seed(index)
        np.random.seed(index)
        cv2.setRNGSeed(index)
        other(IMAGE, seed=(9, 9, index))
        assert np.array_equal(other(IMAGE, seed=(0, 1, index)), expected[index])


def test_seed_epoch_and_index_each_change_the_image() -> None:
    augmentation = built(("Rotate", {"limit": 90, "p": 1.0}))
    seeds = [(seed, epoch, index) for seed in range(3) for epoch in range(3) for index in range(3)]
    assert len({augmentation(IMAGE, seed=seed).tobytes() for seed in seeds}) == len(seeds)


def test_a_copy_in_another_process_draws_the_same() -> None:
    augmentation = built(*MANY)
    copy = pickle.loads(pickle.dumps(augmentation))
    for index in range(5):
        assert np.array_equal(copy(IMAGE, seed=(1, 2, index)), augmentation(IMAGE, seed=(1, 2, index)))


def test_transforms_draw_independently_of_each_other() -> None:
    # Both flips with p 0.5: with one seed for each transform they would always come together.
    augmentation = built(("HorizontalFlip", {"p": 0.5}), ("VerticalFlip", {"p": 0.5}))
    kinds = [IMAGE, IMAGE[:, ::-1], IMAGE[::-1], IMAGE[::-1, ::-1]]
    drawn = [augmentation(IMAGE, seed=(0, 0, index)) for index in range(400)]
    times = [sum(np.array_equal(image, kind) for image in drawn) for kind in kinds]
    assert sum(times) == 400
    assert all(65 < number < 135 for number in times)  # 100 each; 4 standard deviations are 35


def test_the_image_handed_in_is_not_changed() -> None:
    before = IMAGE.copy()
    built(*MANY)(IMAGE, seed=(0, 0, 0))
    assert np.array_equal(IMAGE, before)


def test_no_transforms_are_no_augmentation() -> None:
    assert build_augmentation([], 32) is None


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("HorizontalFlip", {"p": 3}, "p: input should be less than or equal to 1"),
        ("Rotate", {"limit": "x"}, "limit: input should be a valid tuple"),
        ("RandomCrop", {}, "height: field required"),
        ("CoarseDropout", {"num_holes_range": [3, 1]}, "num_holes_range: first value should be less than"),
        ("Normalize", {}, "gives float32 numbers instead of 8-bit images"),
        ("RandomCrop", {"height": 20, "width": 30}, "changes the image from 48 x 48 x 3 to 20 x 30 x 3"),
    ],
)
def test_values_that_cannot_be_are_faults_in_plain_words(name: str, arguments: dict[str, object], words: str) -> None:
    (message,) = faults((name, arguments))
    assert words in message
    assert "\n  " in message


def test_all_faults_come_at_once_with_their_positions() -> None:
    first, second = faults(("VerticalFlip", {"p": 3}), ("HorizontalFlip", {}), ("Rotate", {"limit": "x"}))
    assert first.startswith("augment[0].VerticalFlip ")
    assert second.startswith("augment[2].Rotate ")


@pytest.mark.parametrize("name", ["RandomRotate90", "ToSepia", "MedianBlur"])
def test_transforms_without_a_schema_of_their_own_can_be_made(name: str) -> None:
    assert built((name, {"p": 1.0}))(IMAGE, seed=(0, 0, 0)).shape == IMAGE.shape


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
        # torchvision fails only when it draws a change of colours.
        elif (
            channels > 1 and (name, channels) != ("RGBShift", 2) and name not in AUTO_AUGMENT
        ):  # on grey images albumentations lets some do nothing
            with pytest.raises(
                RecipeError, match=rf"augment\[0\]\.{name} fails on an image of 48 x 48 x {channels}(.|\n)*data\.channels=3"
            ):
                build_augmentation(transform, 48, channels)
    for name in ("HorizontalFlip", "Rotate", "Affine", "GaussNoise", "RandomBrightnessContrast", "CoarseDropout", "RandomResizedCrop"):
        assert not read_augment([name], channels)[1]
        arguments = {"size": [48, 48]} if name == "RandomResizedCrop" else {}
        assert build_augmentation([Transform(name=name, arguments=arguments)], 48, channels) is not None


# What albumentations can't do without further arguments, or what would change the images' size: (the place, the words).
NOT_BY_DEFAULT = {
    "CenterCrop": "height: field required",
    "Crop": "Values for crop should be non negative and equal or smaller than image sizes",
    "CropAndPad": "both px and percent parameters cannot be None",
    "GridElasticDeform": "num_grid_xy: field required",
    "LongestMaxSize": "either max_size or max_size_hw must be specified",
    "PadIfNeeded": "changes the image from 64 x 64 x 3 to 1024 x 1024 x 3",
    "RandomCrop": "height: field required",
    "RandomSizedCrop": "min_max_height: field required",
    "Resize": "height: field required",
    "SmallestMaxSize": "either max_size or max_size_hw must be specified",
}
WITH_ARGUMENTS = {
    "CenterCrop": {"height": 64, "width": 64},
    "Crop": {"x_max": 64, "y_max": 64},
    "CropAndPad": {"percent": 0.1},
    "GridElasticDeform": {"num_grid_xy": [4, 4], "magnitude": 5},
    "LongestMaxSize": {"max_size": 64},
    "PadIfNeeded": {"min_height": 64, "min_width": 64},
    "RandomCrop": {"height": 64, "width": 64},
    "RandomSizedCrop": {"min_max_height": [32, 64]},
    "Resize": {"height": 64, "width": 64},
    "SmallestMaxSize": {"max_size": 64},
}


@pytest.mark.parametrize("name", transforms())
def test_every_transform_of_albumentations_is_built_or_reported_what_it_lacks(name: str) -> None:
    if name in NOT_BY_DEFAULT:
        with pytest.raises(RecipeError) as raised:
            built((name, {}), size=64)
        assert str(raised.value).startswith(f"augment[0].{name} ")
        assert NOT_BY_DEFAULT[name] in str(raised.value)
        if name not in WITH_ARGUMENTS:
            return
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    one, other = (built((name, {**WITH_ARGUMENTS.get(name, {}), "p": 1.0}), size=64) for _ in range(2))
    expected = [one(image, seed=(0, 0, index)) for index in range(3)]
    assert all((item.shape, item.dtype) == ((64, 64, 3), np.uint8) for item in expected)
    for index in reversed(range(3)):  # whatever else draws
        random.seed(index)
        np.random.seed(index)
        torch.manual_seed(index)
        cv2.setRNGSeed(index)
        assert np.array_equal(other(image, seed=(0, 0, index)), expected[index]), name


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_can_be_built_for_any_size_and_channels(name: str, channels: int) -> None:
    items, faults_found = read_augment(name, channels)
    assert faults_found == []
    for size in (8, 28, 96):
        augmentation = build_augmentation([Transform(**item) for item in items], size, channels)
        assert augmentation is not None
        image = np.random.default_rng(0).integers(0, 256, (size, size, channels), dtype=np.uint8)
        seen = {augmentation(image, seed=(0, epoch, 0)).tobytes() for epoch in range(20)}
        assert len(seen) > 5


def test_a_random_crop_takes_the_size_of_the_images_where_it_is_not_reported() -> None:
    given, by_default = (built(("RandomResizedCrop", {"scale": [0.2, 0.9], **size})) for size in ({"size": [48, 48]}, {}))
    assert np.array_equal(given(IMAGE, seed=(0, 0, 1)), by_default(IMAGE, seed=(0, 0, 1)))


@pytest.mark.parametrize(("name", "theirs"), [("randaugment", v2.RandAugment()), ("trivialaugment", v2.TrivialAugmentWide())])
def test_randaugment_and_trivialaugment_are_torchvisions(name: str, theirs: v2.Transform) -> None:
    augmentation = built((name, {}))
    for index in range(40):
        ours = augmentation(IMAGE, seed=(0, 0, index))
        # The one draw that albumentations leaves before ours is whether p applies, from the other generator.
        augmentation._set_state((0, 0, index))
        torch.manual_seed(int(np.random.Generator(augmentation.bits).integers(2**63)))
        expected = theirs(torch.from_numpy(IMAGE).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        assert np.array_equal(ours, expected)


def test_torchs_generator_goes_on_as_if_nothing_had_been_drawn() -> None:
    augmentation = built(("randaugment", {}), ("trivialaugment", {}))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    augmentation(IMAGE, seed=(0, 0, 0))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_several_threads_change_no_bit_of_a_large_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    augmentation = built(("randaugment", {"magnitude": 20}), size=256)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        several = [augmentation(image, seed=(0, 0, index)) for index in range(30)]
        torch.set_num_threads(1)
        assert all(np.array_equal(augmentation(image, seed=(0, 0, i)), one) for i, one in enumerate(several))
    finally:
        torch.set_num_threads(before)
