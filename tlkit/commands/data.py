"""`tlkit data ...`: what is in the pictures, before anything trains on them."""

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from tlkit.commands.arguments import count, recipe_arguments
from tlkit.errors import TlkitError

if TYPE_CHECKING:
    from tlkit.recipe.schema import Recipe


def check_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("pictures", metavar="DIR|RECIPE", help="a folder of pictures, a csv table of them, or a recipe")
    help = "changes one key of the recipe: data.max_pixels=1000000, data.channels=1"
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=help)
    parser.add_argument("--format", choices=("table", "json"), default="table", help="default: table")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="where to write every row too")


def check(arguments: Namespace) -> int:
    recipe = pictures_recipe(arguments.pictures, arguments.overrides)
    from tlkit.data.check import check_command

    return check_command(recipe, arguments.pictures, as_json=arguments.format == "json", out=arguments.out)


def pictures_recipe(pictures: str, overrides: list[str]) -> "Recipe":
    """The recipe itself, or for a folder or a table one that has these pictures, and of all else in `data` the defaults."""
    from tlkit.recipe.load import load_recipe

    place = Path(pictures)
    lies = place.is_dir() or place.suffix.lower() == ".csv"
    if not lies:
        return load_recipe(pictures, overrides)
    source = json.dumps({"folder" if place.is_dir() else "csv": pictures})
    return load_recipe("quickstart", [f"data={{source: {source}}}", *overrides])


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


def audit_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("pictures", metavar="DIR|RECIPE", help="a folder of pictures, a csv table of them, or a recipe")
    help = "changes one key of the recipe: data.seed=1, model.backbone=resnet18"
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=help)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to put it (default: the next number under runs/NAME-audit)")
    parser.add_argument("--fix", action="store_true", help="also write cleaned.csv, a list without what leaks; pictures are left alone")
    parser.add_argument("--strict", action="store_true", help="end with 2 if splits leak, a picture has two labels or a label is doubted")


def audit(arguments: Namespace) -> int:
    from tlkit.recipe.load import load_recipe

    place = Path(arguments.pictures)
    lies = place.is_dir() or place.suffix.lower() == ".csv"
    if lies and arguments.overrides:
        raise TlkitError(f"{arguments.overrides[0]} changes a recipe, and {place} is none.\n  Leave it out, or name a recipe.")
    recipe = None if lies else load_recipe(arguments.pictures, arguments.overrides)
    print(f"{place.name if lies else arguments.pictures}: loading torch, then looking for pictures", file=sys.stderr)
    from tlkit.training.audit import audit_command, recipe_for

    kind = "folder" if place.is_dir() else "csv"
    recipe = recipe or recipe_for({kind: str(place)}, place.resolve().stem)
    return audit_command(recipe, drawn=not lies, out=arguments.out, fix=arguments.fix, strict=arguments.strict)
