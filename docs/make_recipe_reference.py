"""Writes docs/recipe_reference.md and docs/recipe.schema.json from the schema of recipes."""

import json
from pathlib import Path

from tlkit.recipe.json_schema import recipe_schema
from tlkit.recipe.reference import recipe_reference

if __name__ == "__main__":
    docs = Path(__file__).parent
    (docs / "recipe_reference.md").write_text(recipe_reference(), encoding="utf-8")
    (docs / "recipe.schema.json").write_text(json.dumps(recipe_schema(), indent=2) + "\n", encoding="utf-8")
