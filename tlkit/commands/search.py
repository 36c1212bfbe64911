"""What chooses between recipes and runs: `tlkit rank` and `tlkit tune` before training, `tlkit compare` and `tlkit soup` after it."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tlkit.commands.arguments import (
    count,
    device_argument,
    format_argument,
    offline_arguments,
    output_file,
    output_folder,
    recipe_arguments,
    recipe_to_run,
)
from tlkit.commands.log import show_log
from tlkit.commands.signals import handle_signals
from tlkit.errors import MissingExtraError, TlkitError
from tlkit.files import expanded
from tlkit.terminal import counted, padded, print_json, print_panel, print_text, tlkit_command, width_of

if TYPE_CHECKING:
    from tlkit.search.compare import Compared
    from tlkit.search.compare_seeds import ComparedRecipes
    from tlkit.search.rank import Ranked
    from tlkit.search.soup import Soup

RESUMES = "go on with the same command"


def rank_arguments(parser: ArgumentParser) -> None:
    recipe_arguments(parser)
    offline_arguments(parser)
    help = "backbones to compare, separated by commas: names, patterns such as 'resnet*', NAME@random or NAME@FILE.safetensors"
    parser.add_argument("--backbones", default="", metavar="A,B,C", help=help)
    help = "compare N backbones, chosen by published accuracy and size; downloads their weights unless --offline"
    parser.add_argument("--budget", type=count, metavar="N", help=help)
    parser.add_argument("--images", type=count, default=5000, metavar="N", help="use at most so many images of the recipe (default: 5000)")
    parser.add_argument(
        "--out", type=output_folder, required=True, metavar="DIR", help="where to write rank.csv and rank.png; resumes there"
    )
    parser.add_argument("--write", type=output_file, metavar="FILE.yaml", help="write the recipe with the best backbone")
    help = "measure images/s again, of backbones that DIR has results of: the first time the machine may have had other work"
    parser.add_argument("--time-again", action="store_true", help=help)


def rank(arguments: Namespace) -> int:
    words = [word.strip() for word in arguments.backbones.split(",") if word.strip()]
    if not words and arguments.budget is None:
        raise TlkitError("tlkit rank needs backbones to compare.\n  Add --backbones resnet18,'convnext*' or --budget 20.")
    if arguments.write is not None and arguments.write.exists():
        raise TlkitError(f"--write {arguments.write} is there already, and is never overwritten.\n  Choose another name.")
    recipe = recipe_to_run(arguments)
    from tlkit.search.rank import Measuring, candidates_of, rank, write_winner
    from tlkit.system import keep_freed_memory

    keep_freed_memory()
    candidates = candidates_of(recipe, words, arguments.budget, offline=arguments.offline)
    with handle_signals() as stop, show_log(), stop.resume_hint_logged():
        stop.resume_hint = RESUMES
        how = Measuring(arguments.images, arguments.time_again)
        rows = rank(arguments.recipe, arguments.overrides, candidates, arguments.out, how)
    _print_ranked(rows)
    if rows[0].score is None:
        raise TlkitError("None of the backbones could be measured.\n  The reasons stand above; see where weights are: tlkit models NAME")
    print_text(f"\n{arguments.out / 'rank.csv'} and rank.png: all of it, and a plot.", sys.stderr)
    if arguments.write is not None:
        winner = next(candidate for candidate in candidates if candidate.name == rows[0].backbone)
        write_winner(arguments.recipe, arguments.overrides, winner, arguments.write)
        print_text(f"{arguments.write}: the recipe with {winner.name}.", sys.stderr)
    return 0


def _print_ranked(rows: "list[Ranked]") -> None:
    """Print a table of those that were measured, the best first; * marks the Pareto front of score and images per second."""
    from rich.table import Table

    from tlkit.evaluation.primary_metric import metric_label
    from tlkit.terminal import output_console, print_fitting

    columns = ("", "backbone", metric_label(rows[0].metric), "95 % interval", "images/s", "kNN", "LogME", "M params", "MB")
    measured, tables = [row for row in rows if row.score is not None], []
    for shown in (len(columns), 5):
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns[:shown]:
            table.add_column(column, justify="left" if column in ("", "backbone") else "right", no_wrap=True)
        for row in measured:
            cells = (
                "*" if row.pareto else "",
                row.backbone,
                f"{row.score:.3f}",
                f"{row.low:.3f} to {row.high:.3f}",
                f"{row.images_per_s:.0f}",
                f"{row.knn:.3f}",
                f"{row.logme:.3f}",
                f"{(row.parameters or 0) / 1e6:.1f}",
                f"{row.megabytes:.1f}",
            )
            table.add_row(*cells[:shown])
        tables.append(table)
    if measured:
        print_fitting(output_console(), tables)
        groups = f" in {counted(measured[0].groups, 'group')}" if measured[0].groups else ""
        print_text(f"95 % interval over {counted(measured[0].n or 0, 'image')}{groups}")
        print_text("* no other one is as accurate and faster, or as fast and more accurate")
    if times := sorted({row.timed for row in rows if row.timed}):
        print_text(f"images/s measured {' to '.join(dict.fromkeys((times[0], times[-1])))} on this machine; again with --time-again")
    if missing := [row.backbone for row in rows if row.score is None]:
        print_text(f"not measured: {', '.join(missing)}; rank.csv has the reasons")


def tune_arguments(parser: ArgumentParser) -> None:
    recipe_arguments(parser)
    offline_arguments(parser)
    help = "finished trials of the study, of all its workers together (default: 40)"
    parser.add_argument("--trials", type=count, default=40, metavar="N", help=help)
    parser.add_argument(
        "--out", type=output_folder, required=True, metavar="DIR", help="where to write the study and best.yaml; resumes there"
    )
    help = "a study that several machines work on: a URL that Optuna takes, such as one of PostgreSQL (default: DIR/study.db)"
    parser.add_argument("--storage", metavar="URL", help=help)
    parser.add_argument("--sampler", choices=("tpe", "random", "grid"), default="tpe", help="how values are drawn (default: tpe)")
    help = "how hopeless trials are ended early (default: median)"
    parser.add_argument("--pruner", choices=("median", "halving", "none"), default="median", help=help)


def tune(arguments: Namespace) -> int:
    from tlkit.recipe.search_space import ranges_of

    ranges_of(recipe_to_run(arguments), arguments.recipe)  # before anything large is imported
    for package in ("optuna", "plotly"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "search", "tlkit tune")
    from rich.markup import escape

    from tlkit.evaluation.primary_metric import metric_label
    from tlkit.search.tune import Search, Space, label, tune
    from tlkit.system import keep_freed_memory

    keep_freed_memory()
    space, out = Space.of(arguments.recipe, arguments.overrides), arguments.out
    how = Search(arguments.trials, arguments.sampler, arguments.pruner, arguments.storage)
    with handle_signals() as stop, show_log(), stop.resume_hint_logged():
        stop.resume_hint = RESUMES
        tuned = tune(space, out, how)
    equal = f"; {tuned.equal} have it, and none of them trained fewer epochs" if tuned.equal > 1 else ""
    rows = [(key, escape(label(value))) for key, value in tuned.values.items()]
    rows += [(f"val {metric_label(tuned.metric)}", f"[bold]{tuned.score:.4f}[/bold]  (best of {counted(tuned.trials, 'trial')}{equal})")]
    rows += [("recipe", escape(str(out / "best.yaml"))), ("trials", escape(f"{out / 'study.html'}, {out / 'trials.csv'}"))]
    print_panel(str(out), rows, [tlkit_command("finetune", str(out / "best.yaml"))])
    return 0


def compare_arguments(parser: ArgumentParser) -> None:
    help = "two or more run folders, or those of several seeds each; all are compared with the first"
    parser.add_argument("runs", type=expanded, nargs="+", metavar="RUN", help=help)
    format_argument(parser)
    parser.add_argument("--curves", type=output_file, metavar="FILE.png", help="draw the runs' validation curves over each other")


def compare(arguments: Namespace) -> int:
    if len(arguments.runs) < 2:
        raise TlkitError("tlkit compare takes two runs or more.\n  Write: tlkit compare runs/NAME/001 runs/NAME/002")
    if arguments.curves is not None and arguments.curves.suffix.lower() != ".png":
        raise TlkitError(f"--curves {arguments.curves} is not a .png file.\n  Name one, such as curves.png.")
    from tlkit.search.compare import compare_runs
    from tlkit.search.compare_seeds import are_seeds, compare_recipes

    if seeds := are_seeds(arguments.runs):
        recipes = compare_recipes(arguments.runs)
        found, lines = recipes.as_json(), _compared_recipes_lines(recipes)
    else:
        compared = compare_runs(arguments.runs)
        found, lines = compared.as_json(), _compared_lines(compared)
    if arguments.format == "json":
        print_json(found)
    else:
        print_text("\n".join(lines))
    if arguments.curves is not None:
        from tlkit.data.splits.run_source import inner_runs
        from tlkit.report.curves import draw_runs

        drawn = [folder for run in arguments.runs for folder in inner_runs(run)] if seeds else arguments.runs
        draw_runs(drawn, arguments.curves)
    return 0


def _compared_lines(compared: "Compared") -> Iterator[str]:
    """Yield the recipes' differences, then each run's metric, then the result of the test."""
    from tlkit.evaluation.primary_metric import metric_label

    yield from _difference_lines(compared.differences)
    names = [str(run) for run in compared.runs]
    width = max(map(width_of, names))
    metric = "all labels right" if compared.metric == "exact_match" else metric_label(compared.metric)  # type: ignore[arg-type]
    n = compared.comparisons[0].n
    yield f"\n{compared.split + ' ' + metric:<{width}}  ({counted(n, 'image')})"
    for name, value in zip(names, compared.values, strict=True):
        yield f"{padded(name, width)}  {value:.3f}"
    yield f"\nagainst {names[0]}"
    for one in compared.comparisons:
        interval = one.interval_note or f"95 % interval {100 * one.low:+.1f} to {100 * one.high:+.1f} points"
        points, changed = f"{100 * one.difference:+.1f} points", f"{one.gained} gained, {one.lost} lost"
        yield f"{padded(str(one.run), width)}  {points}, {interval}; {changed}"
        yield f"{'':<{width}}  {one.verdict}"
    several = ", corrected for several runs (Holm)" if len(names) > 2 else ""
    yield f"\np by {compared.test}{several}; interval by a paired bootstrap over {compared.drawn}."
    if compared.remark and not all(one.interval_note for one in compared.comparisons):
        yield compared.remark
    if compared.split == "val":
        yield "No run has test images. Validation has chosen each run's best epoch, so all figures are a little too good."
    yield "This is about these trained models. Another seed gives another model: compare runs of --seeds before you choose a recipe."


def _compared_recipes_lines(compared: "ComparedRecipes") -> Iterator[str]:
    """Yield the recipes' differences, then the mean of each run, then the result of the test."""
    from tlkit.evaluation.primary_metric import metric_label

    yield from _difference_lines(compared.differences)
    names = [str(run) for run in compared.runs]
    width = max(map(width_of, names))
    images = sorted({min(compared.images), max(compared.images)})
    number = f"{' to '.join(f'{count:,}' for count in images)} image{'s' if images[-1] > 1 else ''}"
    seeds = counted(len(compared.seeds), "seed")
    yield f"\n{compared.split + ' ' + metric_label(compared.metric):<{width}}  mean of {seeds}, lowest to highest ({number})"  # type: ignore[arg-type]
    for name, values in zip(names, compared.values, strict=True):
        yield f"{padded(name, width)}  {sum(values) / len(values):.3f}  {min(values):.3f} to {max(values):.3f}"
    yield f"\nagainst {names[0]}"
    for one in compared.comparisons:
        interval = one.interval_note or f"95 % interval {100 * one.low:+.1f} to {100 * one.high:+.1f} points"
        yield f"{padded(str(one.run), width)}  {100 * one.difference:+.1f} points, {interval}; better on {one.better} of {seeds}"
        yield f"{'':<{width}}  {one.verdict}"
    several = ", corrected for several runs (Holm)" if len(names) > 2 else ""
    yield f"\np{several} and interval by Student's t, over the difference of each seed."
    if compared.split == "val":
        yield "No run has test images. Validation has chosen each run's best epoch, so all figures are a little too good."
    yield f"This is about the recipes on these {compared.split} images: how sure the figures are for others is in each seed's report."


