import logging
import re
from pathlib import Path

import pytest
from PIL import Image

from tlkit.data.samples import Samples
from tlkit.data.sources.read import read_source
from tlkit.errors import DataError
from tlkit.recipe.fields.source import CsvSource
from tlkit.recipe.schema import Task


def table(folder: Path, text: str, *images: str, encoding: str = "utf-8") -> Path:
    """pictures.csv in the folder, and the pictures."""
    for name in images or ("a.png", "b.png", "c.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    file = folder / "pictures.csv"
    file.write_text(text, encoding=encoding, newline="")
    return file


def read(file: Path, task: Task = "multiclass") -> Samples:
    return read_source(CsvSource(csv=str(file)), Path("unused"), task)


def fault(source: CsvSource) -> str:
    with pytest.raises(DataError) as raised:
        read_source(source, Path("unused"))
    return str(raised.value)


def test_columns_in_any_order_give_id_label_split_and_group(tmp_path: Path) -> None:
    text = (
        "split,label,notes,path,group\n"
        "train,dog,x,deep/a.png,Rex\n"
        'valid,cat,,"with, comma.png",\n\n'
        "TEST,dog,,./c.png,\n"
        "train,cat,,d.png,Tom\n"
    )
    samples = read(table(tmp_path, text, "deep/a.png", "with, comma.png", "c.png", "d.png"))
    assert samples.classes == ("cat", "dog")
    assert [(s.id, s.label, s.split, s.group) for s in samples.samples] == [
        ("deep/a.png", 1, "train", "Rex"),
        ("with, comma.png", 0, "val", None),
        ("c.png", 1, "test", None),
        ("d.png", 0, "train", "Tom"),
    ]
    assert all(isinstance(s.image, Path) and s.image.is_file() for s in samples.samples)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_as_spreadsheets_save_them_read_alike(tmp_path: Path, encoding: str, separator: str, end: str) -> None:
    text = f"path,label{end}a.png,Ökotyp{end}b.png,Zebra{end}".replace(",", separator)
    samples = read(table(tmp_path, text, encoding=encoding))
    assert samples.classes == ("Zebra", "Ökotyp")  # by code point
    assert [(s.id, s.labels, s.split) for s in samples.samples] == [("a.png", (1,), ""), ("b.png", (0,), "")]


def test_several_labels_stand_in_one_cell_and_none_is_a_label_set_too(tmp_path: Path) -> None:
    samples = read(table(tmp_path, "path,label\na.png,hat| bag\nb.png,\nc.png,bag|bag\n"), "multilabel")
    assert samples.classes == ("bag", "hat")
    assert [s.labels for s in samples.samples] == [(0, 1), (), (0,)]
    assert samples.task == "multilabel"


def test_rows_that_repeat_an_earlier_one_count_once_and_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("tlkit").propagate = True  # a run in the same process turns it off
    samples = read(table(tmp_path, "path,label\na.png,x\nb.png,y\n./a.png,x\n"))
    assert len(samples.samples) == 2
    assert "1 rows say again" in caplog.text


@pytest.mark.parametrize(
    ("text", "task", "expected"),
    [
        ("", "multiclass", ":1: the column path is missing; the file is empty"),
        ("path,lable\na.png,x\n", "multiclass", ":1: the column label is missing; it has path, lable. .* Did you mean 'lable'?"),
        ("path,label,label\na.png,x,y\n", "multiclass", ":1: has the column label more than once"),
        ("path,label\n", "multiclass", ": has no rows below the header"),
        ("path,label\na.png,x\nb.png,y,z\n", "multiclass", ":3: has 3 cells, and the header has 2"),
        ('path,label\na.png,x\n"b.png"c,y\n', "multiclass", ":3: the row that begins here can't be read"),
        ('path,label\na.png,x\nb.png,"y\nc.png,y\n', "multiclass", ":3: the row that begins here can't be read"),
        ("path|label\na.png|x\n", "multiclass", ":1: the header is one cell, 'path|label'; its words are parted by '|'"),
        ("path,label\nhttps://x.org/a.png,x\nb.png,y\n", "multiclass", ":2: https://x.org/a.png is an address, .* nothing is fetched"),
        ("path,label\na.png,x\0\nb.png,y\n", "multiclass", ":2: the label 'x\\x00' has signs that can't be printed"),
        ("path,label\na.png,x\n,y\n", "multiclass", ":3: the path is empty"),
        ("path,label\na.png,x\nb.png,\n", "multiclass", ":3: the label is empty. .* task: multilabel"),
        ("path,label\na.png,x|y\nb.png,y\n", "multiclass", ":2: label = 'x|y' holds more than one label. Set task to multilabel"),
        ("path,label\na.png,x\nb.png,x\n", "multiclass", ": has one class only, 'x'"),
        ("path,label\na.png,\nb.png,\n", "multilabel", ": has no labels at all"),
        ("path,label,split\na.png,x,trian\nb.png,y,\n", "multiclass", ":2: split = 'trian' can't be used. .* Did you mean 'train'?"),
        ("path,label\na.png,x\nb.png,y\na.png,y\n", "multiclass", ":4: a.png has the label 'y' here, and 'x' in line 2"),
        ("path,label,split\na.png,x,train\nb.png,y,\na.png,x,test\n", "multiclass", ":4: a.png has the split 'test' here, and 'train'"),
        (
            "path,label\na.png,x\nnope.png,y\nneither.png,y\n",
            "multiclass",
            ":3: the picture nope.png does not exist. .* Paths are relative to",
        ),
        ("path,label\na.png,x\ndeep\\b.png,y\n", "multiclass", ":3: the picture deep\\b.png does not exist. .* Write forward slashes."),
        (
            "path,label,split\na.png,dog,train\nb.png,cat,train\nc.png,dogs,val\n",
            "multiclass",
            ":4: the val split has the class 'dogs', and no training picture has it. Did you mean 'dog'?",
        ),
    ],
)
def test_a_fault_names_the_line_and_the_fix(tmp_path: Path, text: str, task: Task, expected: str) -> None:
    file = table(tmp_path, text)
    with pytest.raises(DataError) as raised:
        read(file, task)
    message = str(raised.value)
    assert "\n  " in message, "no fix on a line of its own"
    start, _, end = expected.partition(" .* ")
    flat = re.sub(r"\s+", " ", message)
    assert f"{file}{start}" in flat
    assert end in flat


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pictures\.csv:3: is not UTF-8"):
        read(table(tmp_path, "path,label\na.png,x\nb.png,Köln\n", encoding="latin-1"))


def test_a_file_that_is_not_there_has_its_nearest_neighbour_named(tmp_path: Path) -> None:
    table(tmp_path, "path,label\n")
    with pytest.raises(DataError, match=r"does not exist.\n  Did you mean 'pictures.csv'\?"):
        read(tmp_path / "picture.csv")
    with pytest.raises(DataError, match="is a folder, not a table"):
        read(tmp_path)


def test_thirty_faults_are_reported_at_once_and_each_fix_once(tmp_path: Path) -> None:
    rows = [
        *(f"gone{i}.png,x" for i in range(10)),
        *("a.png," for _ in range(5)),
        *("b.png,x|y" for _ in range(5)),
        *(",x" for _ in range(4)),
        "../../etc/passwd,x",
        "/etc/passwd,y",
        "a.png,x,y,z",
        "b.png,x",
        "b.png,y",
        "folder,x",
        "link.png,x",
    ]
    file = table(tmp_path, "path,label\n" + "\n".join(rows) + "\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.png").symlink_to("nowhere.png")
    lines = fault(CsvSource(csv=str(file))).splitlines()
    faulty = [line for line in lines if not line.startswith("  ")]
    told = {int(line.removeprefix(f"{file}:").partition(":")[0]) for line in faulty}
    assert told == set(range(2, 33)) - {29}  # all rows but the first of the two that differ
    assert len(faulty) == 30
    assert len(lines) == 30 + 7
    assert f"{file}:31: the picture folder is a folder." in lines
    assert f"{file}:32: the picture link.png is a link that leads nowhere." in lines


def test_paths_that_lead_out_of_the_root_are_refused_and_a_root_that_holds_them_is_named(tmp_path: Path) -> None:
    file = table(tmp_path / "labels", "path,label\n../images/a.png,x\n../images/../images/b.png,y\n", "../images/a.png", "../images/b.png")
    message = fault(CsvSource(csv=str(file)))
    assert f"{file}:2: the path ../images/a.png leads out of {tmp_path / 'labels'}." in message
    assert f"{{csv: {file}, root: {tmp_path}}}" in message
    file.write_text("path,label\nimages/a.png,x\nlabels/../images/./b.png,y\n")
    samples = read_source(CsvSource(csv=str(file), root=str(tmp_path)), Path("unused")).samples
    assert [sample.id for sample in samples] == ["images/a.png", "images/b.png"]


def test_absolute_paths_below_the_root_have_ids_that_hold_on_other_machines(tmp_path: Path) -> None:
    file = table(tmp_path, f"path,label\n{tmp_path}/deep/a.png,x\nb.png,y\n", "deep/a.png", "b.png")
    assert [sample.id for sample in read(file).samples] == ["deep/a.png", "b.png"]


def test_a_root_that_is_not_there_is_reported(tmp_path: Path) -> None:
    assert "data.source.root: the folder nowhere does not exist" in fault(CsvSource(csv=str(table(tmp_path, "")), root="nowhere"))
