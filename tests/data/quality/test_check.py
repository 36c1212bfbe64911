import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from PIL import Image

from tests.data.faulty_folder import CLASSES, GOOD, encoded, make_faulty_folder, make_image
from tests.data.quality.checking import checked, rows, small_folder
from tlkit.cli import main
from tlkit.data.quality.check import check_images, escaped, faults_of
from tlkit.data.sources.kind import Finding
from tlkit.errors import DataError
from tlkit.recipe.fields.data import Data
from tlkit.recipe.fields.source import FolderSource
from tlkit.search.look import look_at

pytestmark = pytest.mark.usefixtures("own_cache")


def test_every_bad_file_is_named_and_no_good_one(tmp_path: Path) -> None:
    good, bad = make_faulty_folder(tmp_path / "photos")
    assert len(bad) >= 25
    assert len(good) == 3 * GOOD + 5
    found = checked(tmp_path / "photos")
    assert set(rows(found, "fault")) == bad | {"empty class/"}
    # Those two are good images of a shape that costs something; they are not faults.
    assert good & set(rows(found, "warning")) == {"plain/dot.png", "plain/hair.png"}
    assert good & set(rows(found, "note")) == {"plain/animated.gif"}
    assert all(finding.fix for finding in found.findings if finding.level == "fault")
    assert found.images == len(good) + len(bad) - 1  # all but the folder
    assert found.bad == len(bad) - 1


def test_what_is_reported_of_each_kind(tmp_path: Path) -> None:
    make_faulty_folder(tmp_path / "photos")
    found = checked(tmp_path / "photos")
    faults, warnings, notes = (rows(found, level) for level in ("fault", "warning", "note"))
    for file, words in {
        "empty.jpg": "the file is empty",
        "cut_off.jpg": "damaged or cut off",
        "text.png": "but text",
        "git_lfs.jpg": "a pointer to a file in Git LFS",
        "iphone.jpg": "an HEIC photograph",
        "dangling.jpg": "a link to nowhere.jpg",
        "circle.png": "symbolic links",
        "bomb.png": "too large",
        "floats.npy": "no known range",
    }.items():
        assert words in faults[f"{CLASSES[1]}/{file}"], file
    assert "a folder, not an image" in faults["plain/folder.jpg/"]
    assert "a pipe" in faults["plain/pipe.png"]
    # One pixel of 5000 is left of a square crop: 1 - 1/5000.
    assert warnings["plain/hair.png"] == "1 x 5000 pixels: `resize: crop` cuts 99.98 % of it away"
    assert warnings["plain/dot.png"] == "1 x 1 pixels: hardly an image"
    assert "files ending in .jpg_large are not read" in warnings["plain/photo.jpg_large"]
    assert "HEIC" in warnings["plain/photo.heic"]
    assert "is beside the class folders" in warnings["loose.png"]
    assert "not entered again" in warnings["plain/loop/"]
    assert notes["plain/.DS_Store"] == "left by the system: not read (and 2 more like it)"
    assert notes["plain/animated.gif"] == "has 3 frames or pages, and the first is taken; so has 1 more"
    assert notes["empty class/"] == "the name of the class is taken as it is (and 2 more with spaces or signs)"


def test_the_command_prints_one_table_writes_it_and_touches_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, bad = make_faulty_folder(tmp_path / "photos")
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path / "photos").rglob("*")}
    assert main(["data", "check", str(tmp_path / "photos"), "--out", str(tmp_path / "faults.csv")]) == 2
    out, error = capsys.readouterr()
    assert "Traceback" not in out + error
    for where in bad:
        assert f" fault    {where} " in out, where
    assert "data.on_bad=skip" in out
    with (tmp_path / "faults.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert {row["where"] for row in written if row["level"] == "fault"} == bad | {"empty class/"}
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "photos").rglob("*")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "faults.csv", "cache"}


