"""Which columns of a table hold paths, labels, splits and groups: by their names, or as the recipe names them."""

import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tlkit.data.samples import LABEL_SEPARATOR, composed
from tlkit.data.sources.image_files import has_image_ending
from tlkit.data.sources.tables.faults import Faults
from tlkit.errors import did_you_mean
from tlkit.recipe.fields.source import CsvSource, ParquetSource

TableSource = CsvSource | ParquetSource
PEEKED_ROWS = 200
"""Number of rows that decide whether columns contain 0 and 1."""
USUAL = {
    "path": (
        *("filename", "file", "filepath", "fname", "image_path", "img_path", "image_file", "image_name", "img_name", "relative_path"),
        *("image", "images", "img", "image_id", "img_id", "photo", "picture", "id", "name"),
    ),
    "label": (
        *("class", "target", "category", "class_name", "class_label", "label_name", "labels", "classes", "class_id", "label_id"),
        *("finding_labels", "diagnosis", "ground_truth", "y", "breed", "species", "variety", "tags"),
    ),
    "split": ("subset", "set", "partition", "usage", "phase"),
    "group": ("patient", "patient_id", "subject", "subject_id", "group_id", "video", "video_id"),
}
"""Other names that tables have for these columns."""
JOINING = ";,、，；/+&:-_ "
"""Signs that may separate labels."""
SURE_SIGNS = ";,、，；/+&"
"""Those of them that names of classes seldom have in them."""
_INDEX = re.compile(r"(Unnamed: \d+|__index_level_\d+__|)")
"""What pandas calls the column of row numbers, which a table has by accident."""
_YES, _NO = frozenset({"1", "1.0", "true"}), frozenset({"0", "0.0", "false", ""})


@dataclass(frozen=True)
class Columns:
    """Indices into a row. labels: one column, or one for each class; names: of these classes, or nothing."""

    path: int
    labels: tuple[int, ...]
    names: tuple[str, ...] = ()
    split: int | None = None
    group: int | None = None


def find_columns(keys: TableSource, header: Sequence[str], rows: Sequence[Sequence[str]], of: Faults, warnings: list[str]) -> Columns:
    """Find the columns. rows: the first of the table. of: says where it is. Raises DataError if a column is missing or ambiguous.

    warnings: gets a hint where an optional column seems to have another name.
    """
    faults, number = Faults(of.file, of.word), 1 if of.word == "line" else 0
    if keys.path not in header and any(has_image_ending(name) for name in header):
        faults.add(number, f"the first line is a row, not a header: {', '.join(header)}.", "Write the columns' names above it: path,label")
        faults.raise_all()
    one_hot = keys.label if isinstance(keys.label, tuple) else _class_columns(keys, header, rows)
    label = "" if one_hot else str(keys.label)
    meant = {}
    for column in filter(None, (keys.path, label, *one_hot)):
        if column not in header:
            key = "path" if column == keys.path else "label"
            if usual := _usual(keys, key, header):
                meant[key] = usual
            fix = _missing_fix(keys, column, header, rows, key=key, usual=usual)
            faults.add(number, f"the column {column} is missing; {_has(header)}.", fix)
    for key, column in (("split", keys.split), ("group", keys.group)):
        if column not in header and column != key:
            faults.add(number, f"the column {column} is missing; {_has(header)}.", f"Correct data.source.{key}, or remove it.")
    for column in filter(None, dict.fromkeys((keys.path, label, keys.split, keys.group, *one_hot))):
        if header.count(column) > 1:
            faults.add(number, f"has the column {column} more than once.", "Remove or rename all but one.")
    faults.raise_all(meant)
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
    """Return the sign that seems to separate labels, other than the usual one, or the empty string.

    It goes by what the cells share. Any sign separates where all parts of a label are labels themselves: `hat/bag`, `hat` and `bag`.
    Where no cell has the usual separator, a semicolon does, and a comma where a part comes twice: `hat,bag` and `hat,shoe`. Blanks are
    common within the names of classes, so they need fewer words than there are cells: `hat bag`, `hat shoe` and `bag`.
    """
    labels = {part.strip() for cell in cells for part in cell.split(LABEL_SEPARATOR)}
    separated = any(LABEL_SEPARATOR in cell for cell in cells)
    if sign := joining_sign(labels, SURE_SIGNS if separated else JOINING):  # where `|` is used, `t-shirt` is a name beside `t` and `shirt`
        return sign
    if separated:
        return ""
    for sign in ";,":
        parts = [part.strip() for cell in cells for part in cell.split(sign)]
        if any(sign in cell for cell in cells) and (sign == ";" or len(set(parts)) < len(parts)):
            return sign
    words = {word for cell in cells for word in cell.split()}
    return " " if any(" " in cell for cell in cells) and len(words) < len(cells) else ""


