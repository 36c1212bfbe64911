"""A table as parquet: the columns of a csv; a list in the column label is several labels."""

from collections.abc import Iterator
from typing import Any

from tlkit.data.samples import LABEL_SEPARATOR, Samples
from tlkit.data.sources.kind import LocalFiles, ReadOptions, SourceCheck, SourceKind
from tlkit.data.sources.table import OPTIONAL, REQUIRED, Table, check_columns, open_table, table_files, table_images, table_samples
from tlkit.errors import DataError, MissingExtraError
from tlkit.recipe.fields.source import ParquetSource


def read_parquet(source: ParquetSource, options: ReadOptions) -> Samples:
    """Return every image of a table. Raises DataError, with every row (counted from 1), for what can't be used."""
    table = open_table(source.parquet, source.root, "data.source.parquet")
    return table_samples(table, _rows(table), options)


def check_parquet(source: ParquetSource, options: ReadOptions) -> SourceCheck:
    table = open_table(source.parquet, source.root, "data.source.parquet")
    return SourceCheck(table_images(table, _rows(table)))


def parquet_files(source: ParquetSource, samples: Samples) -> LocalFiles:
    return table_files("parquet", source.parquet, source.root, samples)


def _rows(table: Table) -> Iterator[tuple[int, dict[str, str]]]:
    """(row, column -> text), a few thousand rows in memory at a time."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", "data.source.parquet") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(table.file) as file:
            _check(table, file.schema_arrow)
            columns = [name for name in (*REQUIRED, *OPTIONAL) if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: _text(value) for name, value in row.items()}
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        problem = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{table.file}: is no parquet file that can be read, or is damaged ({problem}).\n  Write it anew.") from error


def _check(table: Table, schema: Any) -> None:
    """Columns are there, and hold what can be text: words, numbers, or for labels lists of them."""
    import pyarrow.types as types

    if "path" not in schema.names and any(types.is_struct(kind) or types.is_binary(kind) for kind in schema.types):
        raise DataError(
            f"{table.file}: holds the pictures themselves, and no column path.\n"
            f"  Use {{huggingface: {table.file.parent}}}, which reads such tables."
        )
    check_columns(table, schema.names, str(table.file))
    for name in (column for column in (*REQUIRED, *OPTIONAL) if column in schema.names):
        kind = schema.field(name).type
        if name == "label" and (types.is_list(kind) or types.is_large_list(kind)):
            kind = kind.value_type
        if types.is_dictionary(kind):
            kind = kind.value_type
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind) or (types.is_integer(kind) and name != "path")):
            wanted = "text" if name == "path" else "text or whole numbers"
            table.faults.append((f"{table.file}: the column {name} holds {kind}.", f"Expected {wanted}."))
    table.raise_faults()


def _text(value: Any) -> str:
    if isinstance(value, list):
        return LABEL_SEPARATOR.join(map(str, value))
    return "" if value is None else str(value).strip()


KIND = SourceKind(read_parquet, local_files=parquet_files, check=check_parquet)
