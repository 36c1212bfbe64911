"""The three splits as Lightning's loaders."""

from collections.abc import Mapping
from typing import Literal

import lightning
from torch import distributed

from tlkit.data.augment import Augmentation
from tlkit.data.pictures import PictureLoader, make_loader
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Samples
from tlkit.errors import DataError


class PictureData(lightning.LightningDataModule):
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

    def train_dataloader(self) -> PictureLoader:
        return self.loader("train", train=True)

    def val_dataloader(self) -> PictureLoader:
        return self.loader("val")

    def test_dataloader(self) -> PictureLoader:
        return self.loader("test")

    def loader(self, split: str, *, train: bool = False) -> PictureLoader:
        rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if _is_distributed() else (0, 1)
        if self.batch_size % ranks:
            raise DataError(
                f"data.batch_size = {self.batch_size} can't be dealt out evenly to {ranks} devices.\n"
                f"  It is the size over all devices: use a multiple of {ranks}."
            )
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
        )


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
