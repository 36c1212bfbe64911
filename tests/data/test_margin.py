"""`data.margin`: augmentation sees the whole image, larger than the network does, and its output is cropped to the square."""

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tlkit.data.augment import Augmentation, build_augmentation
from tlkit.data.datamodule import ImageDataModule
from tlkit.data.dataset import ImageDataset
from tlkit.data.decode import decode
from tlkit.data.preprocess import LONGEST, Preprocessing, larger_side
from tlkit.data.preview import preview_rows
from tlkit.data.samples import Sample, Samples
from tlkit.errors import CacheUnavailable, DataError, RecipeError
from tlkit.recipe.fields.augment import Transform
from tlkit.recipe.load import load_recipe
from tlkit.system import shipped

SIZE = 24
SPEC = Preprocessing(SIZE, "crop", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)


def built(*transforms: tuple[str, dict[str, Any]], size: int = SIZE, margin: float = 1.25) -> Augmentation:
    augmentation = build_augmentation([Transform(name=name, arguments=given) for name, given in transforms], size, margin=margin)
    assert augmentation is not None
    return augmentation


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Landscape, portrait, upright by EXIF alone, and a JPEG large enough for a reduced scale; the test images are those of validation."""
    folder = tmp_path_factory.mktemp("images")
    draws = np.random.default_rng(0)
    made = []
    turned = Image.Exif()
    turned[0x0112] = 6
    for number, (width, height) in enumerate([(40, 30), (30, 40), (52, 40), (200, 150), (31, 90), (26, 26), (97, 128), (129, 98)]):
        path = folder / f"{number}.{'jpg' if number in (2, 3, 7) else 'png'}"
        image = Image.fromarray(draws.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(path, exif=turned if number == 2 else Image.Exif())
        made += [Sample(path.name, path, (number % 2,), "train"), Sample(f"val {path.name}", path, (number % 2,), "val")]
    return Samples(("even", "odd"), tuple(made))


def data_of(samples: Samples, augmentation: Augmentation | None, **options: Any) -> ImageDataModule:
    return ImageDataModule(samples, SPEC, augmentation, batch_size=4, seed=7, **{"workers": 0, **options})


def epochs(data: ImageDataModule, number: int = 2) -> Iterator[bytes]:
    """Yield the bytes of each epoch's training batches, then those of validation."""
    loader = data.train_dataloader()
    for epoch in range(number):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield b"".join(images.numpy().tobytes() for images, _ in loader)
    yield b"".join(images.numpy().tobytes() for images, _ in data.val_dataloader())


