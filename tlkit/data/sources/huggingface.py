"""Hugging Face data sets: from the hub, from its cache, or from a folder. Nothing of theirs is run, and images stay on disk."""

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from tlkit.data.decode import image_formats
from tlkit.data.samples import SPLIT_WORDS, Sample, Samples
from tlkit.data.sources.classes import Label, number_classes
from tlkit.data.sources.kind import LocalFiles, Origin, ReadOptions, SourceKind, below
from tlkit.errors import DataError, MissingDataError, MissingExtraError, did_you_mean
from tlkit.files import atomic_folder, expanded
from tlkit.recipe.fields.source import HuggingFaceSource
from tlkit.recipe.schema import Task
from tlkit.terminal import counted

_LABEL_NAMES = ("label", "labels", "fine_label")
HUB_TIMEOUT_S = 4
"""How long the hub may take to answer before it counts as out of reach."""

log = logging.getLogger("tlkit")


@dataclass(frozen=True, slots=True, eq=False)
class HuggingFaceImage:
    """rows: the column of undecoded images. It is mapped from its files, and opened again where it travels to another process."""

    rows: Any
    column: str
    index: int

    def read_bytes(self) -> bytes:
        cell = self.rows[self.index][self.column]
        if cell is None or not (cell["bytes"] or cell["path"]):
            raise DataError("the row has no image.\n  Fill it, or remove the row.")
        content: bytes = cell["bytes"] or Path(cell["path"]).read_bytes()
        return content

    def __call__(self) -> Image.Image:
        return Image.open(BytesIO(self.read_bytes()), formats=image_formats())

    def __str__(self) -> str:
        return f"{self.column}[{self.index}]"


def read_huggingface(source: HuggingFaceSource, options: ReadOptions) -> Samples:
    """Read every image of a data set, with the splits it has. Ids are `train/000042`.

    Tables of parquet in a folder are converted once, into root; from the hub everything goes into the hub's own cache.
    Raises DataError if the set, or a column, isn't there, and MissingExtraError without the package datasets.
    """
    warnings: list[str] = []
    parts = _splits(source, load_huggingface(source, options.root), warnings)
    place = f"data.source.huggingface: {source.huggingface}"
    features = next(iter(parts.values())).features
    image, label = _image_column(source, features, place), _label_column(source, features, place)
    names = _names(features[label])
    labels = {split: _labels(rows, label, f"{place}, split {split or 'all'}", options.task) for split, rows in parts.items()}
    for split in [split for split, found in labels.items() if found and all(given == (-1,) for given in found)]:
        warnings.append(
            f"{place}: the labels of the {split} split are hidden (-1), so it is not read, and its images are taken from training"
        )
        del labels[split], parts[split]
    classes, numbers = number_classes(place, labels, names, options.task)
    samples = []
    for split, rows in parts.items():
        images = _undecoded(rows, image)
        samples += [
            Sample(f"{split or 'all'}/{i:06d}", HuggingFaceImage(images, image, i), tuple(sorted(numbers[word] for word in given)), split)
            for i, given in enumerate(labels[split])
        ]
    return Samples(classes, tuple(samples), options.task, warnings=tuple(warnings))


def huggingface_origin(source: HuggingFaceSource) -> Origin:
    return "local" if expanded(source.huggingface).is_dir() else "downloaded"


def huggingface_files(source: HuggingFaceSource, samples: Samples) -> LocalFiles:
    folder = expanded(source.huggingface)
    return LocalFiles(below(folder, (file for file in sorted(folder.rglob("*")) if file.is_file())), {"huggingface": ""})


def save_huggingface(source: HuggingFaceSource, options: ReadOptions, folder: Path) -> None:
    """Write the set as save_to_disk does, images inside: whole or not at all. What is there already stays."""
    if folder.exists():
        return
    with atomic_folder(folder) as writing:
        load_huggingface(source, options.root).save_to_disk(str(writing))


