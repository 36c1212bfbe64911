"""Samples -> batches of uint8 images: the same ones for any number of worker processes."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from tlkit.data.augment import Augmentation
from tlkit.data.decoded_cache import DecodedCache
from tlkit.data.preprocess import Preprocessing, Read
from tlkit.data.samples import Sample
from tlkit.data.sources.webdataset_shards import TarImage
from tlkit.errors import ON_BAD_HINT, DataError
from tlkit.system import ignore_pillow_warnings, processors

Key = tuple[int, int]
"""(epoch, index): all that a sample's augmentation depends on, next to the seed."""
Target = int | NDArray[np.float32]
"""A label, or for multilabel 0 and 1 for each class, [K]."""
# Added to the epoch of an image each further time that a balanced order draws it in one epoch, so that it is augmented differently.
DRAWN_AGAIN = 2**32
Batch = tuple[Tensor, Tensor]
# Below this many images, starting worker processes takes longer than they save (two cores, 28 px images).
MIN_IMAGES_FOR_WORKERS = 5_000
MAX_WORKERS = 8
# Tar shards whose images a training order mixes: enough that a shard of one class makes no batches of one class, few enough that
# what is read is together.
SHARDS_MIXED = 8


NO_SHARED_MEMORY = (
    "The usual cause is too little shared memory (/dev/shm), as in a container: enlarge it (docker run --shm-size=2g),"
    " lower data.workers or data.batch_size, or set data.workers=0."
)


