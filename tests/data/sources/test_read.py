import errno
import os
import shutil
import unicodedata
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from tlkit.data.decode import decode
from tlkit.data.samples import Samples
from tlkit.data.sources.kind import SourceKind
from tlkit.data.sources.layout import split_of
from tlkit.data.sources.read import KINDS, read_source
from tlkit.data.splits.holdout import split_warnings
from tlkit.errors import DataError
from tlkit.recipe.fields.source import BundledSource, FolderSource, Source


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "PNG")


def read(folder: Path, **keys: str) -> Samples:
    return read_source(FolderSource.model_validate({"folder": str(folder), **keys}), Path("unused"))


def faults(folder: Path) -> str:
    with pytest.raises(DataError) as raised:
        read(folder)
    message = str(raised.value)
    assert "\n  " in message, "no fix on a line of its own"
    return message


def test_every_source_of_the_schema_has_a_module_that_reads_it() -> None:
    assert set(KINDS) == set(get_args(Source))
    assert len(KINDS) == 10
    for module in KINDS.values():
        assert isinstance(import_module(f"tlkit.data.sources.{module}").KIND, SourceKind)


def test_train_val_and_test_folders_are_read_with_their_splits(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.jpg", "train/dog/2.JPEG", "valid/cat/3.png", "valid/dog/4.webp", "test/cat/5.tif", "test/dog/deep/er/6.gif")
    samples = read(tmp_path)
    assert samples.classes == ("cat", "dog")
    assert {(s.id, s.label, s.split) for s in samples.samples} == {
        ("train/cat/1.jpg", 0, "train"),
        ("train/dog/2.JPEG", 1, "train"),
        ("valid/cat/3.png", 0, "val"),
        ("valid/dog/4.webp", 1, "val"),
        ("test/cat/5.tif", 0, "test"),
        ("test/dog/deep/er/6.gif", 1, "test"),
    }


def test_class_folders_alone_are_still_to_be_split(tmp_path: Path) -> None:
    put(tmp_path, "b/1.png", "a/2.png", "C/3.png")
    samples = read(tmp_path)
    assert samples.classes == ("C", "a", "b")  # by code point: capitals first
    assert {s.split for s in samples.samples} == {""}


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    put(tmp_path, "train/1.png", "bus/2.png")
    samples = read(tmp_path)
    assert samples.classes == ("bus", "train")
    assert "train is read as a class, since it has images and no class folders. If it is a split" in samples.warnings[0]
    assert read(tmp_path, layout="class").warnings == ()
    put(tmp_path, "car/test/1.png", "car/train/1.png", "bus/test/1.png", "bus/train/1.png")  # nothing is doubtful where it is named
    assert read(tmp_path, layout="class").classes == ("bus", "car", "train")


def test_hidden_files_thumbs_and_other_files_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "a/.hidden.png", ".cache/2.png", "b/3.png", "a/.git/4.png")
    (tmp_path / "a/Thumbs.db").write_bytes(b"x")
    (tmp_path / "README.md").write_text("x")
    assert [s.id for s in read(tmp_path).samples] == ["a/1.png", "b/3.png"]


def test_loops_of_links_end_and_links_are_followed(tmp_path: Path) -> None:
    put(tmp_path, "set/a/1.png", "elsewhere/2.png")
    (tmp_path / "set/a/loop").symlink_to(tmp_path / "set/a")
    (tmp_path / "set/b").symlink_to(tmp_path / "elsewhere")
    assert [s.id for s in read(tmp_path / "set").samples] == ["a/1.png", "b/2.png"]


def test_names_are_composed_unicode(tmp_path: Path) -> None:
    put(tmp_path, unicodedata.normalize("NFD", "Käfer/ä.png"), "b/1.png")
    samples = read(tmp_path)
    assert samples.classes == ("Käfer", "b")
    assert samples.samples[0].id == "Käfer/ä.png"


def test_the_bundled_sample_is_read_by_name() -> None:
    samples = read_source(BundledSource(bundled="fashion_mnist_mini"), Path("unused"))
    assert len(samples.classes) == 10
    assert (len(samples.of("train")), len(samples.of("test"))) == (2000, 1000)


def test_a_missing_folder_is_named_with_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    message = faults(tmp_path / "flower")
    assert f"{tmp_path / 'flower'} does not exist" in message
    assert "Did you mean 'flowers'?" in message


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    assert "is a file, not a folder" in faults(tmp_path / "a.png")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    message = faults(tmp_path)
    assert "is empty" in message
    assert f"{tmp_path}/CLASS" in message


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "1.png")
    assert "has images but no class folders" in faults(tmp_path)


