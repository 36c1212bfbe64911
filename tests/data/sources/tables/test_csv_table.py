import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from tlkit.data.samples import Samples
from tlkit.data.sources.read import read_source
from tlkit.errors import DataError
from tlkit.recipe.fields.source import CsvSource
from tlkit.recipe.schema import Task


def table(folder: Path, text: str, *images: str, encoding: str = "utf-8") -> Path:
    """pictures.csv in the folder, and the images."""
    for name in images or ("a.png", "b.png", "c.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    file = folder / "pictures.csv"
    file.write_text(text, encoding=encoding, newline="")
    return file


def read(file: Path, task: Task = "multiclass", **keys: object) -> Samples:
    return read_source(CsvSource.model_validate({"csv": str(file), **keys}), Path("unused"), task)


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
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


def test_rows_that_repeat_an_earlier_one_count_once_and_are_reported(tmp_path: Path) -> None:
    samples = read(table(tmp_path, "path,label\na.png,x\nb.png,y\n./a.png,x\n"))
    assert len(samples.samples) == 2
    assert samples.warnings == (f"{tmp_path / 'pictures.csv'}: 1 row repeats an earlier row, and is left out",)


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
        ("path|label\na.png|x\n", "multiclass", ":1: the header is one cell, 'path|label'; its words are separated by '|'"),
        ("path,label\nhttps://x.org/a.png,x\nb.png,y\n", "multiclass", ":2: https://x.org/a.png is an address, .* nothing is fetched"),
        ("path,label\na.png,x\0\nb.png,y\n", "multiclass", ":2: the label 'x\\x00' has unprintable characters"),
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
            ":3: the image nope.png does not exist (and 1 more such line: 4). .* Paths are relative to",
        ),
        ("path,label\na.png,x\ndeep\\b.png,y\n", "multiclass", ":3: the image deep\\b.png does not exist. .* Paths are relative to"),
        (
            "path,label,split\na.png,dog,train\nb.png,cat,train\nc.png,dogs,val\n",
            "multiclass",
            ":4: the val split has the class 'dogs', and no training image has it. Did you mean 'dog'?",
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
    assert faulty == [
        f"{file}:2: the image gone0.png does not exist (and 9 more such lines: 3, 4, 5, 6, 7, 8, 9, 10, ..).",
        f"{file}:31: the image folder is a folder.",
        f"{file}:32: the image link.png is a broken link.",
        f"{file}:12: the label is empty (and 4 more such lines: 13, 14, 15, 16).",
        f"{file}:17: label = 'x|y' holds more than one label (and 4 more such lines: 18, 19, 20, 21).",
        f"{file}:22: the path is empty (and 3 more such lines: 23, 24, 25).",
        f"{file}:26: the path ../../etc/passwd leads out of {tmp_path} (and 1 more such line: 27).",
        f"{file}:28: has 4 cells, and the header has 2.",
        f"{file}:30: b.png has the label 'y' here, and 'x' in line 29.",
    ]
    assert len(lines) == len(faulty) + 7


def test_paths_that_lead_out_of_the_root_are_refused_and_a_root_that_holds_them_is_named(tmp_path: Path) -> None:
    file = table(tmp_path / "labels", "path,label\n../images/a.png,x\n../images/../images/b.png,y\n", "../images/a.png", "../images/b.png")
    message = fault(CsvSource(csv=str(file)))
    assert f"{file}:2: the path ../images/a.png leads out of {tmp_path / 'labels'} (and 1 more such line: 3)." in message
    assert f"{{csv: {file}, root: {tmp_path}}}" in message
    file.write_text("path,label\nimages/a.png,x\nlabels/../images/./b.png,y\n")
    samples = read_source(CsvSource(csv=str(file), root=str(tmp_path)), Path("unused")).samples
    assert [sample.id for sample in samples] == ["images/a.png", "images/b.png"]


def test_absolute_paths_below_the_root_have_ids_that_hold_on_other_machines(tmp_path: Path) -> None:
    file = table(tmp_path, f"path,label\n{tmp_path}/deep/a.png,x\nb.png,y\n", "deep/a.png", "b.png")
    assert [sample.id for sample in read(file).samples] == ["deep/a.png", "b.png"]


def test_a_root_that_is_not_there_is_reported(tmp_path: Path) -> None:
    assert "data.source.root: the folder nowhere does not exist" in fault(CsvSource(csv=str(table(tmp_path, "")), root="nowhere"))


# --- tables as people have them ---


@pytest.mark.parametrize(
    "text",
    [
        'path;label;"notes, remarks, and more"\na.png;x;"x, y"\nb.png;y;\n',  # a quoted comma in a header of semicolons
        "sep=;\npath;label\na.png;x\nb.png;y\n",
        '"sep=\t"\r\npath\tlabel\r\na.png\tx\r\nb.png\ty\r\n',
        "\n\r\n  \npath,label\na.png,x\nb.png,y\n",
        ";;\npath;label\na.png;x\n;\nb.png;y\n",
        'path,label,"two\nlines"\na.png,x,\nb.png,y,"and\nhere"\n',
        "path,label\na.png,x,\nb.png,y,,\n",
    ],
)
def test_a_table_is_read_however_a_spreadsheet_has_saved_it(tmp_path: Path, text: str) -> None:
    samples = read(table(tmp_path, text))
    assert [(sample.id, samples.label_text(sample)) for sample in samples.samples] == [("a.png", "x"), ("b.png", "y")]
    assert samples.warnings == ()


def test_lines_are_counted_from_the_top_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pictures\.csv:5: the label is empty"):
        read(table(tmp_path, "\nsep=;\npath;label\na.png;x\nb.png;\n"))


def test_columns_of_other_names_are_named_in_the_recipe_and_hinted_at_where_they_are_usual(tmp_path: Path) -> None:
    file = table(tmp_path, "Filename,Class,fold,patient_id\na.png,x,train,1\nb.png,y,test,2\nc.png,y,train,2\n")
    with pytest.raises(DataError) as raised:
        read(file)
    assert "Did you mean data.source.path=Filename?" in str(raised.value)
    assert "Did you mean data.source.label=Class?" in str(raised.value)
    samples = read(file, path="Filename", label="Class", split="fold", group="patient_id")
    assert [(sample.id, sample.split, sample.group) for sample in samples.samples] == [
        ("a.png", "train", "1"), ("b.png", "test", "2"), ("c.png", "train", "2")
    ]  # fmt: skip
    (warning,) = read(file, path="Filename", label="Class", split="fold").warnings
    assert "If patient_id is meant: data.source.group=patient_id." in warning
    with pytest.raises(DataError, match=r"the column where is missing; .*\n  Correct data\.source\.split"):
        read(file, path="Filename", label="Class", split="where")


def test_an_ending_that_is_missing_is_completed_where_that_is_unique(tmp_path: Path) -> None:
    images = ("deep/a.png", "b.v2.jpg", "c.png")
    (tmp_path / "b.v2.json").write_text("{}")
    samples = read(table(tmp_path, "path,label\ndeep/a,x\nb.v2,y\nc.png,y\n", *images))
    assert [sample.id for sample in samples.samples] == ["deep/a.png", "b.v2.jpg", "c.png"]
    (warning,) = samples.warnings
    assert "2 paths have no ending and a file with one was found, such as deep/a -> deep/a.png" in warning
    Image.new("RGB", (4, 4)).save(tmp_path / "deep/a.jpg")
    with pytest.raises(DataError, match=r":2: the image deep/a does not exist; a\.jpg and a\.png do\.\n  Write the ending too\."):
        read(tmp_path / "pictures.csv")


def test_back_slashes_of_windows_are_read(tmp_path: Path) -> None:
    samples = read(table(tmp_path, "path,label\ndeep\\er\\a.png,x\n.\\b.png,y\ndeep\\c,y\n", "deep/er/a.png", "b.png", "deep/c.png"))
    assert [sample.id for sample in samples.samples] == ["deep/er/a.png", "b.png", "deep/c.png"]
    assert any("3 paths have back-slashes, read as forward slashes" in warning for warning in samples.warnings)


def test_the_folder_that_has_the_images_is_named(tmp_path: Path) -> None:
    file = table(tmp_path, "path,label\na.png,x\nb.png,y\n", "images/a.png", "images/b.png")
    assert f"a.png is in {tmp_path / 'images'}: data.source.root={tmp_path / 'images'}." in fault(CsvSource(csv=str(file)))


@pytest.mark.parametrize("sign", [",", ";", " ", "/", "+", "&", "-", "、"])
def test_labels_that_another_sign_separates_are_not_taken_for_classes(tmp_path: Path, sign: str) -> None:
    text = f'path,label\na.png,"hat{sign}bag"\nb.png,bag\nc.png,hat\n'
    file = table(tmp_path, text)
    with pytest.raises(DataError) as raised:
        read(file, "multilabel")
    assert f"labels seem to be separated by '{sign}': 'hat{sign}bag' would be one class" in str(raised.value)
    assert f"Set data.source.separator='{sign}', or data.source.separator='|' if these are the names of classes" in str(raised.value)
    samples = read(file, "multilabel", separator=sign)
    assert samples.classes == ("bag", "hat")
    assert [sample.labels for sample in samples.samples] == [(0, 1), (0,), (1,)]
    assert len(read(file, "multilabel", separator="|").classes) == 3
    names = table(tmp_path, "path,label\na.png,red dress\nb.png,blue shirt\nc.png,tench and others\n")
    assert len(read(names, "multilabel").classes) == 3  # names of classes may have blanks


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("hat|bag;shoe", "hat", "bag", "shoe"), "'|' between labels, and others ';': 'hat|bag;shoe' would be one class"),
        (("New York", "ice cream", "cream", "ice"), "labels seem to be separated by ' ': 'ice cream' would be one class"),
        (("a;b", "c;d", "e;f"), "labels seem to be separated by ';': 'a;b' would be one class"),
        (("\"['hat', 'bag']\"", "['hat']", "[]"), "hold lists, such as ['hat', 'bag'], which would be names of classes"),
        (('"[""hat"", ""bag""]"', '"[""bag""]"'), "with | between them: hat|bag"),
        (("hat\tbag", "hat"), "'hat\\tbag' has unprintable characters.\n  If several labels are meant, write | between them."),
    ],
)
def test_cells_with_several_labels_in_other_forms_are_not_taken_for_classes(tmp_path: Path, cells: tuple[str, ...], expected: str) -> None:
    rows = "".join(f"{'abcd'[number]}.png,{cell}\n" for number, cell in enumerate(cells))
    with pytest.raises(DataError) as raised:
        read(table(tmp_path, f"path,label\n{rows}", "a.png", "b.png", "c.png", "d.png"), "multilabel")
    assert expected in str(raised.value)


