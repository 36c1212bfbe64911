"""What is done with a model that is ready."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from tlkit.allocator import keep_freed_memory
from tlkit.commands.arguments import count


def predict_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder or its model folder")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: table")
    parser.add_argument(
        "--top-k",
        type=count,
        default=3,
        metavar="K",
        help="classes to name for each picture (default: 3); a multilabel model names those above their thresholds",
    )


def predict(arguments: Namespace) -> int:
    from tlkit.deploy.predict import predict_command

    keep_freed_memory()
    return predict_command(arguments.run, arguments.images, arguments.format, arguments.top_k)
