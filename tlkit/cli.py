"""The command line: one row a command. What a command needs is imported when it runs, so that `tlkit --help` answers at once."""

import errno
import os
import sys
import traceback
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tlkit import __version__
from tlkit.errors import TlkitError, expected_one_of

EXAMPLES = """examples:
  tlkit finetune recipes/quickstart.yaml
  tlkit finetune recipes/cifar_resnet.yaml 'phases[0].epochs=1' trainer.accelerator=gpu --out runs/trial"""


def finetune_arguments(parser: ArgumentParser) -> None:
    _recipe_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run folder to make (default: the next number under runs/NAME)")


def finetune(arguments: Namespace) -> int:
    from tlkit.recipe.load import load_recipe

    # Before the import below, which loads torch: a slip in a recipe is told at once.
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    print(f"{recipe.name}: loading torch, then looking for pictures and weights", file=sys.stderr)
    from tlkit.training.finetune import finetune as finetune_recipe

    finetune_recipe(recipe, out=arguments.out)
    return 0


def plan_arguments(parser: ArgumentParser) -> None:
    _recipe_arguments(parser)


def plan(arguments: Namespace) -> int:
    from tlkit.recipe.load import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    print(f"{recipe.name}: loading torch, then looking for pictures and weights", file=sys.stderr)
    from tlkit.training.plan_table import show_plan

    return show_plan(recipe)


def lr_arguments(parser: ArgumentParser) -> None:
    _recipe_arguments(parser)
    parser.add_argument("--phase", type=_count, default=1, metavar="N", help="the phase to test, counted from 1 (default: 1)")
    parser.add_argument("--steps", type=_count, default=100, metavar="N", help="steps from the lowest rate to the highest (default: 100)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to put the curve (default: the next number under runs/NAME-lr)")


def lr(arguments: Namespace) -> int:
    from tlkit.recipe.load import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    print(f"{recipe.name}: loading torch, then looking for pictures and weights", file=sys.stderr)
    from tlkit.training.lr_range import lr_command

    words = [arguments.recipe, *arguments.overrides]
    return lr_command(recipe, arguments.phase, steps=arguments.steps, out=arguments.out, words=words)


def check_arguments(parser: ArgumentParser) -> None:
    _recipe_arguments(parser)
    parser.add_argument("--resolved", action="store_true", help="print the whole recipe, defaults and overrides included, as YAML")


def check(arguments: Namespace) -> int:
    from tlkit.recipe.load import load_recipe, recipe_yaml
    from tlkit.recipe.summary import recipe_notes, recipe_summary

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.resolved:
        print(recipe_yaml(recipe), end="")
        return 0
    print(f"{arguments.recipe}: no faults found. Pictures and weights are looked for when it runs.\n\n{recipe_summary(recipe)}")
    for note in recipe_notes(recipe):
        print(f"  {'note':<11}{note}")
    return 0


def evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, such as runs/quickstart/001")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="the pictures to measure on (default: test)")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="default: table")


def evaluate(arguments: Namespace) -> int:
    from tlkit.evaluate.evaluate import evaluate_run

    metrics = evaluate_run(arguments.run, arguments.split)
    if arguments.format == "json":
        import json

        print(json.dumps(metrics, indent=2, ensure_ascii=False))
    else:
        print(metrics_table(metrics))
    return 0


def metrics_table(metrics: dict[str, Any]) -> str:
    """The figures of one split, the lead first, then a row a class."""
    multilabel = "exact_match" in metrics
    figures = {
        metrics["lead"]: metrics[metrics["lead"]],
        "macro_f1": metrics["macro"]["f1"],
        **({"micro_f1": metrics["micro"]["f1"]} if multilabel else {}),
        **{name: value for name, value in metrics.items() if name in ("accuracy", "exact_match") or name.startswith("top")},
        "loss": metrics["loss"],
    }
    lines = [f"{'pictures':<23}{metrics['pictures']}"]
    for name, value in figures.items():
        low, high = metrics.get(f"{name}_interval", (None, None))
        interval = f"  (95 % interval {low:.4f} to {high:.4f})" if low is not None else ""
        lines.append(f"{name.replace('_', ' '):<23}{value:.4f}{interval}")
    columns = ("precision", "recall", "f1", *(("average_precision", "threshold") if multilabel else ()))
    rows = {**metrics["per_class"], "mean": {**metrics["macro"], "average_precision": metrics.get("mean_average_precision")}}
    width = max(map(len, rows))
    lines += ["", f"{'class':<{width}}  pictures" + "".join(f"  {column.replace('_', ' '):>9}" for column in columns)]
    for name, row in rows.items():
        cells = (f"  {'' if row.get(column) is None else f'{row[column]:.4f}':>{max(9, len(column))}}" for column in columns)
        lines.append(f"{name:<{width}}  {row.get('pictures', ''):>8}{''.join(cells)}".rstrip())
    return "\n".join(lines)