def test_one_class_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "cat/2.png")
    assert "has one class only, 'cat'" in faults(tmp_path)


def test_an_empty_class_folder_is_named_with_what_is_there(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/2.heic")
    message = faults(tmp_path)
    assert f"{tmp_path / 'dog'}: the class folder is empty (it has .heic files, which are not read)" in message
    assert "or remove the folder" in message


def test_a_class_that_training_lacks_is_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/dogs/1.png")
    message = faults(tmp_path)
    assert f"{tmp_path / 'val'}: has classes that training lacks: dogs" in message
    assert "Did you mean 'dog'?" in message


def test_a_class_missing_from_validation_is_a_warning(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/cat/1.png")
    samples = read(tmp_path)
    assert samples.classes == ("cat", "dog")
    assert split_warnings(samples) == ["the validation split has no image of: dog. Its figures say nothing about them."]


def test_two_validation_folders_and_no_training_folder_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "val/cat/1.png", "val/dog/1.png")
    assert "no train folder" in faults(tmp_path)
    put(tmp_path, "train/cat/1.png", "train/dog/1.png", "valid/cat/1.png")
    assert "val and valid both mean validation" in faults(tmp_path)


@pytest.mark.parametrize("unlabelled", ["test/1.png", "Test/unknown/1.png"])
def test_a_test_folder_without_labels_is_left_out_and_reported(tmp_path: Path, unlabelled: str) -> None:
    put(tmp_path, "train/cat/1.png", "train/dog/1.png", unlabelled)
    samples = read(tmp_path)
    assert [sample.id for sample in samples.samples] == ["train/cat/1.png", "train/dog/1.png"]
    (warning,) = samples.warnings
    assert f"{unlabelled.split('/')[0]} has no class folders, so its images have no labels and are not read" in warning
    assert "test images are taken from train instead" in warning
    assert split_warnings(samples)[0] == warning  # which the log of a run and the plan have


def test_a_split_without_images_is_reported(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.png", "train/dog/1.png")
    (tmp_path / "test/cat").mkdir(parents=True)
    assert read(tmp_path).warnings == (f"{tmp_path}: test has no images: test images are taken from training instead",)


def parts(samples: Samples) -> dict[str, list[str]]:
    return {split: [sample.id for sample in samples.of(split)] for split in ("train", "val", "test", "") if samples.of(split)}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "Val", "Test"),
        ("training", "validation", "testing"),
        ("TRAIN", "valid", "TEST"),
        ("train", "dev", "test"),
        ("training_set", "val-images", "test data"),
        ("train2017", "val2017", "test_1"),
        ("traindir", "valdir", "Test Images 224"),
    ],
)
def test_splits_are_known_by_the_usual_words_in_any_case(tmp_path: Path, train: str, val: str, test: str) -> None:
    put(tmp_path, *(f"{split}/{name}/1.png" for split in (train, val, test) for name in ("cat", "dog")))
    samples = read(tmp_path)
    assert (samples.classes, samples.warnings) == (("cat", "dog"), ())
    assert parts(samples) == {
        split: [f"{folder}/cat/1.png", f"{folder}/dog/1.png"] for split, folder in (("train", train), ("val", val), ("test", test))
    }


def test_splits_below_the_classes_are_read_and_reported(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{split}/1.png" for name in ("cat", "dog") for split in ("Train", "test")), "cat/loose.png")
    samples = read(tmp_path)
    assert samples.classes == ("cat", "dog")
    assert parts(samples) == {"train": ["cat/Train/1.png", "dog/Train/1.png"], "test": ["cat/test/1.png", "dog/test/1.png"]}
    assert "cat has images beside its folders of splits: they are not read" in samples.warnings[0]
    assert "every class folder has Train and test: read as splits. If they aren't: data.source.layout=class" in samples.warnings[1]
    as_classes = read(tmp_path, layout="class")
    assert len(as_classes.of("")) == 5


def test_splits_below_some_of_the_classes_are_images_of_the_class_and_reported(tmp_path: Path) -> None:
    put(tmp_path, "cat/train/1.png", "cat/test/1.png", "dog/1.png")
    samples = read(tmp_path)
    assert len(samples.of("")) == 3
    (warning,) = samples.warnings
    assert "all their images belong to the class: cat/test, cat/train" in warning
    put(tmp_path, "dog/train/1.png")
    assert len(read(tmp_path, layout="class/split").of("train")) == 2


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "Testing"), ("train", "val", "test")])
def test_a_classifier_of_train_against_test_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    put(tmp_path, *(f"{name}/{number}.png" for name in names for number in range(3)))
    message = faults(tmp_path)
    assert "have images and no class folders, so the images have no labels" in message
    assert "If these are the classes: data.source.layout=class." in message
    assert read(tmp_path, layout="class").classes == tuple(sorted(names))


