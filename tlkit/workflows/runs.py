"""`tlkit runs [DIR]`: the runs below a folder, what they measured, and what was changed between them. No torch: it answers at once."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from tlkit.errors import RunError
from tlkit.evaluation.primary_metric import intervals_of, recorded_primary_metric
from tlkit.recipe.differences import flat_values
from tlkit.terminal import counted

Sort = Literal["name", "when", "backbone", "val", "test", "seconds"]
INNER = re.compile(r"(fold|seed)_\d+")
OF_RUNS = {"log.txt", "split.csv", "metrics.json"}
"""Files of which a run or a soup has one, and no other folder with a recipe.yaml."""
SECTION_KEY = re.compile(r"(\w+\.)?\w+")
"""A key of the recipe or of one of its sections. One that only one of two recipes has belongs to another version of tlkit."""


@dataclass(frozen=True)
class RunRow:
    """A run folder. name: from the folder that was looked through. when: it began, local time to the minute.

    val, test: the primary metric; a mean where `repeats` says `5 seeds` or `3 folds`. low, high: the 95 % interval of test, over
    seeds that of the mean. n: test images. changes: of the recipe, against the oldest run of its name. note: what is wrong with the run.
    """

    name: str
    state: str
    when: str
    backbone: str = ""
    phases: str = ""
    metric: str = ""
    val: float | None = None
    test: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    repeats: str = ""
    seconds: float | None = None
    changes: str = ""
    note: str = ""


def list_runs(folder: Path, sort: Sort = "name") -> list[RunRow]:
    """Return a row for each run below the folder, or for the folder itself; folds and seeds are in the row of their run.

    sort: by name; the newest, the best, or the quickest first. Runs without the value come last.
    Raises RunError if there is no such folder.
    """
    if not folder.is_dir():
        fix = "A run makes one: tlkit finetune quickstart. Or name the folder: tlkit runs DIR"
        raise RunError(f"{folder} is {'no folder' if folder.exists() else 'not there'}.\n  {fix}")
    found = [_read(run, folder) for run in _run_folders(folder)]
    oldest: dict[str, Mapping[str, Any]] = {}
    for _, recipe in sorted(found, key=lambda pair: (pair[0].when, pair[0].name)):
        if recipe:
            oldest.setdefault(str(recipe.get("name")), recipe)
    rows = [_with_changes(row, oldest[str(recipe["name"])], recipe) if recipe.get("name") else row for row, recipe in found]
    return sorted(rows, key=lambda row: _sort_key(row, sort))


def _sort_key(row: RunRow, sort: Sort) -> tuple[bool, Any, list[Any]]:
    name = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", row.name) if part]
    value = getattr(row, sort) if sort != "name" else 0
    if sort == "when":
        value = -datetime.fromisoformat(row.when).timestamp()
    elif sort in ("val", "test") and value is not None:
        value = -value
    missing = value in (None, "")
    return missing, 0 if missing else value, name


def _run_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders with a recipe.yaml. What is in one, such as folds and seeds, belongs to it.

    The folder that is listed may have one of `tlkit init` beside its runs.
    """
    for place, folders, files in os.walk(folder):
        is_below, is_run = Path(place) != folder, bool(OF_RUNS & {*files}) or any(map(INNER.fullmatch, folders))
        if "recipe.yaml" in files and (is_below or is_run):
            folders.clear()
            yield Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _read(run: Path, folder: Path) -> tuple[RunRow, Mapping[str, Any]]:
    """Return the row of a run, and its recipe as plain values; empty where it can't be read."""
    name = run.relative_to(folder).as_posix() if run != folder else run.resolve().name
    inner = sorted((path for path in run.iterdir() if INNER.fullmatch(path.name)), key=lambda path: int(path.name.partition("_")[2]))
    file = run / "metrics.json"
    finished = file.is_file()
    # Not that of metrics.json: `tlkit calibrate` writes it again.
    when = datetime.fromtimestamp((run / "recipe.yaml").stat().st_mtime).isoformat(" ", "minutes")
    try:
        recipe = _recipe(next(iter(inner), run))
        about: dict[str, Any] = {"backbone": str(recipe["model"]["backbone"]), "phases": _phases(recipe["phases"])} if recipe else {}
        if not finished:
            return RunRow(name, "unfinished", when, **about, note=_how_far(run, inner)), recipe
        return RunRow(name, "finished", when, **about, **_measured(json.loads(file.read_text(encoding="utf-8")))), recipe
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}" if isinstance(error, KeyError | AttributeError) else str(error)
        return RunRow(name, "damaged", when, note=f"metrics.json or model/tlkit.json can't be read ({what})"), {}


