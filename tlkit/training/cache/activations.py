"""The activation cache: the frozen part of a network runs once, and a phase trains only the layers after it.

An entry is a folder named by its key; it is written atomically. The key contains everything that affects an activation, so
later phases, other seeds, other heads and a search reuse the entries of earlier runs, and never stale ones.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from rich.console import Console
from torch import Tensor

from tlkit.data.datamodule import ImageDataModule
from tlkit.data.dataset import ImageDataset, ImageLoader, make_loader
from tlkit.data.decode import decoder_versions
from tlkit.data.progress import progress
from tlkit.data.samples import Sample
from tlkit.errors import CacheUnavailable
from tlkit.evaluation.answers import Answers
from tlkit.files import atomic_folder, format_bytes, is_disk_full, key_of, remove_unfinished, write_json
from tlkit.models.classifier import Classifier
from tlkit.models.inference.unknown import as_vectors
from tlkit.models.split import Activations, CannotCut, Suffix, cut
from tlkit.recipe.fields.trainer import Cache
from tlkit.system import cache_folder
from tlkit.terminal import counted
from tlkit.training.cache.entries import locked, make_room
from tlkit.training.cache.store import ActivationData, ActivationLoader, Stored, as_bytes, as_kept, open_stored

LOG = logging.getLogger("tlkit")

FORMAT = 2
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
AUTOCAST: Mapping[str, Callable[[str], AbstractContextManager[Any]]] = {
    "32-true": lambda device: nullcontext(),
    "bf16-mixed": lambda device: torch.autocast(device, torch.bfloat16),
    "16-mixed": lambda device: torch.autocast(device, torch.float16),
}
COMPARED = 8
"""Images whose cached activations are compared with the network's before they are used."""
LARGEST_SHARE = 8
"""Activations of more than this many times the bytes of the uint8 image are not cached: near its first layers a network runs faster
than its activations are read (resnet18 at 128 px: 21 times after the first convolution, 5 times at layer1)."""


