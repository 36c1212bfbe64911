"""What `tlkit check` finds without torch: unknown names of backbones and optimizers, image sizes, missing folders and files.

The names are those of one version of timm, in names.json, which `python -m tests.recipe.test_names` writes again.
"""

import json
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tlkit.errors import Fault, did_you_mean
from tlkit.files import expanded
from tlkit.recipe.fields.trainer import LOGGER_PACKAGES
from tlkit.recipe.image_sizes import size_faults
from tlkit.recipe.schema import Recipe

TABLE = "names.json"
FOLDERS = ("folder", "idx", "root")
FILES = ("csv", "parquet", "npz", "npy", "labels")
"""Keys of data.source that name a folder or a file of this machine."""


@cache
def known_names() -> dict[str, Any]:
    """Return the names of one version of timm, and of tlkit: the lists `backbones` and `optimizers`, and the version as `timm`."""
    table: dict[str, Any] = json.loads(files("tlkit.recipe").joinpath(TABLE).read_text(encoding="utf-8"))
    return table


def name_faults(recipe: Recipe) -> list[Fault]:
    """Return the names that the listed version of timm doesn't know; empty for another version, which `tlkit plan` asks itself."""
    table = known_names()
    if version("timm") != table["timm"]:
        return []
    faults = []
    architecture = recipe.model.backbone.partition(".")[0]
    if architecture not in table["backbones"]:
        fix = f"{did_you_mean(architecture, table['backbones'])} List them with: tlkit models '*resnet*'".strip()
        faults.append(Fault("model.backbone", f"= '{recipe.model.backbone}' is not a model that timm knows.", fix))
    if recipe.optimizer.name not in table["optimizers"]:
        nearest = did_you_mean(recipe.optimizer.name, table["optimizers"])
        fix = f"Expected sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw, or one of timm's. {nearest}".rstrip()
        faults.append(Fault("optimizer.name", f"= '{recipe.optimizer.name}' is not an optimizer.", fix))
    return [*faults, *size_faults(recipe)]


def package_faults(recipe: Recipe) -> list[Fault]:
    """Return the loggers whose package isn't installed."""
    return [
        Fault(
            "trainer.logger", f"has {name}, which needs a package that is not installed.", f"Install it with: pip install 'tlkit[{name}]'"
        )
        for name in recipe.trainer.logger
        if name in LOGGER_PACKAGES and find_spec(LOGGER_PACKAGES[name]) is None
    ]


def path_faults(recipe: Recipe) -> Iterator[Fault]:
    """Yield the folders and files of data and weights that are not on this machine."""
    source = recipe.data.source
    named = [(f"data.source.{key}", getattr(source, key, None), key in FOLDERS) for key in (*FOLDERS, *FILES)]
    weights = recipe.model.weights
    named += [(f"model.weights.{key}", getattr(weights, key, None), key == "run") for key in ("file", "run")]
    for key, name, is_folder in named:
        if not isinstance(name, str):
            continue
        path = expanded(name)
        if not (path.is_dir() if is_folder else path.is_file()):
            yield Fault(key, f"= '{name}' {_problem(path, is_folder=is_folder)}", _nearest(path, is_folder=is_folder))


def _problem(path: Path, *, is_folder: bool) -> str:
    if path.exists():
        return "is a file, not a folder." if is_folder else "is a folder, not a file."
    return "does not exist."


def _nearest(path: Path, *, is_folder: bool) -> str:
    """Return what was expected, and the nearest name beside where it was looked for."""
    parent = path.absolute().parent
    try:
        beside = [found.name for found in parent.iterdir() if found.is_dir() == is_folder]
    except OSError:
        beside = []
    what = "a folder" if is_folder else "a file"
    return f"Expected {what}; relative paths start at {Path.cwd()}. {did_you_mean(path.name, beside)}".rstrip()
