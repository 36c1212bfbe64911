"""Writes docs/recipe_reference.md from the schema of recipes."""

from pathlib import Path

from tlkit.recipe.reference import recipe_reference

if __name__ == "__main__":
    Path(__file__).with_name("recipe_reference.md").write_text(recipe_reference(), encoding="utf-8")
