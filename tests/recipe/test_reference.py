"""docs/recipe_reference.md has every key, and is the one that its script writes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tlkit.recipe.load import load_recipe, recipe_yaml
from tlkit.recipe.reference import recipe_reference

PAGE = Path(__file__).parents[2] / "docs/recipe_reference.md"


def keys_of(value: Any, *, above: str = "") -> Iterator[str]:
    if isinstance(value, dict) and above != "augment":
        for key, inner in value.items():
            yield key
            yield from keys_of(inner, above=key)
    elif isinstance(value, list) and above != "augment":
        for inner in value:
            yield from keys_of(inner)


def test_the_page_is_what_its_script_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == recipe_reference(), "run: python docs/make_recipe_reference.py"


def test_every_key_of_a_resolved_recipe_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    recipe = load_recipe("quickstart", ["data.batch_size={find: 0.8}", "ema={decay: 0.9}", "early_stopping={patience: 2}"])
    keys = set(keys_of(YAML(typ="safe").load(recipe_yaml(recipe))))
    assert len(keys) > 60
    assert [key for key in keys if f"| `{key}` |" not in page] == []