def _difference_lines(differences: Mapping[str, Sequence[object]]) -> Iterator[str]:
    yield "recipes differ in" if differences else "the recipes are the same"
    for key, values in differences.items():
        yield f"  {key}: {' | '.join('-' if value is None else str(value) for value in values)}"


def soup_arguments(parser: ArgumentParser) -> None:
    help = "two or more run folders of one architecture, or that of several seeds; data.source.folder=/photos if the images have moved"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=help)
    parser.add_argument(
        "--out", type=output_folder, required=True, metavar="DIR", help="the run folder to make: model, metrics and predictions"
    )
    device_argument(parser)


def soup(arguments: Namespace) -> int:
    from tlkit.search.soup import make_soup
    from tlkit.system import keep_freed_memory
    from tlkit.training.results import predict_command

    keep_freed_memory()
    overrides = [word for word in arguments.runs if "=" in word and not expanded(word).exists()]
    runs = [expanded(word) for word in arguments.runs if word not in overrides]
    with show_log():
        made = make_soup(runs, arguments.out, device=arguments.device, overrides=overrides)
    print_panel(str(arguments.out), _soup_rows(made), [predict_command(arguments.out, made.samples)])
    return 0


def _soup_rows(soup: "Soup") -> "Iterator[tuple[str, str]]":
    from rich.markup import escape

    from tlkit.evaluation.primary_metric import metric_label
    from tlkit.training.results import panel_figures

    members, best, runs = soup.members, soup.steps[0], counted(len(soup.steps), "run")
    if len(members) == 1:
        yield "weights", escape(f"those of {best.run}: of {runs}, no average that was tried validates as well")
    else:
        yield "weights", escape(f"the mean of {len(members)} of {runs}: {', '.join(map(str, members))}")
    reached = next(step for step in reversed(soup.steps) if step.added).with_it
    against = f"; {best.run} alone {best.alone}" if len(members) > 1 else ""
    yield f"val {metric_label(soup.metrics['primary_metric'])}", escape(f"{reached}{against}")
    if "test" in soup.metrics:
        yield from panel_figures("test", soup.metrics["test"])
