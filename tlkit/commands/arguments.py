"""Arguments that several commands take."""

import json
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from math import nan
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from tlkit.commands.completion import complete_override, complete_recipe
from tlkit.errors import RecipeError, TlkitError, did_you_mean
from tlkit.files import expanded
from tlkit.system import bundled_recipes
from tlkit.terminal import print_text

if TYPE_CHECKING:
    from tlkit.recipe.schema import Recipe

FILES = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".npz": "npz", ".tar": "webdataset"}
"""Ending -> the key of `data.source` that takes such a file."""
RECIPES = (".yaml", ".yml")
DATA = "a folder of images, a .csv, .tsv, .parquet or .npz file, 'shards/*.tar'"


def recipe_arguments(parser: ArgumentParser) -> None:
    recipe = parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, or the name of a bundled recipe: quickstart")
    recipe.completer = complete_recipe  # type: ignore[attr-defined]  # as argcomplete wants it
    override_arguments(parser, "override a key: model.weights=random, 'phases[0].epochs=1', 'data.source={folder: photos}'")


def override_arguments(parser: ArgumentParser, help: str) -> None:
    """Add `KEY=VALUE ...` as `overrides`."""
    overrides = parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=help)
    overrides.completer = complete_override  # type: ignore[attr-defined]


def output_file(path: str) -> Path:
    """Return the path of a file to write. Raises TlkitError for `-`, and where its folder isn't there: before the work, not after it."""
    if path == "-":
        raise TlkitError("'-' does not mean stdout here.\n  Expected the name of a file; one that is called - is ./-")
    file = expanded(path)
    if not file.parent.is_dir():
        raise TlkitError(f"{file} can't be written: {file.parent} is not a folder.\n  Make it first: mkdir -p {quote(str(file.parent))}")
    return file


def output_folder(path: str) -> Path:
    """Return the path of a folder to write. Raises TlkitError for `-`."""
    if path == "-":
        raise TlkitError("'-' does not mean stdout here.\n  Expected the name of a folder; one that is called - is ./-")
    return expanded(path)


def moved_arguments(parser: ArgumentParser) -> None:
    """Add the overrides that say where a run's images are now."""
    override_arguments(parser, "where the run's images are, if they have moved: data.source.folder=/photos, data.root=/downloads")


def device_argument(parser: ArgumentParser) -> None:
    help = "cpu, cuda, cuda:1, mps, or auto: an accelerator if there is one (default: auto)"
    parser.add_argument("--device", default="auto", help=help)


def format_argument(parser: ArgumentParser) -> None:
    parser.add_argument("--format", choices=("table", "json"), default="table", help="default: table")


def offline_arguments(parser: ArgumentParser) -> None:
    help = "make no network calls, and report what is missing. If `tlkit data fetch` wrote RECIPE's folder, use its weights and data"
    parser.add_argument("--offline", action="store_true", help=help)
    help = "use the weights and data in this folder, written by `tlkit data fetch` and checked by sha256; make no network calls"
    parser.add_argument("--from", type=expanded, metavar="DIR", dest="fetched", help=help)


def recipe_to_run(arguments: Namespace) -> "Recipe":
    """Return the recipe, with weights and data from the folder of --from. Doesn't import torch, so that mistakes are reported at once."""
    from tlkit.training.distributed.ranks import is_main_process
    from tlkit.training.distributed.shutdown import reported_once_per_machine

    with reported_once_per_machine():
        recipe = _found_offline(arguments, arguments.recipe, arguments.overrides)
    if is_main_process():
        print_text(f"{recipe.name}: loading torch, then looking for images and weights", sys.stderr)
    return recipe


def _found_offline(arguments: Namespace, name: str, overrides: list[str]) -> "Recipe":
    from tlkit.recipe.fetched import MANIFEST, from_folder, go_offline
    from tlkit.recipe.load import find_recipe, load_recipe

    recipe = load_recipe(name, overrides)
    folder: Path | None = arguments.fetched
    if arguments.offline and folder is None and (beside := find_recipe(name).parent / MANIFEST).is_file():
        folder = beside.parent
    if arguments.offline or folder is not None:
        go_offline(folder)
    return recipe if folder is None else from_folder(recipe, folder)


