"""The files that a source given by path is made of, and where each goes in a copy that the same recipe can read."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tlkit.data.samples import Samples
from tlkit.errors import DataError
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


@dataclass(frozen=True)
class LocalFiles:
    """files: each with its path in the copy. keys: of data.source, with what they become, relative to the copy."""

    files: list[tuple[Path, str]]
    keys: dict[str, str]


def is_local(source: Source) -> bool:
    """Whether a source lies on this machine because the user put it there."""
    if isinstance(source, HuggingFaceSource):
        return Path(source.huggingface).expanduser().is_dir()
    return not isinstance(source, BundledSource | TorchvisionSource)


def local_files(source: Source, samples: Samples) -> LocalFiles:
    """samples: what was read from the source. Raises DataError where a file lies where no copy could have it."""
    match source:
        case FolderSource():
            return LocalFiles(_below(Path(source.folder).expanduser(), _images(samples)), {"folder": ""})
        case CsvSource() | ParquetSource():
            kind, name = ("csv", source.csv) if isinstance(source, CsvSource) else ("parquet", source.parquet)
            table = Path(name).expanduser()
            root = Path(source.root).expanduser() if source.root is not None else table.parent
            images = [(file, f"pictures/{inside}") for file, inside in _below(root, _images(samples))]
            return LocalFiles([(table, table.name), *images], {kind: table.name, "root": "pictures"})
        case IdxSource():
            folder = Path(source.idx).expanduser()
            return LocalFiles([(file, file.name) for file in sorted(folder.iterdir()) if "ubyte" in file.name], {"idx": ""})
        case NpzSource():
            return _named({"npz": source.npz})
        case NpySource():
            return _named({"npy": source.npy, "labels": source.labels})
        case HuggingFaceSource():
            folder = Path(source.huggingface).expanduser()
            return LocalFiles(_below(folder, (file for file in sorted(folder.rglob("*")) if file.is_file())), {"huggingface": ""})
        case WebDatasetSource():
            return _shards(source)
    raise ValueError(f"{source} isn't given by path")


def _images(samples: Samples) -> list[Path]:
    return [sample.image for sample in samples.samples if isinstance(sample.image, Path)]


def _below(base: Path, files: Iterable[Path]) -> list[tuple[Path, str]]:
    return [(file, _inside(os.path.abspath(file), os.path.abspath(base))) for file in files]


def _inside(place: str, base: str) -> str:
    """Of text, not of what lies there: a link stays where it is seen."""
    if not place.startswith(base.rstrip(os.sep) + os.sep):
        raise DataError(
            f"{place} lies outside of {base}, so a copy of that folder would not have it.\n"
            "  Move it inside, or copy the data yourself and use --leave-local."
        )
    return place[len(base.rstrip(os.sep)) + 1 :].replace(os.sep, "/")


def _named(files: dict[str, str]) -> LocalFiles:
    paths = {key: Path(name).expanduser() for key, name in files.items()}
    places = {key: f"{key}/{path.name}" for key, path in paths.items()}
    return LocalFiles([(paths[key], place) for key, place in places.items()], places)


def _shards(source: WebDatasetSource) -> LocalFiles:
    """Shards keep their places below the folder that holds all of them: pictures are called by them."""
    from tlkit.data.sources.webdataset_shards import find_shards

    patterns = {"webdataset": source.webdataset, **{key: text for key, text in (("val", source.val), ("test", source.test)) if text}}
    shards = [shard for key, text in patterns.items() for shard in find_shards(text, "train" if key == "webdataset" else key)]
    above = os.path.commonpath([shard.absolute().parent for shard in shards])
    keys = {key: _inside(os.path.abspath(os.path.expanduser(text)), above) for key, text in patterns.items()}
    return LocalFiles(_below(Path(above), shards), keys)
