"""A table as parquet: the columns of a csv; a list in the column label is several labels."""

from collections.abc import Iterator, Sequence
from typing import Any

from tlkit.data.sources.tables.columns import TableSource
from tlkit.data.sources.tables.table import Cells, Table, table_kind
from tlkit.errors import DataError, MissingExtraError

_BETWEEN = "\x1f"
"""Between the labels of a list: a sign that no label has, so that each stays as it is."""


def _read(table: Table) -> tuple[list[str], Iterator[Cells]]:
    """Return the names of all columns, and the rows, counted from 1; cells of columns that aren't needed are empty and not read."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", "data.source.parquet") from error
    try:
        schema = pyarrow.parquet.read_schema(table.file)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise _unreadable(table, error) from error
    header = list(schema.names)
    columns = [name for name in dict.fromkeys(header) if name in _wanted(table.keys, schema)]
    _check(table, schema)
    return header, _rows(table, header, columns)


def _wanted(source: TableSource, schema: Any) -> set[str]:
    """Return the columns that may be needed: the named ones, and without a label column all that may contain 0 and 1."""
    import pyarrow.types as types

    labels = source.label if isinstance(source.label, tuple) else (source.label,)
    kinds = (types.is_integer, types.is_boolean, types.is_floating)
    flags = [field.name for field in schema if any(is_kind(field.type) for is_kind in kinds)]
    return {source.path, source.split, source.group, *labels, *([] if set(labels) & set(schema.names) else flags)}


def _rows(table: Table, header: Sequence[str], columns: Sequence[str]) -> Iterator[Cells]:
    """Yield the rows, with a few thousand in memory at a time."""
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(table.file) as file:
            for batch in file.iter_batches(columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield number, [_text(row.get(name)) for name in header]
    except (OSError, ValueError) as error:
        raise _unreadable(table, error) from error


def _unreadable(table: Table, error: Exception) -> DataError:
    problem = str(error).splitlines()[0].rstrip(".")
    with table.file.open("rb") as file:
        start = file.readline(1000)
    if b"," in start and start.decode("utf-8", "replace").strip().isprintable():
        return DataError(f"{table.file}: is a table as text, not parquet.\n  Use {{csv: {table.file}}}.")
    return DataError(f"{table.file}: is no parquet file that can be read, or is damaged ({problem}).\n  Write it again.")


def _check(table: Table, schema: Any) -> None:
    """Check that columns hold what can be text: strings, numbers, or for labels lists of them."""
    import pyarrow.types as types

    source = table.keys
    if source.path not in schema.names and any(types.is_struct(kind) or types.is_binary(kind) for kind in schema.types):
        raise DataError(
            f"{table.file}: holds the images themselves, and no column {source.path}.\n"
            f"  Use {{huggingface: {table.file.parent}}}, which reads such tables."
        )
    label = source.label if isinstance(source.label, str) else ""
    for name in (column for column in (source.path, label, source.split, source.group) if schema.names.count(column) == 1):
        kind = schema.field(name).type
        if name == label and (types.is_list(kind) or types.is_large_list(kind)):
            kind, table.joined_by = kind.value_type, _BETWEEN
        if types.is_dictionary(kind):
            kind = kind.value_type
        whole = (types.is_integer(kind) or types.is_boolean(kind)) and name != source.path
        text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        if not (text or types.is_null(kind) or whole):
            wanted = "text" if name == source.path else "text or whole numbers"
            table.faults.add(0, f"the column {name} holds {kind}.", f"Expected {wanted}.")
    if source.path in schema.names and (label in schema.names or not label):
        table.faults.raise_all()


def _text(value: Any) -> str:
    if isinstance(value, list):
        return _BETWEEN.join(map(str, value))
    return "" if value is None else str(value)


KIND = table_kind(_read)