def images_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("images", metavar="DIR|RECIPE", help=f"{DATA}, or a recipe")
    override_arguments(parser, "override a key of the recipe: data.channels=1, augment=medium, seed=1")
    offline_arguments(parser)


def images_recipe(arguments: Namespace, *, fitted: str = "") -> tuple["Recipe", bool]:
    """Return the recipe, or for data without a recipe the quickstart with these images and no augmentation; and whether it is the latter.

    fitted: keys of `data` for data without a recipe.
    """
    source = source_of(arguments.images)
    if source is None:
        _check_recipe_name(arguments.images)
        return _found_offline(arguments, arguments.images, arguments.overrides), False
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(arguments.images).resolve().stem).strip("-._") or "images"
    data = f"data={{source: {json.dumps(source)}{fitted and f', {fitted}'}}}"
    return _found_offline(arguments, "quickstart", [f"name={json.dumps(name)}", data, "augment=[]", *arguments.overrides]), True


def source_of(images: str) -> dict[str, str] | None:
    """Return `data.source` for data without a recipe, recognised by its file names; None for a recipe.

    Raises TlkitError for an .npy, which has no labels.
    """
    place = expanded(images)
    if place.is_dir():
        kind = _kind_of_folder(place)
        return {kind: f"{images}/*.tar" if kind == "webdataset" else images}
    ending = place.suffix.lower()
    if ending == ".npy":
        raise TlkitError(f"{images}: an .npy file has no labels.\n  Name a recipe with data.source={{npy: {images}, labels: LABELS.npy}}.")
    return {FILES[ending]: images} if ending in FILES else None


def _check_recipe_name(images: str) -> None:
    """Raise TlkitError for what is neither data nor a recipe, where a recipe's own error would not speak of data."""
    from tlkit.recipe.load import find_recipe

    if expanded(images).suffix.lower() in RECIPES:
        return
    if expanded(images).is_file():
        raise unknown_data(images, or_recipe=True)
    try:
        find_recipe(images)
    except RecipeError as error:
        raise unknown_data(images, or_recipe=True) from error


def unknown_data(data: str, *, or_recipe: bool = False) -> TlkitError:
    """Return the error for a word that names neither data nor, with `or_recipe`, a recipe, with what is beside it under a similar name."""
    place = expanded(data)
    expected = f"Expected {DATA}{', or a recipe' if or_recipe else ', or a source as in a recipe: {csv: FILE}'}"
    if place.is_file():
        return TlkitError(f"{data} is no data that is known by its ending.\n  {expected}.")
    endings = (*FILES, *RECIPES) if or_recipe else tuple(FILES)
    entries = sorted(place.parent.iterdir()) if place.parent.is_dir() else []
    beside = [str(place.with_name(entry.name)) for entry in entries if entry.is_dir() or entry.suffix.lower() in endings]
    near = did_you_mean(str(place), [*beside, *(bundled_recipes() if or_recipe else ())])
    return TlkitError(f"{data} does not exist.\n  {expected}; looked in {place.absolute().parent}. {near}".rstrip())


def _kind_of_folder(place: Path) -> str:
    """Return the key of `data.source`. A folder that can't be read is reported by its reader."""
    try:
        names = {entry.name for entry in place.iterdir()}
        tars = {name for name in names if name.endswith(".tar")}
        only_tars = bool(tars) and not any((place / name).is_dir() for name in names)
    except OSError:
        return "folder"
    if any(re.fullmatch(r"train-images[-.]idx3-ubyte(\.gz)?", name) for name in names):
        return "idx"
    if names & {"dataset_dict.json", "dataset_info.json"}:
        return "huggingface"
    return "webdataset" if only_tars else "folder"


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def as_number(text: str) -> float:
    """Return a number, or NaN for other text, which is in no range."""
    try:
        return float(text)
    except ValueError:
        return nan
