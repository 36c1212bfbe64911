"""What is twice in a set, what leaks, and what a cleaned list keeps."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkit.data.decode import decode
from tlkit.data.preprocess import Preprocessing
from tlkit.data.quality.audit import (
    Duplicates,
    check_can_clean,
    check_left,
    closest_pairs,
    find_duplicates,
    pixel_hashes,
    write_audit,
    write_cleaned,
)
from tlkit.data.quality.leak_report import compare_splits, leak_report
from tlkit.data.quality.near_duplicates import dct_of
from tlkit.data.samples import Sample, Samples
from tlkit.data.sources.folder import read_folder
from tlkit.data.sources.read import read_source
from tlkit.data.splits.holdout import hash_images
from tlkit.errors import DataError
from tlkit.recipe.fields.source import CsvSource
from tlkit.system import shipped

PREPROCESSING = Preprocessing(28, "crop", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)

CLASSES = ("bag", "coat", "trouser")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """30 training and 10 test images of three classes, without anything wrong."""
    for split, number in (("train", 30), ("test", 10)):
        for name in CLASSES:
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for file in sorted((shipped("data/fashion_mnist_mini") / split / name).iterdir())[:number]:
                shutil.copy(file, tmp_path / "set" / split / name)
    return tmp_path / "set"


def image_in(folder: Path, split: str, name: str, number: int = 0) -> Path:
    return sorted((folder / split / name).iterdir())[number]


def audited(folder: Path) -> tuple[Samples, Duplicates]:
    samples = read_folder(folder)
    return samples, find_duplicates(samples.samples, pixel_hashes(samples.samples, decode), dct_of(samples.samples))


def ids(samples: Samples, found: Duplicates) -> list[list[str]]:
    return [[samples.samples[row].id for row in finding.rows] for finding in found.findings]


def test_clean_images_have_no_findings(folder: Path) -> None:
    samples, found = audited(folder)
    assert found.findings == ()
    assert found.dropped == {}
    assert leak_report(samples, found)["verdict"] == "no leak found between splits"
    assert leak_report(samples, found)["compared"].startswith("90 train, 30 test images")


def test_where_there_are_no_splits_none_leak(folder: Path) -> None:
    samples, found = audited(folder / "train")
    report = leak_report(samples, found)
    assert report["verdict"] == "there are no splits that could leak"
    assert report["compared"].startswith("90 images compared")


def test_a_copied_file_across_splits_is_a_leak_and_the_training_copy_goes(folder: Path) -> None:
    original = image_in(folder, "test", "bag")
    shutil.copy(original, folder / "train" / "bag" / "copy.png")
    samples, found = audited(folder)
    assert ids(samples, found) == [[f"test/bag/{original.name}", "train/bag/copy.png"]]
    assert [(finding.kind, finding.across, finding.two_labels) for finding in found.findings] == [("exact", True, False)]
    assert {samples.samples[row].id for row in found.dropped} == {"train/bag/copy.png"}
    assert (found.leaked_exact, found.leaked_near) == (1, 0)


def test_the_same_pixels_in_another_format_are_the_same_image(folder: Path) -> None:
    original = image_in(folder, "test", "coat")
    Image.open(original).save(folder / "train" / "coat" / "copy.bmp")
    _, found = audited(folder)
    assert [finding.kind for finding in found.findings] == ["exact"]


def test_a_small_jpeg_across_splits_is_nearly_the_same(folder: Path) -> None:
    original = image_in(folder, "test", "coat")
    Image.open(original).resize((22, 22), Image.Resampling.BICUBIC).save(folder / "train" / "coat" / "copy.jpg", quality=80)
    samples, found = audited(folder)
    assert ids(samples, found) == [[f"test/coat/{original.name}", "train/coat/copy.jpg"]]
    assert found.findings[0].kind == "near"
    assert {samples.samples[row].id for row in found.dropped} == {"train/coat/copy.jpg"}
    assert (found.leaked_exact, found.leaked_near) == (0, 1)


def test_near_images_within_one_split_are_reported_and_kept(folder: Path) -> None:
    original = image_in(folder, "train", "coat")
    Image.open(original).resize((22, 22), Image.Resampling.BICUBIC).save(folder / "train" / "coat" / "copy.jpg", quality=80)
    samples, found = audited(folder)
    assert [(finding.kind, finding.across) for finding in found.findings] == [("near", False)]
    assert found.dropped == {}
    assert leak_report(samples, found)["verdict"] == "no leak found between splits"


def test_the_same_image_under_two_labels_is_reported_and_left_out_altogether(folder: Path) -> None:
    original = image_in(folder, "train", "coat")
    shutil.copy(original, folder / "train" / "bag" / "copy.png")
    samples, found = audited(folder)
    assert [(finding.kind, finding.two_labels) for finding in found.findings] == [("exact", True)]
    assert {samples.samples[row].id for row in found.dropped} == {f"train/coat/{original.name}", "train/bag/copy.png"}


def test_grave_findings_come_first(folder: Path) -> None:
    shutil.copy(image_in(folder, "train", "bag"), folder / "train" / "bag" / "copy.png")
    shutil.copy(image_in(folder, "train", "coat"), folder / "test" / "coat" / "copy.png")
    _, found = audited(folder)
    assert [finding.across for finding in found.findings] == [True, False]


def test_a_run_compares_its_splits_by_hash_alone(folder: Path) -> None:
    shutil.copy(image_in(folder, "train", "coat"), folder / "test" / "coat" / "copy.png")
    (folder / "train" / "coat" / "broken.png").write_bytes(b"no image")
    samples = read_folder(folder)
    seen: list[int] = []
    report = compare_splits(samples, hash_images(samples), PREPROCESSING, seen.append)
    assert (
        report["verdict"]
        == "1 of 31 held-out images is in another split too (1 exactly): accuracy can look up to 3.2 points better than it is"
    )
    assert (report["leaked_exact"], report["unreadable"], report["two_labels"]) == (1, 1, 0)
    assert report["examples"][0]["pictures"][0]["id"] == "test/coat/copy.png"
    assert sum(seen) == 122


def test_a_leak_check_may_be_by_sha256_alone_or_left_out_and_the_report_says_which(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(image_in(folder, "train", "coat"), folder / "test" / "coat" / "copy.png")
    Image.open(image_in(folder, "train", "coat", 1)).resize((40, 40)).save(folder / "test" / "coat" / "larger.png")
    samples = read_folder(folder)
    hashes = hash_images(samples)
    counts = "90 train, 32 test images "
    full = compare_splits(samples, hashes, PREPROCESSING, lambda images: None)
    assert (full["leaked_exact"], full["leaked_near"]) == (1, 1)
    assert full["compared"] == counts + "compared with each other: exactly by sha256, nearly by perceptual hash"
    monkeypatch.setattr(Preprocessing, "decode", None)  # nothing is decoded from here on
    exact = compare_splits(samples, hashes, PREPROCESSING, lambda images: None, how="exact")
    assert (exact["leaked_exact"], exact["leaked_near"], exact["unreadable"]) == (1, None, 0)
    assert exact["verdict"].startswith("1 of 32 held-out images is in another split too (1 exactly)")
    assert exact["compared"] == counts + "compared with each other: exactly by sha256 (data.leak_check: exact)"
    off = compare_splits(samples, {}, PREPROCESSING, lambda images: None, how="off")
    assert (off["verdict"], off["compared"]) == ("the splits were not compared", counts + "(data.leak_check: off)")
    assert off["leaked_exact"] is None
    assert off.keys() == exact.keys() == full.keys()


def test_images_that_a_run_has_compared_are_not_decoded_by_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = read_folder(folder)
    hashes = hash_images(samples)
    first = compare_splits(samples, hashes, PREPROCESSING, lambda images: None)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(Preprocessing, "decode", refuse)
    assert compare_splits(samples, hashes, PREPROCESSING, lambda images: None) == first
    changed = {**hashes, samples.samples[0].id: "another file"}
    with pytest.raises(AssertionError, match="decoded again"):
        compare_splits(samples, changed, PREPROCESSING, lambda images: None)


def test_the_table_has_a_row_for_each_image_of_a_finding(folder: Path, tmp_path: Path) -> None:
    shutil.copy(image_in(folder, "train", "coat"), folder / "test" / "coat" / 'a, "copy".png')
    samples, found = audited(folder)
    write_audit(samples, found.findings, tmp_path / "audit.csv")
    with (tmp_path / "audit.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["finding"], row["kind"], row["id"], row["split"], row["label"], row["across_splits"]) for row in rows] == [
        ("1", "exact", 'test/coat/a, "copy".png', "test", "coat", "yes"),
        ("1", "exact", f"train/coat/{image_in(folder, 'train', 'coat').name}", "train", "coat", "yes"),
    ]


def test_a_cleaned_list_names_every_image_once_here_or_there(folder: Path, tmp_path: Path) -> None:
    shutil.copy(image_in(folder, "test", "bag"), folder / "train" / "bag" / "copy.png")
    samples, found = audited(folder)
    source = write_cleaned(samples, found.dropped, [], tmp_path)
    assert source == {"csv": f"{tmp_path}/cleaned.csv", "root": str(folder)}
    kept, removed = ([row["path"] for row in csv.DictReader((tmp_path / name).open())] for name in ("cleaned.csv", "removed.csv"))
    assert removed == ["train/bag/copy.png"]
    assert sorted(kept + removed) == sorted(sample.id for sample in samples.samples)
    read = read_source(CsvSource(**source), Path("data"))
    assert {sample.id: (sample.split, read.label_text(sample)) for sample in read.samples} == {
        sample.id: (sample.split, samples.label_text(sample)) for sample in samples.samples if sample.id not in removed
    }


def test_a_list_that_would_lose_a_class_is_refused(folder: Path) -> None:
    for file in (folder / "train" / "bag").iterdir():
        file.unlink()
    for file in (folder / "test" / "bag").iterdir():
        shutil.copy(file, folder / "train" / "bag")
    samples, found = audited(folder)
    with pytest.raises(DataError, match="no training image of bag"):
        check_left(samples, found.dropped)


def test_images_that_are_no_files_cannot_be_listed() -> None:
    sample = Sample("0", lambda: Image.new("L", (8, 8)), (0,), "train")
    with pytest.raises(DataError, match="aren't files"):
        check_can_clean(Samples(("a", "b"), (sample,)))


def test_the_closest_pairs_are_those_of_the_highest_cosine_across_splits() -> None:
    draws = np.random.default_rng(0)
    features = draws.normal(size=(60, 20)).astype(np.float32)
    features[40], features[41] = features[0] + 0.01, features[1] + 0.001  # both across, the second known already
    features[3] = features[2]  # within one split
    samples = [Sample(str(row), Path(str(row)), (0,), "train" if row < 40 else "test") for row in range(60)]
    alike = np.arange(60)
    alike[41] = alike[1]
    found = closest_pairs(samples, features, alike)
    assert set(found[0].rows) == {0, 40}
    assert all(finding.across for finding in found)
    assert not any({1, 41} == set(finding.rows) for finding in found)
    assert len({row for finding in found for row in finding.rows}) == 2 * len(found)
