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


def export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder or its model folder")
    parser.add_argument("--format", nargs="+", default=["onnx"], metavar="FORMAT", help="onnx; default: onnx")
    entrance = parser.add_mutually_exclusive_group()
    entrance.add_argument("--raw", dest="raw", action="store_true", default=True, help="the network takes uint8 pictures (default)")
    entrance.add_argument("--float", dest="raw", action="store_false", help="it takes normalised pictures, float32")
    parser.add_argument("--features", action="store_true", help="the network gives its features too")
    parser.add_argument("--opset", type=int, default=18, metavar="N", help="of ONNX, 18 to 23; default: 18")
    parser.add_argument("--out", type=Path, metavar="DIR", help="gets a folder a format; default: RUN/export")
    parser.add_argument("--zip", dest="zipped", action="store_true", help="one .zip beside each folder")


def export(arguments: Namespace) -> int:
    from tlkit.deploy.export import Wanted, export_command

    formats = tuple(dict.fromkeys(name for word in arguments.format for name in word.split(",")))
    wanted = Wanted(formats, arguments.raw, arguments.features, arguments.opset, arguments.out, arguments.zipped)
    return export_command(arguments.run, wanted)
