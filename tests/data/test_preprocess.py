import json
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import functional

from tlkit.data.preprocess import Preprocessing, preprocessing_for
from tlkit.recipe.fields.data import Data
from tlkit.recipe.fields.source import BundledSource
from tlkit.system import shipped

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP_MODES = {"crop": "center", "pad": "border", "stretch": "squash"}
SIZES = [(1, 1), (5, 500), (333, 217), (217, 333), (224, 224), (225, 224), (601, 77), (31, 33)]


def data(**fields: object) -> Data:
    return Data(source=BundledSource(bundled="fashion_mnist_mini"), **fields)


def make_image(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("resize", CROP_MODES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_fit_gives_timms_own_evaluation_pixels(resize: str, interpolation: str) -> None:
    for (width, height), crop_pct, size in product(SIZES, (0.875, 0.95, 1.0), (64, 97, 224)):
        timm_transform = create_transform(
            size, interpolation=interpolation, crop_pct=crop_pct, crop_mode=CROP_MODES[resize], mean=MEAN, std=STD, normalize=False
        )
        image = make_image(width, height)
        expected = timm_transform(Image.fromarray(image)).permute(1, 2, 0).numpy()
        ours = Preprocessing(size, resize, crop_pct, interpolation, MEAN, STD).fit(image)
        assert np.array_equal(ours, expected), f"{width} x {height} to {size} at {crop_pct}"
        assert ours.flags.c_contiguous


def test_fit_and_normalize_give_timms_tensor_for_a_real_image() -> None:
    path = next(shipped("data/fashion_mnist_mini").rglob("*.png"))
    image = Image.open(path).convert("RGB")
    timm_transform = create_transform(96, interpolation="bicubic", crop_pct=0.9, crop_mode="center", mean=MEAN, std=STD)
    preprocessing = Preprocessing(96, "crop", 0.9, "bicubic", MEAN, STD)
    ours = preprocessing.normalize(torch.from_numpy(preprocessing.fit(np.asarray(image))).permute(2, 0, 1)[None])
    assert torch.equal(ours[0], timm_transform(image))


def test_normalize_equals_torchvision_and_keeps_channels_last() -> None:
    images = torch.from_numpy(np.stack([make_image(8, 8), make_image(8, 8)])).permute(0, 3, 1, 2)
    normalized = Preprocessing(8, "crop", 1.0, "bilinear", MEAN, STD).normalize(images)
    assert torch.equal(normalized, functional.normalize(images.float() / 255, MEAN, STD))
    assert normalized.dtype == torch.float32
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    assert images.dtype == torch.uint8


def test_padding_is_zero_after_normalisation_to_half_a_grey_level() -> None:
    preprocessing = Preprocessing(10, "pad", 1.0, "bilinear", MEAN, STD)
    fitted = preprocessing.fit(np.full((5, 10, 3), 200, np.uint8))  # 5 rows high: rows 0, 1 and 7, 8, 9 are padding
    normalized = preprocessing.normalize(torch.from_numpy(fitted).permute(2, 0, 1)[None])
    assert normalized[0, :, 0].abs().max() <= 0.5 / 255 / min(STD)
    assert (fitted[2:7] == 200).all()


@pytest.mark.parametrize("turned", [False, True])
def test_a_hair_thin_image_is_cropped_at_its_centre_without_its_whole_being_resized(turned: bool) -> None:
    # 1 x 4,000,000 at 256 px would be 256 x 1,024,000,000. Its middle is a step from black to white, its ends are grey.
    line = np.full((1, 4_000_000, 3), 128, np.uint8)
    line[:, 1_999_000:2_000_000], line[:, 2_000_000:2_001_000] = 0, 255
    fitted = Preprocessing(224, "crop", 0.875, "bilinear", MEAN, STD).fit(np.swapaxes(line, 0, 1) if turned else line)
    fitted = np.swapaxes(fitted, 0, 1) if turned else fitted
    assert fitted.shape == (224, 224, 3)
    # One pixel is 256 wide after resizing: the crop is a ramp about the step, within less than a pixel of the centre.
    assert (np.diff(fitted[0, :, 0].astype(int)) >= 0).all()
    assert fitted[0, 0, 0] < 40
    assert fitted[0, -1, 0] > 215


def test_preprocessing_survives_json_and_cannot_change() -> None:
    preprocessing = Preprocessing(128, "pad", 1.0, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing
    with pytest.raises(AttributeError):
        preprocessing.image_size = 1  # type: ignore[misc]


def test_weights_decide_mean_std_interpolation_and_crop() -> None:
    cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": "bicubic", "crop_pct": 0.95}
    assert preprocessing_for(data(image_size=100), cfg) == Preprocessing(100, "crop", 0.95, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert preprocessing_for(data(resize="pad"), cfg).crop_pct == 1.0
    assert preprocessing_for(data(resize="stretch"), cfg).crop_pct == 1.0


def test_missing_or_random_interpolation_becomes_bicubic() -> None:
    assert preprocessing_for(data(), {"interpolation": "random"}).interpolation == "bicubic"
    assert preprocessing_for(data(), {}).interpolation == "bicubic"


def test_normalize_none_leaves_0_to_1_and_dataset_takes_the_measured_values() -> None:
    none = preprocessing_for(data(normalize="none"), {"mean": MEAN, "std": STD})
    assert (none.mean, none.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    fitted = []
    measured = preprocessing_for(
        data(normalize="dataset", image_size=16, resize="pad"),
        {},
        lambda read: fitted.append(read(lambda: Image.fromarray(make_image(40, 10)))) or fitted,
    )
    assert (measured.mean, measured.resize) == (pytest.approx(fitted[0].mean((0, 1)) / 255), "pad")
    assert measured.std == pytest.approx(fitted[0].std((0, 1)) / 255)
    assert fitted[0].shape == (16, 16, 3)


# --- other numbers of channels ---


@pytest.mark.parametrize("resize", CROP_MODES)
@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_every_channel_is_fitted_as_the_channels_of_a_colour_image_are(resize: str, channels: int) -> None:
    draws = np.random.default_rng(0)
    image = draws.integers(0, 256, (37, 61, channels), dtype=np.uint8)
    values = tuple(np.linspace(0.1, 0.9, channels))
    ours = Preprocessing(24, resize, 0.9, "bicubic", values, values).fit(image)
    assert ours.shape == (24, 24, channels)
    for i in range(channels):
        thrice = np.repeat(image[:, :, i : i + 1], 3, axis=2)
        expected = Preprocessing(24, resize, 0.9, "bicubic", (values[i],) * 3, STD).fit(thrice)
        assert np.array_equal(ours[:, :, i], expected[:, :, 0])


def test_normalize_takes_a_mean_and_std_for_every_channel() -> None:
    mean, std = (0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.6, 0.7, 0.8, 0.9)
    images = torch.randint(0, 256, (2, 5, 4, 4), dtype=torch.uint8)
    preprocessing = Preprocessing(4, "crop", 1.0, "bilinear", mean, std)
    assert torch.equal(preprocessing.normalize(images), functional.normalize(images.float() / 255, mean, std))
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing
    assert preprocessing.channels == 5


def test_mean_and_std_of_the_weights_become_those_of_the_recipes_channels() -> None:
    cfg = {"mean": (0.1, 0.2, 0.6), "std": (0.2, 0.3, 0.4)}
    grey = preprocessing_for(data(channels=1), cfg)
    assert (grey.mean, grey.std) == (pytest.approx((0.3,)), pytest.approx((0.3,)))
    four = preprocessing_for(data(channels=4), cfg)
    assert (four.mean, four.std) == ((0.1, 0.2, 0.6, 0.1), (0.2, 0.3, 0.4, 0.2))
    colour = preprocessing_for(data(), {"mean": (0.5,), "std": (0.2,)})  # weights of a grey model
    assert (colour.mean, colour.std) == ((0.5,) * 3, (0.2,) * 3)
    assert preprocessing_for(data(channels=2, normalize="none"), cfg).mean == (0.0, 0.0)


def test_mean_and_std_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="as many values"):
        Preprocessing(4, "crop", 1.0, "bilinear", (0.5,), STD)


# --- a mean image ---


def pixelwise(images: np.ndarray, **fields: object) -> Preprocessing:
    size = images.shape[1]
    return preprocessing_for(
        data(normalize="pixelwise", image_size=size, **fields), {}, lambda read: (read(partial(Image.fromarray, one)) for one in images)
    )


def test_the_mean_image_of_training_is_subtracted_and_each_channel_divided_by_its_std_about_it() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    preprocessing = pixelwise(images, resize="stretch")
    scaled = images / 255
    centred = scaled - scaled.mean(0)
    expected = (centred / np.sqrt(np.square(centred).mean((0, 1, 2)))).transpose(0, 3, 1, 2)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    np.testing.assert_allclose(preprocessing.normalize(batch), expected, atol=1e-5)
    np.testing.assert_allclose(preprocessing.normalize_arrays(images), expected, atol=1e-5)
    assert preprocessing.mean == pytest.approx(scaled.mean((0, 1, 2)))
    assert preprocessing.normalize(batch).is_contiguous(memory_format=torch.channels_last)


def test_padded_images_are_filled_with_the_colour_that_was_measured_without_padding() -> None:
    images = [np.full((4, 8, 3), value, np.uint8) for value in (100, 200)]
    preprocessing = preprocessing_for(
        data(normalize="pixelwise", image_size=8, resize="pad"), {}, lambda read: (read(partial(Image.fromarray, one)) for one in images)
    )
    assert preprocessing.mean == pytest.approx((150 / 255,) * 3)
    assert (preprocessing.fit(images[0])[0] == 150).all()
    np.testing.assert_allclose(preprocessing.mean_picture, 150 / 255, atol=1e-6)


def test_a_mean_image_is_known_by_its_sha256_and_nothing_is_normalised_without_it() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    preprocessing = pixelwise(images)
    assert preprocessing.mean_picture is not None
    values = json.loads(json.dumps(preprocessing.to_json()))
    assert values["mean_picture"]["file"] == "mean_picture.safetensors"
    assert len(json.dumps(values)) < 600
    assert Preprocessing.from_json(values, preprocessing.mean_picture) == preprocessing
    assert pixelwise(images[:2]) != preprocessing
    without = Preprocessing.from_json(values)
    assert (without.fit(images[0]) == preprocessing.fit(images[0])).all()
    with pytest.raises(ValueError, match="without it"):
        without.normalize(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="match its sha256"):
        Preprocessing.from_json(values, preprocessing.mean_picture + 1)
    with pytest.raises(ValueError, match="doesn't fit"):
        Preprocessing.from_json(values, preprocessing.mean_picture[:4])
