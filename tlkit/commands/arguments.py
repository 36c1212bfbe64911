"""Arguments that several commands take."""

from argparse import ArgumentParser, ArgumentTypeError


def recipe_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, or one that ships with tlkit by name: quickstart")
    help = "changes one key: model.weights=random, 'phases[0].epochs=1', 'data.source={folder: photos}'"
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=help)


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)
