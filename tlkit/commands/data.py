"""`tlkit data ...`: what is in the pictures, before anything trains on them."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from tlkit.commands.arguments import count, recipe_arguments


def preview_arguments(parser: ArgumentParser) -> None:
    recipe_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("preview.png"), metavar="FILE", help="default: preview.png")
    parser.add_argument(
        "--rows", type=count, default=8, metavar="N", help="training pictures, of as many classes as there are (default: 8)"
    )
    help = "the first as validation sees it, then an epoch of training each (default: 6)"
    parser.add_argument("--columns", type=count, default=6, metavar="N", help=help)


def preview(arguments: Namespace) -> int:
    from tlkit.recipe.load import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from tlkit.training.preview import preview_command

    return preview_command(recipe, arguments.out, rows=arguments.rows, columns=arguments.columns)
