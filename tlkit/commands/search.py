"""What begins a recipe, and what chooses between several: `tlkit compare`."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tlkit.errors import TlkitError
from tlkit.files import expanded
from tlkit.terminal import counted, print_text, takes_unicode

if TYPE_CHECKING:
    from tlkit.search.compare import Compared


def compare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=expanded, nargs="+", metavar="RUN", help="two or more run folders; each is compared with the first")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="default: table")
    parser.add_argument("--curves", type=expanded, metavar="FILE.png", help="draw the runs' validation curves over each other")


def compare(arguments: Namespace) -> int:
    if len(arguments.runs) < 2:
        raise TlkitError("tlkit compare takes two runs or more.\n  Write: tlkit compare runs/NAME/001 runs/NAME/002")
    from tlkit.search.compare import compare_runs

    compared = compare_runs(arguments.runs)
    if arguments.format == "json":
        import json

        print(json.dumps(compared.as_json(), indent=2, ensure_ascii=not takes_unicode()))
    else:
        print_text("\n".join(_compared_lines(compared)))
    if arguments.curves is not None:
        from tlkit.evaluation.curves import draw_runs

        draw_runs(arguments.runs, arguments.curves)
    return 0


def _compared_lines(compared: "Compared") -> Iterator[str]:
    """Yield the recipes' differences, then each run's metric, then the result of the test."""
    from tlkit.evaluation.metrics import metric_label

    yield "recipes differ in" if compared.differences else "the recipes are the same"
    for key, values in compared.differences.items():
        yield f"  {key}: {' | '.join('-' if value is None else str(value) for value in values)}"
    names = [str(run) for run in compared.runs]
    width = max(map(len, names))
    metric = "all labels right" if compared.metric == "exact_match" else metric_label(compared.metric)  # type: ignore[arg-type]
    n = compared.comparisons[0].n
    yield f"\n{'test ' + metric:<{width}}  ({counted(n, 'image')})"
    for name, value in zip(names, compared.values, strict=True):
        yield f"{name:<{width}}  {value:.3f}"
    yield f"\nagainst {names[0]}"
    for one in compared.comparisons:
        interval = f"{100 * one.low:+.1f} to {100 * one.high:+.1f} points"
        yield f"{one.run!s:<{width}}  {100 * one.difference:+.1f} points, 95 % interval {interval}; {one.gained} gained, {one.lost} lost"
        yield f"{'':<{width}}  {one.verdict}"
    several = ", corrected for several runs (Holm)" if len(names) > 2 else ""
    yield f"\np by {compared.test}{several}; interval by a paired bootstrap over the test images."
    yield "This is about these trained models. Another seed gives another model: train several seeds before you choose a recipe."
