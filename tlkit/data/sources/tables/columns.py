"""Which columns of a table hold paths, labels, splits and groups: by their names, or as the recipe names them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tlkit.data.samples import LABEL_SEPARATOR, composed
from tlkit.data.sources.tables.faults import Faults
from tlkit.errors import did_you_mean
from tlkit.recipe.fields.source import CsvSource, ParquetSource

PEEKED_ROWS = 200
"""Number of rows that decide whether columns contain 0 and 1."""
USUAL = {
    "path": ("filename", "file_name", "file", "filepath", "file_path", "image_path", "img_path", "image", "img", "image_id", "id", "name"),
    "label": (
        "class",
        "target",
        "category",
        "class_name",
        "classname",
        "label_name",
        "labels",
        "class_id",
        "label_id",
        "y",
        "species",
        "tags",
    ),
    "split": ("subset", "set", "partition", "usage", "phase"),
    "group": ("patient", "patient_id", "subject", "subject_id", "group_id", "video", "video_id"),
}
"""Other names that tables have for these columns."""
_YES, _NO = frozenset({"1", "1.0", "true"}), frozenset({"0", "0.0", "false", ""})


@dataclass(frozen=True)
class Columns:
    """Indices into a row. labels: one column, or one for each class; names: of these classes, or nothing."""

    path: int
    labels: tuple[int, ...]
    names: tuple[str, ...] = ()
    split: int | None = None
    group: int | None = None


def find_columns(
    keys: CsvSource | ParquetSource, header: Sequence[str], rows: Sequence[Sequence[str]], of: Faults, warnings: list[str]
) -> Columns:
    """Find the columns. rows: the first of the table. of: says where it is. Raises DataError if a column is missing or ambiguous.

    warnings: gets a hint where an optional column seems to have another name.
    """
    faults, number = Faults(of.file, of.word), 1 if of.word == "line" else 0
    one_hot = keys.label if isinstance(keys.label, tuple) else _class_columns(keys, header, rows)
    label = "" if one_hot else str(keys.label)
    for column in filter(None, (keys.path, label, *one_hot)):
        if column not in header:
            faults.add(number, f"the column {column} is missing; {_has(header)}.", _missing_fix(keys, column, header))
    for key, column in (("split", keys.split), ("group", keys.group)):
        if column not in header and column != key:
            faults.add(number, f"the column {column} is missing; {_has(header)}.", f"Correct data.source.{key}, or remove it.")
    for column in filter(None, dict.fromkeys((keys.path, label, keys.split, keys.group, *one_hot))):
        if header.count(column) > 1:
            faults.add(number, f"has the column {column} more than once.", "Remove or rename all but one.")
    faults.raise_all()
    read = {keys.path, label, keys.split, keys.group, *one_hot}
    unread = [column for column in header if column and column not in read]
    for key in ("split", "group"):
        if getattr(keys, key) not in header and (hint := _optional_hint(key, unread)):
            warnings.append(f"{faults.file}: has no column {key}. {hint}")
    if one_hot and not isinstance(keys.label, tuple):
        shown = f"{', '.join(one_hot[:6])}{' and others' if len(one_hot) > 6 else ''}"
        warnings.append(f"{faults.file}: has no column {keys.label}; its columns of 0 and 1 are read as classes: {shown}")
    index = {column: header.index(column) for column in header}
    return Columns(
        index[keys.path], tuple(index[name] for name in (one_hot or (label,))), one_hot, index.get(keys.split), index.get(keys.group)
    )


def cell_labels(cells: Sequence[str], columns: Columns, separator: str, number: int, faults: Faults) -> tuple[str, ...]:
    """Return the labels of a row, each once."""
    if not columns.names:
        parts = (part.strip() for part in cells[columns.labels[0]].split(separator))
        return tuple(dict.fromkeys(composed(part) for part in parts if part))
    labels = []
    for name, column in zip(columns.names, columns.labels, strict=True):
        cell = cells[column].strip().lower()
        if cell in _YES:
            labels.append(composed(name))
        elif cell not in _NO:
            faults.add(
                number,
                f"{name} = '{cells[column]}' is neither 0 nor 1.",
                "Write 1 for each class of the image, and 0 for others.",
                kind="0 or 1",
            )
    return tuple(labels)


def meant_separator(cells: Collection[str]) -> str:
    """Return the sign that seems to separate labels in cells that all lack the usual one, or the empty string.

    It goes by what the cells share. A semicolon or a comma separates where a part comes twice: `hat;bag` and `hat`. Blanks are common
    within the names of classes, so they need fewer words than there are cells: `hat bag`, `hat` and `bag`.
    """
    if any(LABEL_SEPARATOR in cell for cell in cells):
        return ""
    for sign in ";,":
        parts = [part.strip() for cell in cells for part in cell.split(sign)]
        if any(sign in cell for cell in cells) and len(set(parts)) < len(parts):
            return sign
    words = {word for cell in cells for word in cell.split()}
    return " " if any(" " in cell for cell in cells) and len(words) < len(cells) else ""


def _class_columns(keys: CsvSource | ParquetSource, header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return two or more columns of only 0 and 1, if the table has no label column and none that is named like one."""
    if keys.label in header or keys.label != "label" or keys.path not in header or any(name in header for name in USUAL["label"]):
        return ()
    others = [i for i, name in enumerate(header) if name and name not in (keys.path, keys.split, keys.group)]
    found = tuple(header[i] for i in others if rows and all(_is_flag(row, i) for row in rows) and any(row[i].strip() for row in rows))
    return found if len(found) > 1 else ()


def _is_flag(row: Sequence[str], column: int) -> bool:
    return column < len(row) and row[column].strip().lower() in _YES | _NO


def _has(header: Sequence[str]) -> str:
    return f"it has {', '.join(filter(None, header))}" if any(header) else "the file is empty"


def _missing_fix(keys: CsvSource | ParquetSource, column: str, header: Sequence[str]) -> str:
    """Say what was expected, and which of the existing columns may be meant."""
    key = "path" if column == keys.path else "label"
    lowered = {name.lower().replace(" ", "_"): name for name in header}
    usual = next((lowered[name] for name in USUAL[key] if name in lowered and lowered[name] not in (keys.path, keys.label)), "")
    hint = f"Did you mean data.source.{key}={usual}?" if usual else did_you_mean(column, header)
    expected = "Expected the columns path and label and, if needed, split and group, or their names in data.source; others are not read."
    return f"{expected} {hint}".rstrip()


def _optional_hint(key: str, unread: Sequence[str]) -> str:
    if near := did_you_mean(key, unread):
        return near
    usual = next((name for name in unread if name.lower() in USUAL[key]), "")
    return f"If {usual} is meant: data.source.{key}={usual}." if usual else ""
