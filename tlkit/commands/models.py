"""`tlkit models`."""

from argparse import ArgumentParser, Namespace

from tlkit.commands.arguments import count
from tlkit.errors import TlkitError


def models_arguments(parser: ArgumentParser) -> None:
    parser.usage = "tlkit models [PATTERN]\n       tlkit models show NAME"
    help = "part of a name, or a pattern such as 'resnet*', to list; or `show` and a name, to see one backbone's stages"
    parser.add_argument("words", nargs="*", metavar="PATTERN", help=help)
    parser.add_argument("--image-size", type=count, metavar="PX", help="with show: the side of the images (default: that of the weights)")


def models(arguments: Namespace) -> int:
    show, *rest = arguments.words if arguments.words[:1] == ["show"] else ["", *arguments.words]
    if len(rest) > 1 or (show and not rest):
        raise TlkitError(f"tlkit models got: {' '.join(arguments.words)}.\n  Expected one PATTERN, or: tlkit models show NAME")
    if show:
        from tlkit.models.show import print_backbone

        return print_backbone(rest[0], arguments.image_size)
    if arguments.image_size:
        raise TlkitError("--image-size is for one backbone.\n  Expected: tlkit models show NAME --image-size PX")
    from tlkit.models.catalog import print_models

    return print_models(rest[0] if rest else None)
