import gzip
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from tlkit.data.dataset import ImageDataset, make_loader
from tlkit.data.decode import Decoding, decode
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Samples
from tlkit.data.sources.arrays import ArrayImage
from tlkit.data.sources.read import read_source
from tlkit.data.splits.holdout import hash_images, split_samples
from tlkit.errors import DataError
from tlkit.recipe.fields.source import IdxSource, NpySource, NpzSource, Source
from tlkit.recipe.schema import Task

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 5), dtype=np.uint8)
LABELS = np.arange(12, dtype=np.uint8) % 3
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


def idx(values: np.ndarray, *, kind: int = 8) -> bytes:
    """As http://yann.lecun.com/exdb/mnist says."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, kind, values.ndim, *values.shape) + values.tobytes()


def mnist(folder: Path, *, packed: bool = True, sign: str = "-") -> Path:
    folder.mkdir(exist_ok=True)
    for start, part in (("train", slice(0, 9)), ("t10k", slice(9, 12))):
        for name, values in ((f"{start}-images{sign}idx3-ubyte", PIXELS[part]), (f"{start}-labels{sign}idx1-ubyte", LABELS[part])):
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(idx(values)) if packed else idx(values))
    return folder


def read(source: Source, task: Task = "multiclass") -> Samples:
    return read_source(source, Path("unused"), task)


def fault(source: Source, task: Task = "multiclass") -> str:
    with pytest.raises(DataError) as raised:
        read(source, task)
    assert "\n  " in str(raised.value)
    return " ".join(str(raised.value).split())


def grey(samples: Samples) -> np.ndarray:
    return np.stack([decode(sample.image, Decoding(1))[:, :, 0] for sample in samples.samples])


# --- idx ---


@pytest.mark.parametrize(("packed", "sign"), [(True, "-"), (False, "-"), (False, ".")])
def test_the_files_of_mnist_are_read_as_they_lie(tmp_path: Path, packed: bool, sign: str) -> None:
    samples = read(IdxSource(idx=str(mnist(tmp_path, packed=packed, sign=sign))))
    assert samples.classes == ("0", "1", "2")
    assert [s.id for s in samples.samples] == [*(f"train/{i:06d}" for i in range(9)), *(f"test/{i:06d}" for i in range(3))]
    assert np.array_equal([s.label for s in samples.samples], LABELS)
    assert np.array_equal(grey(samples), PIXELS)


def test_torchvision_reads_the_same_files_alike(tmp_path: Path) -> None:
    mnist(tmp_path / "raw", packed=False)
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "raw").rename(tmp_path / "MNIST/raw")
    theirs = datasets.MNIST(str(tmp_path), train=False)
    ours = read(IdxSource(idx=str(tmp_path / "MNIST/raw"))).of("test")
    assert [s.label for s in ours] == [label for _, label in theirs]
    assert all(np.array_equal(decode(s.image, Decoding(1))[:, :, 0], np.asarray(image)) for s, (image, _) in zip(ours, theirs, strict=True))


def test_classes_are_named_by_the_recipe(tmp_path: Path) -> None:
    folder = str(mnist(tmp_path))
    assert read(IdxSource(idx=folder, classes=("cat", "dog", "eel", "fox"))).classes == ("cat", "dog", "eel")  # no image is a fox
    assert "has the label 2, and data.source.classes names 2: 0 to 1" in fault(IdxSource(idx=folder, classes=("cat", "dog")))
    assert "two classes are named 'cat'" in fault(IdxSource(idx=folder, classes=("cat", "dog", "cat")))


def test_the_training_pair_alone_is_still_to_be_split(tmp_path: Path) -> None:
    mnist(tmp_path)
    for file in tmp_path.glob("t10k*"):
        file.unlink()
    samples = read(IdxSource(idx=str(tmp_path)))
    assert {s.split for s in samples.samples} == {"train"}
    assert len(split_samples(samples, 0.3, 0.3, 0).of("test")) == 3


def damage(folder: Path, name: str, change: object) -> str:
    """The message once a function has changed the unpacked content of one file."""
    file = mnist(folder) / f"{name}.gz"
    file.write_bytes(gzip.compress(change(gzip.decompress(file.read_bytes()))))  # type: ignore[operator]
    return fault(IdxSource(idx=str(folder)))


def test_damaged_files_are_reported(tmp_path: Path) -> None:
    images, labels = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
    assert "is cut off: it has 263 values, and its header says 270" in damage(tmp_path, images, lambda content: content[:-7])
    assert "has more than the 270 values" in damage(tmp_path, images, lambda content: content + b"x")
    assert "is cut off within its header" in damage(tmp_path, images, lambda content: content[:9])
    assert "it begins with 00 00 08 01. Expected 00 00 08 03." in damage(tmp_path, images, lambda _: idx(LABELS))
    assert "it begins with 00 00 0d 03" in damage(tmp_path, images, lambda _: idx(PIXELS[:9], kind=13))
    assert "it is empty" in damage(tmp_path, images, lambda _: b"")
    assert "has 2 labels for 3 images" in damage(tmp_path, labels, lambda _: idx(LABELS[:2]))
    assert "classes that training lacks: 7" in damage(tmp_path, labels, lambda _: idx(np.full(3, 7, np.uint8)))
    huge = struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**16, 2**16)
    assert "its header promises 18,446,744,069,414,584,320 values" in damage(tmp_path, images, lambda _: huge)


def test_a_cut_off_gzip_and_a_wrong_ending_are_reported(tmp_path: Path) -> None:
    file = mnist(tmp_path) / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert f"{file}: is cut off or damaged" in fault(IdxSource(idx=str(tmp_path)))
    file.write_bytes(whole[:200] + b"\xff\xff" + whole[202:])
    assert f"{file}: is cut off or damaged" in fault(IdxSource(idx=str(tmp_path)))
    file.write_bytes(b"no gzip")
    assert f"{file}: is not packed with gzip. Take .gz off its name" in fault(IdxSource(idx=str(tmp_path)))
    file.unlink()
    file.with_suffix("").write_bytes(whole)
    assert "packed with gzip: give its name the ending .gz" in fault(IdxSource(idx=str(tmp_path)))
    unpacked = mnist(tmp_path / "unpacked", packed=False) / "train-images-idx3-ubyte"
    unpacked.write_bytes(unpacked.read_bytes()[:-1])
    assert "is cut off: it has 269 values" in fault(IdxSource(idx=str(tmp_path / "unpacked")))


def test_missing_files_and_folders_are_reported_with_where_they_may_be(tmp_path: Path) -> None:
    mnist(tmp_path / "MNIST").joinpath("t10k-labels-idx1-ubyte.gz").unlink()
    assert "lacks t10k-labels-idx1-ubyte (with or without .gz)" in fault(IdxSource(idx=str(tmp_path / "MNIST")))
    assert f"lacks train-images-idx3-ubyte, train-labels-idx1-ubyte (with or without .gz). Did you mean {tmp_path / 'MNIST'}?" in fault(
        IdxSource(idx=str(tmp_path))
    )
    assert "does not exist. Did you mean 'MNIST'?" in fault(IdxSource(idx=str(tmp_path / "NMIST")))
    assert "is a file, not a folder" in fault(IdxSource(idx=str(tmp_path / "MNIST/train-images-idx3-ubyte.gz")))


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist isn't installed")
def test_fashion_mnist_is_known_by_its_labels() -> None:
    samples = read(IdxSource(idx=str(FASHION_MNIST)))
    assert samples.classes == tuple(datasets.FashionMNIST.classes)
    assert (len(samples.of("train")), len(samples.of("test"))) == (60_000, 10_000)
    assert samples.training_counts() == (6000,) * 10
    mini = Path(__file__).parents[3] / "data/fashion_mnist_mini/train"
    name = next(path for path in sorted(mini.rglob("*.png")) if path.parent.name == "ankle-boot")  # called by its place in the set
    sample = samples.samples[int(name.stem)]
    assert samples.classes[sample.label] == "Ankle boot"
    assert np.array_equal(decode(sample.image), decode(name))


def test_images_travel_to_other_processes_without_their_array(tmp_path: Path) -> None:
    samples = read(IdxSource(idx=str(mnist(tmp_path)))).samples
    sent = pickle.dumps(samples)
    assert PIXELS[0].tobytes() not in sent
    again = pickle.loads(sent)
    assert again[0].image.array is again[8].image.array
    assert again[0].image.array is not again[9].image.array
    assert np.array_equal(decode(again[10].image, Decoding(1))[:, :, 0], PIXELS[10])


@pytest.mark.skipif(sys.platform == "win32", reason="slow to start there")
def test_worker_processes_give_the_same_batches(tmp_path: Path) -> None:
    samples = read(IdxSource(idx=str(mnist(tmp_path)))).samples
    spec = Preprocessing(8, "stretch", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
    alone, helped = ([batch[0] for batch in make_loader(ImageDataset(samples, spec), batch_size=5, workers=workers)] for workers in (0, 2))
    assert all(bool((one == other).all()) for one, other in zip(alone, helped, strict=True))


# --- npz and npy ---


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("x_train", "y_train", "x_test", "y_test"), ["train", "test"]),
        (("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"), ["train", "val", "test"]),
        (("images", "labels"), [""]),
        (("x", "y"), [""]),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_known_by_the_names_that_people_use(tmp_path: Path, names: tuple[str, ...], splits: list[str], save: object) -> None:
    values = [PIXELS, LABELS[:, None] if "train_labels" in names else LABELS] * (len(names) // 2)
    save(tmp_path / "set.npz", **dict(zip(names, values, strict=True)))  # type: ignore[operator]
    samples = read(NpzSource(npz=str(tmp_path / "set.npz"), classes=("cat", "dog", "eel")))
    assert samples.classes == ("cat", "dog", "eel")
    assert [s.split for s in samples.samples] == [split for split in splits for _ in range(12)]
    assert np.array_equal(grey(samples)[-12:], PIXELS)
    assert samples.samples[5].id == f"{splits[0] or 'all'}/000005"


def test_colour_alpha_16_bit_and_many_channels_are_decoded_as_files_of_them_are(tmp_path: Path) -> None:
    draw = np.random.default_rng(1).integers
    for channels, dtype in ((1, np.uint8), (3, np.uint8), (4, np.uint8), (1, np.uint16), (5, np.uint8), (5, np.uint16)):
        pixels = draw(0, np.iinfo(dtype).max + 1, (12, 6, 5, channels), dtype=dtype)
        np.savez(tmp_path / "set.npz", images=pixels, labels=LABELS)
        image = read(NpzSource(npz=str(tmp_path / "set.npz"))).samples[3].image
        if channels == 5:
            np.save(tmp_path / "one.npy", pixels[3])
            assert np.array_equal(decode(image, Decoding(5)), decode(tmp_path / "one.npy", Decoding(5)))
        else:
            Image.fromarray(pixels[3].squeeze()).save(tmp_path / "one.png")
            assert np.array_equal(decode(image), decode(tmp_path / "one.png"))


def test_an_npy_is_mapped_and_its_labels_may_be_words(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", PIXELS)
    np.save(tmp_path / "labels.npy", np.array(["dog", "cat", "eel"])[LABELS])
    samples = read(NpySource(npy=str(tmp_path / "images.npy"), labels=str(tmp_path / "labels.npy")))
    assert samples.classes == ("cat", "dog", "eel")
    assert [samples.classes[s.label] for s in samples.samples[:3]] == ["dog", "cat", "eel"]
    image = samples.samples[7].image
    assert isinstance(image, ArrayImage)
    assert isinstance(image.array.pixels, np.memmap)
    assert np.array_equal(grey(samples), PIXELS)
    assert PIXELS[0].tobytes() not in pickle.dumps(samples.samples)


def test_test_images_without_labels_are_not_replaced_without_a_word(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x_train=PIXELS, y_train=LABELS, x_test=PIXELS)
    samples = read(NpzSource(npz=str(tmp_path / "set.npz")))
    assert {sample.split for sample in samples.samples} == {"train"}
    (warning,) = samples.warnings
    assert "has x_test and no y_test, so it is not read; test images are taken from training instead" in warning


def test_columns_of_0_and_1_are_label_sets(tmp_path: Path) -> None:
    marks = np.eye(3, dtype=np.uint8)[LABELS]
    marks[0] = 1
    marks[1] = 0
    np.savez(tmp_path / "set.npz", images=PIXELS, labels=marks)
    source = NpzSource(npz=str(tmp_path / "set.npz"), classes=("cat", "dog", "eel"))
    samples = read(source, "multilabel")
    assert [s.labels for s in samples.samples[:4]] == [(0, 1, 2), (), (2,), (0,)]
    expected = "Expected one label for each image: if one-hot, labels.argmax(1); for several labels set task to multilabel."
    assert f"the shape of the labels is 12 x 3. {expected}" in fault(source)
    np.savez(tmp_path / "set.npz", images=PIXELS, labels=marks * 2)
    assert "not all 0 or 1" in fault(source, "multilabel")


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"pictures": PIXELS, "labels": LABELS}, "has pictures, labels. Expected x_train and y_train"),
        ({}, "has no arrays."),
        ({"images": PIXELS / 255, "labels": LABELS}, "images: holds float64, which has no known range"),
        ({"images": PIXELS[0], "labels": LABELS}, "images: its shape, 6 x 5, is not that of images"),
        ({"images": np.zeros((12, 3, 300, 300), np.uint8), "labels": LABELS}, "images of 300 channels. Expected N x H x W x C"),
        (
            {"images": np.zeros((12, 3, 8, 9), np.uint8), "labels": LABELS},
            "the channels last: images.transpose(0, 2, 3, 1)",
        ),
        ({"images": np.empty((12, 5, 5), object), "labels": LABELS}, "images: holds Python objects, which are not read"),
        ({"images": PIXELS, "labels": np.array(["a\x07", "b"] * 6)}, "the label 'a\\x07' has unprintable characters"),
        ({"images": PIXELS, "labels": LABELS[:5]}, "labels: has 5 labels for 12 images"),
        ({"images": PIXELS, "labels": LABELS / 2}, "whole numbers or words: labels.astype(int), if all of them are whole."),
        ({"images": PIXELS, "labels": np.array([b"cat", b"dog"] * 6)}, "|S3. Expected whole numbers or words: np.char.decode("),
        ({"images": PIXELS, "labels": LABELS.astype(complex)}, "the labels are complex128. Expected whole numbers or words."),
        ({"images": PIXELS, "labels": np.array([object()] * 12)}, "the array labels: holds Python objects, which are not read"),
        ({"images": PIXELS, "labels": LABELS.astype(object)}, "Save only numbers or strings: .astype(int) or .astype(str)."),
        ({"images": np.array([{}] * 12), "labels": LABELS}, "images: its shape, 12, is not that of images"),
        ({"images": PIXELS, "labels": LABELS * 0}, "has one class only, '0'"),
        (
            {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS, "y_test": LABELS + 9},
            "the test split has classes that training lacks: 9",
        ),
    ],
)
def test_arrays_that_cannot_be_used_are_reported(tmp_path: Path, arrays: dict[str, np.ndarray], expected: str) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    assert expected in fault(NpzSource(npz=str(tmp_path / "set.npz")))


def test_damaged_and_missing_array_files_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "set.npz"
    np.savez_compressed(file, images=PIXELS, labels=LABELS)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "can't be read, or is damaged" in fault(NpzSource(npz=str(file)))
    file.write_bytes(b"")
    assert "can't be read, or is damaged" in fault(NpzSource(npz=str(file)))
    assert "does not exist. Did you mean 'set.npz'?" in fault(NpzSource(npz=str(tmp_path / "sets.npz")))
    np.save(tmp_path / "images.npy", PIXELS)
    np.save(tmp_path / "labels.npy", np.array([{}] * 12))
    both = NpySource(npy=str(tmp_path / "images.npy"), labels=str(tmp_path / "labels.npy"))
    assert "labels.npy: holds Python objects" in fault(both)
    (tmp_path / "images.npy").write_bytes((tmp_path / "images.npy").read_bytes()[:-50])
    assert "images.npy: can't be read, or is damaged" in fault(both)


def test_an_array_that_promises_more_than_is_there_is_refused_before_it_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=PIXELS, labels=LABELS)
    content = (tmp_path / "set.npz").read_bytes()
    small, large = b"(12, 6, 5), }        ", b"(1200000000, 60, 50)}"
    assert content.count(small) == 1
    (tmp_path / "set.npz").write_bytes(content.replace(small, large))
    assert "can't be read, or is damaged" in fault(NpzSource(npz=str(tmp_path / "set.npz")))


def test_the_same_image_in_an_array_and_in_a_file_splits_alike(tmp_path: Path) -> None:
    """Hashes are of pixels here and of files there; both tell images apart."""
    np.savez(tmp_path / "set.npz", images=np.concatenate([PIXELS, PIXELS[:1]]), labels=np.append(LABELS, 0))
    hashes = hash_images(read(NpzSource(npz=str(tmp_path / "set.npz"))))
    assert len(set(hashes.values())) == 12
    assert hashes["all/000000"] == hashes["all/000012"]