def test_json_has_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_folder(tmp_path / "photos")
    (folder / "cat" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    assert main(["data", "check", str(folder), "--format", "json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["pictures"], found["unreadable"], found["classes"], found["faults"]) == (25, 1, 2, 1)
    assert found["findings"][0]["where"] == "cat/caf\udce9.png"


def test_a_sound_folder_ends_with_0_and_the_words_that_scripts_look_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(small_folder(tmp_path / "photos"))]) == 0
    assert "24 pictures in 2 classes were decoded, all of them can be read." in capsys.readouterr().out  # not images: see check.py
    assert main(["data", "check", "quickstart"]) == 0


def test_the_number_of_images_that_cannot_be_read_is_one_of_a_sum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_folder(tmp_path / "photos")
    (folder / "cat" / "bad.png").write_bytes(b"no image")
    assert main(["data", "check", str(folder)]) == 2
    assert "25 pictures in 2 classes were tried: 24 can be read, 1 can't." in capsys.readouterr().out


def test_files_beside_the_class_folders_are_reported(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "photos")
    make_image(1).save(folder / "stray.png")
    (folder / "IMG_1").write_bytes(encoded(make_image(2), "PNG"))
    for name in ("IMG_2.heic", "labels.csv"):
        (folder / name).write_bytes(b"x")
    found = checked(folder)
    assert rows(found, "warning") == {
        "stray.png": "is beside the class folders: it has no class and is not read",
        "IMG_1": "is beside the class folders: it has no class and is not read",
        "IMG_2.heic": "images in HEIC form are not read",
    }
    assert rows(found, "note") == {"labels.csv": "no image (.csv): not read"}


def test_a_folder_of_folders_of_folders_is_called_that_as_by_init(tmp_path: Path) -> None:
    for place in ("birds/owl", "birds/eagle", "fish/cod", "fish/eel"):
        (tmp_path / "animals" / place).mkdir(parents=True)
        for number in range(12):
            make_image(number).save(tmp_path / "animals" / place / f"{number}.png")
    found = checked(tmp_path / "animals")
    (problem,) = rows(found, "warning").values()
    assert "no class folder has images itself: they are a level or more below, such as in birds/eagle" in problem
    asked = check_images(Data(source=FolderSource(folder=str(tmp_path / "animals"), layout="class")), "multiclass", 0)
    assert rows(asked, "warning") == {}
    with pytest.raises(DataError, match="no class folder has images itself, they are a level or more below: birds/eagle"):
        look_at({"folder": str(tmp_path / "animals")})


def test_nothing_heavy_is_imported() -> None:
    heavy = ("torch", "timm", "lightning", "cv2")
    code = f"import sys; from tlkit.data.quality import check; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_faults_of_classes_and_splits_are_rows_beside_those_of_images(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "photos", splits=("train", "val"), classes=("cat", "dog", "emu"))
    for file in (folder / "train" / "emu").iterdir():
        file.unlink()
    (folder / "val" / "dogs").mkdir()
    (folder / "val" / "dog").rename(folder / "somewhere")
    (folder / "train" / "cat" / "0.png").write_bytes(b"")
    (folder / "train" / "Cat").mkdir()
    make_image(7).save(folder / "train" / "Cat" / "0.png")
    found = checked(folder)
    assert rows(found, "fault") == {
        "train/emu/": "the class folder holds no image",
        "val/dogs/": "training has no such class",
        "train/cat/0.png": "the file is empty (0 bytes)",
    }
    assert next(finding.fix for finding in found.findings if finding.where == "val/dogs/").endswith("Did you mean 'dog'?")
    warnings = rows(found, "warning")
    assert warnings["train/cat/"] == "'cat' and 'Cat' count as two classes"
    assert warnings["."].startswith("only train and val are read as splits; not read: somewhere")
    assert warnings["val/"] == "has no image of Cat, dog: its figures say nothing about them"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root.mkdir(), "there are no class folders"),
        (lambda root: small_folder(root, classes=("cat",)), "there is one class only, 'cat'"),
        (lambda root: small_folder(root, splits=("val", "test")), "has test and val but no train folder"),
        (lambda root: small_folder(root, splits=("train", "val", "valid")), "val and valid both mean validation"),
        (lambda root: None, "does not exist"),
    ],
)
def test_a_folder_that_is_no_source_is_a_row(tmp_path: Path, make: object, words: str) -> None:
    make(tmp_path / "photos")  # type: ignore[operator]
    (fault,) = rows(checked(tmp_path / "photos"), "fault").values()
    assert words in fault


