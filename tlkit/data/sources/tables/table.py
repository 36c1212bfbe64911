"""Rows of a table -> samples: what csv and parquet have in common. Every fault of a table is reported at once."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from tlkit.data.samples import LABEL_SEPARATOR, SPLIT_WORDS, ImageSource, Sample, Samples, composed, is_printable
from tlkit.data.sources.kind import LocalFiles, ReadOptions, SourceCheck, SourceKind, below, image_files
from tlkit.data.sources.tables.columns import (
    PEEKED_ROWS,
    SURE_SIGNS,
    Columns,
    TableSource,
    cell_labels,
    find_columns,
    joined_example,
    joining_sign,
    meant_separator,
)
from tlkit.data.sources.tables.faults import Faults
from tlkit.data.sources.tables.files import TableFiles
from tlkit.errors import DataError, MissingDataError, did_you_mean, expected_one_of
from tlkit.files import expanded
from tlkit.recipe.fields.source import CsvSource
from tlkit.recipe.schema import Task

Cells = tuple[int, Sequence[str]]
"""The number of a row, and the text of its cells."""


@dataclass(frozen=True)
class Row:
    """number: of the line in a csv, of the row in a parquet. id: the path relative to the root, with forward slashes."""

    number: int
    id: str
    labels: tuple[str, ...]
    split: str
    group: str | None


@dataclass
class Table:
    """keys: the source's. root: what the paths are relative to. joined_by: what is between the labels of a list that became text."""

    file: Path
    root: Path
    keys: TableSource
    faults: Faults
    warnings: list[str] = field(default_factory=list)
    joined_by: str = ""

    @property
    def separator(self) -> str:
        return self.joined_by or self.keys.separator or LABEL_SEPARATOR


def table_kind(read: Callable[[Table], tuple[list[str], Iterator[Cells]]]) -> SourceKind[TableSource]:
    """Return what a kind of table does. read: returns the header and the rows."""

    def samples(keys: TableSource, options: ReadOptions) -> Samples:
        table = open_table(keys)
        return table_samples(table, *read(table), options)

    def check(keys: TableSource, options: ReadOptions) -> SourceCheck:
        table = open_table(keys)
        return SourceCheck(table_images(table, *read(table)))

    return SourceKind(samples, local_files=lambda keys, samples: table_files(open_table(keys), samples), check=check)


def open_table(keys: TableSource) -> Table:
    """Raise DataError if there is no such file, or no such root."""
    kind, name = ("csv", keys.csv) if isinstance(keys, CsvSource) else ("parquet", keys.parquet)
    key, path = f"data.source.{kind}", expanded(name)
    if path.is_dir():
        raise DataError(f"{key}: {path} is a folder, not a table.\n  Name a .{kind} file in it, or use {{folder: {path}}}.")
    if not path.is_file():
        siblings = [found.name for found in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings) or f"Looked in {path.parent.resolve()}."
        raise MissingDataError(f"{key}: the file {path} does not exist.\n  {hint}")
    if keys.root is not None and not expanded(keys.root).is_dir():
        raise MissingDataError(
            f"data.source.root: the folder {keys.root} does not exist.\n  Expected the folder that the table's paths are relative to."
        )
    root = expanded(keys.root) if keys.root is not None else path.parent
    return Table(path, root, keys, Faults(path, "line" if kind == "csv" else "row"))


def table_samples(table: Table, header: Sequence[str], cells: Iterable[Cells], options: ReadOptions) -> Samples:
    """Return the samples of a table. cells: of each row that isn't empty. Classes are sorted by code point.

    Raises DataError with every fault, each with its row.
    """
    columns, cells = _columns(table, header, cells)
    files = TableFiles(table.file, table.root, table.faults)
    written: Counter[str] = Counter()
    rows = [row for number, found in cells for row in _row(table, number, found, columns, options.task, files, written)]
    files.report_outside()
    rows = _without_repeats(table, rows)
    if not options.keep_missing:
        files.report_missing()
    table.faults.raise_all(none_there=len(files.missing) == len(table.faults) == len(rows))
    _check_separator(table, written, options.task, columns)
    _check_held_out(table, rows)
    table.faults.raise_all()
    classes = tuple(sorted({label for row in rows for label in row.labels}))
    _check_classes(table, rows, classes, columns)
    number = {name: label for label, name in enumerate(classes)}
    samples = tuple(
        Sample(composed(row.id), table.root / row.id, tuple(sorted(number[name] for name in row.labels)), row.split, row.group)
        for row in rows
    )
    warnings = (*table.warnings, *files.warnings(), *_blanks(table, written))
    return Samples(classes, samples, options.task, warnings=warnings)


