"""`tlkit explain`."""

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

from tlkit.commands.arguments import count, device_argument, output_folder
from tlkit.commands.log import show_log
from tlkit.errors import TlkitError
from tlkit.files import expanded
from tlkit.system import keep_freed_memory
from tlkit.terminal import print_text

MOST_IMAGES = 16


def explain_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=expanded, metavar="RUN|MODEL", help="a run folder, such as runs/quickstart/001, or a model folder")
    help = "images to look at (default: test images of the run, right and wrong). A run folder: its gradients are drawn beside RUN's. "
    help += "data.source.folder=/photos: where the run's images are now"
    parser.add_argument("images", nargs="*", default=[], metavar="IMAGE", help=help)
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="the folder for index.html and the images")
    help = "sections to draw, separated by commas: filters, maps, cam, maximise, neighbours, space, drift, gradients (default: all)"
    parser.add_argument("--only", default="", metavar="NAME,..", help=help)
    help = "a channel whose activation is maximised: block3:7. Can be given several times"
    parser.add_argument("--unit", action="append", default=[], metavar="STAGE:CHANNEL", help=help)
    help = "a class whose logit is maximised. Can be given several times"
    parser.add_argument("--class", action="append", default=[], metavar="NAME", dest="classes", help=help)
    help = "steps of activation maximisation: more make clearer images (default: 96)"
    parser.add_argument("--steps", type=count, default=96, metavar="N", help=help)
    device_argument(parser)


def explain(arguments: Namespace) -> int:
    from tlkit.recipe.fetched import go_offline

    go_offline()  # nobody asked for a download
    overrides = tuple(word for word in arguments.images if re.match(r"data\.[\w.]+=", word))
    places = [expanded(word) for word in arguments.images if word not in overrides]
    runs = tuple(place for place in places if (place / "recipe.yaml").is_file())
    images = [place for place in places if place not in runs]
    check_images(images)
    from tlkit.data.progress import progress, progress_console
    from tlkit.explain.explain import explain as write_page
    from tlkit.explain.sections import Request

    keep_freed_memory()
    only = tuple(word for word in arguments.only.split(",") if word)
    request = Request(only, tuple(arguments.unit), tuple(arguments.classes), runs, arguments.steps)
    bar = progress_console()
    with show_log():
        page = write_page(
            arguments.run,
            images,
            request,
            out=arguments.out,
            progress=lambda what, total, unit: progress(bar, what, total, unit=unit),
            device=arguments.device,
            overrides=overrides,
        )
    print_text(str(page))
    return 0


def check_images(images: list[Path]) -> None:
    """Raise TlkitError for a folder, and for more images than a page can show."""
    if folder := next((image for image in images if image.is_dir()), None):
        raise TlkitError(f"{folder} is a folder, and neither an image nor a run.\n  Name up to {MOST_IMAGES} images in it.")
    if len(images) > MOST_IMAGES:
        raise TlkitError(f"{len(images)} images are more than a page can show.\n  Name up to {MOST_IMAGES}.")
