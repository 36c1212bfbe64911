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


def stats_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("place", metavar="DIR|RECIPE", help="a folder of pictures as data.source.folder takes it, or a recipe")
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help="changes one key of the recipe")
    parser.add_argument("--channels", type=count, metavar="N", help="1 for grey, 3 for colour (default: the recipe's, for a folder 3)")
    help = "side of the mean picture (default: the recipe's image_size, for a folder the size of its first picture)"
    parser.add_argument("--image-size", type=count, metavar="PX", help=help)
    parser.add_argument("--out", type=Path, metavar="DIR", help="put mean_picture.png and statistics.json here")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="default: table")


def stats(arguments: Namespace) -> int:
    from tlkit.data.stats_command import Asked, stats_command

    asked = Asked(arguments.place, tuple(arguments.overrides), arguments.channels, arguments.image_size, arguments.out)
    return stats_command(asked, as_json=arguments.format == "json")


def fetch_arguments(parser: ArgumentParser) -> None:
    recipe_arguments(parser)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="the folder to fill; what it has already isn't brought again")
    help = "don't copy data and weights that the recipe gives by path: they are at the same place on the other machine"
    parser.add_argument("--leave-local", action="store_true", help=help)


def fetch(arguments: Namespace) -> int:
    from tlkit.recipe.load import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from tlkit.training.fetch import fetch_command

    return fetch_command(recipe, arguments.to, leave_local=arguments.leave_local)