def joining_sign(labels: Collection[str], signs: str = JOINING) -> str:
    """Return the sign that joins two of the labels to a third, or the empty string."""
    known = set(labels) - {""}
    joined = ((sign, label.split(sign)) for sign in signs for label in known if sign in label)
    return next((sign for sign, parts in joined if all(part.strip() in known for part in parts)), "")


def _class_columns(keys: TableSource, header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return two or more columns of only 0 and 1, if the table has no label column and none that is named like one."""
    if keys.label in header or keys.label != "label" or _usual(keys, "label", header):
        return ()
    others = [i for i, name in enumerate(header) if not _INDEX.fullmatch(name) and name not in (keys.path, keys.split, keys.group)]
    found = tuple(header[i] for i in others if rows and all(_is_flag(row, i) for row in rows) and any(row[i].strip() for row in rows))
    return found if len(found) > 1 else ()


def _is_flag(row: Sequence[str], column: int) -> bool:
    return column < len(row) and row[column].strip().lower() in _YES | _NO


def _has(header: Sequence[str]) -> str:
    return f"it has {', '.join(filter(None, header))}" if any(header) else "the file is empty"


def _missing_fix(keys: TableSource, column: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, key: str, usual: str) -> str:
    """Say what was expected, and which of the existing columns may be meant. usual: the one that is usually called so, if there is one."""
    hint = f"Did you mean {shlex.quote(f'data.source.{key}={usual}')}?" if usual else did_you_mean(column, header)
    marks = ", ".join(name for i, name in enumerate(header) if name and name != keys.path and _is_mark(rows, i))
    if key == "label" and marks and not hint:
        hint = f"If each class has a column of 0 and 1: {shlex.quote(f'data.source.label=[{marks}]')}."
    expected = "Expected the columns path and label and, if needed, split and group, or their names in data.source; others are not read."
    return f"{expected} {hint}".rstrip()


def _usual(keys: TableSource, key: str, header: Sequence[str]) -> str:
    """Return the first column that is usually called so, in any spelling: `Image Name`, `imageName`, `image_name`."""
    plain = {_plain(name): name for name in header if name not in (keys.path, keys.label)}
    return next((plain[_plain(word)] for word in (key, *USUAL[key]) if _plain(word) in plain), "")


def _plain(name: str) -> str:
    return "".join(sign for sign in name.casefold() if sign.isalnum())


def _is_mark(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Check whether a column marks rows in two or three ways: 1, 0 and -1; yes and no; x and nothing."""
    found = [row[column].strip() for row in rows if column < len(row)]
    return len(set(found)) in (2, 3) and len(found) > len(set(found)) and all(len(text) < 6 for text in found)


def _optional_hint(key: str, unread: Sequence[str]) -> str:
    if near := did_you_mean(key, unread):
        return near
    usual = next((name for name in unread if _plain(name) in map(_plain, USUAL[key])), "")
    return f"If {usual} is meant: data.source.{key}={usual}." if usual else ""


def joined_example(cells: Collection[str], sign: str) -> str:
    """Return a cell that has the sign between labels: the first whose parts are labels themselves, or else the first that has the sign."""
    labels = {part.strip() for cell in cells for part in cell.split(LABEL_SEPARATOR)}
    return min((cell for cell in cells if sign in cell), key=lambda cell: (not labels.issuperset(map(str.strip, cell.split(sign))), cell))