@pytest.mark.parametrize("inside", ["1.png", "cat/1.png"])
def test_folders_whose_names_differ_only_in_a_split_are_not_taken_for_classes(tmp_path: Path, inside: str) -> None:
    put(tmp_path, f"flowers_train/{inside}", f"flowers_test/{inside}")
    message = faults(tmp_path)
    assert "flowers_test and flowers_train seem to be splits, not classes" in message
    assert "If these are the classes: data.source.layout=class." in message
    assert read(tmp_path, layout="class").classes == ("flowers_test", "flowers_train")
    put(tmp_path, "test_tube/1.png", "train_station/1.png")
    assert len(read(tmp_path).classes) == 4


def test_images_beside_their_masks_are_reported(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png", "Masks/1.png")
    (warning,) = read(tmp_path).warnings
    assert "Masks and images are read as two classes. If the one has the masks of the other" in warning


def test_two_spellings_of_a_class_are_refused_and_lose_no_image(tmp_path: Path) -> None:
    put(tmp_path, "\u00e9/1.png", "dog/1.png")
    if (tmp_path / "e\u0301").exists():
        pytest.skip("the file system joins the two spellings")
    put(tmp_path, "e\u0301/2.png")
    assert "two folders have this name in two Unicode spellings.\n  Join them in one folder." in faults(tmp_path)


def test_names_may_have_the_joiners_of_emoji_and_persian_words(tmp_path: Path) -> None:
    names = ("می\u200cخواهم", "👩\u200d👧")
    put(tmp_path, *(f"{name}/1.png" for name in names))
    assert read(tmp_path).classes == names
    put(tmp_path, "a\u202eb/1.png")
    assert r"unprintable characters: 'a\u202eb'" in faults(tmp_path)


def test_folders_beside_the_splits_are_reported(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.png", "train/dog/1.png", "holdout/cat/1.png", "extra/1.png")
    (warning,) = read(tmp_path).warnings
    assert "only train is read as a split; not read: extra and holdout" in warning
    assert "If they are classes, as train then is: data.source.layout=class" in warning
    assert read(tmp_path, layout="class").classes == ("extra", "holdout", "train")
    (tmp_path / "extra/1.png").unlink()
    assert "not read: extra and holdout. A split among them has to be named val or test." in read(tmp_path).warnings[0]


def test_a_folder_inside_the_folder_is_named(tmp_path: Path) -> None:
    put(tmp_path, "photos/cat/1.png", "photos/dog/1.png")
    assert f"Did you mean {tmp_path / 'photos'}?" in faults(tmp_path)
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "photos").rename(tmp_path / "a/b/photos")
    assert f"Did you mean {tmp_path / 'a/b/photos'}?" in faults(tmp_path)


def save(file: Path, kind: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (200, 100, 50)).save(file, kind)


def test_every_ending_that_pillow_reads_is_read_and_names_without_one_by_their_content(tmp_path: Path) -> None:
    kinds = {
        "1.jfif": "JPEG",
        "2.jpe": "JPEG",
        "3.avif": "AVIF",
        "4.jp2": "JPEG2000",
        "5.ppm": "PPM",
        "6.TGA": "TGA",
        "7": "PNG",
        "8": "WEBP",
    }
    for name in ("cat", "dog"):
        for file, kind in kinds.items():
            save(tmp_path / name / file, kind)
    (tmp_path / "cat/LICENSE").write_text("All rights reserved.")
    samples = read(tmp_path)
    assert len(samples.samples) == 16
    assert samples.warnings == ()
    for sample in samples.samples:
        assert decode(sample.image).shape == (8, 8, 3)


def test_files_that_look_like_images_and_are_not_used_are_counted(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/1.png", "a/2.bak", "a/3.jpg_large")
    for name in ("a/1.heic", "a/2.HEIC", "b/3.heic", "b/a.svg", "b/notes.txt", "b/labels.xml"):
        (tmp_path / name).write_bytes(b"x")
    (warning,) = read(tmp_path).warnings
    assert "6 files look like images and are not used: 3 .heic, such as a/1.heic; 1 .bak, such as a/2.bak; 1 .jpg_large" in warning


@pytest.mark.skipif(shutil.which("gs") is None, reason="Ghostscript is not installed")
def test_no_other_program_is_started_for_an_image(tmp_path: Path) -> None:
    save(tmp_path / "a.png", "EPS")
    with pytest.raises(DataError, match="not an image in a format that can be read"):
        decode(tmp_path / "a.png")


@pytest.mark.skipif(os.name == "nt", reason="names there are always Unicode")
def test_a_name_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    try:
        os.rename(tmp_path / "a/1.png", os.fsencode(tmp_path) + b"/a/\xff.png")
    except OSError:
        pytest.skip("the file system refuses such names")
    assert len(read(tmp_path).samples) == 2


def test_images_of_any_depth_and_name_are_read_and_what_systems_leave_is_not(tmp_path: Path) -> None:
    deep = "/".join(f"{level}" for level in range(60))
    wanted = [f"a b/{deep}/1.png", 'a b/"quotes".png', "a b/😀.webp", "日本/x.jpg/inside.png", "日本/comma, semicolon;.TIFF"]
    put(tmp_path, *wanted)
    put(tmp_path, "a b/@eaDir/1.jpg", "a b/__MACOSX/1.jpg", "__MACOSX/a b/1.jpg", "a b/._1.png", "日本/.git/1.png", ".Trash/1.png")
    for name in (".DS_Store", "a b/.DS_Store", "a b/Thumbs.db", "日本/desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
    samples = read(tmp_path)
    assert samples.classes == ("a b", "日本")
    assert {sample.id for sample in samples.samples} == set(wanted)  # a folder called x.jpg is a folder


def test_a_link_that_leads_nowhere_is_an_image_that_reading_names(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a/gone.png").symlink_to("nowhere.png")
    (tmp_path / "a/circle.png").symlink_to("circle.png")
    (tmp_path / "a/linked.png").symlink_to("1.png")
    samples = {sample.id: sample for sample in read(tmp_path).samples}
    assert set(samples) == {"a/1.png", "a/circle.png", "a/gone.png", "a/linked.png", "b/1.png"}
    with pytest.raises(DataError, match=r"gone\.png: this is a link to nowhere"):
        decode(samples["a/gone.png"].image)
    with pytest.raises(DataError, match=r"circle\.png"):
        decode(samples["a/circle.png"].image)


def test_links_upwards_bring_no_images_of_other_classes(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png")
    (tmp_path / "train/a/up").symlink_to(tmp_path)
    (tmp_path / "train/b/up").symlink_to(tmp_path / "train")
    assert [sample.id for sample in read(tmp_path).samples] == ["train/a/1.png", "train/b/2.png", "val/a/3.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
def test_pipes_are_left_out_and_reported_and_never_opened(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/1.png")
    for name in ("a/pipe.png", "a/pipe", "a/pipe.old"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "a/linked").symlink_to("pipe")
    samples = read(tmp_path)
    assert len(samples.samples) == 2
    assert samples.warnings == (f"{tmp_path}: not read, since they are no files: {tmp_path / 'a/pipe.png'}",)


def test_images_beside_the_class_folders_are_reported(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/1.png", "train/loose.png", "train/other.png")
    samples = read(tmp_path)
    assert len(samples.samples) == 2
    expected = f"{tmp_path}: 2 images are beside the class folders and not read: train/loose.png, train/other.png"
    assert samples.warnings == (expected,)


def test_folders_that_may_not_be_read_are_all_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a/1.png", "a/shut/1.png", "b/1.png", "b/deep/shut/1.png")
    scandir = os.scandir

    def refuse(place: Path) -> object:  # As for people who aren't root; root may read everything.
        if Path(place).name == "shut":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    message = faults(tmp_path)
    assert f"{tmp_path / 'a/shut'}: the folder can't be read (Permission denied)." in message
    assert f"{tmp_path / 'b/deep/shut'}: the folder can't be read (Permission denied)." in message


@pytest.mark.skipif(os.name == "nt", reason="names there are always Unicode")
def test_a_class_whose_name_is_not_utf8_is_refused_by_its_bytes(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    try:
        os.rename(tmp_path / "a", os.fsencode(tmp_path) + b"/caf\xe9")
    except OSError:
        pytest.skip("the file system refuses such names")
    assert r"not UTF-8 or has unprintable characters: 'caf\xe9'" in faults(tmp_path)


def test_listing_asks_the_system_once_a_folder_and_never_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in range(50)))
    asked: list[Path] = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: asked.append(Path(os.fsdecode(path))) or stat(path, **more))
    assert len(read(tmp_path).samples) == 100
    assert not [path for path in asked if path.suffix == ".png"]


def test_a_folder_called_by_a_long_number_is_a_class_at_once() -> None:
    # With a pattern that could split the digits in any way, twice the time for each digit more: for these the age of the earth.
    assert split_of("1" * 80 + "_cat") == ""
    assert split_of("train2017") == split_of("Training Images 224") == "train"