def corner_image(width: int, height: int) -> np.ndarray:
    """Black, with a white square in the lower right corner."""
    image = np.zeros((height, width, 3), np.uint8)
    image[-height // 8 :, -height // 8 :] = 255
    return image


# --- what is seen ---


@pytest.mark.parametrize("name", ["RandomResizedCrop", "HorizontalFlip"])
def test_an_object_in_the_corner_of_a_4_to_3_image_is_seen_in_training(name: str) -> None:
    """At margin 1 the crop to the square has cut it off before anything is augmented; so it has in validation."""
    image = corner_image(160, 120)
    transform = (name, {"scale": [0.3, 1.0]} if name == "RandomResizedCrop" else {"p": 0.5})
    square, whole = built(transform, margin=1.0), built(transform, margin=1.25)
    assert not SPEC.fit(image).any()
    larger = SPEC.fit_larger(image, 1.25)
    assert larger.shape == (30, 40, 3)
    seen = [whole(larger, seed=(0, 0, index)) for index in range(100)]
    assert {view.shape for view in seen} == {(SIZE, SIZE, 3)}
    assert 0 < sum(view.max() > 200 for view in seen) < 100
    assert not any(square(SPEC.fit(image), seed=(0, 0, index)).any() for index in range(100))


@pytest.mark.parametrize("size", [28, 32, 33, 36, 64, 87, 100, 112, 224])
def test_a_square_image_turned_by_up_to_45_degrees_has_no_empty_corners_at_margin_1_42(size: int) -> None:
    """The diagonal is 1.415 as long as the side. The sizes differ in how 1.42 times them is rounded."""
    white = np.full((2 * size, 2 * size, 3), 255, np.uint8)
    turned = ("Rotate", {"limit": 45, "p": 1.0})
    spec = Preprocessing(size, "crop", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
    with_margin, without = built(turned, size=size, margin=1.42), built(turned, size=size, margin=1.0)
    larger = spec.fit_larger(white, 1.42)
    assert min(with_margin(larger, seed=(0, 0, index)).min() for index in range(30)) == 255
    assert min(without(spec.fit(white), seed=(0, 0, index)).min() for index in range(30)) == 0
    # By 45 degrees exactly, where nothing but the centre is left.
    exactly = built(("Rotate", {"limit": [45, 45], "p": 1.0}), size=size, margin=1.42)
    assert exactly(larger, seed=(0, 0, 0)).min() == 255


@pytest.mark.parametrize(
    ("size", "margin", "expected"), [(64, 1.25, 80), (224, 1.25, 280), (28, 1.25, 36), (100, 1.42, 142), (50, 1.2, 60), (7, 1.0, 7)]
)
def test_the_larger_side_has_as_many_pixels_more_on_each_side(size: int, margin: float, expected: int) -> None:
    assert larger_side(size, margin) == expected


def test_where_no_transform_has_cropped_every_position_of_the_crop_is_as_likely() -> None:
    columns = np.broadcast_to(np.arange(30, dtype=np.uint8)[None, :, None], (30, 30, 3))
    found = [int(built_once(columns, index)[0, 0, 0]) for index in range(700)]
    times = np.bincount(found)
    assert len(times) == 30 - SIZE + 1
    assert (times > 60).all()  # 100 each; 4 standard deviations are 37


def built_once(image: np.ndarray, index: int, made: list[Augmentation] = []) -> np.ndarray:  # noqa: B006 (one for all calls)
    if not made:
        made.append(built(("VerticalFlip", {"p": 0.5})))
    return made[0](image, seed=(1, 0, index))


def test_one_interpolation_follows_the_resize_where_a_transform_crops_and_none_where_none_does() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    flipped = built(("HorizontalFlip", {"p": 1.0}))(image, seed=(0, 0, 0))
    windows = np.lib.stride_tricks.sliding_window_view(image[:, ::-1], (SIZE, SIZE), axis=(0, 1))  # [7, 17, 3, S, S]
    assert any(np.array_equal(flipped, window.transpose(1, 2, 0)) for row in windows for window in row)
    # RandomResizedCrop's own output is taken as it is.
    crop = built(("RandomResizedCrop", {"scale": [0.4, 0.6]}))
    crop._set_state((0, 0, 3))
    expected = crop.compose(image=image.copy())["image"]
    assert np.array_equal(crop(image, seed=(0, 0, 3)), expected)


# --- the larger image ---


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(400, 300, (40, 30)), (300, 400, (30, 40)), (8, 8, (30, 30)), (1000, 100, (60, 30)), (1, 9, (30, 60))]
)
def test_the_short_side_is_image_size_times_margin_and_the_long_one_at_most_twice_that(
    width: int, height: int, expected: tuple[int, int]
) -> None:
    assert LONGEST == 2
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    larger = SPEC.fit_larger(image, 1.25)
    assert (larger.shape[1], larger.shape[0]) == expected == SPEC.larger_size(width, height, 1.25)
    if width == 1000:  # what is further out than twice the short side is cut off at both ends
        middle = Image.fromarray(image[:, 400:600]).resize((60, 30), Image.Resampling.BILINEAR)
        assert np.array_equal(larger, np.asarray(middle))