def _how_far(run: Path, inner: list[Path]) -> str:
    if inner:
        done = sum((path / "metrics.json").is_file() for path in inner)
        return f"{done} of {counted(len(inner), inner[0].name.partition('_')[0])} finished"
    try:
        epochs = (run / "metrics.csv").read_text(encoding="utf-8").count("\n") - 1
    except OSError:
        return "no epoch finished"
    return f"{counted(epochs, 'epoch')} finished"


def _recipe(run: Path) -> Mapping[str, Any]:
    """Return the recipe from model/tlkit.json, which is read a hundred times as fast as the YAML of a run that has no model yet."""
    card = run / "model" / "tlkit.json"
    recipe: Mapping[str, Any]
    if card.is_file():
        recipe = json.loads(card.read_text(encoding="utf-8"))["recipe"]
        if not isinstance(recipe, dict):
            raise TypeError("its recipe is no mapping")
        return recipe
    from tlkit.recipe.yaml12 import read_yaml

    file = run / "recipe.yaml"
    recipe = read_yaml(file.read_text(encoding="utf-8"), str).value if file.is_file() else {}
    return recipe


def _phases(phases: list[Mapping[str, Any]]) -> str:
    """Return `head 2, from layer4 3`: what trains and the epochs."""
    return ", ".join(f"{_trains(phase['train'])} {phase.get('epochs', 'solved')}" for phase in phases) or "none"


def _trains(train: Any) -> str:
    if not isinstance(train, Mapping):
        return str(train)
    (kind, value), *_ = train.items()
    return f"{kind} rank {value['rank']}" if isinstance(value, Mapping) else f"{kind} {value}"


def _measured(metrics: Mapping[str, Any]) -> dict[str, Any]:
    metric = recorded_primary_metric(metrics)
    kind = next((kind for kind in ("fold", "seed") if f"over_{kind}s" in metrics), "")
    found: dict[str, Any] = {"metric": metric, "val": metrics["val"][metric], "seconds": metrics["seconds"]["total"]}
    if kind:
        found["repeats"] = counted(metrics[f"{kind}s"], kind)
    elif soup := metrics.get("soup"):
        found["repeats"] = f"soup of {sum(step['added'] for step in soup)}"
    if test := metrics.get("test"):
        over = metrics[f"over_{kind}s"]["test"][metric] if kind else {}
        interval = over.get("interval") or intervals_of(test).get(metric)
        low, high = interval or (None, None)
        found |= {"test": test[metric], "low": low, "high": high, "n": test.get("pictures")}
    figures = (found.get(name) for name in ("val", "seconds", "test", "low", "high", "n"))
    if odd := [figure for figure in figures if not isinstance(figure, int | float | None)]:
        raise TypeError(f"{odd[0]!r} is no number")
    return found


def _with_changes(row: RunRow, oldest: Mapping[str, Any], recipe: Mapping[str, Any]) -> RunRow:
    sections = {section for section in (*oldest, *recipe) if oldest.get(section) != recipe.get(section)}  # most are the same
    before, now = (dict(flat_values("", {name: value for name, value in of.items() if name in sections})) for of in (oldest, recipe))
    keys = (key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key))
    changed = (key for key in keys if (key in before and key in now) or not SECTION_KEY.fullmatch(key))
    changes = ", ".join(f"{key}={json.dumps(now[key], ensure_ascii=False)}" if key in now else f"no {key}" for key in changed)
    return replace(row, changes=changes)
