"""What can't be tried of a recipe's `search:` block, found before anything is trained: unknown keys, and ends out of bounds."""

import json
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

from tlkit.errors import Fault, RecipeError
from tlkit.recipe.fields.search import Range
from tlkit.recipe.load import load_recipe
from tlkit.recipe.names import name_faults
from tlkit.recipe.schema import Recipe


def with_values(file: str | PathLike[str], overrides: Sequence[str], values: Mapping[str, Any]) -> Recipe:
    """Return the recipe without its `search:`, with these values. Raises RecipeError, which names the key as an override."""
    changes = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return load_recipe(file, [*overrides, "search=null", *changes])


def ranges_of(recipe: Recipe, file: str) -> dict[str, Range]:
    """Return the ranges of `search:`. Raises RecipeError without any."""
    if not recipe.search:
        fix = "Add what to vary, such as search: {'phases[0].lr': {log: [1e-4, 1e-1]}}; see docs/comparing.md."
        raise RecipeError([Fault("search", "is missing or empty.", fix, file)])
    return recipe.search


def search_faults(recipe: Recipe, file: str | PathLike[str], overrides: Sequence[str]) -> list[Fault]:
    """Return a fault for each key of `search:` that is no key of the recipe, or whose range has an end that the recipe can't take.

    recipe: what the file and the overrides give.
    """
    known = name_faults(recipe)
    return [fault for key, values in (recipe.search or {}).items() for fault in _faults_of(key, values.ends, (file, overrides), known)]


def _faults_of(key: str, ends: Sequence[Any], source: tuple[str | PathLike[str], Sequence[str]], known: Sequence[Fault]) -> Iterator[Fault]:
    """Yield the faults of one key: one for all ends if it is the key that is wrong. source: file and overrides."""
    seen = set()
    for end in ends:
        try:
            faults = [fault for fault in name_faults(with_values(*source, {key: end})) if fault not in known]
        except RecipeError as error:
            faults = list(error.faults)
        for fault in faults:
            if (fault.key, fault.problem) not in seen:
                seen.add((fault.key, fault.problem))
                yield Fault(f"search.{key}", f"can't be tried: {fault.key} {fault.problem}", fault.fix)
