"""What is done with a model that is ready."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from tlkit.allocator import keep_freed_memory
from tlkit.commands.arguments import count


def predict_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN|ARTIFACT", help="a run folder or its model folder, or what tlkit export made")
    help = "picture files, folders, globs such as 'photos/**/*.jpg', or - for a list of files on standard input"
    parser.add_argument("paths", nargs="+", metavar="PATH", help=help)
    parser.add_argument("-0", "--null", action="store_true", help="names in the list end with NUL, as find -print0 writes them")
    help = "default: table, or with --out by the ending of the file"
    parser.add_argument("--format", choices=("table", "json", "csv", "jsonl"), help=help)
    help = "classes to name for each picture (default: 3); a multilabel model names those above their thresholds"
    parser.add_argument("--top-k", type=count, default=3, metavar="K", help=help)
    help = "abstain where no class is as likely as P, from 0 to 1; for a multilabel model, in place of its own thresholds"
    parser.add_argument("--threshold", type=_share, metavar="P", help=help)
    help = "write here, a row as soon as it is known, so that --resume can go on: FILE.csv or FILE.jsonl"
    parser.add_argument("--out", type=Path, metavar="FILE", help=help)
    parser.add_argument("--resume", action="store_true", help="go on with --out FILE: pictures that have a row in it are not asked again")
    help = "in place of answers, write what the head sees of each picture to --out FILE.npz or FILE.parquet"
    parser.add_argument("--features", action="store_true", help=help)


def predict(arguments: Namespace) -> int:
    from tlkit.deploy.predict import Asked, predict_command

    keep_freed_memory()
    asked = Asked(
        tuple(arguments.paths),
        separator=b"\0" if arguments.null else b"\n",
        format=arguments.format,
        top_k=arguments.top_k,
        threshold=arguments.threshold,
        out=arguments.out,
        resume=arguments.resume,
        features=arguments.features,
    )
    return predict_command(arguments.model, asked)


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


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"'{text}' is not a number from 0 to 1")
    return value
