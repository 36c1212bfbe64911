"""The recipe's `augment:` -> albumentations, seeded for every image by itself; and the crop to the square that the network sees."""

import os
import random
import re
from collections.abc import Sequence
from hashlib import blake2b
from inspect import signature
from struct import pack
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
from numpy.typing import NDArray

from tlkit.data.preprocess import larger_side
from tlkit.errors import DataError, Fault, RecipeError
from tlkit.recipe.fields.augment import AUTO_AUGMENT, Transform

TRIALS = 3
BORDER_CONSTANT = 0
"""OpenCV's number; others fill with the image itself, mirrored or repeated."""
SIZED = ("RandomResizedCrop", "RandomSizedCrop")
"""Their `size` can be no other than that of the images, so a recipe needn't give it."""


class Augmentation:
    """Augments one image, with draws that depend on nothing but the seed.

    albumentations 2.0.8 gives each transform its own two generators, and `set_random_seed` makes them again from the same seed:
    Rotate and Affine would then draw the same numbers, in 20 microseconds a transform. Here all transforms share one pair of generators,
    whose state is set before every image in 9 microseconds.

    margin: 1 for images of the size that the network sees. Above 1 images are larger, of any aspect ratio, and what the transforms leave
    is cropped to the square.
    """

    def __init__(self, compose: Any, image_size: int, margin: float = 1.0) -> None:
        self.compose, self.image_size, self.margin = compose, image_size, margin
        self._leaves_empty = margin > 1 and any(getattr(item, "border_mode", None) == BORDER_CONSTANT for item in compose)
        self.bits = np.random.PCG64(0)
        self.py_random = random.Random(0)  # noqa: S311 (images, not secrets)
        compose.set_random_state(np.random.Generator(self.bits), self.py_random)

    def __call__(self, image: NDArray[np.uint8], *, seed: tuple[int, int, int]) -> NDArray[np.uint8]:
        """Augment an image and return [S, S, C] uint8. image: [S, S, C] or, with a margin, [H, W, C]. seed: (of the run, epoch, index)."""
        self._set_state(seed)
        # 0 in the mask is what transforms fill in where they turn or move an image away.
        masks = {"mask": np.ones(image.shape[:2], np.uint8)} if self._leaves_empty else {}
        augmented: dict[str, NDArray[np.uint8]] = self.compose(image=image.copy(), **masks)
        return augmented["image"] if self.margin == 1 else self._cropped(augmented["image"], augmented.get("mask"))

    def _cropped(self, image: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        """Crop to the square at a random place, of those that show the least of what was filled in. mask: 0 there; [H, W] or None."""
        size, (height, width) = self.image_size, image.shape[:2]
        if min(height, width) < size:
            raise DataError(
                f"augment leaves {width} x {height} px of an image, and data.image_size is {size}.\n"
                f"  Raise data.margin (it is {self.margin:g}), or crop less."
            )
        places: Sequence[int] | NDArray[np.int64] = range((height - size + 1) * (width - size + 1))
        if mask is not None and not mask.all():
            import cv2

            # With the pixels beside them, which are partly filled by interpolation.
            filled = 1 - cv2.erode(mask, np.ones((3, 3), np.uint8))
            above = cv2.integral(filled)  # [H + 1, W + 1]: filled pixels above and to the left of each place
            shown = above[size:, size:] - above[:-size, size:] - above[size:, :-size] + above[:-size, :-size]
            places = np.flatnonzero(shown == shown.min())
        top, left = divmod(int(places[int(np.random.Generator(self.bits).integers(len(places)))]), width - size + 1)
        return np.ascontiguousarray(image[top : top + size, left : left + size])

    def _set_state(self, seed: tuple[int, int, int]) -> None:
        digest = blake2b(pack("<3Q", *seed), digest_size=40).digest()
        # PCG64's increment must be odd.
        state, increment = int.from_bytes(digest[:16], "little"), int.from_bytes(digest[16:32], "little") | 1
        self.bits.state = {"bit_generator": "PCG64", "state": {"state": state, "inc": increment}, "has_uint32": 0, "uinteger": 0}
        self.py_random.seed(int.from_bytes(digest[32:], "little"))

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled Compose would come back with generators of its own in every transform.
        return Augmentation, (self.compose, self.image_size, self.margin)


def build_augmentation(transforms: Sequence[Transform], image_size: int, channels: int = 3, *, margin: float = 1.0) -> Augmentation | None:
    """Build the transforms in the recipe's order and try each on an image of this size and channels; return None if there are none.

    margin: see `data.margin`; above 1 a transform may change the size, as long as the square that the network sees can be cropped from it.

    Names and arguments are those of `read_augment`. Raises RecipeError with a fault for every value that albumentations refuses, and
    every transform that changes the size or the type of the image, or that needs colours where the images have none.
    """
    if not transforms:
        return None
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # Without it the import asks the network for a newer version.
    import albumentations

    made = [_make(f"augment[{i}].{transform.name}", _with_size(transform, image_size)) for i, transform in enumerate(transforms)]
    faults = [item for item in made if isinstance(item, Fault)]
    if not faults:
        faults = [
            fault
            for index, (transform, item) in enumerate(zip(transforms, made, strict=True))
            if (fault := _tried(f"augment[{index}].{transform.name}", item, image_size, channels, margin))
        ]
    if faults:
        raise RecipeError(faults)
    return Augmentation(albumentations.Compose(made), image_size, margin)


def _with_size(transform: Transform, image_size: int) -> Transform:
    if transform.name not in SIZED or "size" in transform.arguments:
        return transform
    return transform.model_copy(update={"arguments": {**transform.arguments, "size": [image_size, image_size]}})


def _make(key: str, transform: Transform) -> Any:
    """Return the albumentations transform, or the fault that prevents it."""
    if transform.name in AUTO_AUGMENT:
        # Imports torch and albumentations, which looks for a newer version unless that is turned off first.
        from tlkit.data.auto_augment import AutoAugment

        return AutoAugment(transform.name, **transform.arguments)
    import albumentations

    kind: Any = getattr(albumentations, transform.name)
    # Without strict, values that don't fit may be replaced with the defaults, with no more than a warning. A few transforms
    # (ToSepia, RandomRotate90, MedianBlur) have no schema of their own and take no `strict`: their warnings are made errors.
    strict = {"strict": True} if "InitSchema" in vars(kind) else {}
    try:
        with catch_warnings():
            simplefilter("ignore" if strict else "error", UserWarning)
            return kind(**transform.arguments, **strict)
    except Exception as error:
        accepted = [name for name in signature(kind).parameters if name != "strict"]
        return Fault(key, f"can't be made: {_plain(error)}.", f"Its arguments are: {', '.join(accepted)}.")


def _tried(key: str, transform: Any, image_size: int, channels: int, margin: float) -> Fault | None:
    """Return what is wrong with the transform's result on a generated image."""
    draws = np.random.default_rng(0)
    side = larger_side(image_size, margin)
    shapes = [(side, side)] * TRIALS if margin == 1 else [(side, side), (side, side * 4 // 3), (side * 4 // 3, side)]
    for shape in shapes:
        image = draws.integers(0, 256, (*shape, channels), dtype=np.uint8)
        before = " x ".join(map(str, image.shape))
        try:
            with catch_warnings():
                simplefilter("ignore")
                result = transform(image=image.copy(), force_apply=True)["image"]
        except Exception as error:
            hint = "" if channels == 3 else " It may need colours: data.channels=3."
            return Fault(key, f"fails on an image of {before}: {_plain(error)}.", f"Change its arguments or remove it.{hint}")
        if not isinstance(result, np.ndarray) or result.dtype != np.uint8:
            what = f"{result.dtype} numbers" if hasattr(result, "dtype") else type(result).__name__
            return Fault(key, f"gives {what} instead of 8-bit images.", "Remove it: tlkit normalises and makes tensors itself.")
        size = " x ".join(map(str, result.shape))
        if margin == 1 and result.shape != image.shape:
            fix = f"Set its size to {image_size}, or remove it: data.image_size and data.resize fit the images before augmentation."
            return Fault(key, f"changes the image from {before} to {size}.", fix)
        if min(result.shape[:2]) < image_size or result.shape[2:] != image.shape[2:]:
            fix = f"Set its size to {image_size} or more, raise data.margin, or remove it."
            return Fault(key, f"makes {size} of an image of {before}, and data.image_size is {image_size}.", fix)
    return None


def _plain(error: Exception) -> str:
    """Return the first complaint of a pydantic or albumentations error, in one line.

    pydantic writes `1 validation error for InitSchema`, then per fault an argument and, indented, what is wrong with it.
    """
    cause = error.__cause__
    if cause is not None and hasattr(cause, "errors"):
        first = cause.errors()[0]
        argument = next((str(part) for part in first["loc"] if isinstance(part, str)), "")
        message = re.sub(r"^(Value|Assertion) error, ", "", first["msg"])
        return f"{argument}: {message[:1].lower() + message[1:]}".removeprefix(": ").rstrip(".")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
