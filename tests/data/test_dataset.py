from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tlkit.data.augment import build_augmentation
from tlkit.data.dataset import DRAWN_AGAIN, EpochSampler, ImageDataset, TrainingOrder, balanced_chances, make_loader, worker_count
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Sample
from tlkit.errors import DataError
from tlkit.recipe.augmentations import preset, read_augment
from tlkit.recipe.fields.augment import Transform

PREPROCESSING = Preprocessing(24, "crop", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
AUGMENT = [Transform(name="Rotate", arguments={"limit": 30}), Transform(name="HorizontalFlip"), Transform(name="GaussNoise")]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("pictures")
    draws = np.random.default_rng(0)
    made = []
    for number in range(21):
        path = folder / f"{number}.png"
        Image.fromarray(draws.integers(0, 256, (30, 26 + number, 3), dtype=np.uint8)).save(path)
        made.append(Sample(path.name, path, (number % 3,), "train"))
    return made


def epochs(
    samples: list[Sample], workers: int, number: int = 2, *, balanced: bool = False, first_epoch: int = 0
) -> list[tuple[bytes, list[int]]]:
    images = ImageDataset(samples, PREPROCESSING, augmentation=build_augmentation(AUGMENT, 24), seed=7)
    order = TrainingOrder.of(samples, 7, balanced=balanced)
    loader = make_loader(images, batch_size=4, workers=workers, order=order, first_epoch=first_epoch)
    result = []
    for epoch in range(number):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        result.append((b"".join(images.numpy().tobytes() for images, _ in batches), [int(n) for _, labels in batches for n in labels]))
    return result


def test_none_one_and_four_workers_give_the_same_images_and_epochs_differ(samples: list[Sample]) -> None:
    alone = epochs(samples, 0)
    assert epochs(samples, 1) == alone
    assert epochs(samples, 4) == alone
    assert alone[0] != alone[1]


def test_three_epochs_are_the_same_bits_with_any_number_of_workers(samples: list[Sample]) -> None:
    """With torchvision's augmentations, a preset's, and a balanced order that draws some images more than once an epoch."""
    items, _ = read_augment([*preset("heavy"), "trivialaugment"])
    augmentation = build_augmentation([Transform(**item) for item in items], 24)
    rare = [replace(sample, labels=(0 if number < 3 else 1,)) for number, sample in enumerate(samples)]

    def three_epochs(workers: int) -> list[list[bytes]]:
        images = ImageDataset(rare, PREPROCESSING, augmentation=augmentation, seed=1)
        loader = make_loader(images, batch_size=4, workers=workers, order=TrainingOrder.of(rare, 1, balanced=True))
        found = []
        for epoch in range(3):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            found.append([images.numpy().tobytes() + labels.numpy().tobytes() for images, labels in loader])
        return found

    alone = three_epochs(0)
    assert [len(epoch) for epoch in alone] == [5, 5, 5]
    assert len({batch for epoch in alone for batch in epoch}) == 15
    for workers in (1, 2, 4):
        assert three_epochs(workers) == alone


def test_a_later_phase_goes_on_where_the_earlier_one_ended(samples: list[Sample]) -> None:
    assert epochs(samples, 0, number=3)[2] == epochs(samples, 0, number=1, first_epoch=2)[0]


def test_evaluation_gives_every_image_once_and_in_order(samples: list[Sample]) -> None:
    loader = make_loader(ImageDataset(samples, PREPROCESSING), batch_size=4, workers=0)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [4, 4, 4, 4, 4, 1]
    assert torch.cat([labels for _, labels in batches]).tolist() == [sample.label for sample in samples]


def test_training_leaves_out_a_last_batch_of_one_image_only(samples: list[Sample]) -> None:
    by_size = {size: make_loader(ImageDataset(samples, PREPROCESSING), batch_size=size, order=TrainingOrder()) for size in (1, 4, 6)}
    assert len(by_size[4]) == 5
    assert [len(labels) for _, labels in by_size[4]] == [4, 4, 4, 4, 4]
    assert [len(labels) for _, labels in by_size[6]] == [6, 6, 6, 3]
    assert len(by_size[1]) == 21


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_uint8_in_channels_last_memory(samples: list[Sample], workers: int) -> None:
    images, labels = next(iter(make_loader(ImageDataset(samples, PREPROCESSING), batch_size=4, workers=workers)))
    assert (images.shape, images.dtype, labels.dtype) == ((4, 3, 24, 24), torch.uint8, torch.int64)
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = PREPROCESSING.fit(np.asarray(Image.open(samples[2].image)))
    assert np.array_equal(images[2].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_named_without_a_workers_traceback(samples: list[Sample], tmp_path: Path, workers: int) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = [*samples[:3], Sample("train/x/bad.png", tmp_path / "bad.png", (0,), "train")]
    with pytest.raises(DataError) as raised:
        list(make_loader(ImageDataset(bad, PREPROCESSING), batch_size=2, workers=workers))
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'bad.png'}: this is not an image")
    assert "Traceback" not in message
    assert "worker process" not in message


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_images_out(ranks: int) -> None:
    training = [EpochSampler(20, batch_size=4, order=TrainingOrder(1), rank=rank, ranks=ranks) for rank in range(ranks)]
    assert sorted(index for sampler in training for _, index in sampler) == list(range(20))
    evaluation = [EpochSampler(20, batch_size=4, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert sorted(index for sampler in evaluation for _, index in sampler) == list(range(20))


@pytest.mark.parametrize("size", [1003, 1002, 1001, 1000, 999])
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_step_sees_the_same_images_whatever_the_number_of_ranks(size: int, ranks: int) -> None:
    alone = EpochSampler(size, batch_size=40, order=TrainingOrder(1))
    samplers = [EpochSampler(size, batch_size=40 // ranks, order=TrainingOrder(1), rank=rank, ranks=ranks) for rank in range(ranks)]
    whole, parts = list(alone), [list(sampler) for sampler in samplers]
    steps = -(-len(parts[0]) // (40 // ranks))
    assert {-(-len(part) // (40 // ranks)) for part in parts} == {steps}  # else they would wait for each other
    for step in range(steps):
        shares = [part[step * 40 // ranks : (step + 1) * 40 // ranks] for part in parts]
        assert sorted(key for part in shares for key in part) == sorted(whole[step * 40 : (step + 1) * 40])
        assert {sampler.images_of_step(step) for sampler in samplers} == {sum(map(len, shares))}
        assert min(map(len, shares)) >= 2


def test_auto_starts_workers_only_where_they_help(monkeypatch: pytest.MonkeyPatch) -> None:
    for processors, images, expected in [(2, 100_000, 0), (16, 100, 0), (4, 5_000, 3), (64, 5_000, 8)]:
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=processors: set(range(n)), raising=False)
        assert worker_count("auto", images) == expected
    assert worker_count(5, 1) == 5


def test_several_labels_become_one_number_a_class(samples: list[Sample]) -> None:
    several = [replace(sample, labels=labels) for sample, labels in zip(samples, [(0, 2), (), (1,)], strict=False)]
    ((_, labels),) = make_loader(ImageDataset(several, PREPROCESSING, multi_hot=3), batch_size=4, workers=0)
    assert labels.dtype == torch.float32
    assert labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_a_balanced_order_makes_classes_equally_likely(samples: list[Sample]) -> None:
    few = [replace(sample, labels=(0 if number < 18 else 1,)) for number, sample in enumerate(samples)]  # 18 of one class, 3 of the other
    chances = balanced_chances(few)
    assert chances[:18] == pytest.approx([1 / 36] * 18)
    assert chances[18:] == pytest.approx([1 / 6] * 3)
    sampler = EpochSampler(21, batch_size=4, order=TrainingOrder(3, chances))
    drawn = []
    for epoch in range(200):
        sampler.set_epoch(epoch)
        drawn += [index for _, index in sampler]
    # 4,000 draws (21 less the last one, an epoch) of a fair coin: four standard deviations are 0.032.
    assert np.mean(np.array(drawn) >= 18) == pytest.approx(0.5, abs=0.032)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_a_balanced_order_out_without_changing_it(ranks: int) -> None:
    chances = np.full(18, 1 / 18)
    options = {"batch_size": 7, "order": TrainingOrder(1, chances)}
    whole = list(EpochSampler(18, **options))
    parts = [list(EpochSampler(18, rank=rank, ranks=ranks, **options)) for rank in range(ranks)]
    assert {len(part) for part in parts} == {18 // ranks}
    assert [part[i] for i in range(18 // ranks) for part in parts] == whole


def test_an_image_drawn_again_in_an_epoch_is_augmented_again_with_any_number_of_workers(samples: list[Sample]) -> None:
    alone = epochs(samples[:2], 0, balanced=True, number=4)
    assert epochs(samples[:2], 2, balanced=True, number=4) == alone
    keys = [key for key in EpochSampler(3, batch_size=64, order=TrainingOrder(0, np.array([0.0, 1.0, 0.0])))]
    assert keys == [(0, 1), (DRAWN_AGAIN, 1), (2 * DRAWN_AGAIN, 1)]
    images = ImageDataset(samples, PREPROCESSING, augmentation=build_augmentation(AUGMENT, 24), seed=7)
    assert not np.array_equal(images[keys[0]][0], images[keys[1]][0])
