"""Test-time augmentation averages probabilities over views of each image, in the right order."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from tlkit.data.augment import build_augmentation
from tlkit.data.preprocess import Preprocessing
from tlkit.errors import RunError
from tlkit.evaluation.test_time_augmentation import averaged, views_of, with_views
from tlkit.recipe.load import load_recipe

SIZE = 16
PREPROCESSING = Preprocessing(SIZE, "crop", 0.9, "bilinear", (0.5,) * 3, (0.5,) * 3)
IMAGE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("multilabel", [False, True])
def test_probabilities_of_the_views_are_averaged_for_each_image(multilabel: bool) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (4, 5, 3))  # views, images, classes
    # As they come from batches of 2, 2 and 1 images, each batch once for each view.
    came = np.concatenate([logits[:, start : start + 2].reshape(-1, 3) for start in (0, 2, 4)])
    plain, mean = averaged(torch.tensor(came), 2, 4, multilabel=multilabel)
    assert np.allclose(plain, logits[0])
    if multilabel:
        assert np.allclose(mean.sigmoid(), expit(logits).mean(0))
    else:
        assert np.allclose(mean.softmax(1), softmax(logits, axis=2).mean(0))


def test_each_batch_comes_once_for_each_view_with_the_indices_of_its_images() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)).permute(0, 3, 1, 2)
    batches = [(images[:3], torch.tensor([0, 1, 2])), (images[3:], torch.tensor([3, 4]))]
    asked: list[int] = []

    def noted(image: np.ndarray, index: int) -> np.ndarray:
        asked.append(index)
        return image

    found = list(with_views(batches, [noted, lambda image, _: image[:, ::-1]]))
    assert [labels.tolist() for _, labels in found] == [[0, 1, 2], [0, 1, 2], [3, 4], [3, 4]]
    assert asked == [0, 1, 2, 3, 4]
    assert torch.equal(found[0][0], images[:3])
    assert torch.equal(found[3][0], images[3:].flip(3))


def test_flip_is_the_image_and_its_mirror_image() -> None:
    first, second = views_of("flip", load_recipe("quickstart"), PREPROCESSING)
    assert np.array_equal(first(IMAGE, 0), IMAGE)
    assert np.array_equal(second(IMAGE, 0), IMAGE[:, ::-1])


def test_crops_are_the_corners_and_the_centre_mirrored_too() -> None:
    views = views_of("crops", load_recipe("quickstart"), PREPROCESSING)
    seen = [view(IMAGE, 0) for view in views]
    assert len({view.tobytes() for view in seen}) == len(seen) == 12
    assert all(view.shape == IMAGE.shape for view in seen)
    from PIL import Image

    corner = Image.fromarray(IMAGE[:14, :14].copy()).resize((SIZE, SIZE), Image.Resampling.BILINEAR)  # 0.875 of 16
    assert any(np.array_equal(view, np.asarray(corner)) for view in seen)
    assert any(np.array_equal(view, np.asarray(corner)[:, ::-1]) for view in seen)


def test_a_number_is_that_many_views_by_the_recipes_augmentation_and_seed() -> None:
    recipe = load_recipe("quickstart", ["augment=[Rotate: {limit: 40, p: 1.0}]", "seed=7"])
    views = views_of(3, recipe, PREPROCESSING)
    augmentation = build_augmentation(recipe.augment, SIZE)
    assert augmentation is not None
    assert len(views) == 4
    assert np.array_equal(views[0](IMAGE, 5), IMAGE)
    for number in range(3):
        assert np.array_equal(views[1 + number](IMAGE, 5), augmentation(IMAGE, seed=(7, number, 5)))
    with pytest.raises(RunError, match=r"no augment\.\n  Use --tta flip"):
        views_of(3, load_recipe("quickstart", ["augment=[]"]), PREPROCESSING)