def predict_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder or its model folder")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: table")
    parser.add_argument(
        "--top-k",
        type=_count,
        default=3,
        metavar="K",
        help="classes to name for each picture (default: 3); a multilabel model names those above their thresholds",
    )


def predict(arguments: Namespace) -> int:
    from tlkit.deploy.predict import predict_command

    return predict_command(arguments.run, arguments.images, arguments.format, arguments.top_k)


def models_arguments(parser: ArgumentParser) -> None:
    parser.usage = "tlkit models [PATTERN]\n       tlkit models show NAME [--image-size PX]"
    help = "part of a name, or a pattern such as 'resnet*', to list; or `show` and a name, to see one backbone's stages"
    parser.add_argument("words", nargs="*", metavar="PATTERN", help=help)
    parser.add_argument(
        "--image-size", type=_count, metavar="PX", help="with show: the side of the pictures (default: that of the weights)"
    )


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


def bench_arguments(parser: ArgumentParser) -> None:
    from tlkit.bench.sides import SIDES
    from tlkit.bench.work import DEFAULT_BACKBONE, KINDS, SIZES, WORDS

    help = "what to measure. " + ". ".join(f"{kind}: {WORDS[kind]}" for kind in KINDS)
    help += ". curve: tlkit alone, from every stage on: seconds an epoch against the share that trains"
    parser.add_argument("work", choices=(*KINDS, "curve"), metavar="WORK", help=help)
    sizes = " and ".join(f"{name} is {training}+{validation}" for name, (training, validation) in SIZES.items())
    help = f"training and validation pictures, such as 800+200; {sizes} (default: small)"
    parser.add_argument("--size", type=_bench_size, default=SIZES["small"], metavar="SIZE", help=help)
    parser.add_argument("--repeats", type=_count, default=3, metavar="N", help="runs of each side, after a warm-up (default: 3)")
    parser.add_argument("--epochs", type=_count, default=5, metavar="N", help="of each run (default: 5)")
    parser.add_argument("--sides", nargs="+", choices=tuple(SIDES), default=tuple(SIDES), help="default: all")
    parser.add_argument("--stage", metavar="NAME", help="of from: the first stage that trains (default: the last)")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, metavar="NAME", help=f"default: {DEFAULT_BACKBONE}")
    parser.add_argument("--warm-cache", action="store_true", help="tlkit finds what an earlier run with another seed cached")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="default: table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to put every run's figures, as JSON")


def _bench_size(text: str) -> tuple[int, int]:
    from tlkit.bench.work import SIZES

    training, _, validation = text.partition("+")
    if text in SIZES:
        return SIZES[text]
    # Two pictures of each of the ten classes, so that no class is missing.
    if not (training.isdigit() and validation.isdigit()) or min(int(training), int(validation)) < 20:
        raise ArgumentTypeError(f"'{text}' is not a size: expected {', '.join(SIZES)}, or two numbers from 20 on, such as 800+200")
    return int(training), int(validation)


def bench(arguments: Namespace) -> int:
    from tlkit.bench.command import bench_command
    from tlkit.bench.curve import curve_command
    from tlkit.bench.sides import SIDES
    from tlkit.bench.work import Work

    output: dict[str, Any] = {"as_json": arguments.format == "json", "out": arguments.out}
    if arguments.work == "curve":
        if arguments.stage or arguments.warm_cache or len(arguments.sides) < len(SIDES):
            raise TlkitError("tlkit bench curve trains from every stage, with tlkit alone.\n  Leave out --stage, --sides and --warm-cache.")
        work = Work("from", backbone=arguments.backbone, epochs=arguments.epochs)
        return curve_command(work, arguments.size, repeats=arguments.repeats, **output)
    work = Work(arguments.work, backbone=arguments.backbone, epochs=arguments.epochs, stage=arguments.stage)
    sides, repeats, warm_cache = arguments.sides, arguments.repeats, arguments.warm_cache
    return bench_command(work, arguments.size, sides=sides, repeats=repeats, warm_cache=warm_cache, **output)