def test_names_of_two_others_are_classes_where_the_usual_separator_is_used(tmp_path: Path) -> None:
    samples = read(table(tmp_path, "path,label\na.png,t|shirt\nb.png,t-shirt\nc.png,t|t-shirt\n"), "multilabel")
    assert samples.classes == ("shirt", "t", "t-shirt")


def test_a_class_that_is_two_others_is_reported_where_an_image_has_one(tmp_path: Path) -> None:
    samples = read(table(tmp_path, "path,label\na.png,hat;bag\nb.png,hat\nc.png,bag\nd.png,a;c unit\n", "a.png", "b.png", "c.png", "d.png"))
    assert samples.classes == ("a;c unit", "bag", "hat", "hat;bag")
    (warning,) = samples.warnings
    assert "the class 'hat;bag' has the names of other classes in it. If these are several labels of an image: task=multilabel" in warning


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"PK\3\4\x14", "is a spreadsheet or another packed file, not a table as text.\n  Save the table as CSV UTF-8"),
        (b"PAR1\x15\x04", "is a parquet file, not a table as text.\n  Use {parquet: "),
        ("path,label\n".encode("utf-16-le"), ":1: is not UTF-8 text"),
        (b"# by a tool\npath,label\n", ":1: begins with #, and names no columns.\n  Remove what is above the header."),
        (b"a.png,x\nb.png,y\n", ":1: the first line is a row, not a header: a.png, x.\n  Write the columns' names above it: path,label"),
        (b"#,photo,label\n1,a.png,x\n", "Did you mean data.source.path=photo?"),
        (b"path|label\na.png|x\n", "or name the separator in a first line: sep=|"),
    ],
)
def test_a_file_that_is_no_table_of_this_form_says_what_it_is(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    assert expected in fault(CsvSource(csv=str(tmp_path / "t.csv")))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/ann/data/deep/a.png", "deep/a.png is there: write the paths from there on."),
        ("C:\\data\\deep\\a.png", "deep/a.png is there: write the paths from there on."),
        ("deep/a.JPG", "deep/a.png is there: correct the name."),
        ("7", "0007.png is there: correct the name."),
        ("9" * 300, "9 does not exist"),  # longer than a name can be
        ("'deep/a.png'", "Write deep/a.png without quotes, or in double ones."),
        ("file:///data/a.png", "Write the path alone, without file://"),
    ],
)
def test_a_path_that_leads_nowhere_has_the_nearest_file_named(tmp_path: Path, path: str, expected: str) -> None:
    file = table(tmp_path, f"path,label\n{path},x\n0007.png,y\n", "deep/a.png", "0007.png")
    message = fault(CsvSource(csv=str(file)))
    assert expected in message
    assert message.count("pictures.csv:2: ") == 1


