import errno
import logging
import os
import unicodedata
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from tlkit.data.decode import decode
from tlkit.data.samples import Samples
from tlkit.data.sources.kind import SourceKind
from tlkit.data.sources.read import KINDS, read_source
from tlkit.data.splits.holdout import split_warnings
from tlkit.errors import DataError
from tlkit.recipe.fields.source import BundledSource, FolderSource, Source


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "PNG")


def read(folder: Path) -> Samples:
    return read_source(FolderSource(folder=str(folder)), Path("unused"))


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
    assert read(tmp_path).classes == ("bus", "train")


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
    assert "has pictures but no class folders" in faults(tmp_path)


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
    assert split_warnings(samples) == ["the validation split has no picture of: dog. Its figures say nothing about them."]


def test_two_validation_folders_and_no_training_folder_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "val/cat/1.png", "val/dog/1.png")
    assert "no train folder" in faults(tmp_path)
    put(tmp_path, "train/cat/1.png", "train/dog/1.png", "valid/cat/1.png")
    assert "val and valid both mean validation" in faults(tmp_path)


def test_an_unsorted_test_folder_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/1.png")
    assert f"{tmp_path / 'test'}: has no class folders" in faults(tmp_path)


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


def test_a_link_that_leads_nowhere_is_a_image_that_reading_names(tmp_path: Path) -> None:
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
def test_pipes_are_left_out_and_reported_and_never_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "a/1.png", "b/1.png")
    os.mkfifo(tmp_path / "a/pipe.png")
    with caplog.at_level(logging.WARNING, "tlkit"):
        assert len(read(tmp_path).samples) == 2
    assert f"not read, since they are no files: {tmp_path / 'a/pipe.png'}" in caplog.text


def test_images_beside_the_class_folders_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "train/a/1.png", "train/b/1.png", "train/loose.png", "train/other.png")
    with caplog.at_level(logging.WARNING, "tlkit"):
        assert len(read(tmp_path).samples) == 2
    assert "2 pictures lie beside the class folders and are not read: loose.png, other.png" in caplog.text


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
    assert r"not UTF-8 or has signs that can't be printed: 'caf\xe9'" in faults(tmp_path)


def test_listing_asks_the_system_once_a_folder_and_never_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in range(50)))
    asked: list[Path] = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: asked.append(Path(os.fsdecode(path))) or stat(path, **more))
    assert len(read(tmp_path).samples) == 100
    assert not [path for path in asked if path.suffix == ".png"]
