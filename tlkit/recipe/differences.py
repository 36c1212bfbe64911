"""Where two recipes differ, key by key."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlkit.recipe.schema import Recipe


def recipe_differences(recipes: "list[Recipe]") -> dict[str, list[Any]]:
    """Return each key whose value is not the same in all recipes, and its value in each; None where a recipe doesn't have it.

    `search:`, which no run uses, is left out.
    """
    flat = [dict(flat_values("", recipe.model_dump(mode="json", by_alias=True, exclude={"search"}))) for recipe in recipes]
    keys = dict.fromkeys(key for values in flat for key in values)
    found = {key: [values.get(key) for values in flat] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def flat_values(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values below a value, as overrides write them: `phases[0].lr`."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from flat_values(f"{key}.{name}" if key else name, inner)
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for number, inner in enumerate(value):
            yield from flat_values(f"{key}[{number}]", inner)
    else:
        yield key, value
