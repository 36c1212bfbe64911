"""Shards, tables and arrays are checked as folders are."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.quality.checking import good_members, of_shard, rows, shard, small_folder
from tlkit.cli import main
from tlkit.data.quality.check import check_images
from tlkit.recipe.fields.data import Data
from tlkit.recipe.fields.source import CsvSource, NpzSource

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_shard_with_a_path_that_leads_out_has_its_other_images_decoded(tmp_path: Path) -> None:
    members = dict(sorted((good_members() | {"broken.png": b"no image", "broken.cls": b"0"}).items()))
    found = of_shard(shard(tmp_path / "a.tar", members | {"../../x.png": b"x", "/y.png": b"y"}))
    assert (found.images, found.bad) == (13, 1)
    problems = sorted((finding.where, finding.problem) for finding in found.findings)
    assert problems == [
        (str(tmp_path / "a.tar"), f"../../x.png: leads out of the shard; nothing was written (and 1 more such: {tmp_path}/a.tar: /y.png)"),
        ("a.tar:broken", "this is not an image in a format that can be read (JPEG, PNG, WebP, AVIF, TIFF and others)"),
    ]


def test_classes_in_two_spellings_and_cells_without_a_value_are_reported_of_any_source(tmp_path: Path) -> None:
    classes = ["Cat", "cat", "NaN", "1", "-1", "sea gull", "Sea-Gull"] * 4
    np.savez(tmp_path / "a.npz", images=np.zeros((28, 8, 8), np.uint8), labels=np.array(classes))
    found = check_images(Data(source=NpzSource(npz=str(tmp_path / "a.npz"))), "multiclass", 0)
    assert rows(found, "warning") == {
        "class '-1'": "'-1' is a class like others",
        "class 'NaN'": "'NaN' is a class like others",
        "class 'cat'": "'cat' and 'Cat' count as two classes",
        "class 'sea gull'": "'sea gull' and 'Sea-Gull' count as two classes",
    }


def test_a_table_with_faults_has_its_images_looked_at_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_folder(tmp_path / "photos")
    (folder / "cat" / "0.png").write_bytes(b"")
    lines = [f"photos/{name}/{number}.png,{name}" for name in ("cat", "dog") for number in range(12)]
    lines += ["photos/gone.png,cat", "../../etc/passwd,dog", "photos/cat/1.png,dog", ",cat", "a,b,c"]
    (tmp_path / "table.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    assert main(["data", "check", str(tmp_path / "table.csv")]) == 2
    out = capsys.readouterr().out
    assert out.count(" fault ") == 6
    for words in (
        "photos/gone.png",
        "../../etc/passwd leads out of",
        "and 'cat' in line 3",
        "the path is empty",
        "has 3 cells",
    ):
        assert words in out, words
    assert "photos/cat/0.png" in out
    (tmp_path / "table.csv").write_text("file,label\na,b\n")
    assert main(["data", "check", str(tmp_path / "table.csv")]) == 2
    assert "the column path is missing" in capsys.readouterr().out


def test_equal_faults_of_a_table_are_one_row_with_their_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_folder(tmp_path / "photos")
    lines = [f"photos/{name}/{number}.png,{name}" for name in ("cat", "dog") for number in range(12)]
    lines += [*(f"photos/cat/{number}.png," for number in range(4)), ",cat", ",dog"]
    (tmp_path / "table.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    assert main(["data", "check", str(tmp_path / "table.csv")]) == 2
    out = capsys.readouterr().out
    assert out.count(" fault ") == 2
    # 24 sound lines after the head: the labels are missing in lines 26 to 29, the paths in 30 and 31.
    assert "the label is empty (and 3 more such lines: 27, 28, 29)" in out
    assert "the path is empty (and 1 more such line: 31)" in out


def test_a_sound_table_is_checked(tmp_path: Path) -> None:
    small_folder(tmp_path / "photos")
    lines = [f"photos/{name}/{number}.png,{name}" for name in ("cat", "dog") for number in range(12)]
    (tmp_path / "table.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    found = check_images(Data(source=CsvSource(csv=str(tmp_path / "table.csv"))), "multiclass", 0)
    assert (found.images, found.findings) == (24, ())
