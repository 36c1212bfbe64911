"""A table of pictures: a row a picture, with its path, its labels and, if needed, its split and its group."""

import csv
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePath

from tlkit.data.samples import LABEL_SEPARATOR, SPLIT_WORDS, Sample, Samples
from tlkit.errors import DataError, did_you_mean, expected_one_of
from tlkit.recipe.schema import Task

REQUIRED, OPTIONAL = ("path", "label"), ("split", "group")
_COLUMNS = "Expected the columns path and label and, if needed, split and group; others are not read."

log = logging.getLogger("tlkit")


@dataclass(frozen=True)
class Row:
    """line: of the file, counted from 1. id: the path as it is written, with forward slashes."""

    line: int
    id: str
    labels: tuple[str, ...]
    split: str
    group: str | None


def read_csv(file: Path, task: Task) -> Samples:
    """Every picture of a table. Paths are relative to it; classes are sorted by code point.

    Raises DataError, with the line, for what can't be used.
    """
    file = _existing(file.expanduser())
    rows = _without_repeats(file, [_row(file, line, cells, task) for line, cells in _lines(file)])
    classes = tuple(sorted({label for row in rows for label in row.labels}))
    _check_classes(file, rows, classes)
    _check_files(file, rows)
    number = {name: label for label, name in enumerate(classes)}
    samples = [
        Sample(row.id, file.parent / row.id, tuple(sorted(number[name] for name in row.labels)), row.split, row.group) for row in rows
    ]
    return Samples(classes, tuple(samples), task)


def _existing(file: Path) -> Path:
    if file.is_file():
        return file
    if file.is_dir():
        raise DataError(f"data.source.csv: {file} is a folder, not a table.\n  Name a file in it, or use {{folder: {file}}}.")
    siblings = [path.name for path in file.parent.glob("*.csv")] if file.parent.is_dir() else []
    hint = did_you_mean(file.name, siblings) or f"Looked in {file.parent.resolve()}."
    raise DataError(f"data.source.csv: the file {file} does not exist.\n  {hint}")


def _lines(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, column -> cell) of each row that isn't empty. Cells are parted as the header is: by comma, semicolon or tab."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{line}: is not UTF-8 text.\n  Save the table as UTF-8 (in a spreadsheet: CSV UTF-8).") from error
    first = text.partition("\n")[0]
    reader = csv.reader(StringIO(text, newline=""), delimiter=next((sign for sign in ",;\t" if sign in first), ","), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(file, header)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                problem = f"has {len(cells)} cells, and the header has {len(header)}."
                raise DataError(f"{file}:{reader.line_num}: {problem}\n  Put a cell with the separator in it into double quotes.")
            yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: can't be read ({error}).\n  Check the double quotes around this row.") from error


def _check_header(file: Path, header: list[str]) -> None:
    for column in REQUIRED:
        if column not in header:
            came = f"it has {', '.join(filter(None, header))}" if any(header) else "the file is empty"
            raise DataError(f"{file}:1: the column {column} is missing; {came}.\n  {_COLUMNS} {did_you_mean(column, header)}".rstrip())
    twice = next((column for column in (*REQUIRED, *OPTIONAL) if header.count(column) > 1), None)
    if twice:
        raise DataError(f"{file}:1: has the column {twice} more than once.\n  Remove or rename all but one.")
    unread = [column for column in header if column not in (*REQUIRED, *OPTIONAL)]
    for column in OPTIONAL:
        if column not in header and (hint := did_you_mean(column, unread)):
            log.warning("%s: has no column %s. %s", file, column, hint)


def _row(file: Path, line: int, cells: Mapping[str, str], task: Task) -> Row:
    place = f"{file}:{line}"
    if not cells["path"]:
        raise DataError(f"{place}: the path is empty.\n  Write the picture's path, relative to {file.parent}, or remove the row.")
    labels = tuple(dict.fromkeys(_nfc(label.strip()) for label in cells["label"].split(LABEL_SEPARATOR) if label.strip()))
    if task == "multiclass" and LABEL_SEPARATOR in cells["label"]:
        raise DataError(
            f"{place}: label = '{cells['label']}' holds more than one label.\n"
            "  Set task to multilabel in the recipe, or leave one label in every row."
        )
    if task == "multiclass" and not labels:
        raise DataError(
            f"{place}: the label is empty.\n  Write one, or remove the row; with task: multilabel a picture may have none of the classes."
        )
    split = cells.get("split", "")
    if split and split.lower() not in SPLIT_WORDS:
        raise DataError(f"{place}: split = '{split}' can't be used.\n  {expected_one_of(split, list(SPLIT_WORDS))}")
    return Row(line, PurePath(cells["path"]).as_posix(), labels, SPLIT_WORDS.get(split.lower(), ""), cells.get("group") or None)


def _without_repeats(file: Path, rows: list[Row]) -> list[Row]:
    """A picture once. Rows that say the same of it count as one; rows that differ are a fault."""
    first: dict[str, Row] = {}
    for row in rows:
        earlier = first.setdefault(row.id, row)
        for what in ("labels", "split", "group"):
            if getattr(row, what) != getattr(earlier, what):
                came, before = _shown(getattr(row, what)), _shown(getattr(earlier, what))
                raise DataError(
                    f"{file}:{row.line}: {row.id} has the {what.removesuffix('s')} {came} here, and {before} in line {earlier.line}.\n"
                    f"  Keep one row for each picture; with task: multilabel its labels stand in one cell, parted by {LABEL_SEPARATOR}."
                )
    if len(first) < len(rows):
        log.warning("%s: %d rows say again what an earlier row says, and are left out", file, len(rows) - len(first))
    return list(first.values())


def _check_classes(file: Path, rows: list[Row], classes: tuple[str, ...]) -> None:
    """At least two classes, each with a picture to train on."""
    if not rows:
        raise DataError(f"{file}: has no rows below the header.\n  Expected a row a picture.")
    if len(classes) < 2:
        what = f"has one class only, '{classes[0]}'" if classes else "has no labels at all"
        raise DataError(f"{file}: {what}.\n  A classifier needs at least two classes in the column label.")
    # Where training pictures are named as such, rows without a split train or are held out: either way the class can be learned.
    training = Counter(label for row in rows if row.split in ("", "train") for label in row.labels)
    for row in rows:
        unknown = next((label for label in row.labels if label not in training), None)
        if unknown is not None:
            hint = did_you_mean(unknown, training)
            raise DataError(
                f"{file}:{row.line}: the {row.split} split has the class '{unknown}', and no training picture has it. {hint}".rstrip()
                + "\n  Give it training pictures, or rename or remove it here."
            )


def _check_files(file: Path, rows: list[Row]) -> None:
    missing = [row for row in rows if not (file.parent / row.id).is_file()]
    if missing:
        slashes = " Write forward slashes." if "\\" in missing[0].id else ""
        raise DataError(
            f"{file}:{missing[0].line}: the picture {missing[0].id} does not exist; {len(missing)} of {len(rows)} are missing.\n"
            f"  Paths are relative to {file.parent.resolve()}.{slashes}"
        )


def _shown(value: str | tuple[str, ...] | None) -> str:
    return f"'{value if isinstance(value, str) else LABEL_SEPARATOR.join(value or ())}'"


def _nfc(name: str) -> str:
    """One word in two Unicode spellings is one class."""
    return unicodedata.normalize("NFC", name)
