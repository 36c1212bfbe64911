"""Test-time augmentation: several views of each image, whose probabilities are averaged."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlkit.data.augment import Augmentation, build_augmentation
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Sample
from tlkit.errors import RunError
from tlkit.recipe.schema import Recipe

ImageArray = NDArray[np.uint8]
View = Callable[[ImageArray, int], ImageArray]
"""A fitted image [S, S, C] and its index -> the image as it is looked at."""
Tta = Literal["flip", "crops"] | int
"""flip: as it is and mirrored. crops: also four corners and the centre, as they are and mirrored. N: as it is and N augmented views."""
CROP = 0.875
"""Side of a crop, as a share of the image's."""


def views_of(tta: Tta, recipe: Recipe, preprocessing: Preprocessing, samples: Sequence[Sample] = ()) -> list[View]:
    """Return the views; the first is the image as it is. samples: by index, for views that begin with the whole image, see `data.margin`.

    Raises RunError where the recipe has nothing to augment with.
    """
    if isinstance(tta, int):
        size, channels, margin = preprocessing.image_size, preprocessing.channels, recipe.data.margin
        augmentation = build_augmentation(recipe.augment, size, channels, margin=margin)
        if augmentation is None:
            raise RunError("--tta N looks at images as the recipe augments them, and this run's has no augment.\n  Use --tta flip.")
        whole = (lambda _, index: preprocessing.read_larger(samples[index].image, margin)) if margin > 1 else _as_it_is
        return [_as_it_is, *(_augmented(augmentation, recipe.seed, number, whole) for number in range(tta))]
    places = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)) if tta == "crops" else ()
    upright = [_as_it_is, *(_cropped(down, right, preprocessing) for down, right in places)]
    return [*upright, *map(_mirrored, upright)]


def with_views(batches: Iterable[tuple[Tensor, Tensor]], views: Sequence[View]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each batch once for each view: images uint8 [B, C, S, S] in channels_last memory."""
    seen = 0
    for images, labels in batches:
        arrays = images.permute(0, 2, 3, 1).numpy()
        for view in views:
            looked_at = np.stack([view(image, seen + i) for i, image in enumerate(arrays)])
            yield torch.from_numpy(looked_at).permute(0, 3, 1, 2), labels
        seen += len(labels)


def averaged(logits: Tensor, batch_size: int, views: int, *, multilabel: bool) -> tuple[Tensor, Tensor]:
    """Return the logits of the first view [N, K], and those of the mean of the views' probabilities [N, K].

    logits: [N * views, K], in the order of `with_views` for batches of this size, of which the last may be smaller.
    """
    of_batches = [block.reshape(views, -1, logits.shape[1]) for block in torch.split(logits, batch_size * views)]
    each = torch.cat(of_batches, dim=1).double()  # [views, N, K]
    mean = torch.logit(each.sigmoid().mean(0), eps=1e-12) if multilabel else each.softmax(2).mean(0).clamp_min(1e-300).log()
    return each[0].float(), mean


def _as_it_is(image: ImageArray, _: int) -> ImageArray:
    return image


def _mirrored(view: View) -> View:
    return lambda image, index: np.ascontiguousarray(view(image, index)[:, ::-1])


def _augmented(augmentation: Augmentation, seed: int, number: int, whole: View) -> View:
    return lambda image, index: augmentation(whole(image, index), seed=(seed, number, index))


def _cropped(down: float, right: float, preprocessing: Preprocessing) -> View:
    """Crop a square of CROP of the side, enlarged to the image's size. down, right: its position, from 0 to 1."""
    size = preprocessing.image_size
    side = max(1, round(CROP * size))
    top, left = round(down * (size - side)), round(right * (size - side))
    enlarge = replace(preprocessing, resize="stretch", crop_pct=1.0).fit
    return lambda image, _: enlarge(np.ascontiguousarray(image[top : top + side, left : left + side]))
