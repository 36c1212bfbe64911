"""A recipe file and `key=value` overrides -> Recipe, or everything that is wrong with them at once; and back to YAML."""

import json
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import lru_cache
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tlkit.errors import Fault, RecipeError
from tlkit.files import expanded
from tlkit.recipe.explain import format_value
from tlkit.recipe.schema import Recipe
from tlkit.recipe.validate import validated
from tlkit.recipe.yaml12 import WHOLE, Document, read_yaml
from tlkit.system import bundled_recipes
from tlkit.terminal import tlkit_command

MAX_BYTES = 200_000
MAX_OVERRIDES = 200
"""Ten times what fits on a screen; each takes a millisecond."""
DATA_SUFFIXES = (".csv", ".tsv", ".parquet", ".npz", ".tar")

PLAIN = re.compile(r"[./~]*[A-Za-z][A-Za-z0-9._/-]*")
"""Text that YAML takes for text without quotes."""
_PATH = re.compile(r"[A-Za-z_]\w*(\[\d{1,6}\])*(\.[A-Za-z_]\w*(\[\d{1,6}\])*)*")
_STEP = re.compile(r"\w+|\[\d+\]")


def load_recipe(path: str | PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file.

    Args:
        path: A file; or the name of a recipe that ships with tlkit, such as `quickstart`.
        overrides: Changes of single keys, each written as on the command line: `phases[0].epochs=1`. The value is YAML.

    Returns:
        The recipe with every default filled in. It is frozen: make a variation by another override.

    Raises:
        RecipeError: It can't be used. The message holds every fault, each with its line, what came and what was expected.
    """
    file = find_recipe(path)
    name = _short(file)
    document = read_yaml(_text_of(file), lambda line: f"{name}:{line}")
    if len(overrides) > MAX_OVERRIDES:
        raise RecipeError([Fault("override", f"comes {len(overrides):,} times; at most {MAX_OVERRIDES}.", "Write them into the recipe.")])
    for override in overrides:
        _override(document, override)
    recipe = validated(Recipe, document, name)
    recipe._places.update(document.places)
    return recipe


def find_recipe(path: str | PathLike[str]) -> Path:
    """Return the file itself, or the bundled recipe of that name: `quickstart`, `recipes/quickstart.yaml`.

    Raises RecipeError, with the nearest recipe, if there is neither.
    """
    path = expanded(path)
    if path.is_file() and path.suffix.lower() in DATA_SUFFIXES:
        fix = f"Write a recipe for them:\n    {tlkit_command('init', str(path))}"
        raise RecipeError([Fault(str(path), "holds images or labels, and is not a recipe.", fix)])
    if path.is_file():
        return path
    ours = bundled_recipes()
    if path.is_dir():
        raise RecipeError([Fault(str(path), "is a folder, not a recipe.", _recipe_for(path))])
    # A name alone, or in a folder called recipes: a path to anywhere else means that very file.
    if path.parent in (Path("."), Path("recipes")) and (bundled := ours.get(path.name.removesuffix(".yaml"))):
        return bundled
    if path.suffix not in (".yaml", ".yml") and (folder := _nearest_folder(path)):
        raise RecipeError([Fault(str(path), "does not exist.", f"Did you mean the folder {folder}? {_recipe_for(folder)}")])
    beside = sorted(path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    candidates = {found.stem: str(found) for found in beside} | {name: name for name in ours}
    near = get_close_matches(path.stem, candidates, n=1)
    hint = f"Did you mean '{candidates[near[0]]}'? " if near else ""
    own = f"\n  For images of your own, write one: {tlkit_command('init', 'FOLDER')}"
    raise RecipeError([Fault(str(path), "does not exist.", f"{hint}tlkit ships these: {', '.join(ours)}.{own}")])


def _nearest_folder(path: Path) -> Path | None:
    """Return the folder beside a missing path whose name is nearly the same."""
    beside = [found.name for found in path.parent.iterdir() if found.is_dir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, beside, n=1, cutoff=0.75)
    return path.parent / near[0] if near else None


def _recipe_for(folder: Path) -> str:
    """Return what to do with a folder in place of a recipe: the recipes in it, or a command that trains on its images."""
    inside = sorted(found.name for found in folder.glob("*.yaml"))
    if inside:
        return f"It holds {', '.join(inside[:12])}."
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._")[:100] or "photos"
    words = [text if PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False) for text in (name, str(folder))]
    command = tlkit_command("finetune", "quickstart", f"name={words[0]}", f"data={{source: {{folder: {words[1]}}}}}")
    first = f"If it holds a folder of images for each class, write a recipe for them:\n    {tlkit_command('init', str(folder))}"
    return f"{first}\n  Or train on them by the recipe `quickstart`:\n    {command}"


def recipe_yaml(recipe: Recipe, *, ascii_only: bool = False) -> str:
    """Return every value of the recipe, defaults too, as YAML that load_recipe reads back to the same recipe.

    ascii_only: write every other character as an escape in double quotes.
    """
    values = recipe.model_dump(by_alias=True)
    if recipe.search is None:
        del values["search"]  # a plain recipe doesn't mention it
    values["augment"] = [{item.name: item.arguments} if item.arguments else item.name for item in recipe.augment]
    return _yaml_of(json.dumps(values), ascii_only)


@lru_cache(maxsize=2)
def _yaml_of(values: str, ascii_only: bool) -> str:
    """Write values, given as JSON, as YAML. Cached: a run asks five times for its recipe, which takes ruamel's emitter 30 ms each time."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None  # short parts on one line, as people write recipes
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.allow_unicode = not ascii_only
    yaml.width = 120
    text = StringIO()
    yaml.dump(json.loads(values), text)
    return text.getvalue()


def _text_of(file: Path) -> str:
    try:
        content = file.read_bytes() if file.stat().st_size <= MAX_BYTES else None
    except OSError as error:
        raise RecipeError([Fault(str(file), f"can't be read: {error.strerror}.", "Check its permissions.")]) from error
    if content is None:
        raise RecipeError([Fault(str(file), f"is larger than {MAX_BYTES // 1000} kB.", "Is it a recipe? Those are a few dozen lines.")])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        fault = Fault(WHOLE, "is not UTF-8 text.", "Save it as UTF-8.", f"{_short(file)}:{line}")
        raise RecipeError([fault]) from error


def _short(file: Path) -> str:
    """Return the path as the user would write it from here."""
    try:
        return str(file.relative_to(Path.cwd()))
    except ValueError:
        return str(file)


# --- overrides ---


def _override(document: Document, override: str) -> None:
    """Set one key of the document; a faulty override is added to the document's faults."""
    place = f"override {override}"
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not _PATH.fullmatch(key):
        problem = "has no '='." if not equals else f"= '{key}' is not the path of a key."
        document.faults.append(Fault("override", problem, "Write it as phases[0].epochs=1 or model.weights=random.", place))
        return
    try:
        value = read_yaml(text, lambda _: place, root=key)
    except RecipeError as error:
        document.faults += error.faults
        return
    if fault := _set(document, key, value.value, place):
        document.faults.append(fault.at(place))
        return
    # What was wrong in the file is replaced; what is wrong in an earlier override is still a slip of the user.
    below = (f"{key}.", f"{key}[")

    def replaced(written: str) -> bool:
        return written == key or written.startswith(below)

    known_faults = [fault for fault in document.faults if fault.place.startswith("override ") or not replaced(fault.key)]
    document.faults = known_faults + value.faults
    document.broken = {broken for broken in document.broken if not replaced(broken)} | value.broken
    document.places = {written: where for written, where in document.places.items() if not replaced(written)} | value.places


def _set(document: Document, key: str, value: Any, place: str) -> Fault | None:
    """Set the value, creating mappings above it as needed. Returns a fault if the path leads nowhere."""
    if document.value is None:
        document.value = {}
    holder: Any = document.value
    steps = list(steps_of(key))
    for i, step in enumerate(steps):
        if fault := _step_fault(key, holder, above=_dotted(steps[:i]), below=steps[i:], value=value):
            return fault
        if i == len(steps) - 1:
            holder[step] = value
        elif isinstance(step, str) and holder.get(step) is None:
            holder[step] = [] if isinstance(steps[i + 1], int) else {}
            document.places[_dotted(steps[: i + 1])] = place
        holder = holder[step]
    return None


def _step_fault(key: str, holder: Any, *, above: str, below: list[str | int], value: Any) -> Fault | None:
    """Say why the first step below the holder can't be taken. above: the holder's own key."""
    step, whole = below[0], above or WHOLE
    if isinstance(step, str):
        if isinstance(holder, dict):
            return None
        fix = f"Set it whole: '{above}={_nested(below, value)}'." if above else "Fix the file first."
        return Fault(key, f"can't be set: {whole} is {format_value(holder)}, which has no keys.", fix)
    if not isinstance(holder, list):
        return Fault(key, f"can't be set: {whole} is not a list.", "Remove the index, or set the list whole.")
    if step >= len(holder):
        count = f"{len(holder)} item{'' if len(holder) == 1 else 's'}, counted from 0"
        return Fault(key, f"can't be set: {whole} has {count}.", f"To add one, set the list whole: '{above}=[...]'.")
    return None


def steps_of(key: str) -> Iterator[str | int]:
    for step in _STEP.findall(key):
        yield int(step[1:-1]) if step.startswith("[") else step


def _dotted(steps: list[str | int]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")


def _nested(steps: list[str | int], value: Any) -> str:
    for step in reversed(steps):
        value = [value] if isinstance(step, int) else {step: value}
    return format_value(value)