def table_images(table: Table, header: Sequence[str], cells: Iterable[Cells]) -> dict[str, ImageSource]:
    """Return id -> file of all images of a table, existing or not, whatever is wrong with its rows."""
    columns, cells = _columns(table, header, cells)
    files = TableFiles(table.file, table.root, table.faults)
    paths = ((number, found[columns.path].strip()) for number, found in cells)
    ids = (files.id(number, path) for number, path in paths if path and "://" not in path)
    return {composed(id_): table.root / id_ for id_ in ids if id_ is not None}


def table_files(table: Table, samples: Samples) -> LocalFiles:
    """Return the files to copy: the table, and the images in a folder beside it."""
    kind = "csv" if isinstance(table.keys, CsvSource) else "parquet"
    images = [(file, f"pictures/{inside}") for file, inside in below(table.root, image_files(samples))]
    return LocalFiles([(table.file, table.file.name), *images], {kind: table.file.name, "root": "pictures"})


def _columns(table: Table, header: Sequence[str], cells: Iterable[Cells]) -> tuple[Columns, Iterator[Cells]]:
    """Return which columns are read. The first rows decide whether a table without a label column has a column per class."""
    rest = iter(cells)
    first = list(islice(rest, PEEKED_ROWS))
    columns = find_columns(table.keys, header, [found for _, found in first], table.faults, table.warnings)
    return columns, chain(first, rest)


def _row(
    table: Table, number: int, cells: Sequence[str], columns: Columns, task: Task, files: TableFiles, written: Counter[str]
) -> Iterator[Row]:
    """Yield the row, or nothing where a fault of it was noted. written: counts the label cells."""
    faults, before = table.faults, len(table.faults)
    path = cells[columns.path].strip()
    if not path:
        faults.add(number, "the path is empty.", f"Write the image's path, relative to {table.root}, or remove the row.", kind="no path")
    if "://" in path:
        fix = f"Download the image into {table.root}, and write its path: nothing is fetched by a table."
        if path.startswith("file://"):
            fix = f"Write the path alone, without file://, relative to {table.root}."
        faults.add(number, f"{path} is an address, not a path.", fix, kind="address")
    labels = cell_labels(cells, columns, table.separator, number, faults)
    if not columns.names:
        written[cells[columns.labels[0]]] += 1
    _check_labels(table, number, labels, task)
    split = cells[columns.split].strip() if columns.split is not None else ""
    if split and split.lower() not in SPLIT_WORDS:
        faults.add(number, f"split = '{split}' can't be used.", expected_one_of(split, list(SPLIT_WORDS)), kind="split")
    if path and "://" not in path and (id_ := files.id(number, path)) is not None and len(faults) == before:
        group = cells[columns.group].strip() if columns.group is not None else ""
        yield Row(number, id_, labels, SPLIT_WORDS.get(split.lower(), ""), group or None)


def _check_labels(table: Table, number: int, labels: tuple[str, ...], task: Task) -> None:
    if odd := next((label for label in labels if not is_printable(label)), ""):
        fix = f"If several labels are meant, write {LABEL_SEPARATOR} between them." if set("\t\n") & set(odd) else "Remove these."
        table.faults.add(number, f"the label {odd!a} has unprintable characters.", fix, kind="sign")
    if task == "multiclass" and len(labels) > 1:
        fix = "Set task to multilabel in the recipe, or leave one label in every row."
        text = LABEL_SEPARATOR.join(labels)
        table.faults.add(number, f"label = '{text}' holds more than one label.", fix, kind="several labels")
    elif task == "multiclass" and not labels:
        fix = "Write one, or remove the row; with task: multilabel an image may have none of the classes."
        table.faults.add(number, "the label is empty.", fix, kind="no label")
    elif task == "multilabel" and (bar := next((label for label in labels if LABEL_SEPARATOR in label), "")):
        fix = f"Rename the class: {LABEL_SEPARATOR} separates labels in what a run writes."
        table.faults.add(number, f"the label '{bar}' has a {LABEL_SEPARATOR} in it.", fix, kind="bar")


