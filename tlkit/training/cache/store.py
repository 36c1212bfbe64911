"""Activations in files: their layout, how they are read, and their batches."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlkit.data.datamodule import ImageDataModule
from tlkit.data.dataset import ImageLoader
from tlkit.models.split import Activations

LOG = logging.getLogger("tlkit")


@dataclass(frozen=True)
class Stored:
    """Activations of some images. rows: an image's id -> its row; views: augmented versions of each, 0 for the image as it is."""

    arrays: tuple[NDArray[Any], ...]
    dtype: torch.dtype
    rows: Mapping[str, int]
    views: int

    def read(self, rows: Sequence[int]) -> Activations:
        """Read rows as float32, [B, ...]; maps in channels_last memory, as they are cached."""
        return tuple(_as_activation(torch.from_numpy(array[rows]), self.dtype) for array in self.arrays)


class ActivationLoader:
    """The batches of an image loader, in its order, as (activations, labels)."""

    batch_sampler = None  # Lightning looks for it, finds this, and tells `sampler` of each epoch

    def __init__(self, loader: ImageLoader, stored: Stored) -> None:
        self.sampler, self.batch_size = loader.sampler, int(loader.batch_size or 1)
        self._images = loader.images
        self._stored = stored
        self._rows = [stored.rows[sample.id] for sample in self._images.samples]
        self._labels = torch.from_numpy(np.stack([np.asarray(self._images.target(sample)) for sample in self._images.samples]))
        self._handed_out = 0

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)  # type: ignore[arg-type]  # ours has a length

    def __iter__(self) -> Iterator[tuple[Activations, Tensor]]:
        self._handed_out = self.sampler.skip // self.batch_size  # type: ignore[attr-defined]  # ours has one
        keys = list(self.sampler)
        for first in range(0, len(keys), self.batch_size):
            batch = keys[first : first + self.batch_size]
            self._handed_out += 1
            yield self._stored.read([self._row(*key) for key in batch]), self._labels[[index for _, index in batch]]

    def state_dict(self) -> dict[str, int]:
        return {"batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next pass after the recorded number of batches."""
        self.sampler.skip = state["batches"] * self.batch_size  # type: ignore[attr-defined]  # ours has one

    def _row(self, epoch: int, index: int) -> int:
        """Return the row of a view; views alternate from epoch to epoch."""
        views = max(1, self._stored.views)
        return self._rows[index] * views + epoch % views


class ActivationData(lightning.LightningDataModule):
    """The batches of ImageDataModule, with activations instead of images."""

    def __init__(self, data: ImageDataModule, train: Stored, val: Stored) -> None:
        super().__init__()
        self._data, self._train, self._val = data, train, val

    def train_dataloader(self) -> ActivationLoader:
        return ActivationLoader(self._data.train_dataloader(), self._train)

    def val_dataloader(self) -> ActivationLoader:
        return ActivationLoader(self._data.val_dataloader(), self._val)


def open_stored(entry: Path, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, rows: Mapping[str, int], views: int) -> Stored | None:
    """Open cached activations; None if there are none, or if their files don't have the expected sizes."""
    if not (entry / "entry.json").is_file():
        return None
    number = len(rows) * max(1, views)
    files = [entry / f"{i}.bin" for i in range(len(shapes))]
    sizes = [number * int(np.prod(shape)) * dtype.itemsize for shape in shapes]
    if any(not file.is_file() or file.stat().st_size != size for file, size in zip(files, sizes, strict=True)):
        LOG.warning("%s is damaged: computed again", entry)
        return None
    kind = np.int16 if dtype == torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype
    arrays = tuple(np.memmap(file, kind, "r", shape=(number, *shape)) for file, shape in zip(files, shapes, strict=True))
    return Stored(arrays, dtype, rows, views)


def as_kept(activation: Tensor) -> Tensor:
    """Lay out maps as [B, H, W, C], the order of channels_last memory."""
    return activation.permute(0, 2, 3, 1).contiguous() if activation.ndim == 4 else activation.contiguous()


def _as_activation(kept: Tensor, dtype: torch.dtype) -> Tensor:
    values = (kept.view(torch.bfloat16) if dtype == torch.bfloat16 else kept).float()
    return values.permute(0, 3, 1, 2) if values.ndim == 4 else values


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
