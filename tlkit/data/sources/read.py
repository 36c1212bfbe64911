"""Where pictures and labels come from. Nothing is decoded here, and each kind of source is imported when a recipe has it."""

from pathlib import Path

from tlkit.data.samples import Samples
from tlkit.recipe.fields.source import (
    BundledSource,
    CsvSource,
    FolderSource,
    HuggingFaceSource,
    IdxSource,
    NpySource,
    NpzSource,
    ParquetSource,
    Source,
    TorchvisionSource,
)
from tlkit.recipe.schema import Task
from tlkit.system import shipped


def read_source(source: Source, root: Path, task: Task = "multiclass", *, keep_missing: bool = False) -> Samples:
    """Every picture of a source with its label and, where the source has them, its split; root: where downloads lie or go.

    keep_missing: files that a table names and that aren't there are samples like others, so that reading them says what is wrong.
    Raises DataError where the source is missing, empty, or has fewer than two classes.
    """
    match source:
        case FolderSource():
            from tlkit.data.sources.folder import read_folder

            return read_folder(Path(source.folder))
        case BundledSource():
            from tlkit.data.sources.folder import read_folder

            return read_folder(shipped(f"data/{source.bundled}"))
        case CsvSource():
            from tlkit.data.sources.csv_table import read_csv

            return read_csv(source, task, keep_missing=keep_missing)
        case ParquetSource():
            from tlkit.data.sources.parquet import read_parquet

            return read_parquet(source, task, keep_missing=keep_missing)
        case IdxSource():
            from tlkit.data.sources.idx import read_idx

            return read_idx(source)
        case NpzSource() | NpySource():
            from tlkit.data.sources.array_files import read_arrays

            return read_arrays(source, task)
        case HuggingFaceSource():
            from tlkit.data.sources.huggingface import read_huggingface

            return read_huggingface(source, root, task)
        case TorchvisionSource():
            from tlkit.data.sources.torchvision_sets import read_torchvision

            return read_torchvision(source.torchvision, root)
        case _:
            from tlkit.data.sources.webdataset_shards import read_webdataset

            return read_webdataset(source, root, task)