def _datasets() -> Any:
    """Import datasets, which counts downloads by default, with that turned off."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "hub", "data.source.huggingface") from error
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def load_huggingface(source: HuggingFaceSource, root: Path) -> Any:
    """Load a DatasetDict or a Dataset."""
    datasets = _datasets()
    name = source.huggingface
    folder = expanded(name)
    try:
        if folder.is_dir():
            if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
                return datasets.load_from_disk(str(folder))
            return datasets.load_dataset(str(folder), source.config, cache_dir=str(expanded(root) / "huggingface"))
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            siblings = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
            hint = did_you_mean(folder.name, siblings) or "A data set of the hub is called NAME or OWNER/NAME."
            raise MissingDataError(f"data.source.huggingface: the folder {name} does not exist.\n  {hint}")
        _leave_the_network_if_the_hub_is_silent(datasets, name)
        return datasets.load_dataset(name, source.config, revision=source.revision)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
        raise _not_loaded(source, folder, error) from error


def _leave_the_network_if_the_hub_is_silent(datasets: Any, name: str) -> None:
    """Ask the hub once: otherwise load_dataset retries for half a minute before it looks into its cache."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        return
    try:
        HfApi().dataset_info(name, timeout=HUB_TIMEOUT_S)
    except HfHubHTTPError:
        pass  # It answers; what it has against this set load_dataset will say.
    except Exception as error:  # What the client raises changed with each of its major versions.
        log.info("the hub doesn't answer (%s): looking for %s in its cache", str(error).partition("\n")[0] or type(error).__name__, name)
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def _not_loaded(source: HuggingFaceSource, folder: Path, error: Exception) -> DataError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    problem = f"data.source.huggingface: {source.huggingface} can't be read: {' '.join(lines[:3]).rstrip('.')}."
    if "onfig" in lines[0]:
        return DataError(f"{problem}\n  Choose one: data.source.config.")
    if folder.is_dir():
        return DataError(f"{problem}\n  Expected a folder by save_to_disk, or one with parquet files or images.")
    if any(os.environ.get(word, "") not in ("", "0") for word in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")):
        fix = "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set, and the set is not in the cache: fetch it once without them."
    else:
        fix = "Check the name on the hub and the network, or name a folder that has the set."
    return MissingDataError(f"{problem}\n  {fix}")


def _splits(source: HuggingFaceSource, loaded: Any, warnings: list[str]) -> dict[str, Any]:
    """Return the rows of each of tlkit's splits."""
    place = f"data.source.huggingface: {source.huggingface}"
    if not isinstance(loaded, dict):
        return {"": loaded}
    named = {SPLIT_WORDS[name.lower()]: rows for name, rows in loaded.items() if name.lower() in SPLIT_WORDS}
    unread = [name for name in loaded if name.lower() not in SPLIT_WORDS]
    if "train" in named:
        if unread:
            warnings.append(f"{place}: only train, validation and test are read; not read: {', '.join(unread)}")
        return named
    if len(loaded) == 1:
        return {"": next(iter(loaded.values()))}
    raise DataError(f"{place} has the splits {', '.join(loaded)} and no train.\n  Save it with a split called train.")


def _image_column(source: HuggingFaceSource, features: Mapping[str, Any], place: str) -> str:
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image" or _is_undecoded(feature)]
    return _column(source.image, images, features, place, "image")


def _label_column(source: HuggingFaceSource, features: Mapping[str, Any], place: str) -> str:
    named = [name for name, feature in features.items() if _names(feature)]
    usual = [name for name in _LABEL_NAMES if name in features]
    return _column(source.label, named if len(named) == 1 else usual or named, features, place, "label")


def _column(wanted: str | None, found: list[str], features: Mapping[str, Any], place: str, key: str) -> str:
    columns = ", ".join(features)
    if wanted is not None:
        if wanted in features:
            return wanted
        raise DataError(
            f"{place} has no column '{wanted}'; it has {columns}.\n  {did_you_mean(wanted, features) or f'Set data.source.{key}.'}"
        )
    if not found:
        raise DataError(f"{place}: no column seems to hold the {key}s; it has {columns}.\n  Name it: data.source.{key}.")
    if len(found) > 1 and key == "image":
        raise DataError(f"{place} has several columns of images: {', '.join(found)}.\n  Choose one: data.source.image.")
    return found[0]


def _is_undecoded(feature: Any) -> bool:
    """Check for undecoded images: tables of other tools have {bytes, path} without saying that it is an image."""
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}


def _names(feature: Any) -> tuple[str, ...]:
    """Return the names of a ClassLabel, or of a list of them; none for plain numbers and words."""
    return tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())


def _labels(rows: Any, column: str, place: str, task: Task) -> list[tuple[Label, ...]]:
    values = rows.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    if (empty := sum(value is None for value in values)) > 0:
        raise DataError(
            f"{place}: {counted(empty, 'row has', 'rows have')} no label in the column {column}.\n  Fill them, or remove the rows."
        )
    several = any(isinstance(value, list) for value in values)
    if several and task == "multiclass":
        raise DataError(f"{place}: the column {column} has lists of labels.\n  Set task to multilabel, or name another: data.source.label.")
    found = [tuple(value) if isinstance(value, list) else (value,) for value in values]
    if odd := next((label for labels in found for label in labels if not isinstance(label, int | str)), None):
        raise DataError(f"{place}: the column {column} holds {odd!r}.\n  Expected whole numbers or words: data.source.label.")
    return found


def _undecoded(rows: Any, column: str) -> Any:
    """Return only the image column, as bytes: tlkit's own decoder reads them."""
    datasets = _datasets()
    try:
        return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except (ValueError, TypeError, RuntimeError) as error:  # pyarrow's NotImplementedError is a RuntimeError
        raise DataError(f"data.source.image: the column {column} holds no images ({error}).\n  Name another.") from error


KIND = SourceKind(read_huggingface, huggingface_origin, huggingface_files, save=save_huggingface)