class ImageDataset(Dataset[tuple[NDArray[np.uint8], Target]]):
    """Decoded, resized and, with an augmentation, augmented images, [S, S, C] uint8.

    multi_hot: K for multilabel, 0 for one label per image. kept: holds a row for each sample, and is filled as they are asked for.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        preprocessing: Preprocessing,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        multi_hot: int = 0,
        kept: DecodedCache | None = None,
    ) -> None:
        self.samples = tuple(samples)
        self.kept = kept
        self.decode_s = self.augment_s = 0.0
        """Seconds spent so far, in this process."""
        self.multi_hot = multi_hot
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key | int) -> tuple[NDArray[np.uint8], Target]:
        """Return an image and its label; an index alone is one of epoch 0.

        Raises DataError, with the image's place, where it can't be read.
        """
        epoch, index = (0, key) if isinstance(key, int) else key
        began = time.perf_counter()
        image = self.loaded(index)
        loaded = time.perf_counter()
        image = self.augmented(image, epoch, index)
        self.decode_s += loaded - began
        self.augment_s += time.perf_counter() - loaded
        return image, self.target(self.samples[index])

    def augmented(self, loaded: NDArray[np.uint8], epoch: int, index: int) -> NDArray[np.uint8]:
        return loaded if self.augmentation is None else self.augmentation(loaded, seed=(self.seed, epoch, index))

    def loaded(self, index: int) -> NDArray[np.uint8]:
        """Return what augmentation begins with: as `fitted`, or with `data.margin` the larger image, [H, W, C].

        Raises DataError, with the image's place, where it can't be read.
        """
        if self.kept is not None and (kept := self.kept.get(index)) is not None:
            return kept
        margin = self.augmentation.margin if self.augmentation is not None else 1.0
        larger = partial(self.preprocessing.read_larger, margin=margin, reduced=True)
        image = self._read(index, larger if margin > 1 else self.preprocessing.read)
        if self.kept is not None:
            self.kept.put(index, image)
        return image

    def fitted(self, index: int) -> NDArray[np.uint8]:
        """Return the image as validation sees it, [S, S, C]. Raises DataError, with the image's place, where it can't be read."""
        return self._read(index, self.preprocessing.read)

    def _read(self, index: int, read: Read) -> NDArray[np.uint8]:
        sample = self.samples[index]
        try:
            return read(sample.image)
        except DataError as error:
            # The error names a file by its path, and what is in a shard or an array by its place there.
            name = "" if isinstance(sample.image, Path) else f"image {sample.id}: "
            raise DataError(f"{name}{error}\n  {ON_BAD_HINT}") from error

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes that are started, not forked, can't share the file: they decode for themselves.
        return {**self.__dict__, "kept": None}

    def target(self, sample: Sample) -> Target:
        if not self.multi_hot:
            return sample.label
        target = np.zeros(self.multi_hot, np.float32)
        target[list(sample.labels)] = 1
        return target


@dataclass(frozen=True)
class TrainingOrder:
    """How training draws N images, differently in each epoch.

    chances: of each image, [N]; an epoch is then drawn with replacement, and has N images all the same.
    shards: the file that each image is in, [N], where many share one; an epoch then goes through few files at a time.
    """

    seed: int = 0
    chances: NDArray[np.float64] | None = None
    shards: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, samples: Sequence[Sample], seed: int, *, balanced: bool = False) -> Self:
        """Return the order for the samples. balanced: every class is drawn as often as any other."""
        return cls(seed, balanced_chances(samples) if balanced else None, shard_numbers(samples))

    def indices(self, size: int, epoch: int) -> NDArray[np.int64]:
        """Return the images of an epoch, [size]."""
        draws = np.random.default_rng((self.seed, epoch))
        if self.chances is not None:
            return draws.choice(size, size, p=self.chances)
        order = draws.permutation(size)
        if self.shards is not None:
            mixture = draws.permutation(self.shards.max() + 1) // SHARDS_MIXED
            order = order[np.argsort(mixture[self.shards[order]], kind="stable")]
        return order


class EpochSampler(DistributedSampler[Key]):
    """Yield (epoch, index) of the images that this rank sees, in the order of (seed, epoch).

    It splits over ranks itself, without torch's padding. By its type Lightning knows that, and leaves it in place whatever its Trainer's
    `use_distributed_sampler` is; nothing of torch's class is used.
    order: of training; None takes every image once and in order. Either is one order for all ranks, taken in turns: a step of all ranks
    together sees the same images whatever their number. A last training step that leaves a rank less than two, of which batch-norm could
    take statistics, is left out, unless it is the only one.
    batch_size: images a step on this rank.
    first_epoch: added to what set_epoch sets, because Lightning counts from zero again in every phase.
    Only the next pass begins after `skip` images.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        order: TrainingOrder | None = None,
        first_epoch: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        # Not torch's __init__, which wants a data set and counts its own shares of it.
        self.size, self.order, self.first_epoch = size, order, first_epoch
        self.rank, self.ranks = rank, ranks
        self.epoch = first_epoch
        self.skip = 0
        self._a_step = batch_size * ranks
        last = size % self._a_step
        self._total = size - last if order and size > self._a_step and last < 2 * ranks else size
        self.length = len(range(rank, self._total, ranks))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = self.first_epoch + epoch

    def __len__(self) -> int:
        return self.length

    def images_of_step(self, step: int) -> int:
        """Return the number of images that all ranks together process in a step; the last one of an epoch may have fewer."""
        return min(self._a_step, self._total - step * self._a_step)

    def __iter__(self) -> Iterator[Key]:
        drawn = np.arange(self.size) if self.order is None else self.order.indices(self.size, self.epoch)
        order = drawn[: self._total]
        repeats = self.order is not None and self.order.chances is not None
        epochs = self.epoch + DRAWN_AGAIN * (_times_before(order) if repeats else np.zeros_like(order))
        mine = slice(self.rank, None, self.ranks)
        left = slice(self.skip, None)
        self.skip = 0
        return zip(epochs[mine][left].tolist(), order[mine][left].tolist(), strict=True)


