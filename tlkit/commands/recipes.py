"""`tlkit recipes ...` and `tlkit schema`: the recipes that ship with tlkit, and what may stand in one. Nothing here imports torch."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from tlkit.commands.arguments import output_file
from tlkit.commands.completion import complete_key
from tlkit.errors import TlkitError, expected_one_of
from tlkit.system import bundled_recipes
from tlkit.terminal import print_text, tlkit_command


def no_arguments(parser: ArgumentParser) -> None:
    """Leave the command without arguments."""


def list_recipes(arguments: Namespace) -> int:
    recipes = bundled_recipes()
    width = max(map(len, recipes))
    for name, file in recipes.items():
        print_text(f"{name:<{width}}  {_title(file)}")
    return 0


def show(arguments: Namespace) -> int:
    print(_recipe(arguments.name).read_text(encoding="utf-8"), end="")
    return 0


def copy_arguments(parser: ArgumentParser) -> None:
    name_argument(parser)
    parser.add_argument("file", type=output_file, metavar="FILE", help="the file to write, or a folder; nothing is overwritten")


def copy(arguments: Namespace) -> int:
    recipe = _recipe(arguments.name)
    file: Path = arguments.file / recipe.name if arguments.file.is_dir() else arguments.file
    write_new(file, recipe.read_text(encoding="utf-8"))
    print_text(f"{file}: a copy of {recipe.stem}. Change it, then:\n    {tlkit_command('finetune', str(file))}")
    return 0


def help_arguments(parser: ArgumentParser) -> None:
    help = "a key of a recipe, such as phases.train, data.source or augment.Rotate (default: the recipe's own keys)"
    key = parser.add_argument("key", nargs="?", default="", metavar="KEY", help=help)
    key.completer = complete_key  # type: ignore[attr-defined]


def help_key(arguments: Namespace) -> int:
    from tlkit.recipe.reference import key_help

    print_text(key_help(arguments.key))
    return 0


def schema(arguments: Namespace) -> int:
    from tlkit.recipe.json_schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=2))
    return 0


def refuse_existing(file: Path) -> None:
    """Raise TlkitError if the file is there."""
    if file.exists():
        raise TlkitError(f"{file} is there already, and is not overwritten.\n  Choose another name, or remove it.")


def write_new(file: Path, text: str) -> None:
    """Write a file that isn't there yet. Raises TlkitError if it is."""
    refuse_existing(file)
    with file.open("x", encoding="utf-8", errors="surrogateescape", newline="\n") as opened:
        opened.write(text)


def name_argument(parser: ArgumentParser) -> None:
    name = parser.add_argument("name", metavar="NAME", help="a bundled recipe: tlkit recipes ls")
    name.completer = lambda **_: list(bundled_recipes())  # type: ignore[attr-defined]


def _recipe(name: str) -> Path:
    recipes, stem = bundled_recipes(), Path(name).name.removesuffix(".yaml")
    if stem not in recipes:
        raise TlkitError(f"tlkit ships no recipe '{name}'.\n  {expected_one_of(stem, list(recipes))}\n  List them with: tlkit recipes ls")
    return recipes[stem]


def _title(file: Path) -> str:
    """Return the first sentence of a recipe's header."""
    header = []
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        header.append(text)
    return " ".join(header).partition(". ")[0].removesuffix(".")
