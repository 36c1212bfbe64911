"""The three splits as Lightning's loaders."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

import lightning
import numpy as np
from numpy.typing import NDArray
from torch import distributed

from tlkit.data.augment import Augmentation, build_augmentation
from tlkit.data.dataset import ImageDataset, ImageLoader, TrainingOrder, make_loader
from tlkit.data.decode import image_size
from tlkit.data.decoded_cache import DecodedCache
from tlkit.data.preprocess import Preprocessing, larger_side, preprocessing_for
from tlkit.data.samples import Samples, evenly_spread
from tlkit.data.sources.read import read_source
from tlkit.data.splits.folds import split_by_recipe
from tlkit.errors import CacheUnavailable, DataError
from tlkit.files import format_bytes
from tlkit.recipe.fields.data import Data
from tlkit.recipe.validate import document_of, transforms_of, validated
from tlkit.terminal import counted


class ImageDataModule(lightning.LightningDataModule):
    """The splits of labelled images as Lightning's loaders.

    Batches are (images, labels): uint8 [B, C, S, S] in channels_last memory, not yet normalised, and int64 [B]; for multilabel float
    [B, K]. Any Trainer takes it. Over several processes each image is seen once, whatever the Trainer's `use_distributed_sampler` is.
    `from_folder` makes one from plain arguments.

    Args:
        samples: Images with their labels and splits.
        preprocessing: How an image file becomes what the network sees.
        augmentation: Of training images; None leaves them as they are.
        batch_size: Images a step over all devices.
        workers: Processes that load images; auto is none for few images or on two processors.
        seed: Decides the order and the augmentation of every epoch.
        balanced: Training draws every class as often as any other, with replacement.

    Attributes:
        first_epoch: Epochs of earlier phases: a phase goes on with the order and the augmentation instead of repeating them.
    """

    def __init__(
        self,
        samples: Samples,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None = None,
        *,
        batch_size: int,
        workers: int | Literal["auto"] = "auto",
        seed: int = 0,
        balanced: bool = False,
    ) -> None:
        super().__init__()
        self.samples = samples
        self.hashes: Mapping[str, str] = {}
        """Image id -> sha256, for caches by image; empty until the images have been hashed."""
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.balanced = balanced
        self.first_epoch = 0
        self._kept: dict[str, DecodedCache] = {}

    @classmethod
    def from_folder(
        cls,
        folder: str | PathLike[str],
        *,
        image_size: int = 224,
        batch_size: int = 64,
        validation: float = 0.1,
        augment: str | Sequence[Any] = (),
        margin: float = 1.0,
        seed: int = 0,
    ) -> Self:
        """Read a folder of images, one folder a class: `photos/rose/1.jpg`, or with splits `photos/train/rose/1.jpg`.

        Args:
            folder: The folder. A validation and a test split that aren't there are cut from the training split, stratified.
            image_size: S, in pixels: the side of the square image that the network sees.
            batch_size: Images a step over all devices.
            validation: Share of the training split kept for validation, and the same for the test, where the folder has no such split.
            augment: What is done to training images, as in a recipe: light, medium, heavy, or a list of albumentations' transforms such
                as `["HorizontalFlip", {"Rotate": {"limit": 15}}]`.
            margin: Size of training images before a crop to the square, as a multiple of image_size, from 1 to 2; see `data.margin`.
            seed: Decides the splits, and the order and the augmentation of every epoch.

        Returns:
            The data, split. Images are cropped as timm does. The mean and std of its preprocessing are ImageNet's; `create_classifier`
            takes those of the weights in their place.

        Raises:
            DataError: The folder is missing, holds no images, or fewer than two classes.
            RecipeError: A value or a transform can't be used.
        """
        source = {"folder": folder}
        shares = {"validation": validation, "test": validation}
        values = {"source": source, "image_size": image_size, "batch_size": batch_size, "margin": margin, **shares}
        data = validated(Data, document_of(values), "data")
        samples = split_by_recipe(read_source(data.source, Path(data.root)), data, seed)
        augmentation = build_augmentation(transforms_of(augment), image_size, margin=margin)
        return cls(samples, preprocessing_for(data, {}), augmentation, batch_size=batch_size, seed=seed)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the K classes, in the order of the labels."""
        return self.samples.classes

    @property
    def _margin(self) -> float:
        return self.augmentation.margin if self.augmentation is not None else 1.0

    @property
    def uses_decoded_cache(self) -> bool:
        return bool(self._kept)

    def cache_decoded(self, folder: Path, *, budget_gb: float, processes: int = 1) -> None:
        """Decode and resize each training and validation image only once from here on. Does nothing for images that are cached already.

        folder: where the cache file is made. processes: on this machine, each of which has its own cache.
        Raises CacheUnavailable if the budget or the disk is too small.
        """
        if self._kept:
            return
        sizes = {split: self.decoded_bytes(split) for split in ("train", "val")}
        needed = processes * sum(int(size.sum()) for size in sizes.values())
        if needed > budget_gb * 1e9:
            with_margin = f" with data.margin = {self._margin:g}" if self._margin > 1 else ""
            raise CacheUnavailable(f"{format_bytes(needed)} would be needed{with_margin} and cache.budget_gb is {budget_gb:g}")
        self._kept = {split: DecodedCache(size, self.preprocessing.channels, folder) for split, size in sizes.items()}

    def decoded_bytes(self, split: str, *, most: int | None = None) -> NDArray[np.int64]:
        """Return the bytes that each decoded and resized image of the split takes, [N]: exact but for a few pixels of augmented ones.

        most: look at no more than so many, evenly spread, and return as many: images of one class are often alike in size.
        """
        spec, samples = self.preprocessing, self.samples.of(split)
        if most is not None:
            samples = evenly_spread(samples, most)
        margin = self._margin if split == "train" else 1.0
        if margin == 1 or spec.resize != "crop":
            return np.full(len(samples), larger_side(spec.image_size, margin) ** 2 * spec.channels, np.int64)
        return np.array([spec.larger_bytes(*image_size(sample.image), margin) for sample in samples], np.int64)

    def check_shares(self, devices: int) -> None:
        """Raise DataError if a step, or a split, can't be divided among so many devices."""
        if self.batch_size % devices:
            raise DataError(
                f"data.batch_size = {self.batch_size} can't be divided evenly among {devices} devices.\n"
                f"  It is the size over all devices: use a multiple of {devices}."
            )
        for split in ("train", "val"):
            if (images := len(self.samples.of(split))) < devices:
                raise DataError(
                    f"{counted(images, 'image')} of the {split} split can't be divided among {devices} devices.\n"
                    "  Each needs one at least: use fewer devices, or more images."
                )

    def train_dataloader(self) -> ImageLoader:
        if (ranks := _rank_and_ranks()[1]) > 1:
            self.check_shares(ranks)
        return self._loader("train", train=True)

    def val_dataloader(self) -> ImageLoader:
        return self._loader("val")

    def test_dataloader(self) -> ImageLoader:
        return self._loader("test")

    def predict_dataloader(self) -> ImageLoader:
        """Return the images of the test split."""
        return self._loader("test")

    def whole(self, split: str) -> ImageLoader:
        """Return every image of a split once, in order and without augmentation, whatever the rank."""
        kept = self._kept.get(split) if split != "train" or self._margin == 1 else None
        images = ImageDataset(self.samples.of(split), self.preprocessing, multi_hot=self.samples.multi_hot, kept=kept)
        return make_loader(images, batch_size=self.batch_size, workers=self.workers)

    def _loader(self, split: str, *, train: bool = False) -> ImageLoader:
        samples = self.samples.of(split)
        images = ImageDataset(
            samples,
            self.preprocessing,
            augmentation=self.augmentation if train else None,
            seed=self.seed,
            multi_hot=self.samples.multi_hot,
            kept=self._kept.get(split),
        )
        rank, ranks = _rank_and_ranks()
        return make_loader(
            images,
            batch_size=self.batch_size // ranks,
            workers=self.workers,
            order=TrainingOrder.of(samples, self.seed, balanced=self.balanced) if train else None,
            first_epoch=self.first_epoch,
            rank=rank,
            ranks=ranks,
        )


def _rank_and_ranks() -> tuple[int, int]:
    return (distributed.get_rank(), distributed.get_world_size()) if _is_distributed() else (0, 1)


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
