"""Images kept within a run: the same batches as without, decoded once, and no harm where there is no room."""

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkit.data import dataset as images
from tlkit.data import preprocess
from tlkit.data.augment import build_augmentation
from tlkit.data.datamodule import ImageDataModule
from tlkit.data.decoded_cache import CacheUnavailable, DecodedCache
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Sample, Samples
from tlkit.recipe.fields.augment import Transform

PREPROCESSING = Preprocessing(24, "crop", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
AUGMENT = [Transform(name="Rotate", arguments={"limit": 30}), Transform(name="HorizontalFlip")]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    folder = tmp_path_factory.mktemp("pictures")
    draws = np.random.default_rng(0)
    made = []
    for number in range(25):
        path = folder / f"{number}.png"
        Image.fromarray(draws.integers(0, 256, (30, 26 + number, 3), dtype=np.uint8)).save(path)
        made.append(Sample(path.name, path, (number % 2,), "train" if number < 18 else "val"))
    return Samples(("even", "odd"), tuple(made))


def data_of(samples: Samples, workers: int = 0, *, balanced: bool = False) -> ImageDataModule:
    augmentation = build_augmentation(AUGMENT, 24)
    return ImageDataModule(samples, PREPROCESSING, augmentation, batch_size=4, workers=workers, seed=7, balanced=balanced)


def epochs(data: ImageDataModule, number: int = 3) -> list[bytes]:
    """The bytes of each epoch's training batches, then those of validation, twice."""
    loaders = [data.train_dataloader(), data.val_dataloader()]
    found = []
    for epoch in range(number):
        loaders[0].sampler.set_epoch(epoch)
        found.append(b"".join(images.numpy().tobytes() for images, _ in loaders[0]))
    return found + [b"".join(images.numpy().tobytes() for images, _ in loaders[1]) for _ in range(2)]


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_a_run_without_for_any_number_of_workers(
    samples: Samples, tmp_path: Path, workers: int, balanced: bool
) -> None:
    kept = data_of(samples, workers, balanced=balanced)
    kept.cache_decoded(tmp_path, budget_gb=1)
    assert epochs(kept) == epochs(data_of(samples, balanced=balanced))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_epoch_and_a_second_phase_decode_nothing(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    calls = tmp_path / "calls"  # a file, which worker processes write to as well
    decode = preprocess.decode_pixels

    def counted(*arguments: object, **named: object) -> object:
        with calls.open("ab") as file:
            file.write(b".")
        return decode(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(preprocess, "decode_pixels", counted)
    data = data_of(samples, workers)
    data.cache_decoded(tmp_path, budget_gb=1)
    epochs(data, number=1)
    once = calls.stat().st_size
    assert once == 18 + 7
    data.cache_decoded(tmp_path, budget_gb=1)
    epochs(data)
    assert calls.stat().st_size == once
    assert len(list(data.whole("val"))) == len(list(data.val_dataloader()))
    assert calls.stat().st_size == once


@pytest.mark.parametrize("margin", [1.0, 1.5])
def test_without_augmentation_training_images_are_what_the_network_sees_however_large_they_are_kept(
    samples: Samples, tmp_path: Path, margin: float
) -> None:
    augmentation = build_augmentation(AUGMENT, 24, margin=margin)
    data = ImageDataModule(samples, PREPROCESSING, augmentation, batch_size=4, workers=0, seed=7)
    expected = b"".join(images.numpy().tobytes() for images, _ in data.whole("train"))
    data.cache_decoded(tmp_path, budget_gb=1)
    epochs(data, number=1)
    assert b"".join(images.numpy().tobytes() for images, _ in data.whole("train")) == expected


def test_the_file_has_no_name_that_could_be_left_behind(samples: Samples, tmp_path: Path) -> None:
    data = data_of(samples)
    data.cache_decoded(tmp_path / "cache", budget_gb=1)
    epochs(data)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_kept_image_can_not_be_written_to(tmp_path: Path) -> None:
    kept = DecodedCache(np.full(2, 6), 3, tmp_path)
    assert kept.get(1) is None
    image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    kept.put(1, image)
    found = kept.get(1)
    assert found is not None
    assert np.array_equal(found, image)
    assert not found.flags.writeable
    assert kept.get(0) is None


def test_over_budget_says_what_would_be_needed(samples: Samples, tmp_path: Path) -> None:
    data = data_of(samples)
    # 25 images of 24 * 24 * 3 bytes are 43,200 bytes.
    data.cache_decoded(tmp_path, budget_gb=0.0000432)
    with pytest.raises(CacheUnavailable, match=r"43\.2 kB would be needed and cache\.budget_gb is 4\.31e-05"):
        data_of(samples).cache_decoded(tmp_path, budget_gb=0.0000431)
    with pytest.raises(CacheUnavailable, match="would be needed"):
        data_of(samples).cache_decoded(tmp_path, budget_gb=0.0000432, processes=2)


def test_a_full_disk_is_reported_at_the_start(samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    data = data_of(samples)
    # 18 training images of 24 * 24 * 3 bytes
    with pytest.raises(CacheUnavailable, match=r"has no room for 31\.1 kB: No space left on device"):
        data.cache_decoded(tmp_path, budget_gb=1)
    assert epochs(data) == epochs(data_of(samples))


def test_a_disk_that_fills_up_later_changes_nothing(samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    writes = iter(range(1000))

    def fills_up(file: int, image: bytes, place: int) -> int:
        if next(writes) < 10:
            return whole(file, image, place)
        if next(writes) % 2:
            return whole(file, image[: len(image) // 2], place)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", fills_up)
    data = data_of(samples)
    data.cache_decoded(tmp_path, budget_gb=1)
    assert epochs(data) == epochs(data_of(samples))


def test_processes_that_are_started_again_decode_for_themselves(samples: Samples, tmp_path: Path) -> None:
    kept = images.ImageDataset(samples.of("train"), PREPROCESSING, kept=DecodedCache(np.full(18, 24 * 24 * 3), 3, tmp_path))
    sent = pickle.loads(pickle.dumps(kept))
    assert sent.kept is None
    assert np.array_equal(sent[(0, 3)][0], kept[(0, 3)][0])
