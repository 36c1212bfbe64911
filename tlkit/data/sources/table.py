"""Rows of a table -> samples: what csv and parquet have in common. Every fault of a table is told at once."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tlkit.data.samples import LABEL_SEPARATOR, SPLIT_WORDS, ImageSource, Sample, Samples, composed
from tlkit.data.sources.kind import LocalFiles, ReadOptions, below, image_files
from tlkit.errors import DataError, did_you_mean, expected_one_of
from tlkit.recipe.schema import Task

REQUIRED, OPTIONAL = ("path", "label"), ("split", "group")
MOST_FAULTS = 100
"""So many are written out; of more, the number is told."""
_COLUMNS = "Expected the columns path and label and, if needed, split and group; others are not read."

log = logging.getLogger("tlkit")


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
    """key: data.source.csv or data.source.parquet. root: what the paths are relative to. faults: (what is wrong, what to do)."""

    file: Path
    root: Path
    key: str
    faults: list[tuple[str, str]] = field(default_factory=list)

    def place(self, number: int) -> str:
        return f"{self.file}:{number}" if self.key.endswith("csv") else f"{self.file}, row {number}"

    def raise_faults(self) -> None:
        """Raises DataError with all faults, one fix after all that it mends; nothing where there are none."""
        if not self.faults:
            return
        by_fix: dict[str, list[str]] = {}
        for problem, fix in self.faults[:MOST_FAULTS]:
            by_fix.setdefault(fix, []).append(problem)
        text = "\n".join(f"{line}" for fix, problems in by_fix.items() for line in (*problems, f"  {fix}"))
        more = len(self.faults) - MOST_FAULTS
        raise DataError(text + (f"\n... and {more:,} more." if more > 0 else ""))


def open_table(file: str, root: str | None, key: str) -> Table:
    """Raises DataError where there is no such file, or no such root."""
    path = Path(file).expanduser()
    if path.is_dir():
        word = key.rpartition(".")[2]
        raise DataError(f"{key}: {path} is a folder, not a table.\n  Name a .{word} file in it, or use {{folder: {path}}}.")
    if not path.is_file():
        siblings = [found.name for found in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings) or f"Looked in {path.parent.resolve()}."
        raise DataError(f"{key}: the file {path} does not exist.\n  {hint}")
    if root is not None and not Path(root).expanduser().is_dir():
        raise DataError(
            f"data.source.root: the folder {root} does not exist.\n  Expected the folder that the table's paths are relative to."
        )
    return Table(path, Path(root).expanduser() if root is not None else path.parent, key)


def check_columns(table: Table, columns: Sequence[str], place: str) -> None:
    """Raises DataError where a column is missing or stands twice; warns where one of the optional ones looks misspelt."""
    came = f"it has {', '.join(filter(None, columns))}" if any(columns) else "the file is empty"
    if len(columns) == 1 and (found := next((sign for sign in "|: " if sign in columns[0]), "")):
        problem = f"{place}: the header is one cell, '{columns[0]}'; its words are parted by '{found}'."
        raise DataError(f"{problem}\n  Part cells by comma, semicolon or tab.")
    for column in REQUIRED:
        if column not in columns:
            table.faults.append(
                (f"{place}: the column {column} is missing; {came}.", f"{_COLUMNS} {did_you_mean(column, columns)}".rstrip())
            )
    for column in (*REQUIRED, *OPTIONAL):
        if columns.count(column) > 1:
            table.faults.append((f"{place}: has the column {column} more than once.", "Remove or rename all but one."))
    table.raise_faults()
    unread = [column for column in columns if column not in (*REQUIRED, *OPTIONAL)]
    for column in OPTIONAL:
        if column not in columns and (hint := did_you_mean(column, unread)):
            log.warning("%s: has no column %s. %s", table.file, column, hint)


def table_samples(table: Table, cells: Iterable[tuple[int, Mapping[str, str]]], options: ReadOptions) -> Samples:
    """cells: (number of the row, column -> text) of each row that isn't empty. Classes are sorted by code point.

    Raises DataError with every fault, each with its row.
    """
    place = _Places(table)
    rows = [row for number, found in cells for row in _row(table, number, found, options.task, place)]
    place.tell_outside()
    rows = _without_repeats(table, rows)
    if not options.keep_missing:
        _check_files(table, rows)
    _check_held_out(table, rows)
    table.raise_faults()
    classes = tuple(sorted({label for row in rows for label in row.labels}))
    _check_classes(table, rows, classes)
    number = {name: label for label, name in enumerate(classes)}
    samples = [
        Sample(composed(row.id), table.root / row.id, tuple(sorted(number[name] for name in row.labels)), row.split, row.group)
        for row in rows
    ]
    return Samples(classes, tuple(samples), options.task)


def table_files(kind: str, name: str, root: str | None, samples: Samples) -> LocalFiles:
    """kind: the source's key. A copy has the table, and the images in a folder beside it."""
    table = Path(name).expanduser()
    base = Path(root).expanduser() if root is not None else table.parent
    images = [(file, f"pictures/{inside}") for file, inside in below(base, image_files(samples))]
    return LocalFiles([(table, table.name), *images], {kind: table.name, "root": "pictures"})


