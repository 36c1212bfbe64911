"""Commands for a trained model: predict, export, verify, serve."""

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from math import inf

from tlkit.commands.arguments import as_number, count, output_file, output_folder, override_arguments
from tlkit.commands.log import show_log
from tlkit.files import expanded
from tlkit.system import keep_freed_memory


def predict_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=expanded, metavar="RUN|ARTIFACT", help="a run folder, its model folder, or an artifact")
    help = "image files, folders, globs such as 'photos/**/*.jpg', or - for a list of files on standard input"
    parser.add_argument("paths", nargs="+", metavar="PATH", help=help)
    parser.add_argument("-0", "--null", action="store_true", help="names in the list end with NUL, as written by find -print0")
    help = "default: table, or with --out by the ending of the file"
    parser.add_argument("--format", choices=("table", "json", "csv", "jsonl"), help=help)
    help = "number of classes per image (default: 3); a multilabel model predicts those above their thresholds"
    parser.add_argument("--top-k", type=count, metavar="K", help=help)
    help = "abstain if no class is as likely as P, from 0 to 1; for a multilabel model, instead of its own thresholds"
    parser.add_argument("--threshold", type=_share, metavar="P", help=help)
    help = "write each row here as soon as it is predicted, so that --resume can continue: FILE.csv or FILE.jsonl"
    parser.add_argument("--out", type=output_file, metavar="FILE", help=help)
    parser.add_argument("--resume", action="store_true", help="resume --out FILE: images that have a row in it are skipped")
    help = "write each image's features (the input of the head) instead of predictions, to --out FILE.npz or FILE.parquet"
    parser.add_argument("--features", action="store_true", help=help)


def predict(arguments: Namespace) -> int:
    from tlkit.deploy.predict.predict import PredictOptions, predict_command

    keep_freed_memory()
    options = PredictOptions(
        tuple(arguments.paths),
        separator=b"\0" if arguments.null else b"\n",
        format=arguments.format,
        top_k=arguments.top_k,
        threshold=arguments.threshold,
        out=arguments.out,
        resume=arguments.resume,
        features=arguments.features,
    )
    return predict_command(arguments.model, options)


def export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=expanded, metavar="RUN", help="a run folder or its model folder")
    override_arguments(parser, "where the run's images are, if they have moved: data.source.folder=/photos")
    help = "one or more of onnx, torch (a torch.export program), safetensors (timm, Hugging Face hub), openvino; default: onnx"
    parser.add_argument("--format", nargs="+", default=["onnx"], metavar="FORMAT", help=help)
    entrance = parser.add_mutually_exclusive_group()
    help = "the network takes uint8 images [B, H, W, C] and normalises them itself (default)"
    entrance.add_argument("--raw", dest="raw", action="store_true", default=True, help=help)
    help = "the network takes normalised images, float32 [B, C, H, W]"
    entrance.add_argument("--float", dest="raw", action="store_false", help=help)
    parser.add_argument("--features", action="store_true", help="also output the features, the input of the head")
    parser.add_argument("--opset", type=int, default=20, metavar="N", help="ONNX opset, 18 to 23; default: 20")
    parser.add_argument("--out", type=output_folder, metavar="DIR", help="output folder, with a folder per format; default: RUN/export")
    parser.add_argument("--zip", dest="zipped", action="store_true", help="also make a .zip of each folder")
    help = "number of images that the export is proved with, or all; default: 200 of the validation split"
    parser.add_argument("--proof-images", type=_number_or_all, default=200, metavar="N", help=help)
    parser.add_argument("--pictures", dest="proof_images", type=_number_or_all, default=SUPPRESS, help=SUPPRESS)  # its name up to now
    help = "prove it with the images in this folder, if the run's own are not available"
    parser.add_argument("--images", type=expanded, metavar="DIR", help=help)
    help = "largest allowed difference of a probability; default: 1e-4"
    parser.add_argument("--tolerance", type=float, default=1e-4, metavar="T", help=help)
    help = "put N of these images into the artifact for `tlkit verify`; default: none"
    parser.add_argument("--with-samples", type=count, default=0, metavar="N", help=help)
    parser.add_argument("--quantize", metavar="KIND", help="quantize the ONNX model to int8 or float16, into a folder onnx-KIND")
    help = "largest allowed drop of accuracy (multilabel: exact match) on the validation split; default: 0.01, one percentage point"
    parser.add_argument("--max-drop", type=float, default=0.01, metavar="D", help=help)
    help = "upload the safetensors folder to this repository of the Hugging Face hub"
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help=help)


