"""Commands that take a recipe, and benchmarks."""

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import Any

from tlkit.commands.arguments import (
    count,
    format_argument,
    offline_arguments,
    output_file,
    output_folder,
    override_arguments,
    recipe_arguments,
    recipe_to_run,
)
from tlkit.commands.log import show_log
from tlkit.commands.signals import handle_signals
from tlkit.errors import RecipeError, TlkitError
from tlkit.files import expanded
from tlkit.system import keep_freed_memory
from tlkit.terminal import print_text, takes_unicode


def finetune_arguments(parser: ArgumentParser) -> None:
    recipe_arguments(parser)
    offline_arguments(parser)
    parser.add_argument(
        "--out", type=output_folder, metavar="DIR", help="the run folder to write (default: the next number under runs/NAME)"
    )
    help = "resume the run in --out where it was interrupted; start it if there is none, do nothing if it is finished"
    parser.add_argument("--resume", action="store_true", help=help)
    help = "train N seeds, from the recipe's own on, each in a folder of its own; reports mean, range and interval"
    parser.add_argument("--seeds", type=_seeds, metavar="N", help=help)
    help = "start from the weights of an earlier run, and nothing else of it: short for model.weights={run: DIR}"
    parser.add_argument("--init-from", type=expanded, metavar="DIR", help=help)


def _seeds(text: str) -> int:
    if not text.isdigit() or not 2 <= int(text) <= 100:
        raise ArgumentTypeError(f"'{text}' is not a number of seeds, from 2 to 100")
    return int(text)


def finetune(arguments: Namespace) -> int:
    if arguments.init_from is not None:
        arguments.overrides = [*arguments.overrides, f"model.weights={{run: {json.dumps(str(arguments.init_from))}}}"]
    recipe = recipe_to_run(arguments)
    from tlkit.training.finetune import run_recipe

    keep_freed_memory()
    with handle_signals(), show_log():
        run_recipe(recipe, out=arguments.out, resume=arguments.resume, seeds=arguments.seeds)
    return 0


def reproduce_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=expanded, metavar="RUN", help="the folder of a finished run, such as runs/quickstart/001")
    override_arguments(parser, "override a key of its recipe, if this machine differs: data.root=/photos, trainer.accelerator=cpu")
    offline_arguments(parser)
    parser.add_argument(
        "--out", type=output_folder, metavar="DIR", help="the folder of the new run (default: the next number under runs/NAME)"
    )


def reproduce(arguments: Namespace) -> int:
    from tlkit.data.splits.run_source import from_start_where_missing
    from tlkit.workflows.compare_runs import check_finished

    check_finished(arguments.run)
    arguments.recipe = str(arguments.run / "recipe.yaml")
    arguments.overrides = [*from_start_where_missing(arguments.run), *arguments.overrides]
    recipe = recipe_to_run(arguments)
    from tlkit.workflows.reproduce import reproduce_run

    keep_freed_memory()
    with handle_signals(), show_log():
        return reproduce_run(arguments.run, recipe, out=arguments.out)


def plan_arguments(parser: ArgumentParser) -> None:
    recipe_arguments(parser)
    offline_arguments(parser)


def plan(arguments: Namespace) -> int:
    recipe = recipe_to_run(arguments)
    from tlkit.planning.plan_table import show_plan

    keep_freed_memory()
    with handle_signals(), show_log():
        return show_plan(recipe)


def lr_arguments(parser: ArgumentParser) -> None:
    recipe_arguments(parser)
    offline_arguments(parser)
    parser.add_argument("--phase", type=count, default=1, metavar="N", help="the phase to test, counted from 1 (default: 1)")
    parser.add_argument("--steps", type=count, default=100, metavar="N", help="steps from the lowest rate to the highest (default: 100)")
    parser.add_argument("--out", type=output_folder, metavar="DIR", help="output folder (default: the next number under runs/NAME-lr)")


def lr(arguments: Namespace) -> int:
    recipe = recipe_to_run(arguments)
    from tlkit.planning.lr_range import lr_command

    keep_freed_memory()
    words = [arguments.recipe, *arguments.overrides]
    with handle_signals(), show_log():
        return lr_command(recipe, arguments.phase, steps=arguments.steps, out=arguments.out, words=words)


def check_arguments(parser: ArgumentParser) -> None:
    recipe_arguments(parser)
    parser.add_argument("--resolved", action="store_true", help="print the whole recipe, defaults and overrides included, as YAML")