def test_too_few_good_images_to_split_is_a_row(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "photos")
    for file in sorted((folder / "cat").iterdir())[:10]:
        file.write_bytes(b"")
    faults = rows(checked(folder), "fault")
    assert len(faults) == 11
    assert any("each class needs at least 3 images" in problem for problem in faults.values())


def test_a_folder_that_may_not_be_entered_is_a_row() -> None:
    with TemporaryDirectory() as place:  # pytest's own folder is closed to other users
        folder = small_folder(Path(place) / "photos")
        Path(place).chmod(0o755)
        (folder / "cat" / "more").mkdir(mode=0)
        root = os.geteuid() == 0
        if root:  # for whom permissions don't hold
            os.seteuid(65534)
        try:
            assert "can't be read (Permission denied)" in rows(checked(folder), "fault")["cat/more/"]
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize(
    ("resize", "words"),
    [("crop", "cuts 75 % of it away"), ("pad", "leaves 75 % of the square empty"), ("stretch", "makes it 4 times as wide or as high")],
)
def test_what_a_long_image_loses_depends_on_resize(tmp_path: Path, resize: str, words: str) -> None:
    folder = small_folder(tmp_path / "photos")
    make_image(1, (160, 40)).save(folder / "cat" / "long.png")
    make_image(1, (119, 40)).save(folder / "cat" / "three_times.png")
    (warning,) = rows(checked(folder, resize=resize), "warning").items()
    assert warning[0] == "cat/long.png"
    assert words in warning[1]


def test_16_bit_images_that_would_be_nearly_black_are_a_warning(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "photos")
    for number in range(3):
        Image.fromarray(np.full((9, 9), 4000 + number, np.uint16)).save(folder / "cat" / f"deep{number}.png")
    assert "data.range_16bit=[0, 4095] fits" in rows(checked(folder), "warning")[""]
    assert checked(folder, range_16bit=[0, 4095]).count("warning") == 0


def test_settings_of_the_recipe_decide(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "photos")
    Image.fromarray(np.array([[5000]] * 9, np.uint16)).resize((9, 9)).save(folder / "cat" / "deep.png")
    assert checked(folder).count("fault") == 0
    found = checked(folder, range_16bit=[0, 4095])
    assert rows(found, "fault") == {"cat/deep.png": "its 16-bit values go from 5000 to 5000, and data.range_16bit is [0, 4095]"}
    faults = rows(checked(folder, max_pixels=1000), "fault")  # those of 40 x 32; one of 9 x 9 passes
    assert faults.pop("class 'dog'") == "none of its 12 images can be read"
    assert len(faults) == 24
    faults = rows(checked(folder, channels=4), "fault")
    assert all("data.channels is 4" in problem for where, problem in faults.items() if where.endswith(".png"))
    assert len(faults) == 25 + 2  # images, and classes that have none left


def test_a_message_of_several_problems_becomes_a_row_each() -> None:
    error = DataError("a.csv:2: is wrong.\na.csv:3: is wrong too.\n  Mend both.\nb is missing.\n  Find it.\n  Soon.")
    assert list(faults_of(error)) == [
        Finding("fault", "a.csv:2", "is wrong", "Mend both."),
        Finding("fault", "a.csv:3", "is wrong too", "Mend both."),
        Finding("fault", "", "b is missing", "Find it. Soon."),
    ]


def test_names_that_a_screen_would_obey_are_written_out() -> None:
    assert escaped("a\x1b[31m\n\udce9é🐈") == r"a\x1b[31m\n\udce9é🐈"


@pytest.mark.parametrize(("out", "words"), [(".", "is a folder"), ("other.csv", "no table of an earlier check")])
def test_another_file_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, words: str) -> None:
    folder = small_folder(tmp_path / "photos")
    (tmp_path / "other.csv").write_text("path,label\n")
    assert main(["data", "check", str(folder), "--out", str(tmp_path / out)]) == 2
    assert words in capsys.readouterr().err
    assert (tmp_path / "other.csv").read_text() == "path,label\n"
    for _ in range(2):
        assert main(["data", "check", str(folder), "--out", str(tmp_path / "mine.csv")]) == 0