def export(arguments: Namespace) -> int:
    from tlkit.deploy.export.export import ExportOptions, export_command

    # --format takes all words after it, overrides too.
    words = [word for word in arguments.format if "=" not in word]
    overrides = [*arguments.overrides, *(word for word in arguments.format if "=" in word)]
    options = ExportOptions(
        formats=tuple(dict.fromkeys(name for word in words for name in word.split(",") if name)),
        raw=arguments.raw,
        features=arguments.features,
        opset=arguments.opset,
        out=arguments.out,
        zipped=arguments.zipped,
        image_folder=arguments.images,
        proof_images=arguments.proof_images,
        tolerance=arguments.tolerance,
        samples=arguments.with_samples,
        quantize=arguments.quantize,
        max_drop=arguments.max_drop,
        push_to_hub=arguments.push_to_hub,
        overrides=tuple(overrides),
    )
    with show_log():
        return export_command(arguments.run, options)


def serve_arguments(parser: ArgumentParser) -> None:
    from tlkit.deploy.serve.server import TOKEN_VARIABLE, ServeOptions

    default, limits = ServeOptions(), ServeOptions().limits
    parser.description = f"{parser.description} Clients must send the token in the environment variable {TOKEN_VARIABLE}, if it is set."
    parser.add_argument("artifact", type=expanded, metavar="ARTIFACT", help="an artifact of tlkit export: a folder, or a .zip")
    help = f"address to listen on (default: {default.host}, this machine only; 0.0.0.0 for all networks)"
    parser.add_argument("--host", default=default.host, help=help)
    parser.add_argument("--port", type=_port, default=default.port, help=f"default: {default.port}; 0 takes a free one")
    help = f"largest batch (default: {default.max_batch}; 1 turns batching off)"
    parser.add_argument("--max-batch", type=count, default=default.max_batch, metavar="N", help=help)
    help = f"milliseconds that an image waits for others to fill its batch (default: {1000 * default.max_wait_s:g})"
    parser.add_argument("--max-wait", type=_number, default=1000 * default.max_wait_s, metavar="MS", help=help)
    parser.add_argument("--threads", type=count, metavar="N", help="threads of the network (default: one per processor)")
    help = f"largest request, in MB (default: {limits.upload_bytes / 1e6:g})"
    parser.add_argument("--max-upload", type=count, default=limits.upload_bytes // 10**6, metavar="MB", help=help)
    help = f"largest number of files per request (default: {limits.files})"
    parser.add_argument("--max-files", type=count, default=limits.files, metavar="N", help=help)
    help = f"largest image, in millions of pixels (default: {limits.pixels / 1e6:g})"
    parser.add_argument("--max-pixels", type=count, default=limits.pixels // 10**6, metavar="MILLIONS", help=help)
    help = f"largest number of waiting images; further requests are asked to retry (default: {limits.waiting})"
    parser.add_argument("--max-waiting", type=count, default=limits.waiting, metavar="N", help=help)
    help = f"seconds for a request to arrive (default: {limits.read_s:g})"
    parser.add_argument("--read-timeout", type=_seconds, default=limits.read_s, metavar="S", help=help)


def serve(arguments: Namespace) -> int:
    from tlkit.deploy.serve.limits import Limits
    from tlkit.deploy.serve.server import ServeOptions, serve_command

    limits = Limits(
        upload_bytes=arguments.max_upload * 10**6,
        files=arguments.max_files,
        pixels=arguments.max_pixels * 10**6,
        waiting=arguments.max_waiting,
        read_s=arguments.read_timeout,
    )
    max_wait_s = arguments.max_wait / 1000
    options = ServeOptions(arguments.host, arguments.port, arguments.max_batch, max_wait_s, arguments.threads, limits)
    return serve_command(arguments.artifact, options)


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise ArgumentTypeError(f"'{text}' is not a port: expected a whole number from 0 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    if not (value := _number(text)):
        raise ArgumentTypeError("0 seconds are too few for any request: expected a number above 0")
    return value


def _number(text: str) -> float:
    value = as_number(text)
    if not 0 <= value < inf:
        raise ArgumentTypeError(f"'{text}' is not a number of at least 0")
    return value


def verify_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("artifact", type=expanded, metavar="ARTIFACT", help="the artifact: a folder or a .zip")
    help = "also compare the images of the proof that are in this folder"
    parser.add_argument("--images", type=expanded, metavar="DIR", help=help)


def verify(arguments: Namespace) -> int:
    from tlkit.deploy.export.verify import verify_command

    return verify_command(arguments.artifact, arguments.images)


def _number_or_all(text: str) -> int | None:
    return None if text == "all" else count(text)


def _share(text: str) -> float:
    value = as_number(text)
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"'{text}' is not a number from 0 to 1")
    return value
