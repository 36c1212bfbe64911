"""A folder by `tlkit data fetch`, from which a machine without network takes weights and data; and whether the network may be asked."""

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, ValidationError

from tlkit.errors import DataError, WeightsError
from tlkit.files import sha256_of
from tlkit.recipe.fields.model import Model
from tlkit.recipe.fields.source import Source
from tlkit.recipe.fields.strict import Strict
from tlkit.recipe.schema import Recipe

MANIFEST, UNFINISHED = "fetched.json", ".unfinished"
OFFLINE, FETCHED = "TLKIT_OFFLINE", "TLKIT_FETCHED"
"""Variables of the environment: no network call is made; and the folder that has what a recipe needs."""
DOWNLOADS = "data"
"""Subfolder that takes the place of `data.root`."""


class FetchedFile(Strict):
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class FetchedWeights(Strict):
    """backbone, asked: as a recipe has them. file: the weights. use: what model.weights becomes, with paths in the folder, or nothing."""

    backbone: str
    asked: str | dict[str, Any]
    origin: str
    file: str
    use: dict[str, str] | None = None


class FetchedData(Strict):
    """asked: `data.source` as a recipe has it. use: keys of it that become paths in the folder.

    inside: the folder with all of its files; empty if they were left in place.
    """

    asked: dict[str, Any]
    use: dict[str, str]
    inside: str


class Fetched(Strict):
    """files: path in the folder, with forward slashes -> what it must be."""

    tlkit: str
    weights: tuple[FetchedWeights, ...] = Field((), strict=False)
    data: tuple[FetchedData, ...] = Field((), strict=False)
    files: dict[str, FetchedFile] = Field(default_factory=dict)


def is_offline() -> bool:
    return os.environ.get(OFFLINE, "") not in ("", "0")


def go_offline(folder: Path | None = None) -> None:
    """Make no network call from here on, in this process and those that it starts.

    Call it before importing huggingface_hub, which reads the setting once. folder: written by `tlkit data fetch`, for weights.
    """
    os.environ.update({OFFLINE: "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
    if folder is not None:
        os.environ[FETCHED] = str(folder.absolute())


def read_fetched(folder: Path) -> Fetched:
    """Raise DataError if the folder isn't one by `tlkit data fetch`, or isn't whole."""
    file = folder / MANIFEST
    if (folder / UNFINISHED).exists():
        raise DataError(f"{folder} is incomplete: `tlkit data fetch` was stopped.\n  Run it again; it resumes where it stopped.")
    if not file.is_file():
        what = "has no" if folder.is_dir() else "does not exist, so there is no"
        raise DataError(f"{folder} {what} {MANIFEST}.\n  Expected a folder by: tlkit data fetch RECIPE --to DIR")
    try:
        fetched = Fetched.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (ValidationError, ValueError) as error:
        raise DataError(f"{file} is damaged.\n  Run again: tlkit data fetch RECIPE --to {folder}") from error
    for name in fetched.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(f"{file} names a file outside of the folder: {name}.\n  Run again: tlkit data fetch RECIPE --to {folder}")
    return fetched


def from_folder(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with its paths and downloads replaced by those in the folder, whose data files are checked.

    `fetched_weights` finds published weights there. Raises DataError or WeightsError if the folder lacks something.
    """
    fetched = read_fetched(folder)
    folder = folder.absolute()
    values = recipe.model_dump(by_alias=True)
    source = values["data"]["source"]
    if "bundled" not in source:
        found = next((data for data in fetched.data if _is_same(data.asked, recipe.data.source)), None)
        if found is None:
            there = " and ".join(_label(data.asked) for data in fetched.data) or "no data"
            raise DataError(
                f"{folder} has {there}, and data.source is {_label(source)}.\n  Where there is a network, bring it: {_fetch_it(folder)}"
            )
        check_files(folder, fetched.files, [name for name in fetched.files if found.inside and name.startswith(f"{found.inside}/")])
        values["data"]["source"] |= {key: str(folder / path) for key, path in found.use.items()}
        if found.inside == DOWNLOADS:
            values["data"]["root"] = str(folder / DOWNLOADS)
    if (weights := _of(fetched, recipe.model)) and weights.use:
        values["model"]["weights"] = {key: str(folder / path) for key, path in weights.use.items()}
    taken = Recipe.model_validate(values)
    taken._places.update(recipe._places)
    return taken


def _is_same(asked: dict[str, Any], source: Source) -> bool:
    """Check whether a recorded source is this one: an older tlkit wrote fewer keys."""
    try:
        return type(source).model_validate(asked) == source
    except ValidationError:
        return False


def fetched_weights(model: Model) -> tuple[str, Path, str] | None:
    """Return origin, file and sha256 of published weights in the folder of TLKIT_FETCHED; None if that is not set.

    Raises WeightsError if the folder has other weights.
    """
    if not os.environ.get(FETCHED):
        return None
    folder = Path(os.environ[FETCHED])
    fetched = read_fetched(folder)
    found = _of(fetched, model)
    if found is None:
        there = " and ".join(f"{weights.backbone} ({_label(weights.asked)})" for weights in fetched.weights) or "no weights"
        asked = f"{model.backbone} ({_label(_asked(model))})"
        raise WeightsError(f"{folder} has {there}, and the recipe asks for {asked}.\n  Where there is a network: {_fetch_it(folder)}")
    try:
        check_files(folder, fetched.files, [found.file])
    except DataError as error:
        raise WeightsError(str(error)) from error
    return found.origin, folder / found.file, fetched.files[found.file].sha256


def check_files(folder: Path, files: Mapping[str, FetchedFile], names: Iterable[str]) -> None:
    """Raise DataError with every file that is missing or isn't what was fetched: by size, then by sha256."""
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        faults = [fault for fault in pool.map(lambda name: _fault(folder / name, files[name]), names) if fault]
    if faults:
        listed = "\n".join(f"    {fault}" for fault in faults[:10]) + (f"\n    and {len(faults) - 10} others" if len(faults) > 10 else "")
        raise DataError(
            f"{folder} is not as it was fetched:\n{listed}\n  Copy it again from where it was fetched, or fetch again: {_fetch_it(folder)}"
        )


def _fault(file: Path, expected: FetchedFile) -> str:
    try:
        size = file.stat().st_size
        if size != expected.size:
            return f"{file} has {size} bytes, and had {expected.size}"
        return "" if sha256_of(file) == expected.sha256 else f"{file} has another sha256"
    except OSError as error:
        return f"{file} is missing" if isinstance(error, FileNotFoundError) else f"{file} can't be read: {error.strerror}"


def _of(fetched: Fetched, model: Model) -> FetchedWeights | None:
    return next((one for one in fetched.weights if one.backbone == model.backbone and one.asked == _asked(model)), None)


def _asked(model: Model) -> Any:
    return model.weights if isinstance(model.weights, str) else model.weights.model_dump(mode="json")


def _label(asked: Any) -> str:
    """Return `torchvision CIFAR10`."""
    return asked if isinstance(asked, str) else " ".join(map(str, next(iter(asked.items()))))


def _fetch_it(folder: Path) -> str:
    return f"tlkit data fetch RECIPE --to {folder.name}"
