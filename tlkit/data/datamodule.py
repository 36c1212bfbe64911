"""The three splits as Lightning's loaders."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Literal

import lightning
from torch import distributed

from tlkit.data.augment import Augmentation
from tlkit.data.dataset import ImageLoader, make_loader
from tlkit.data.decoded_cache import DecodedCache
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Samples
from tlkit.errors import CacheUnavailable, DataError
from tlkit.files import format_bytes


class ImageDataModule(lightning.LightningDataModule):
    """batch_size: pictures a step over all devices. Needs a Trainer with use_distributed_sampler=False: the samplers deal out themselves.

    balanced: training draws every class as often as any other, with replacement.
    first_epoch: epochs of earlier phases, so that a phase goes on with the order and the augmentation instead of repeating them.
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
        first_epoch: int = 0,
    ) -> None:
        super().__init__()
        self.samples = samples
        self.hashes: Mapping[str, str] = {}
        """A picture's id -> its sha256, for what is kept by picture; empty until somebody has hashed them."""
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.balanced = balanced
        self.first_epoch = first_epoch
        self._kept: dict[str, DecodedCache] = {}

    @property
    def uses_decoded_cache(self) -> bool:
        return bool(self._kept)

    def cache_decoded(self, folder: Path, *, budget_gb: float, processes: int = 1) -> None:
        """From here on each training and validation picture is decoded and fitted once. For what is kept already this does nothing.

        folder: where the file for them is made. processes: on this machine, each of which keeps its own.
        Raises CannotKeep where the budget or the disk is too small.
        """
        if self._kept:
            return
        shape = (self.preprocessing.image_size, self.preprocessing.image_size, self.preprocessing.channels)
        images = {split: len(self.samples.of(split)) for split in ("train", "val")}
        needed = processes * sum(images.values()) * prod(shape)
        if needed > budget_gb * 1e9:
            raise CacheUnavailable(f"{format_bytes(needed)} would be needed and cache.budget_gb is {budget_gb:g}")
        self._kept = {split: DecodedCache(number, shape, folder) for split, number in images.items()}

    def check_shares(self, devices: int) -> None:
        """Raises DataError where a step, or a split, can't be dealt out to so many."""
        if self.batch_size % devices:
            raise DataError(
                f"data.batch_size = {self.batch_size} can't be dealt out evenly to {devices} devices.\n"
                f"  It is the size over all devices: use a multiple of {devices}."
            )
        for split in ("train", "val"):
            if (images := len(self.samples.of(split))) < devices:
                raise DataError(
                    f"{images} pictures of the {split} split can't be dealt out to {devices} devices.\n"
                    "  Each needs one at least: use fewer devices, or more pictures."
                )

    def train_dataloader(self) -> ImageLoader:
        return self._loader("train", train=True)

    def val_dataloader(self) -> ImageLoader:
        return self._loader("val")

    def test_dataloader(self) -> ImageLoader:
        return self._loader("test")

    def whole(self, split: str) -> ImageLoader:
        """Every picture of a split once, in order and as it is, whatever the rank."""
        samples = self.samples.of(split)
        return make_loader(samples, self.preprocessing, batch_size=self.batch_size, workers=self.workers, multi_hot=self.samples.multi_hot)

    def _loader(self, split: str, *, train: bool = False) -> ImageLoader:
        rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if _is_distributed() else (0, 1)
        return make_loader(
            self.samples.of(split),
            self.preprocessing,
            batch_size=self.batch_size // ranks,
            train=train,
            augmentation=self.augmentation if train else None,
            workers=self.workers,
            seed=self.seed,
            first_epoch=self.first_epoch,
            rank=rank,
            ranks=ranks,
            multi_hot=self.samples.multi_hot,
            balanced=self.balanced and train,
            kept=self._kept.get(split),
        )


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
