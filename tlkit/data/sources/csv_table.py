"""A table as text: a row a picture, with its path, its labels and, if needed, its split and its group."""

import csv
from collections.abc import Iterator
from io import StringIO

from tlkit.data.samples import Samples
from tlkit.data.sources.kind import LocalFiles, ReadOptions, SourceCheck, SourceKind
from tlkit.data.sources.table import Table, check_columns, open_table, table_files, table_images, table_samples
from tlkit.errors import DataError
from tlkit.recipe.fields.source import CsvSource


def read_csv(source: CsvSource, options: ReadOptions) -> Samples:
    """Return every image of a table. Cells are separated as the header's are: by comma, semicolon or tab.

    Raises DataError, with every line, for what can't be used.
    """
    table = open_table(source.csv, source.root, "data.source.csv")
    return table_samples(table, _lines(table), options)


def check_csv(source: CsvSource, options: ReadOptions) -> SourceCheck:
    table = open_table(source.csv, source.root, "data.source.csv")
    return SourceCheck(table_images(table, _lines(table)))


def csv_files(source: CsvSource, samples: Samples) -> LocalFiles:
    return table_files("csv", source.csv, source.root, samples)


def _lines(table: Table) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, column -> cell) of each row that isn't empty. Lines with too many or too few cells are noted as faults."""
    text = _text(table)
    first = text.readline()
    text.seek(0)
    reader = csv.reader(text, delimiter=next((sign for sign in ",;\t" if sign in first), ","), strict=True)
    whole = 0  # the line that ends the last row that could be read: a quote without its partner swallows all lines after it
    try:
        header = [name.strip() for name in next(reader, [])]
        check_columns(table, header, f"{table.file}:1")
        whole = reader.line_num
        for cells in reader:
            whole = reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) == len(header):
                yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
                continue
            problem = f"has {len(cells)} cells, and the header has {len(header)}."
            table.faults.append((f"{table.place(reader.line_num)}: {problem}", "Put a cell with the separator in it into double quotes."))
    except csv.Error as error:  # Nothing after it can be told apart.
        table.faults.append((f"{table.place(whole + 1)}: the row that begins here can't be read ({error}).", "Check its double quotes."))


def _text(table: Table) -> StringIO:
    content = table.file.read_bytes()
    try:
        return StringIO(content.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{table.file}:{line}: is not UTF-8 text.\n  Save the table as UTF-8 (in a spreadsheet: CSV UTF-8).") from error


KIND = SourceKind(read_csv, local_files=csv_files, check=check_csv)