def test_paths_from_a_folder_above_the_table_name_that_folder(tmp_path: Path) -> None:
    (tmp_path / "my data").mkdir()
    file = table(tmp_path / "my data", "path,label\nmy data/a.png,x\nmy data/b.png,y\n")
    assert "a.png is there" in fault(CsvSource(csv=str(file)))
    (tmp_path / "photos").mkdir()
    (tmp_path / "my data/a.png").rename(tmp_path / "photos/a.png")
    file.write_text("path,label\nphotos/a.png,x\nb.png,y\n")
    assert f"photos/a.png is in {tmp_path}: data.source.root={tmp_path}." in fault(CsvSource(csv=str(file)))


@pytest.mark.parametrize(("path", "label"), [("Path", "LABEL"), ("Image Name", "class label"), ("ImageId", "Finding Labels")])
def test_columns_in_other_spellings_are_hinted_at_as_an_option_that_works(tmp_path: Path, path: str, label: str) -> None:
    file = table(tmp_path, f"{path},{label}\na.png,x\nb.png,y\n")
    message = fault(CsvSource(csv=str(file)))
    assert f"{shlex.quote(f'data.source.path={path}')}?" in message
    assert f"{shlex.quote(f'data.source.label={label}')}?" in message
    assert read(file, path=path, label=label).classes == ("x", "y")


