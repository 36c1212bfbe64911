"""Arguments that several commands take."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlkit.recipe.schema import Recipe


def recipe_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, or one that ships with tlkit by name: quickstart")
    help = "changes one key: model.weights=random, 'phases[0].epochs=1', 'data.source={folder: photos}'"
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=help)


def offline_arguments(parser: ArgumentParser) -> None:
    help = "make no network call: say what is missing. Weights and data are taken from RECIPE's folder, if `tlkit data fetch` made it"
    parser.add_argument("--offline", action="store_true", help=help)
    help = "take weights and data from this folder by `tlkit data fetch`, checked by sha256, and make no network call"
    parser.add_argument("--from", type=Path, metavar="DIR", dest="fetched", help=help)


def recipe_to_run(arguments: Namespace) -> "Recipe":
    """The recipe, with what it needs in the folder that the user named; before torch is loaded: a slip in a recipe is told at once."""
    from tlkit.recipe.fetched import MANIFEST, from_folder, go_offline
    from tlkit.recipe.load import find_recipe, load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    folder: Path | None = arguments.fetched
    if arguments.offline and folder is None and (beside := find_recipe(arguments.recipe).parent / MANIFEST).is_file():
        folder = beside.parent
    if arguments.offline or folder is not None:
        go_offline(folder)
    if folder is not None:
        recipe = from_folder(recipe, folder)
    print(f"{recipe.name}: loading torch, then looking for pictures and weights", file=sys.stderr)
    return recipe


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)
