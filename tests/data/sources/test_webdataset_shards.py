import io
import json
import logging
import pickle
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from tests.data.quality import checking
from tlkit.data.dataset import EpochSampler, ImageDataset, TrainingOrder, make_loader, shard_numbers
from tlkit.data.decode import decode
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Samples
from tlkit.data.sources.read import read_source
from tlkit.data.splits.holdout import hash_images, split_samples, split_warnings
from tlkit.errors import DataError
from tlkit.recipe.fields.source import WebDatasetSource
from tlkit.recipe.schema import Task

SPEC = Preprocessing(8, "stretch", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)


def image(number: int) -> bytes:
    """An image that says its number: 4 x 4, red = number, green = number // 256."""
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(content, "PNG")
    return content.getvalue()


def shards(folder: Path, number: int = 3, per_shard: int = 5, *, name: str = "train-{}.tar", start: int = 0) -> str:
    """Written by webdataset itself. Labels are 0, 1, 0, 1 .. Returns the pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(number):
        with webdataset.TarWriter(str(folder / name.format(f"{shard:03d}"))) as writer:
            for i in range(shard * per_shard, (shard + 1) * per_shard):
                writer.write({"__key__": f"deep/{start + i:05d}", "png": image(start + i), "cls": i % 2, "json": {"id": i}})
    return str(folder / name.format(f"{{000..{number - 1:03d}}}"))


def tar(file: Path, members: dict[str, bytes]) -> str:
    return str(checking.shard(file, members))


def read(root: Path, pattern: str, task: Task = "multiclass", **more: object) -> Samples:
    return read_source(WebDatasetSource.model_validate({"webdataset": pattern, **more}), root, task)


def fault(root: Path, pattern: str, task: Task = "multiclass", **more: object) -> str:
    with pytest.raises(DataError) as raised:
        read(root, pattern, task, **more)
    assert "\n  " in str(raised.value)
    return str(raised.value)


def test_shards_give_the_samples_that_webdataset_reads(tmp_path: Path) -> None:
    samples = read(tmp_path / "data", pattern := shards(tmp_path / "shards"))
    theirs = list(webdataset.WebDataset(pattern, shardshuffle=False).decode("pil").to_tuple("__key__", "png", "cls"))
    assert [s.id for s in samples.samples] == [f"train-{i // 5:03d}.tar:{key}" for i, (key, _, _) in enumerate(theirs)]
    assert [s.label for s in samples.samples] == [label for _, _, label in theirs]
    assert all(np.array_equal(decode(s.image), np.asarray(shown)) for s, (_, shown, _) in zip(samples.samples, theirs, strict=True))
    assert samples.classes == ("0", "1")


def test_the_index_is_made_once_for_a_shard_of_one_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = shards(tmp_path / "shards")
    first = read(tmp_path / "data", pattern)
    opened: list[str] = []
    whole = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda name, *more: opened.append(Path(name).name) or whole(name, *more))
    assert read(tmp_path / "data", pattern) == first
    assert opened == []
    tar(tmp_path / "shards/train-001.tar", {"a.png": image(1), "a.cls": b"1", "b.png": image(2), "b.cls": b"0"})
    opened.clear()
    assert len(read(tmp_path / "data", pattern).samples) == 12
    assert opened == ["train-001.tar"]
    (next((tmp_path / "data/webdataset_index").iterdir())).write_text("{")
    assert len(read(tmp_path / "data", pattern).samples) == 12
    assert len(opened) == 2


def test_an_index_that_cannot_be_kept_is_made_again_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "data").write_text("a file")
    logging.getLogger("tlkit").propagate = True
    assert len(read(tmp_path / "data", shards(tmp_path / "shards")).samples) == 15
    assert "is made again in every run" in caplog.text


def test_splits_are_patterns_of_their_own(tmp_path: Path) -> None:
    train = shards(tmp_path / "set/train", name="{}.tar")
    test = shards(tmp_path / "set/test", 1, name="{}.tar", start=500)
    samples = read(tmp_path, train, test=test, classes=["cat", "dog"])
    assert samples.classes == ("cat", "dog")
    assert Counter(s.split for s in samples.samples) == {"train": 15, "test": 5}
    assert samples.of("test")[0].id == "test/000.tar:deep/00500"
    assert "is in train and in test" in fault(tmp_path, train, test=train)


def test_stars_name_shards_too(tmp_path: Path) -> None:
    shards(tmp_path / "shards")
    assert len(read(tmp_path, str(tmp_path / "shards/*.tar")).samples) == 15
    assert "no file is like" in fault(tmp_path, str(tmp_path / "shards/*.tgz"))


def test_labels_are_in_cls_json_or_txt_and_may_be_words_or_several(tmp_path: Path) -> None:
    members = {
        "a.jpg": image(1), "a.cls": b"cat\n", "a.txt": b"a caption",
        "b.jpg": image(2), "b.json": json.dumps({"label": "dog", "cls": "no"}).encode(),
        "c.jpg": image(3), "c.txt": "Käfer".encode(),
        "d.jpg": image(4), "d.json": b'"cat"',
    }  # fmt: skip
    samples = read(tmp_path, tar(tmp_path / "a.tar", members))
    assert samples.classes == ("Käfer", "cat", "dog")
    assert [samples.label_text(s) for s in samples.samples] == ["cat", "dog", "Käfer", "cat"]
    several = {
        "a.jpg": image(1),
        "a.cls": b"hat|bag",
        "b.jpg": image(2),
        "b.json": b'{"labels": []}',
        "c.jpg": image(3),
        "c.cls": b"bag",
    }
    assert [s.labels for s in read(tmp_path, tar(tmp_path / "b.tar", several), "multilabel").samples] == [(0, 1), (), (0,)]
    assert "b.tar: a: has 2 labels; for any number of them set task to multilabel." in fault(tmp_path, str(tmp_path / "b.tar"))


def test_keys_with_dots_are_samples_and_masks_beside_an_image_are_not(tmp_path: Path) -> None:
    members = {}
    for key in ("cat_1", "cat_v1.002", "cat_v1.003", "v2.0.dog.004"):
        members |= {f"{key}.JPG": image(len(members)), f"{key}.cls": key[:3].replace("v2.", "dog").encode()}
    members |= {"dog_5.png": image(5), "dog_5.cls": b"dog", "dog_5.seg.png": image(6), "dog_5.seg.json": b"{}"}
    pattern = tar(tmp_path / "a.tar", members)
    for _ in range(2):  # the second time from the index
        samples = read(tmp_path / "data", pattern)
        assert [sample.id for sample in samples.samples] == [
            *(f"a.tar:{key}" for key in ("cat_1", "cat_v1.002", "cat_v1.003", "v2.0.dog.004", "dog_5"))
        ]
        assert [samples.label_text(sample) for sample in samples.samples] == ["cat", "cat", "cat", "dog", "dog"]
        (warning,) = samples.warnings
        assert "a.tar: 1 image is not used, such as dog_5.seg.png" in warning
    tar(tmp_path / "b.tar", {"a.rgb.png": image(1), "a.cls": b"0", "b.heic": b"x", "b.cls": b"1"})
    message = fault(tmp_path / "data", str(tmp_path / "b.tar"))
    assert "b.tar: a.rgb: has no label." in message
    assert "b.tar: b: has no image, but .heic, .cls." in message


def test_every_ending_that_pillow_reads_is_read_in_a_shard(tmp_path: Path) -> None:
    content = {}
    for number, (ending, kind) in enumerate({"jfif": "JPEG", "avif": "AVIF", "jp2": "JPEG2000", "ppm": "PPM"}.items()):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (9, 9, 9)).save(file, kind)
        content |= {f"{number}.{ending}": file.getvalue(), f"{number}.cls": str(number).encode()}
    samples = read(tmp_path, tar(tmp_path / "a.tar", content)).samples
    assert [decode(sample.image).shape for sample in samples] == [(8, 8, 3)] * 4


def test_a_label_is_the_text_that_is_there(tmp_path: Path) -> None:
    labels = ["007", "7", "10", "9", "-1", "1.0", "1"]
    members = {name: content for i, label in enumerate(labels) for name, content in ((f"{i}.png", image(i)), (f"{i}.txt", label.encode()))}
    samples = read(tmp_path, tar(tmp_path / "a.tar", members))
    assert samples.classes == ("1", "7", "9", "10", "-1", "007", "1.0")  # numbers in their order, then texts
    assert [samples.label_text(sample) for sample in samples.samples] == labels
    warnings = " ".join(split_warnings(samples))
    assert "'007' and '7'" in warnings
    assert "'1.0' and '1'" in warnings
    assert "the class '-1' is a class like others" in warnings


def test_labels_of_shards_that_another_sign_separates_are_not_taken_for_classes(tmp_path: Path) -> None:
    labels = {"a": b"hat, bag", "b": b"bag", "c": b"hat", "d": b""}
    members = {name: content for key, label in labels.items() for name, content in ((f"{key}.png", image(1)), (f"{key}.txt", label))}
    pattern = tar(tmp_path / "a.tar", members)
    assert "labels seem to be separated by ',': 'hat, bag' would be one class" in fault(tmp_path, pattern, "multilabel")
    samples = read(tmp_path, pattern, "multilabel", separator=",")
    assert samples.classes == ("bag", "hat")
    assert [sample.labels for sample in samples.samples] == [(0, 1), (0,), (1,), ()]
    assert len(read(tmp_path, pattern, "multilabel", separator="|").classes) == 3


def test_what_macs_leave_in_a_tar_is_passed_over(tmp_path: Path) -> None:
    members = {
        "./a.jpg": image(1),
        "./._a.jpg": b"x",
        "./a.cls": b"0",
        ".DS_Store": b"x",
        "b.jpg": image(2),
        "b.cls": b"1",
        "__meta__.json": b"{}",
    }
    assert [s.id for s in read(tmp_path, tar(tmp_path / "a.tar", members)).samples] == ["a.tar:a", "a.tar:b"]


def test_all_faults_of_all_shards_are_reported_and_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "deep/er"
    out.mkdir(parents=True)
    tar(
        out / "0.tar",
        {
            "../../escaped.jpg": image(1), "../../escaped.cls": b"1", f"{tmp_path}/absolute.jpg": image(2),
            "nolabel.jpg": image(1), "nopicture.cls": b"1", "two.jpg": image(1), "two.png": image(1), "two.cls": b"1",
            "bad.jpg": image(1), "bad.json": b'{"lable": 1}', "odd.jpg": image(1), "odd.json": b'{"label": 1.5}',
            "text.jpg": image(1), "text.cls": b"\xff", "large.jpg": image(1), "large.txt": b"x" * 1_000_001,
            "again.jpg": image(1), "again.cls": b"1", "good.jpg": image(1), "good.cls": b"0",
            "again.png": image(1), "again.txt": b"1", "none.jpg": image(1), "none.cls": b"",
            "raw.jpg": image(1), "raw.cls": (1).to_bytes(8, "little"),
        },
    )  # fmt: skip
    tar(out / "1.tar", {"README": b"x"})
    (out / "2.tar").write_bytes(b"this is no tar" * 100)
    (out / "3.tar").write_bytes(b"")
    (out / "4.tar").write_bytes(b"\x1f\x8b" + bytes(50))
    before = sorted(tmp_path.rglob("*"))
    message = fault(tmp_path / "data", str(out / "{0..4}.tar"))
    for part in (
        "0.tar: ../../escaped.jpg: leads out of the shard; nothing was written (and 2 more such: ",
        f"0.tar: {tmp_path}/absolute.jpg",
        "0.tar: nolabel: has no label.",
        "0.tar: nopicture: has no image, but .cls.",
        "0.tar: two: has more than one image.",
        "0.tar: bad: no label can be read from its .json (it has none of the keys label, labels, cls, class).",
        "0.tar: odd: no label can be read from its .json (1.5 is no label).",
        "0.tar: text: no label can be read from its .cls",
        "0.tar: none: its .cls is empty.",
        "0.tar: raw: no label can be read from its .cls (it holds the bytes of a number, not its digits: write str(label)).",
        "0.tar: large: its .txt has 1,000,001 bytes, which is no label.",
        "0.tar: the key again comes more than once.",
        "1.tar: has no images.",
        "2.tar: is no tar",
        "3.tar: is no tar",
        "4.tar: is packed with gzip",
    ):
        assert part in message
    assert sorted(tmp_path.rglob("*")) == before


def test_faults_of_one_kind_are_one_line_with_their_number_and_examples(tmp_path: Path) -> None:
    for shard in (0, 1):
        pairs = ((f"{key}.jpg", f"{key}.json", json.dumps({"label": key + 0.5}).encode()) for key in range(60))
        tar(tmp_path / f"{shard}.tar", {name: content for jpg, label, text in pairs for name, content in ((jpg, image(1)), (label, text))})
    lines = fault(tmp_path / "data", str(tmp_path / "{0..1}.tar")).splitlines()
    assert len(lines) == 2
    first = f"{tmp_path}/0.tar: 0: no label can be read from its .json (0.5 is no label) (and 119 more such: "
    assert lines[0] == f"{first}{tmp_path}/0.tar: 1, {tmp_path}/0.tar: 2, {tmp_path}/0.tar: 3, ..)."


@pytest.mark.parametrize("cut", [512 * 3 + 100, 512 * 5, 512 * 7 + 1])
def test_a_shard_that_is_cut_off_is_reported_with_its_place(tmp_path: Path, cut: int) -> None:
    pattern = shards(tmp_path / "shards", 1, 4)
    file = tmp_path / "shards/train-000.tar"
    file.write_bytes(file.read_bytes()[:cut])
    message = fault(tmp_path / "data", pattern)
    assert f"{file}: is cut off" in message
    assert f"has {cut:,}." in message


def test_a_shard_with_a_broken_header_is_reported_with_its_place(tmp_path: Path) -> None:
    file = Path(tar(tmp_path / "a.tar", {f"{i}.{ending}": image(i) for i in range(9) for ending in ("png", "cls")}))
    content = bytearray(file.read_bytes())
    place = content.index(b"5.png")
    content[place : place + 300] = b"\xff" * 300
    file.write_bytes(content)
    assert f"{file}: is cut off or damaged at byte {place:,}" in fault(tmp_path / "data", str(file))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{here}/train-{{000..005}}.tar", "3 of 6 shards don't exist"),
        ("{here}/train-00.tar", "Did you mean 'train-00"),
        ("{here}/train-{{000..002.tar", "has a brace without its partner"),
        ("{here}/{{0..9}}{{0..999999}}.tar", "names more than 100,000 files"),
        ("https://example.org/{{0..9}}.tar", "is not a pattern of files on this machine"),
        ("pipe:cat {here}/train-000.tar", "is not a pattern of files on this machine"),
        ("s3://bucket/a.tar", "is not a pattern of files on this machine"),
    ],
)
def test_patterns_that_name_no_shards_are_reported(tmp_path: Path, pattern: str, expected: str) -> None:
    shards(tmp_path)
    assert expected in fault(tmp_path / "data", pattern.format(here=tmp_path))


def test_an_image_has_the_hash_of_its_file_and_travels_without_it(tmp_path: Path) -> None:
    samples = read(tmp_path, shards(tmp_path / "shards"))
    folder = tmp_path / "folder"
    for sample in samples.samples:
        place = folder / str(sample.label) / f"{sample.id[-5:]}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(image(int(sample.id[-5:])))
    from_folder = read_source(_folder(folder), tmp_path)
    assert sorted(hash_images(samples).values()) == sorted(hash_images(from_folder).values())
    assert len(pickle.dumps(samples.samples[0])) < 1000


def _folder(folder: Path) -> object:
    from tlkit.recipe.fields.source import FolderSource

    return FolderSource(folder=str(folder))


def test_every_image_comes_once_an_epoch_over_two_ranks_with_two_workers_each(tmp_path: Path) -> None:
    """60 images in 12 shards, 30 for each rank: nothing is filled up, so each comes exactly once, in an order that epochs differ in."""
    samples = read(tmp_path, shards(tmp_path / "shards", 12, 5)).samples
    seen = []
    for epoch in range(3):
        numbers: list[int] = []
        for rank in range(2):
            images, order = ImageDataset(samples, SPEC, seed=3), TrainingOrder.of(samples, 3)
            loader = make_loader(images, batch_size=6, workers=2, order=order, first_epoch=epoch, rank=rank, ranks=2)
            numbers += [int(image[0, 0, 0]) for images, _ in loader for image in images]
        assert sorted(numbers) == list(range(60))
        seen.append(tuple(numbers))
    assert len(set(seen)) == 3


def test_held_out_images_come_once_over_ranks_that_don_t_divide_them(tmp_path: Path) -> None:
    samples = read(tmp_path, shards(tmp_path / "shards", 3, 5)).samples
    loaders = [make_loader(ImageDataset(samples, SPEC), batch_size=4, workers=2, rank=rank, ranks=2) for rank in range(2)]
    assert sorted(int(image[0, 0, 0]) for loader in loaders for images, _ in loader for image in images) == list(range(15))


def test_a_training_order_stays_in_few_shards_at_a_time(tmp_path: Path) -> None:
    """40 shards of 50: a hundred images in a row come from the eight shards that are mixed, or from the sixteen of two mixtures."""
    samples = read(tmp_path, shards(tmp_path / "shards", 40, 50)).samples
    numbers = shard_numbers(samples)
    assert numbers is not None
    sampler = EpochSampler(len(samples), batch_size=50, order=TrainingOrder(1, shards=numbers))
    order = [index for _, index in sampler]
    assert sorted(order) == list(range(2000))
    assert all(len(set(numbers[order[i : i + 400]])) == 8 for i in range(0, 2000, 400))
    assert numbers[order[:400]].tolist() != sorted(numbers[order[:400]])
    sampler.set_epoch(1)
    assert [index for _, index in sampler] != order


def test_images_of_shards_are_split_like_others(tmp_path: Path) -> None:
    samples = split_samples(read(tmp_path, shards(tmp_path / "shards", 6, 10)), 0.2, 0.2, 0)
    assert Counter(s.split for s in samples.samples) == {"train": 36, "val": 12, "test": 12}
    assert shard_numbers(samples.of("train")) is not None