@pytest.mark.parametrize("resize", ["pad", "stretch"])
def test_pad_and_stretch_give_the_larger_image_as_validation_would(resize: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    spec = Preprocessing(SIZE, resize, 1.0, "bicubic", (0.2, 0.4, 0.6), (0.5,) * 3)
    as_validation = Preprocessing(30, resize, 1.0, "bicubic", (0.2, 0.4, 0.6), (0.5,) * 3)
    assert np.array_equal(spec.fit_larger(image, 1.25), as_validation.fit(image))


# --- JPEGs at a reduced scale ---


def test_a_jpeg_at_least_twice_as_large_is_decoded_at_its_own_reduced_scale_for_training_alone(samples: Samples) -> None:
    sample = next(sample for sample in samples.of("train") if sample.id == "3.jpg")
    assert isinstance(sample.image, Path)
    with Image.open(sample.image) as opened:
        opened.draft(None, (40, 30))  # 200 x 150 at a quarter of its size
        assert opened.size == (50, 38)
        expected = SPEC.fit_larger(np.asarray(opened.convert("RGB")), 1.25)
    whole = SPEC.fit_larger(decode(sample.image), 1.25)
    assert not np.array_equal(expected, whole)
    images = data_of(samples, built(("HorizontalFlip", {})))
    trained = images.train_dataloader().images
    index = [found.id for found in trained.samples].index("3.jpg")
    assert np.array_equal(trained.loaded(index), expected)
    # Validation, and training without a margin or without augment, decode in full.
    full = SPEC.fit(decode(sample.image))
    assert np.array_equal(images.val_dataloader().images.loaded(index), full)
    assert np.array_equal(trained.fitted(index), full)
    for augmentation in (None, built(("HorizontalFlip", {}), margin=1.0)):
        assert np.array_equal(ImageDataset(trained.samples, SPEC, augmentation=augmentation).loaded(index), full)


# --- equal for workers, cache, copies, sheet ---

AUGMENT: Sequence[tuple[str, dict[str, Any]]] = (
    ("Rotate", {"limit": 30}),
    ("HorizontalFlip", {}),
    ("randaugment", {}),
    ("RandomResizedCrop", {"scale": [0.5, 1.0], "p": 0.5}),
)


def test_epochs_are_the_same_bits_with_workers_with_the_decoded_cache_and_in_a_copy(samples: Samples, tmp_path: Path) -> None:
    alone = list(epochs(data_of(samples, built(*AUGMENT))))
    assert alone[0] != alone[1]
    for workers, cached in [(2, False), (0, True), (2, True)]:
        data = data_of(samples, pickle.loads(pickle.dumps(built(*AUGMENT))), workers=workers)
        if cached:
            data.cache_decoded(tmp_path, budget_gb=1)
        assert list(epochs(data)) == alone
        assert list(epochs(data)) == alone  # from the cache


def test_a_later_phase_goes_on_and_the_sheet_shows_what_is_trained_on(samples: Samples) -> None:
    augmentation = built(*AUGMENT)
    data = data_of(samples, augmentation)
    _, second, validation = epochs(data)
    data.first_epoch = 1
    assert list(epochs(data, number=1)) == [second, validation]
    images = data.train_dataloader().images
    for row in preview_rows(images, ("even", "odd"), rows=4, epochs=[1]):
        assert row.views[1].transpose(2, 0, 1).tobytes() in {
            image.numpy().tobytes() for batch, _ in at_epoch(data, 0) for image in batch.contiguous()
        }
        assert row.views[0].shape == (SIZE, SIZE, 3)


def test_a_loader_that_resumes_mid_epoch_gives_the_rest_of_it(samples: Samples) -> None:
    data = data_of(samples, built(*AUGMENT))
    first, *rest = [images.numpy().tobytes() for images, _ in at_epoch(data, 1)]
    begun, resumed = at_epoch(data, 1), at_epoch(data, 1)
    assert next(iter(begun))[0].numpy().tobytes() == first
    resumed.load_state_dict(begun.state_dict())
    assert [images.numpy().tobytes() for images, _ in resumed] == rest


def test_a_data_module_of_a_folder_takes_a_margin() -> None:
    folder = shipped("data/fashion_mnist_mini")
    data = ImageDataModule.from_folder(folder, image_size=32, augment=["HorizontalFlip"], margin=1.5)
    images = data.train_dataloader().images
    assert images.loaded(0).shape == (48, 48, 3)
    assert images[(0, 0)][0].shape == (32, 32, 3)
    assert data.val_dataloader().images.loaded(0).shape == (32, 32, 3)


def at_epoch(data: ImageDataModule, epoch: int) -> Any:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return loader


def test_without_augment_a_margin_changes_no_bit(samples: Samples) -> None:
    """The pixels are those that Pillow gives for the square, whatever the margin."""
    data = data_of(samples, build_augmentation([], SIZE, margin=1.5))
    (images, _) = next(iter(data.val_dataloader()))
    expected = SPEC.fit(decode(samples.of("val")[0].image))
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), expected)
    trained = {image.numpy().tobytes() for batch, _ in data.train_dataloader() for image in batch.contiguous()}
    assert trained == {SPEC.fit(decode(sample.image)).transpose(2, 0, 1).tobytes() for sample in samples.of("train")}


