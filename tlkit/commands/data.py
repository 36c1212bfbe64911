"""`tlkit data ...`: inspect images before training on them."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from tlkit.commands.arguments import count, format_argument, images_arguments, images_recipe, output_file, output_folder, recipe_arguments
from tlkit.commands.log import show_log
from tlkit.terminal import print_text


def check_arguments(parser: ArgumentParser) -> None:
    images_arguments(parser)
    format_argument(parser)
    parser.add_argument("--out", type=output_file, metavar="FILE.csv", help="also write every row to this file")


def check(arguments: Namespace) -> int:
    recipe, _ = images_recipe(arguments)
    from tlkit.data.quality.check import check_command

    with show_log():
        return check_command(recipe, arguments.images, as_json=arguments.format == "json", out=arguments.out)


def preview_arguments(parser: ArgumentParser) -> None:
    images_arguments(parser)
    parser.add_argument("--out", type=output_file, default=Path("preview.png"), metavar="FILE", help="default: preview.png")
    parser.add_argument("--rows", type=count, default=8, metavar="N", help="training images, from as many classes as possible (default: 8)")
    help = "the image as validation sees it, then one epoch of training per column (default: 6)"
    parser.add_argument("--columns", type=count, default=6, metavar="N", help=help)


def preview(arguments: Namespace) -> int:
    recipe, _ = images_recipe(arguments)
    from tlkit.workflows.preview import preview_command

    with show_log():
        return preview_command(recipe, arguments.out, rows=arguments.rows, columns=arguments.columns)


def stats_arguments(parser: ArgumentParser) -> None:
    images_arguments(parser)
    help = "side of the mean image in pixels (default: the recipe's image_size; without a recipe, the size of the first image)"
    parser.add_argument("--image-size", type=count, metavar="PX", help=help)
    parser.add_argument("--out", type=output_folder, metavar="DIR", help="write mean_picture.png and statistics.json to this folder")
    format_argument(parser)


def stats(arguments: Namespace) -> int:
    recipe, without_recipe = images_recipe(arguments)
    from tlkit.data.quality.stats import stats_command

    size = arguments.image_size or (None if without_recipe else recipe.data.image_size)
    with show_log():
        return stats_command(recipe, drawn=not without_recipe, mean_px=size, out=arguments.out, as_json=arguments.format == "json")


def fetch_arguments(parser: ArgumentParser) -> None:
    recipe_arguments(parser)
    parser.add_argument(
        "--to", type=output_folder, required=True, metavar="DIR", help="the folder to fill; complete files are not fetched again"
    )
    help = "don't copy data and weights that the recipe gives by path; they must be at the same path on the other machine"
    parser.add_argument("--leave-local", action="store_true", help=help)


def fetch(arguments: Namespace) -> int:
    from tlkit.recipe.load import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from tlkit.workflows.fetch import fetch_command

    with show_log():
        return fetch_command(recipe, arguments.to, leave_local=arguments.leave_local)


def audit_arguments(parser: ArgumentParser) -> None:
    images_arguments(parser)
    parser.add_argument("--out", type=output_folder, metavar="DIR", help="output folder (default: the next number under runs/NAME-audit)")
    parser.add_argument("--fix", action="store_true", help="also write cleaned.csv, a list without leaks; images are not modified")
    parser.add_argument("--strict", action="store_true", help="exit with 2 if splits leak, an image has two labels or a label is doubted")


def audit(arguments: Namespace) -> int:
    recipe, without_recipe = images_recipe(arguments, fitted="image_size: 128, resize: pad")
    print_text(f"{recipe.name}: loading torch, then looking for images", sys.stderr)
    from tlkit.workflows.audit import audit_command

    with show_log():
        return audit_command(recipe, drawn=not without_recipe, out=arguments.out, fix=arguments.fix, strict=arguments.strict)