def table_images(table: Table, cells: Iterable[tuple[int, Mapping[str, str]]]) -> dict[str, ImageSource]:
    """Id -> file of the pictures of a table, there or not, whatever is wrong with its rows."""
    place = _Places(table)
    ids = (place.id(number, found["path"]) for number, found in cells if found["path"] and "://" not in found["path"])
    return {composed(id_): table.root / id_ for id_ in ids if id_ is not None}


class _Places:
    """Turns written paths into ids, and remembers those that lead out of the root."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.root = os.path.abspath(table.root)
        self.inside = self.root if self.root.endswith(os.sep) else self.root + os.sep
        self.outside: list[tuple[int, str]] = []

    def id(self, number: int, path: str) -> str | None:
        """None where the path leads out of the root."""
        whole = os.path.normpath(os.path.join(self.root, path))
        if not whole.startswith(self.inside):
            self.outside.append((number, path))
            return None
        return whole[len(self.inside) :].replace(os.sep, "/")

    def tell_outside(self) -> None:
        """The nearest folder that holds all pictures is part of the fix."""
        if not self.outside:
            return
        wholes = [os.path.normpath(os.path.join(self.root, path)) for _, path in self.outside]
        together = os.path.commonpath([self.root, *wholes])
        word = self.table.key.rpartition(".")[2]
        source = f"{{{word}: {self.table.file}, root: {together}}}"
        fix = "Put the pictures below it, or remove these rows."
        if together != os.path.dirname(together):  # the root of the disk holds everything
            fix = f"Put them below it, or name a folder that holds all pictures: {source}, with paths from there."
        for number, path in self.outside:
            self.table.faults.append((f"{self.table.place(number)}: the path {path} leads out of {self.root}.", fix))


def _row(table: Table, number: int, cells: Mapping[str, str], task: Task, places: _Places) -> Iterator[Row]:
    """The row, or nothing where a fault of it was noted."""
    place, before = table.place(number), len(table.faults)
    labels = tuple(dict.fromkeys(composed(label.strip()) for label in cells["label"].split(LABEL_SEPARATOR) if label.strip()))
    if not cells["path"]:
        table.faults.append((f"{place}: the path is empty.", f"Write the picture's path, relative to {table.root}, or remove the row."))
    if "://" in cells["path"]:
        fix = f"Download the picture into {table.root}, and write its path: nothing is fetched by a table."
        table.faults.append((f"{place}: {cells['path']} is an address, not a path.", fix))
    if odd := next((label for label in labels if not label.isprintable()), ""):
        table.faults.append((f"{place}: the label {odd!r} has signs that can't be printed.", "Write it anew."))
    if task == "multiclass" and LABEL_SEPARATOR in cells["label"]:
        fix = "Set task to multilabel in the recipe, or leave one label in every row."
        table.faults.append((f"{place}: label = '{cells['label']}' holds more than one label.", fix))
    elif task == "multiclass" and not labels:
        fix = "Write one, or remove the row; with task: multilabel a picture may have none of the classes."
        table.faults.append((f"{place}: the label is empty.", fix))
    split = cells.get("split", "")
    if split and split.lower() not in SPLIT_WORDS:
        table.faults.append((f"{place}: split = '{split}' can't be used.", expected_one_of(split, list(SPLIT_WORDS))))
    if cells["path"] and (id_ := places.id(number, cells["path"])) is not None and len(table.faults) == before:
        yield Row(number, id_, labels, SPLIT_WORDS.get(split.lower(), ""), cells.get("group") or None)


def _without_repeats(table: Table, rows: Sequence[Row]) -> list[Row]:
    """A picture once. Rows that say the same of it count as one; rows that differ are a fault."""
    first: dict[str, Row] = {}
    for row in rows:
        earlier = first.setdefault(row.id, row)
        for what in ("labels", "split", "group"):
            if getattr(row, what) != getattr(earlier, what):
                came, before = _format_value(getattr(row, what)), _format_value(getattr(earlier, what))
                word = "line" if table.key.endswith("csv") else "row"
                table.faults.append(
                    (
                        f"{table.place(row.number)}: {row.id} has the {what.removesuffix('s')} {came} here, "
                        f"and {before} in {word} {earlier.number}.",
                        f"Keep one row for each picture; with task: multilabel its labels stand in one cell, parted by {LABEL_SEPARATOR}.",
                    )
                )
                break
    if not table.faults and len(first) < len(rows):
        log.warning("%s: %d rows say again what an earlier row says, and are left out", table.file, len(rows) - len(first))
    return list(first.values())


def _check_files(table: Table, rows: Sequence[Row]) -> None:
    for row in rows:
        path = os.path.join(table.root, row.id)
        if os.path.isfile(path):
            continue
        what = "is a folder" if os.path.isdir(path) else "is a link that leads nowhere" if os.path.islink(path) else "does not exist"
        slashes = " Write forward slashes." if "\\" in row.id else ""
        table.faults.append(
            (f"{table.place(row.number)}: the picture {row.id} {what}.", f"Paths are relative to {table.root.resolve()}.{slashes}")
        )


def _check_held_out(table: Table, rows: Sequence[Row]) -> None:
    """Every label of a held-out picture is one that training has."""
    # Where training pictures are named as such, rows without a split train or are held out: either way the class can be learned.
    training = Counter(label for row in rows if row.split in ("", "train") for label in row.labels)
    told: set[tuple[str, str]] = set()
    for row in rows:
        for label in row.labels:
            if label not in training and (row.split, label) not in told:
                told.add((row.split, label))
                problem = f"{table.place(row.number)}: the {row.split} split has the class '{label}', and no training picture has it."
                fix = "Give it training pictures, or rename or remove it here."
                table.faults.append((f"{problem} {did_you_mean(label, training)}".rstrip(), fix))


def _check_classes(table: Table, rows: Sequence[Row], classes: tuple[str, ...]) -> None:
    """At least two classes."""
    if not rows:
        raise DataError(f"{table.file}: has no rows below the header.\n  Expected a row a picture.")
    if len(classes) < 2:
        what = f"has one class only, '{classes[0]}'" if classes else "has no labels at all"
        raise DataError(f"{table.file}: {what}.\n  A classifier needs at least two classes in the column label.")


def _format_value(value: str | tuple[str, ...] | None) -> str:
    return f"'{value if isinstance(value, str) else LABEL_SEPARATOR.join(value or ())}'"
