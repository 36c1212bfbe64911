"""The table of sources, and reading one. Nothing is decoded here, and each kind is imported when a recipe has it."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from tlkit.data.samples import Samples
from tlkit.data.sources.kind import AnyKind, ReadOptions
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
    WebDatasetSource,
)
from tlkit.recipe.schema import Task

# The keys of a source -> the module of this package that has its KIND; torchvision's imports torch.
KINDS: Mapping[type[Source], str] = {
    FolderSource: "folder",
    CsvSource: "tables.csv_table",
    ParquetSource: "tables.parquet",
    TorchvisionSource: "torchvision_sets",
    IdxSource: "idx",
    NpzSource: "array_files",
    NpySource: "array_files",
    HuggingFaceSource: "huggingface",
    WebDatasetSource: "webdataset_shards",
    BundledSource: "bundled",
}


def kind_of(source: Source) -> AnyKind:
    kind: AnyKind = import_module(f"{__package__}.{KINDS[type(source)]}").KIND
    return kind


def read_source(source: Source, root: Path, task: Task = "multiclass", *, keep_missing: bool = False) -> Samples:
    """Return every image of a source with its label and, where the source has them, its split; for the arguments see ReadOptions.

    Raises DataError if the source is missing, empty, or has fewer than two classes.
    """
    return kind_of(source).read(source, ReadOptions(root, task, keep_missing))