def _times_before(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count how often each entry occurs before its position: [7, 2, 7, 7] -> [0, 0, 1, 2]."""
    sorting = np.argsort(order, kind="stable")
    times = np.empty_like(order)
    times[sorting] = np.arange(len(order)) - np.searchsorted(order[sorting], order[sorting])
    return times


def shard_numbers(samples: Sequence[Sample]) -> NDArray[np.int64] | None:
    """Return the number of the tar that each image is in, [N]; None unless all are in tars."""
    shards = [sample.image.shard for sample in samples if isinstance(sample.image, TarImage)]
    if not shards or len(shards) < len(samples):
        return None
    numbers = {shard: number for number, shard in enumerate(dict.fromkeys(shards))}
    return np.array([numbers[shard] for shard in shards])


def balanced_chances(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Return sampling probabilities, [N], that make every class, and every image within a class, equally likely."""
    counts = Counter(sample.label for sample in samples)
    return np.array([1 / (len(counts) * counts[sample.label]) for sample in samples])


class ImageLoader(DataLoader[Any]):
    """A DataLoader that raises a worker's DataError as it was, without torch's account of the worker's traceback.

    Its state is the number of batches of the pass that were handed out; those that workers have ready don't count.
    """

    _handed_out = 0

    @property
    def images(self) -> ImageDataset:
        caught: _Caught = self.dataset  # type: ignore[assignment]  # make_loader's
        return caught.images

    def __iter__(self) -> Any:
        # To predict, Lightning puts its own sampler in the place of ours.
        self._handed_out = self.sampler.skip // (self.batch_size or 1) if isinstance(self.sampler, EpochSampler) else 0
        batches = super().__iter__()
        while True:
            with worker_explained():
                batch = next(batches, None)
            if batch is None:
                return
            if isinstance(batch, DataError):
                raise batch
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next pass after the recorded number of batches."""
        if isinstance(self.sampler, EpochSampler):
            self.sampler.skip = state["batches"] * (self.batch_size or 1)


def make_loader(
    images: ImageDataset,
    *,
    batch_size: int,
    workers: int | Literal["auto"] = "auto",
    order: TrainingOrder | None = None,
    first_epoch: int = 0,
    rank: int = 0,
    ranks: int = 1,
) -> ImageLoader:
    """Return batches of (images uint8 [B, C, S, S] in channels_last memory, labels int64 [B] or, for multilabel, float [B, K]).

    batch_size: images a step on this rank. order: of training; None takes every image once, in order. See EpochSampler for the others.
    """
    sampler = EpochSampler(len(images), batch_size=batch_size, order=order, first_epoch=first_epoch, rank=rank, ranks=ranks)
    number = worker_count(workers, len(images))
    return ImageLoader(
        _Caught(images),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=number,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=number > 0 and order is not None,
        worker_init_fn=_start_worker if number else None,
        # Otherwise every pass over a loader draws from torch's generator, and dropout would depend on how many passes there were.
        generator=torch.Generator().manual_seed(images.seed),
    )


@contextmanager
def worker_explained() -> Iterator[None]:
    """Raise DataError in place of torch's account of a worker process that has died."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        lines = str(error).strip().splitlines()
        raise DataError(f"A worker process that reads images has died: {lines[0]}\n  {NO_SHARED_MEMORY}") from error
    except EOFError as error:  # the process that starts workers is gone; images that end too soon are a DataError already
        raise DataError(f"A worker process that reads images has died: {error}\n  {NO_SHARED_MEMORY}") from error


def worker_count(workers: int | Literal["auto"], images: int) -> int:
    """Resolve `auto`: 0 on small machines and for small data sets, otherwise one less than the processors, at most eight."""
    if workers != "auto":
        return workers
    return 0 if processors() <= 2 or images < MIN_IMAGES_FOR_WORKERS else min(MAX_WORKERS, processors() - 1)


def collate(items: Sequence[tuple[NDArray[np.uint8], Target] | DataError]) -> Batch | DataError:
    """Stack the images to [B, C, S, S], a view on [B, S, S, C] memory (torch's channels_last); or return the first error."""
    good = []
    for item in items:
        if isinstance(item, DataError):
            return item
        good.append(item)
    pixels, answers = zip(*good, strict=True)
    images, labels = torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.array(answers))
    if get_worker_info() is not None:
        try:
            # torch 2.15 would do so in a thread of the worker, which drops a batch that finds no room, and the run would wait for ever.
            images, labels = images.share_memory_(), labels.share_memory_()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            return DataError(f"A worker process has no shared memory left for a batch: {error}\n  {NO_SHARED_MEMORY}")
    return images.permute(0, 3, 1, 2), labels


class _Caught(Dataset[tuple[NDArray[np.uint8], Target] | DataError]):
    """Hands a DataError on as an item: raised in a worker process, torch would wrap it."""

    def __init__(self, images: ImageDataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key | int) -> tuple[NDArray[np.uint8], Target] | DataError:
        try:
            return self.images[key]
        except DataError as error:
            return error


def _start_worker(_: int) -> None:
    """Set up a worker process. OpenCV's own threads would compete with the other workers."""
    import cv2

    ignore_pillow_warnings()
    cv2.setNumThreads(0)