def _without_repeats(table: Table, rows: Sequence[Row]) -> list[Row]:
    """Keep an image once. Rows that say the same of it count as one; rows that differ are a fault."""
    first: dict[str, Row] = {}
    for row in rows:
        earlier = first.setdefault(row.id, row)
        for what in ("labels", "split", "group"):
            if getattr(row, what) != getattr(earlier, what):
                came, before = _format_value(getattr(row, what)), _format_value(getattr(earlier, what))
                table.faults.add(
                    row.number,
                    f"{row.id} has the {what.removesuffix('s')} {came} here, and {before} in {table.faults.word} {earlier.number}.",
                    "Keep one row for each image; with task: multilabel its labels are in one cell, separated by "
                    f"'{table.keys.separator or LABEL_SEPARATOR}': data.source.separator.",
                    kind=f"two of {what}",
                )
                break
    if repeated := len(rows) - len(first):
        says = "1 row repeats an earlier row, and is left out" if repeated == 1 else f"{repeated:,} rows repeat an earlier row: left out"
        table.warnings.append(f"{table.file}: {says}")
    return list(first.values())


def _check_held_out(table: Table, rows: Sequence[Row]) -> None:
    """Check that training has every label of a held-out image."""
    # Where training images are named as such, rows without a split train or are held out: either way the class can be learned.
    training = Counter(label for row in rows if row.split in ("", "train") for label in row.labels)
    reported: set[tuple[str, str]] = set()
    for row in rows:
        for label in row.labels:
            if label not in training and (row.split, label) not in reported:
                reported.add((row.split, label))
                problem = f"the {row.split} split has the class '{label}', and no training image has it."
                fix = "Give it training images, or rename or remove it here."
                table.faults.add(row.number, f"{problem} {did_you_mean(label, training)}".rstrip(), fix)


def _check_classes(table: Table, rows: Sequence[Row], classes: tuple[str, ...], columns: Columns) -> None:
    """Check that there are at least two classes."""
    if not rows:
        raise DataError(f"{table.file}: has no rows below the header.\n  Expected a row per image.")
    if len(classes) < 2:
        what = f"has one class only, '{classes[0]}'" if classes else "has no labels at all"
        where = "the columns of labels" if columns.names else f"the column {table.keys.label}"
        raise DataError(f"{table.file}: {what}.\n  A classifier needs at least two classes in {where}.")


def _check_separator(table: Table, written: Counter[str], task: Task, columns: Columns) -> None:
    """Raise DataError if several labels would become one class because they have another separator; of one label each, warn."""
    if columns.names or table.keys.separator is not None or table.joined_by:
        return
    cells = {text.strip() for text in written}
    if task != "multilabel":
        if sign := joining_sign(cells, SURE_SIGNS):
            example = joined_example(cells, sign)
            fix = f"If these are several labels of an image: task=multilabel data.source.separator='{sign}'."
            table.warnings.append(f"{table.file}: the class '{example}' has the names of other classes in it. {fix}")
        return
    if lists := sorted(text for text in cells if text[:1] + text[-1:] in ("[]", "{}", "()") and set(text[1:-1]) & set("'\",")):
        example = LABEL_SEPARATOR.join(re.findall(r"[^\s\[\](){}'\",]+", max(lists, key=len)))
        raise DataError(
            f"{table.file}: the label cells hold lists, such as {lists[0]}, which would be names of classes.\n"
            f"  Write the labels alone, with {LABEL_SEPARATOR} between them: {example}"
        )
    if sign := meant_separator(cells):
        example = joined_example(cells, sign)
        known = f"'{LABEL_SEPARATOR}'"
        if any(LABEL_SEPARATOR in text for text in cells):
            problem, fix = f"some label cells have {known} between labels, and others '{sign}'", f"Write {known} in all of them"
        else:
            problem = f"no label cell has a {LABEL_SEPARATOR}, and labels seem to be separated by '{sign}'"
            fix = f"Set data.source.separator='{sign}'"
        raise DataError(
            f"{table.file}: {problem}: '{example}' would be one class.\n"
            f"  {fix}, or data.source.separator={known} if these are the names of classes."
        )


def _blanks(table: Table, written: Counter[str]) -> Iterator[str]:
    """Say which labels are one class because blanks around a cell aren't part of it."""
    around = sorted(text for text in written if text != text.strip() and text.strip() in written)
    if around and around[0].strip():
        yield f"{table.file}: {around[0]!r} and {around[0].strip()!r} are read as one class: blanks around a cell aren't part of its label"


def _format_value(value: str | tuple[str, ...] | None) -> str:
    return f"'{value if isinstance(value, str) else LABEL_SEPARATOR.join(value or ())}'"
