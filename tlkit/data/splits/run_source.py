"""Where a run found its data: the paths of a recipe are relative to the folder in which the run was started."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlkit.errors import RunError, expected_one_of
from tlkit.files import write_json
from tlkit.recipe.load import load_recipe
from tlkit.recipe.schema import Recipe

ORIGIN = "origin.json"
"""Says where the run was started. The one file of a run that names a folder of this machine, beside the recipe; it never ships."""
PATHS = ("folder", "csv", "parquet", "root", "idx", "npz", "npy", "labels", "huggingface", "webdataset", "val", "test", "file", "run")
"""Keys of `data.source` and `model.weights` that are paths; `huggingface` may be a name too."""
MAY_CHANGE = ("data.source", "data.root", "data.on_bad", "data.batch_size", "data.workers")
"""What can be changed for a run that has ended: where its images are, and how they are read."""

MOST_NAMED = 10
"""Folds or seeds that a message names."""


def write_origin(run: Path, values: Mapping[str, str]) -> None:
    """Record where the run is started, and where its recipe has each value from that isn't a default."""
    write_json(run / ORIGIN, {"started_in": str(Path.cwd()), "values": dict(values)})


def inner_runs(run: Path) -> list[Path]:
    """Return the run folders in that of a cross-validation (`fold_1` ...) or of several seeds (`seed_0` ...); none for a single run."""
    found = (path for path in run.glob("*_*") if re.fullmatch(r"(fold|seed)_\d+", path.name) and path.is_dir())
    return sorted(found, key=lambda path: int(path.name.partition("_")[2]))


def check_single(run: Path, what: str = "its own run folder") -> None:
    """Raise RunError for the folder of a cross-validation or of several seeds."""
    if inner := inner_runs(run):
        kind, each = ("a cross-validation", "fold") if inner[0].name.startswith("fold") else ("a run of several seeds", "seed")
        names = ", ".join(map(str, inner[:MOST_NAMED])) + (f" ... ({len(inner)} in all)" if len(inner) > MOST_NAMED else "")
        raise RunError(f"{run} is {kind}: each {each} has {what}.\n  Name one of them: {names}. All of them together: tlkit report {run}")


def not_a_run(folder: Path, problem: str) -> RunError:
    """Return the error for a folder that isn't a run, or has not what a command needs, with the run that may be meant."""
    fix = "Expected a run folder such as runs/quickstart/001 whose run has ended, or where a model is enough the model folder in it."
    if (folder / "recipe.yaml").is_file() and (folder / "checkpoints").is_dir() and not (folder / "metrics.json").is_file():
        begun = folder.parent if folder in inner_runs(folder.parent) and (folder.parent / "recipe.yaml").is_file() else folder
        fix = f"Its run has not ended: resume it with the same command, --out {begun} and --resume."
    elif near := _nearest_run(folder):
        fix += f" Did you mean {near}?"
    return RunError(f"{folder} {problem}.\n  {fix}")


def _nearest_run(folder: Path) -> Path | None:
    """Return the folder above that is a run, the last run below, or for a folder that isn't there the one beside it of this number."""
    if (folder.parent / "split.csv").is_file():
        return folder.parent
    found = [_whole(path.parent) for depth in ("*", "*/*") for path in folder.glob(f"{depth}/split.csv")]
    if not folder.exists() and folder.name.isdecimal():
        beside = (path for path in folder.parent.glob("*") if path.name.isdecimal())
        found = [path for path in beside if (path / "split.csv").is_file() or inner_runs(path)]
        found = [path for path in found if int(path.name) == int(folder.name)] or found
    return max(found, default=None, key=lambda path: path.stat().st_mtime)


def _whole(run: Path) -> Path:
    """Return the folder of all folds or seeds, if the run is one of them."""
    return run.parent if run in inner_runs(run.parent) else run


def started_in(run: Path) -> Path | None:
    """Return the folder in which the run was started; None for a run of an earlier version."""
    try:
        return Path(json.loads((next(iter(inner_runs(run)), run) / ORIGIN).read_text(encoding="utf-8"))["started_in"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def recipe_of_run(run: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a run that has ended. overrides: `KEY=VALUE` of MAY_CHANGE. Raises RunError for others."""
    for override in overrides:
        key = override.partition("=")[0].strip()
        if not key.startswith(MAY_CHANGE):
            raise RunError(
                f"{key} can't be changed for a run that has ended: its model is as it was trained.\n"
                f"  {expected_one_of(key, MAY_CHANGE)}\n  Or train with it: tlkit finetune {run / 'recipe.yaml'} {override}"
            )
    return load_recipe(run / "recipe.yaml", list(overrides))


def overrides_from_start(run: Path, recipe: Recipe) -> list[str]:
    """Return the overrides that make relative paths of a run's recipe absolute, of those that are there where the run was started."""
    folder = started_in(run)
    return _overrides_to(folder, recipe) if folder is not None else []


def _overrides_to(folder: Path, recipe: Recipe) -> list[str]:
    """Return the overrides that make relative paths of a recipe absolute, of those that are there in the folder."""
    values = recipe.model_dump(mode="json", by_alias=True, include={"data": {"source", "root"}, "model": {"weights"}})
    moved = _below(folder, values)
    keys = [(section, key) for section, inner in values.items() for key, value in inner.items() if moved[section][key] != value]
    return [f"{section}.{key}={json.dumps(moved[section][key], ensure_ascii=False)}" for section, key in keys]


def from_start_where_missing(run: Path) -> list[str]:
    """Return the overrides that make a path of a run's recipe absolute, for those paths that the folder of now doesn't have."""
    recipe = load_recipe(run / "recipe.yaml")
    here = {override.partition("=")[0]: override for override in _overrides_to(Path.cwd(), recipe)}
    return [override for override in overrides_from_start(run, recipe) if override.partition("=")[0] not in here]


def where_else(run: Path, recipe: Recipe) -> str:
    """Return how to say where the data of a run is now, for a message that it isn't found."""
    key = next(iter(recipe.data.source.model_dump()))
    folder = started_in(run)
    began = f"The run was started in {folder}: run the command there. Or set" if folder else "Say"
    return f"{began} where its images are now: add data.source.{key}=PATH to the command."


def _below(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with those paths made absolute that are relative and there in the folder."""

    def moved(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return _below(folder, value)
        is_path = key in PATHS and isinstance(value, str) and not value.startswith(("~", "$"))
        return str(folder / value) if is_path and _is_there(folder / value) else value

    return {key: moved(key, value) for key, value in values.items()}


def _is_there(path: Path) -> bool:
    """Check whether a path exists; for shards such as `train-{000..009}.tar`, their folder."""
    return path.exists() or (any(sign in path.name for sign in "{*?") and path.parent.is_dir())