# --- the size of the cache, and the budget ---


def test_the_cache_is_as_large_as_the_larger_images_are(samples: Samples, tmp_path: Path) -> None:
    data = data_of(samples, built(("HorizontalFlip", {})))
    found = data.decoded_bytes("train")
    for index, most in enumerate(found):
        loaded = data.train_dataloader().images.loaded(index)
        assert loaded.nbytes <= most <= loaded.nbytes + 4 * 30 * 3  # pixels of the long side
    assert data.decoded_bytes("val").tolist() == [24 * 24 * 3] * 8
    needed = (found.sum() + 8 * 24 * 24 * 3) / 1e9
    data.cache_decoded(tmp_path, budget_gb=needed)
    message = r"would be needed with data\.margin = 1\.25 and cache\.budget_gb"
    with pytest.raises(CacheUnavailable, match=message):
        data_of(samples, built(("HorizontalFlip", {}))).cache_decoded(tmp_path, budget_gb=needed * 0.999)


# --- what can't be ---


def test_a_transform_may_change_the_size_but_not_below_the_square() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    assert built(("RandomCrop", {"height": 28, "width": 26}))(image, seed=(0, 0, 0)).shape == (SIZE, SIZE, 3)
    with pytest.raises(
        RecipeError, match=r"augment\[0\]\.CenterCrop makes 20 x 30 x 3 of an image of 30 x 30 x 3(.|\n)*raise data\.margin"
    ):
        built(("CenterCrop", {"height": 20, "width": 30}))
    # One after the other they may leave too little, which shows only when both are drawn.
    twice = built(
        ("RandomSizedCrop", {"size": [30, 30], "min_max_height": [20, 30]}), ("Rotate", {"limit": [45, 45], "crop_border": False})
    )
    assert twice(image, seed=(0, 0, 0)).shape == (SIZE, SIZE, 3)
    with pytest.raises(DataError, match=r"augment leaves \d+ x \d+ px of an image, and data\.image_size is 24\.\n  Raise data\.margin"):
        Augmentation(albumentations_crop(20), SIZE, 1.25)(image, seed=(0, 0, 0))


def albumentations_crop(side: int) -> Any:
    import albumentations

    return albumentations.Compose([albumentations.CenterCrop(side, side)])


@pytest.mark.parametrize("value", ["0.9", "2.5", ".nan", "wide"])
def test_a_margin_outside_of_1_to_2_is_a_fault_of_the_recipe_with_its_place(value: str) -> None:
    with pytest.raises(RecipeError, match=r"override data\.margin=.*data\.margin = "):
        load_recipe("quickstart", [f"data.margin={value}"])


def test_opencv_counts_as_here() -> None:
    from tlkit.data.augment import BORDER_CONSTANT

    assert cv2.BORDER_CONSTANT == BORDER_CONSTANT