def cache_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "clear"), help="list what is kept, or remove all of it")


def cache(arguments: Namespace) -> int:
    from tlkit.training.cache_entries import clear, print_entries

    if arguments.action == "clear":
        print(f"removed {clear() / 1e6:.0f} MB")
    else:
        print_entries()
    return 0


# name: (what it does, its arguments, the command)
COMMANDS: dict[str, tuple[str, Callable[[ArgumentParser], None], Callable[[Namespace], int]]] = {
    "finetune": ("train a recipe's model, measure it, and keep it in a run folder", finetune_arguments, finetune),
    "plan": ("show what a recipe will do, before it does it: what trains, memory, steps, time", plan_arguments, plan),
    "lr": ("find a learning rate: train a copy at a rate that rises, and look at the loss", lr_arguments, lr),
    "check": ("find every fault in a recipe without running it", check_arguments, check),
    "evaluate": ("measure the model of a run again", evaluate_arguments, evaluate),
    "predict": ("name the classes of pictures", predict_arguments, predict),
    "models": ("list the backbones that a recipe can name", models_arguments, models),
    "bench": ("measure tlkit here, beside a bare loop and a textbook Lightning script", bench_arguments, bench),
    "cache": ("list or remove the activations that runs have kept", cache_arguments, cache),
}

OPTIONS = ("--help", "--version", "--debug")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0 if done, 2 if the user can mend it, 1 for a fault of tlkit, 130 if interrupted."""
    # albumentations asks the network for a newer version when it is imported, unless told not to.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        code = _dispatch([word for word in words if word != "--debug"])
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse ends so, after its own message
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:  # the reader has seen enough: tlkit models | head
        _discard_output()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        code, message = _verdict(error)
        print(message, file=sys.stderr)
        return code


def run() -> None:
    """The console script."""
    sys.exit(main())


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"tlkit {__version__}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        kind, choices = ("option", OPTIONS) if name.startswith("-") else ("command", tuple(COMMANDS))
        raise TlkitError(f"tlkit has no {kind} '{name}'.\n  {expected_one_of(name, choices)} See: tlkit --help")
    purpose, add_arguments, command = COMMANDS[name]
    parser = ArgumentParser(f"tlkit {name}", description=f"{purpose[0].upper()}{purpose[1:]}.", allow_abbrev=False)
    add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    # Intermixed: overrides may come after --out too.
    return command(parser.parse_intermixed_args(rest))


def _help() -> str:
    commands = "\n".join(f"  {name:<10} {purpose}" for name, (purpose, _, _) in COMMANDS.items())
    return f"""usage: tlkit COMMAND ... [--debug]

Fine-tune pretrained image backbones from one recipe file.

commands:
{commands}

options:
  --version  print the version
  --debug    show the traceback of an error
  -h, --help print this, or with a command its arguments: tlkit finetune --help

{EXAMPLES}"""


def _verdict(error: BaseException) -> tuple[int, str]:
    """The exit code, and what to tell the user."""
    if isinstance(error, TlkitError):
        return 2, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "Interrupted."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _discard_output()
        return 2, f"The disk is full: {error.filename or 'no space left to write to'}.\n  Free some space, or write elsewhere with --out."
    if isinstance(error, OSError) and error.filename and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return 2, f"{error.filename} can't be read or written: {error.strerror}.\n  Change its permissions, or use another place."
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return 1, f"This is a fault of tlkit, not yours: {what}  Run again with --debug for the traceback."


def _discard_output() -> None:
    """Keeps Python from writing what is left, and failing once more, when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _recipe_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, or one that ships with tlkit by name: quickstart")
    help = "changes one key: model.weights=random, 'phases[0].epochs=1', 'data.source={folder: photos}'"
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help=help)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)