def test_columns_that_mark_classes_in_another_way_are_hinted_at(tmp_path: Path) -> None:
    file = table(tmp_path, "path,hat,bag\na.png,1,-1\nb.png,-1,1\nc.png,-1,1\n")
    assert "If each class has a column of 0 and 1: 'data.source.label=[hat, bag]'." in fault(CsvSource(csv=str(file)))
    other = table(tmp_path, "Unnamed: 0,image,hat,bag\n0,a.png,1,0\n1,b.png,0,1\n")
    assert "column label" not in fault(CsvSource(csv=str(other)))
    assert read(other, path="image").classes == ("bag", "hat")


def test_columns_of_0_and_1_are_labels(tmp_path: Path) -> None:
    file = table(tmp_path, "path,split,hat,bag,weight\na.png,train,1,1,0.5\nb.png,train,0,1,2\nc.png,test,0.0,True,1\n")
    samples = read(file, "multilabel", label=["bag", "hat"])
    assert samples.classes == ("bag", "hat")[: len(samples.classes)]
    assert [samples.label_text(sample) for sample in samples.samples] == ["bag|hat", "bag", "bag"]
    found = read(file, "multilabel")
    assert found.samples == samples.samples
    (warning,) = found.warnings
    assert "has no column label; its columns of 0 and 1 are read as classes: hat, bag" in warning
    one = table(tmp_path, "path,hat,bag\na.png,1,0\nb.png,0,1\nc.png,1,0\n")
    assert [sample.label for sample in read(one).samples] == [1, 0, 1]
    wrong = table(tmp_path, "path,hat,bag\na.png,1,0\nb.png,0,2\nc.png,1,1\n")
    with pytest.raises(DataError, match="bag = '2' is neither 0 nor 1"):
        read(wrong, label=["hat", "bag"])


def test_blanks_around_a_cell_are_not_part_of_its_label_and_that_is_reported_where_it_joins_two(tmp_path: Path) -> None:
    samples = read(table(tmp_path, "path,label\na.png,cat\nb.png,cat \nc.png, dog\n"))
    assert samples.classes == ("cat", "dog")
    (warning,) = samples.warnings
    assert "'cat ' and 'cat' are read as one class" in warning
