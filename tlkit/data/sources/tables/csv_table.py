"""A table as text: a row per image, with its path, its labels and, if needed, its split and its group."""

import codecs
import csv
import re
from collections.abc import Iterator
from io import StringIO

from tlkit.data.sources.tables.table import Cells, Table, table_kind
from tlkit.errors import DataError

DELIMITERS = ",;\t"
_EXCEL = re.compile(r'"?sep=(.)"?\s*$', re.IGNORECASE)
"""The first line with which a spreadsheet names the separator."""
_OTHER_FILES = {
    b"PK\3\4": ("a spreadsheet or another packed file", "Save the table as CSV UTF-8, and name that file."),
    b"\xd0\xcf\x11\xe0": ("a spreadsheet in the old form", "Save the table as CSV UTF-8, and name that file."),
    b"PAR1": ("a parquet file", "Use {{parquet: {file}}}."),
}
"""What files that aren't text begin with -> what they are, and what to do about it."""


def _read(table: Table) -> tuple[list[str], Iterator[Cells]]:
    """Return the header, and the rows below it that aren't empty. Cells are separated as the header's are: by comma, semicolon or tab."""
    lines = list(StringIO(_text(table), newline=""))
    start = next((i for i, line in enumerate(lines) if line.strip(" ,;\t\r\n")), len(lines))
    delimiter = ""
    if start < len(lines) and (excel := _EXCEL.match(lines[start])):
        delimiter, start = excel[1], start + 1
    delimiter = delimiter or max(DELIMITERS, key=lambda sign: _fit(table, _header(lines[start:], sign)))
    header = _header(lines[start:], delimiter)
    commented = header and header[0].startswith("# " if len(header) > 1 else "#")  # a column may be called #
    if commented and _fit(table, header)[0] == 0:
        raise DataError(f"{table.file}:{start + 1}: begins with #, and names no columns.\n  Remove what is above the header.")
    if len(header) == 1 and (found := next((sign for sign in "|: " if sign in header[0]), "")):
        problem = f"{table.file}:{start + 1}: the header is one cell, '{header[0]}'; its words are separated by '{found}'."
        raise DataError(f"{problem}\n  Separate cells by comma, semicolon or tab, or name the separator in a first line: sep={found}")
    return header, _rows(table, lines[start:], delimiter, header, before=start)


def _header(lines: list[str], delimiter: str) -> list[str]:
    """Split a header into column names; quoted names may contain the delimiter. Returns nothing if it can't be split."""
    try:
        return [name.strip() for name in next(csv.reader(lines, delimiter=delimiter, strict=True), [])]
    except csv.Error:
        return []


def _fit(table: Table, header: list[str]) -> tuple[int, int]:
    """Score a delimiter for a header: by the wanted columns first, then by their number."""
    keys = table.keys
    labels = keys.label if isinstance(keys.label, tuple) else (keys.label,)
    return sum(name in header for name in (keys.path, *labels, keys.split, keys.group)), len(header)


def _rows(table: Table, lines: list[str], delimiter: str, header: list[str], *, before: int) -> Iterator[Cells]:
    """Yield (line, cells). Lines with too many or too few cells are noted as faults. before: lines above the header."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    whole = before  # the line that ends the last row that could be read: a quote without its partner swallows all lines after it
    try:
        next(reader, [])
        whole = before + reader.line_num
        for cells in reader:
            whole = before + reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) == len(header) or (len(cells) > len(header) and not any(cell.strip() for cell in cells[len(header) :])):
                yield whole, cells[: len(header)]
                continue
            problem = f"has {len(cells)} {'cell' if len(cells) == 1 else 'cells'}, and the header has {len(header)}."
            table.faults.add(whole, problem, "Put a cell with the separator in it into double quotes.", kind="cells")
    except csv.Error as error:  # Nothing after it can be separated.
        table.faults.add(whole + 1, f"the row that begins here can't be read ({error}).", "Check its double quotes.")


def _text(table: Table) -> str:
    """Return the text of a table in UTF-8, or in UTF-16 where a byte order mark says so, as spreadsheets write `Unicode text`."""
    content = table.file.read_bytes()
    if found := next((facts for start, facts in _OTHER_FILES.items() if content.startswith(start)), None):
        raise DataError(f"{table.file}: is {found[0]}, not a table as text.\n  {found[1].format(file=table.file)}")
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
        if "\0" not in text[:4]:  # UTF-16 without a mark has one in every other place
            return text
        raise UnicodeDecodeError(encoding, content, content.find(b"\0"), content.find(b"\0") + 1, "a zero")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{table.file}:{line}: is not UTF-8 text.\n  Save the table as UTF-8 (in a spreadsheet: CSV UTF-8).") from error


KIND = table_kind(_read)