def check(arguments: Namespace) -> int:
    from tlkit.recipe.image_sizes import border_warnings
    from tlkit.recipe.load import load_recipe, recipe_yaml
    from tlkit.recipe.names import name_faults, package_faults, path_faults
    from tlkit.recipe.search_space import search_faults
    from tlkit.recipe.summary import recipe_notes, recipe_summary, recipe_warnings

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.resolved:
        print(recipe_yaml(recipe, ascii_only=not takes_unicode()), end="")
        return 0
    with recipe.located():
        found = [*name_faults(recipe), *package_faults(recipe), *path_faults(recipe)]
        if faults := [*found, *search_faults(recipe, arguments.recipe, arguments.overrides)]:
            raise RecipeError(faults)
    print_text(f"{arguments.recipe}: no faults found. `tlkit plan` also reads its images and weights.\n\n{recipe_summary(recipe)}")
    for warning in (*border_warnings(recipe), *recipe_warnings(recipe)):
        print_text(f"  {'warning':<11}{warning}")
    for note in recipe_notes(recipe):
        print_text(f"  {'note':<11}{note}")
    return 0


def bench_arguments(parser: ArgumentParser) -> None:
    from tlkit.bench.sides import SIDES
    from tlkit.bench.work import DEFAULT_BACKBONE, KINDS, SIZES, WORDS

    help = "what to measure. " + ". ".join(f"{kind}: {WORDS[kind]}" for kind in KINDS)
    help += ". curve: only tlkit, from each stage on: seconds per epoch against the share that trains"
    help += ". processes: only tlkit, on one process and on two"
    parser.add_argument("work", choices=(*KINDS, "curve", "processes"), metavar="WORK", help=help)
    sizes = " and ".join(f"{name} is {training}+{validation}" for name, (training, validation) in SIZES.items())
    help = f"training and validation images, such as 800+200; {sizes} (default: small)"
    parser.add_argument("--size", type=_bench_size, default=SIZES["small"], metavar="SIZE", help=help)
    parser.add_argument("--repeats", type=count, default=3, metavar="N", help="runs of each side, after a warm-up (default: 3)")
    parser.add_argument("--epochs", type=count, default=5, metavar="N", help="epochs of each run (default: 5)")
    help = f"what to compare: {', '.join(SIDES)} (default: all)"
    parser.add_argument("--sides", nargs="+", choices=tuple(SIDES), default=tuple(SIDES), metavar="SIDE", help=help)
    parser.add_argument("--stage", metavar="NAME", help="with from: the first stage that trains (default: the last)")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, metavar="NAME", help=f"default: {DEFAULT_BACKBONE}")
    parser.add_argument("--warm-cache", action="store_true", help="tlkit reuses activations that an earlier run with another seed cached")
    format_argument(parser)
    parser.add_argument("--out", type=output_file, metavar="FILE", help="write every run's figures to this file, as JSON")


def _bench_size(text: str) -> tuple[int, int]:
    from tlkit.bench.work import SIZES

    training, _, validation = text.partition("+")
    if text in SIZES:
        return SIZES[text]
    # Two images of each of the ten classes, so that no class is missing.
    if not (training.isdigit() and validation.isdigit()) or min(int(training), int(validation)) < 20:
        raise ArgumentTypeError(f"'{text}' is not a size: expected {', '.join(SIZES)}, or two numbers from 20 on, such as 800+200")
    return int(training), int(validation)


def bench(arguments: Namespace) -> int:
    from tlkit.bench.command import bench_command
    from tlkit.bench.curve import curve_command
    from tlkit.bench.processes import processes_command
    from tlkit.bench.sides import SIDES
    from tlkit.bench.work import Work

    output: dict[str, Any] = {"as_json": arguments.format == "json", "out": arguments.out}
    if arguments.work in ("curve", "processes"):
        if arguments.stage or arguments.warm_cache or len(arguments.sides) < len(SIDES):
            what = "from every stage" if arguments.work == "curve" else "the head and all layers"
            raise TlkitError(
                f"tlkit bench {arguments.work} trains {what}, with tlkit only.\n  Leave out --stage, --sides and --warm-cache."
            )
        work = Work("from", backbone=arguments.backbone, epochs=arguments.epochs)
        command = curve_command if arguments.work == "curve" else processes_command
        return command(work, arguments.size, repeats=arguments.repeats, **output)
    work = Work(arguments.work, backbone=arguments.backbone, epochs=arguments.epochs, stage=arguments.stage)
    sides, repeats, warm_cache = arguments.sides, arguments.repeats, arguments.warm_cache
    return bench_command(work, arguments.size, sides=sides, repeats=repeats, warm_cache=warm_cache, **output)


def cache_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "clear"), help="list cached activations, or remove all of them")


def cache(arguments: Namespace) -> int:
    from tlkit.training.cache.entries import clear, print_entries

    if arguments.action == "clear":
        print(f"removed {clear() / 1e6:.0f} MB")
    else:
        print_entries()
    return 0