class ActivationCache:
    """The activations of images at the end of a classifier's frozen part. Logs what was found or computed."""

    def __init__(
        self, classifier: Classifier, data: ImageDataModule, cache: Cache, *, device: torch.device, precision: str, console: Console
    ) -> None:
        """Set up the cache. classifier: frozen as for the phase. precision: Lightning's name. Raises CacheUnavailable if it can't be."""
        if precision not in AUTOCAST:
            raise CacheUnavailable(f"trainer.precision is {precision}")
        size, channels = data.preprocessing.image_size, data.preprocessing.channels
        self._normalize = data.preprocessing.normalizer()
        try:
            self._cut = cut(classifier, self._normalize(torch.zeros(1, channels, size, size, dtype=torch.uint8)))
        except CannotCut as why:
            raise CacheUnavailable(str(why)) from why
        self._normalize.to(device)
        self._classifier, self._data, self._cache = classifier, data, cache
        self._used: set[Path] = set()
        """Entries that this phase needs together: those of its training and of its validation images."""
        self._device, self._precision, self._console = device, precision, console
        self._weights = digest(self._cut.prefix.state_dict())

    @property
    def suffix(self) -> Suffix:
        """Return the layers after the cached activations, up to the head."""
        return self._cut.suffix

    def splits(self) -> ActivationData:
        """Return training and validation activations. Raises CacheUnavailable."""
        if self._data.augmentation is None:
            stored = self._stored(self._untouched(), views=0)
            return ActivationData(self._data, stored, stored)
        if not self._cache.views:
            raise CacheUnavailable("augment changes the images in every epoch (cache.views keeps a number of views of each)")
        train = self._stored(self._data.samples.of("train"), views=self._cache.views)
        return ActivationData(self._data, train, self._stored(self._untouched(), views=0))

    def features(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the head's input [N, F] and the labels of a split, without augmentation, by a completely frozen backbone.

        Raises CacheUnavailable.
        """
        loader = ActivationLoader(self._data.whole(split), self._stored(self._plain(), views=0))
        found = [(features, labels) for (features,), labels in loader]
        return torch.cat([features for features, _ in found]), torch.cat([labels for _, labels in found])

    def answers(self, samples: Sequence[Sample]) -> Answers:
        """Return the classifier's answers on training or validation images, from cached activations without augmentation.

        Raises CacheUnavailable if that isn't there already, or is rounded.
        """
        if self._cache.dtype != "float32":
            raise CacheUnavailable("the cached activations are rounded")
        stored = self._stored(self._untouched(), views=0, make=False)
        if any(sample.id not in stored.rows for sample in samples):
            raise CacheUnavailable("these images are not cached")
        images = ImageDataset(samples, self._data.preprocessing, multi_hot=self._data.samples.multi_hot)
        loader = ActivationLoader(make_loader(images, batch_size=self._data.batch_size, workers=0), stored)
        logits, seen, labels = [], [], []
        self._classifier.to(self._device).eval()
        with torch.inference_mode():
            for activations, batch_labels in loader:
                features = self._cut.suffix.eval()(*(activation.to(self._device) for activation in activations))
                logits.append(self._classifier.head(features).float().cpu())
                seen.append(as_vectors(features).float().cpu())
                labels.append(batch_labels)
        return Answers(torch.cat(logits), torch.cat(labels), torch.cat(seen))

    def _untouched(self) -> tuple[Sample, ...]:
        """Return the images that a phase needs without augmentation."""
        return self._plain() if self._data.augmentation is None else self._data.samples.of("val")

    def _plain(self) -> tuple[Sample, ...]:
        """Return training and validation images, and those of the test split if another seed may split them differently."""
        samples = self._data.samples
        return tuple(sample for sample in samples.samples if sample.split != "test" or "test" in samples.drawn)

    def _stored(self, samples: Sequence[Sample], *, views: int, make: bool = True) -> Stored:
        samples = sorted(samples, key=lambda sample: sample.id)
        rows = {sample.id: row for row, sample in enumerate(samples)}
        shapes = self._shapes()
        dtype = self._affordable(shapes, len(samples) * max(1, views))
        entry = cache_folder() / "activations" / self._key(samples, dtype, views)
        is_reported = not make or entry in self._used
        self._used.add(entry)
        with locked(entry):
            stored = open_stored(entry, shapes, DTYPES[dtype], rows, views)
            if stored is not None and not self._agrees(stored, samples):
                LOG.warning("cached activations in %s differ from the network's: computed again", entry)
                stored = None
            if stored is None and not make:
                raise CacheUnavailable("these images are not cached")
            if stored is None:
                self._make(entry, samples, shapes, dtype, views)
                stored = open_stored(entry, shapes, DTYPES[dtype], rows, views)
            elif not is_reported:
                LOG.info("activations of %s found in %s", counted(len(samples), "image"), entry)
        if stored is None:
            raise CacheUnavailable(f"{entry} can't be read back")
        with suppress(OSError):  # an entry of another user's
            os.utime(entry)
        return stored

    def _shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of one image's activations, in the order in which they are cached: maps [H, W, C]."""
        size, channels = self._data.preprocessing.image_size, self._data.preprocessing.channels
        black = torch.zeros(1, channels, size, size, dtype=torch.uint8)
        return [tuple(as_kept(activation).shape[1:]) for activation in self._activations(black)]

    @torch.inference_mode()
    def _activations(self, images: Tensor) -> Activations:
        """Compute the activations of images, uint8 [B, C, S, S]."""
        self._cut.prefix.to(self._device)
        normalized = self._normalize(images.to(self._device, non_blocking=True))
        with AUTOCAST[self._precision](self._device.type):
            return tuple(self._cut.prefix(normalized.contiguous(memory_format=torch.channels_last)))

    def _affordable(self, shapes: Sequence[tuple[int, ...]], images: int) -> str:
        """Choose the dtype. Raises CacheUnavailable, with the size needed, if none of the allowed ones is within budget."""
        preprocessing = self._data.preprocessing
        values = sum(int(np.prod(shape)) for shape in shapes)
        formats = [self._cache.dtype, *(["float16"] if self._cache.half_over_budget else [])]
        for dtype in formats:
            bytes_per_image = values * DTYPES[dtype].itemsize
            needed = images * bytes_per_image
            if bytes_per_image > LARGEST_SHARE * preprocessing.image_size**2 * preprocessing.channels:
                reason = f"an image's activations at {self._cut.boundary} are {format_bytes(bytes_per_image)}: so few layers run faster"
            elif needed > self._cache.budget_gb * 1e9:
                reason = f"{format_bytes(needed)} would be needed and cache.budget_gb is {self._cache.budget_gb:g}"
            else:
                return dtype
        raise CacheUnavailable(reason)

    def _key(self, samples: Sequence[Sample], dtype: str, views: int) -> str:
        made_by = self._data.augmentation
        augmentation = [repr(made_by.compose), self._data.seed, views] if views and made_by else None
        if augmentation and made_by and made_by.margin > 1:
            augmentation += [made_by.margin, "jpegs at a reduced scale", "centred"]
        facts = {
            "format": FORMAT,
            "prefix": self._weights,
            "graph": self._cut.code,
            "modules": digest_texts(iter([repr(self._cut.prefix)])),  # two kinds of pooling have the same graph and no weights
            "preprocessing": self._data.preprocessing.to_json(),
            "pictures": digest_texts(f"{sample.id}\0{self._data.hashes[sample.id]}" for sample in samples),
            "augmentation": augmentation,
            "dtype": dtype,
            "device": self._device.type,
            "precision": self._precision,
            "versions": {"torch": torch.__version__, "timm": timm.__version__, **decoder_versions()},
        }
        return key_of(facts)

    def _agrees(self, stored: Stored, samples: Sequence[Sample]) -> bool:
        """Compare the first images with what the network gives now."""
        first = samples[: min(COMPARED, self._data.batch_size)]
        rows = [row * max(1, stored.views) for row in range(len(first))]
        (images, _) = next(iter(self._loader(first, view=0, augmented=stored.views > 0)))
        tolerance = 1e-3 if stored.dtype == torch.float32 else 2e-2
        live = [activation.float().cpu() for activation in self._activations(images)]
        return all(
            torch.allclose(kept, now, rtol=tolerance, atol=tolerance * float(now.abs().max()))
            for kept, now in zip(stored.read(rows), live, strict=True)
        )

    def _make(self, entry: Path, samples: Sequence[Sample], shapes: Sequence[tuple[int, ...]], dtype: str, views: int) -> None:
        """Raise CacheUnavailable if the disk is full."""
        needed = len(samples) * max(1, views) * sum(int(np.prod(shape)) for shape in shapes) * DTYPES[dtype].itemsize
        make_room(needed, self._cache.budget_gb, keep=self._used)
        remove_unfinished(entry.parent, entry.name)
        began = time.perf_counter()
        try:
            with atomic_folder(entry) as writing:
                self._write(writing, samples, DTYPES[dtype], views)
                facts = {"boundary": self._cut.boundary, "pictures": len(samples), "views": views, "dtype": dtype, "shapes": shapes}
                write_json(writing / "entry.json", facts, durable=False)
        except OSError as error:
            if is_disk_full(error):
                raise CacheUnavailable(f"the disk of {entry.parent} is full: {format_bytes(needed)} are needed") from error
            raise CacheUnavailable(f"{entry.parent} can't be written: {error.strerror}") from error
        LOG.info(
            "frozen part run once, up to %s: %s%s, %s in %.1f s",
            self._cut.boundary,
            counted(len(samples), "image"),
            f" in {counted(views, 'view')}" if views else "",
            format_bytes(needed),
            time.perf_counter() - began,
        )

    def _write(self, folder: Path, samples: Sequence[Sample], dtype: torch.dtype, views: int) -> None:
        """Write files of rows, an image's views side by side. Not mapped memory: a full disk would kill the process that writes to it."""
        what = "frozen part, once"
        arrays: list[Any] = []
        with progress(self._console, what, len(samples) * max(1, views)) as advance:
            loaders = [iter(self._loader(samples, view=view, augmented=views > 0)) for view in range(max(1, views))]
            for batches in zip(*loaders, strict=True):
                found = [self._activations(images) for images, _ in batches]  # a view each
                kept = [torch.stack([as_kept(a) for a in views_of_one], dim=1).flatten(0, 1) for views_of_one in zip(*found, strict=True)]
                if not arrays:
                    arrays = [(folder / f"{i}.bin").open("wb") for i in range(len(kept))]
                for array, activation in zip(arrays, kept, strict=True):
                    array.write(as_bytes(activation.to(dtype).cpu()))
                advance(sum(len(labels) for _, labels in batches))
        for array in arrays:
            array.close()

    def _loader(self, samples: Sequence[Sample], *, view: int, augmented: bool) -> ImageLoader:
        images = ImageDataset(
            samples,
            self._data.preprocessing,
            augmentation=self._data.augmentation if augmented else None,
            seed=self._data.seed,
            multi_hot=self._data.samples.multi_hot,
        )
        loader = make_loader(images, batch_size=self._data.batch_size, workers=self._data.workers)
        loader.sampler.set_epoch(view)  # type: ignore[attr-defined]  # ours: a view is drawn as an epoch is
        return loader


def digest(state: Mapping[str, Tensor]) -> str:
    """Hash names and values (sha256)."""
    found = sha256()
    for name in sorted(state):
        found.update(name.encode())
        found.update(as_bytes(state[name].detach().cpu()))
    return found.hexdigest()


def digest_texts(texts: Iterator[str]) -> str:
    found = sha256()
    for text in texts:
        found.update(text.encode("utf-8", "surrogateescape") + b"\n")
    return found.hexdigest()
