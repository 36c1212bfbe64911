import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tlkit.data.samples import Samples
from tlkit.data.sources.read import read_source
from tlkit.errors import DataError
from tlkit.recipe.fields.source import CsvSource, ParquetSource
from tlkit.recipe.schema import Task

IMAGES = ("deep/a.png", "b.png", "c.png", "d.png")
ROWS = {
    "path": list(IMAGES),
    "label": ["dog", "cat", "dog", "cat"],
    "split": ["train", "train", None, "TEST"],
    "group": ["Rex", None, "7", ""],
}


def table(folder: Path, columns: dict[str, object] | pa.Table) -> Path:
    for name in IMAGES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), folder / "pictures.parquet")
    return folder / "pictures.parquet"


def read(file: Path, task: Task = "multiclass", **keys: object) -> Samples:
    return read_source(ParquetSource.model_validate({"parquet": str(file), **keys}), Path("unused"), task)


def fault(file: Path, task: Task = "multiclass") -> str:
    with pytest.raises(DataError) as raised:
        read(file, task)
    assert "\n  " in str(raised.value)
    return re.sub(r"\s+", " ", str(raised.value))


def test_a_parquet_reads_as_the_csv_of_the_same_rows(tmp_path: Path) -> None:
    file = table(tmp_path, {**ROWS, "unread": [1.5] * 4})
    pd.DataFrame(ROWS).to_csv(tmp_path / "pictures.csv", index=False)
    assert read(file) == read_source(CsvSource(csv=str(tmp_path / "pictures.csv")), Path("unused"))


def test_words_as_pandas_packs_them_and_whole_numbers_are_labels(tmp_path: Path) -> None:
    frame = pd.DataFrame({"path": pd.Series(IMAGES), "label": pd.Series(["x", "y", "x", "y"], dtype="category")})
    assert read(table(tmp_path, pa.Table.from_pandas(frame))).classes == ("x", "y")
    samples = read(table(tmp_path, {"path": list(IMAGES), "label": np.array([3, 1, 3, 1]), "group": [1, 1, 2, 2]}))
    assert (samples.classes, [s.label for s in samples.samples]) == (("1", "3"), [1, 0, 1, 0])
    assert [s.group for s in samples.samples] == ["1", "1", "2", "2"]


def test_a_list_of_labels_is_a_label_set(tmp_path: Path) -> None:
    file = table(tmp_path, {"path": list(IMAGES), "label": [["hat", "bag"], [], ["bag"], None]})
    samples = read(file, "multilabel")
    assert samples.classes == ("bag", "hat")
    assert [s.labels for s in samples.samples] == [(0, 1), (), (0,), ()]
    assert "row 1: label = 'hat|bag' holds more than one label" in fault(file)


def test_labels_of_a_list_stay_as_they_are(tmp_path: Path) -> None:
    file = table(tmp_path, {"path": list(IMAGES), "label": [["tench, Tinca"], [], ["bag", "tench, Tinca"], ["bag"]]})
    assert read(file, "multilabel", separator=",").classes == ("bag", "tench, Tinca")
    barred = table(tmp_path, {"path": list(IMAGES), "label": [["a|b"], [], ["a"], None]})
    assert "the label 'a|b' has a | in it" in fault(barred, "multilabel")


def test_other_types_that_can_be_text_are_read(tmp_path: Path) -> None:
    texts = pa.array(IMAGES, pa.string_view())
    assert read(table(tmp_path, pa.table({"path": texts, "label": [True, False] * 2}))).classes == ("False", "True")
    flags = {"path": list(IMAGES), "hat": [0.0, 1.0, 1.0, 0.0], "bag": [1.0, 0.0, 1.0, 0.0]}
    assert read(table(tmp_path, flags), "multilabel").classes == ("bag", "hat")


def test_a_csv_under_the_name_of_a_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("path,label\na.png,x\n")
    assert f"is a table as text, not parquet. Use {{csv: {tmp_path / 't.parquet'}}}" in fault(tmp_path / "t.parquet")


def test_rows_are_read_over_several_row_groups(tmp_path: Path) -> None:
    table(tmp_path, ROWS)
    pq.write_table(pa.table({"path": list(IMAGES), "label": ["x", "y", "x", "y"]}), tmp_path / "many.parquet", row_group_size=1)
    assert len(read(tmp_path / "many.parquet").samples) == 4


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"path": list(IMAGES), "lable": ["x"] * 4}, ["the column label is missing; it has path, lable.", "Did you mean 'lable'?"]),
        ({"path": [1, 2, 3, 4], "label": [0.5] * 4}, ["the column path holds int64. Expected text.", "the column label holds double."]),
        (
            {"path": [None, "b.png", "../e.png", "d.png"], "label": ["x", None, "y", "y"]},
            ["row 1: the path is empty", "row 2: the label", "row 3: the path ../e"],
        ),
        ({"path": ["e.png", "no.png"], "label": ["x", "y"]}, ["row 1: the image e.png does not exist (and 1 more such row: 2)."]),
        ({"image": [{"bytes": b"x", "path": "p"}], "label": [1]}, ["holds the images themselves", "{huggingface: "]),
        ({"path": pa.array([], pa.string()), "label": pa.array([], pa.string())}, ["has no rows below the header"]),
    ],
)
def test_faults_are_reported_together_with_their_rows(tmp_path: Path, columns: dict[str, object], expected: list[str]) -> None:
    message = fault(table(tmp_path, columns))
    assert [text for text in expected if text not in message] == []


def test_a_damaged_file_is_reported(tmp_path: Path) -> None:
    file = table(tmp_path, ROWS)
    file.write_bytes(file.read_bytes()[:-20])
    assert "is no parquet file that can be read" in fault(file)
    file.write_bytes(b"")
    assert "is no parquet file that can be read" in fault(file)


def test_columns_of_other_names_several_labels_and_columns_of_0_and_1_are_read_as_in_a_csv(tmp_path: Path) -> None:
    file = table(tmp_path, {"Image": ["deep\\a", *IMAGES[1:]], "species": ["hat;bag", "bag", "hat", "bag"], "vector": [[0.1]] * 4})
    assert "Did you mean data.source.path=Image?" in fault(file)
    assert "labels seem to be separated by ';'" in fault_of(file, "multilabel", path="Image", label="species")
    samples = read(file, "multilabel", path="Image", label="species", separator=";")
    assert [(sample.id, sample.labels) for sample in samples.samples] == list(zip(IMAGES, [(0, 1), (0,), (1,), (0,)], strict=True))
    flags = {"path": list(IMAGES), "hat": [True, False, True, None], "bag": [1, 1, 0, 1], "weight": [0.5] * 4, "id": [1, 2, 3, 4]}
    found = read(table(tmp_path, flags), "multilabel")
    assert [(sample.id, sample.labels) for sample in found.samples] == list(zip(IMAGES, [(0, 1), (0,), (1,), (0,)], strict=True))
    assert "its columns of 0 and 1 are read as classes: hat, bag" in found.warnings[0]


def fault_of(file: Path, task: Task, **keys: object) -> str:
    with pytest.raises(DataError) as raised:
        read(file, task, **keys)
    return str(raised.value)
