"""`tlkit runs`."""

import csv
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, fields
from textwrap import shorten
from typing import TYPE_CHECKING

from tlkit.files import expanded
from tlkit.terminal import padded, print_json, print_text, width_of

if TYPE_CHECKING:
    from tlkit.workflows.runs import RunRow

SORTS = ("name", "when", "backbone", "val", "test", "seconds")
COLUMNS = ("name", "test", "95 % interval", "val", "backbone", "phases", "when", "seconds", "changes")
"""As many as fit are printed."""
CHANGES_WIDTH = 60
RIGHT = ("test", "val", "seconds")


def runs_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=expanded, nargs="?", default="runs", metavar="DIR", help="where the runs are (default: runs)")
    help = "name, when, backbone, val, test or seconds: the newest, best or quickest first (default: name)"
    parser.add_argument("--sort", choices=SORTS, default="name", metavar="COLUMN", help=help)
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="default: table")


def runs(arguments: Namespace) -> int:
    from tlkit.workflows.runs import RunRow, list_runs

    rows = list_runs(expanded(arguments.folder), arguments.sort)
    if arguments.format == "json":
        print_json([asdict(row) for row in rows])
    elif arguments.format == "csv":
        writer = csv.DictWriter(sys.stdout, [field.name for field in fields(RunRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    elif rows:
        _print_table(rows)
    else:
        print_text(f"{arguments.folder}: no run is there yet. The first one: tlkit finetune quickstart")
    return 0


def _print_table(rows: "list[RunRow]") -> None:
    """Print as many columns as fit, and below them what is wrong with runs that have no figures."""
    from tlkit.terminal import output_console

    lines = [COLUMNS, *map(_cells, rows)]
    widths = [max(map(width_of, column)) for column in zip(*lines, strict=True)]
    console = output_console()
    shown = max(number for number in range(1, len(widths) + 1) if number == 1 or sum(widths[:number]) + 2 * (number - 1) <= console.width)
    header, *others = ("  ".join(map(_padded, COLUMNS[:shown], line, widths)).rstrip() for line in lines)
    console.print(header, style="bold", markup=False, highlight=False, soft_wrap=True)
    print("\n".join(others))
    for row in rows:
        if row.note:
            print_text(f"{row.state}: {row.name}: {row.note}")
    if other := sorted({row.metric for row in rows} - {"accuracy", ""}):
        names = ", ".join(name.replace("_", " ") for name in other)
        print_text(f"Figures are accuracies, and {names} where that chose the best epoch: --format csv has each run's metric.")


def _padded(column: str, text: str, width: int) -> str:
    return f"{text:>{width}}" if column in RIGHT else padded(text, width)


def _cells(row: "RunRow") -> tuple[str, ...]:
    interval = f"{row.low:.3f} to {row.high:.3f}" if row.low is not None and row.high is not None else ""
    repeats = f" ({row.repeats})" if row.repeats else ""
    return (
        row.name,
        f"{row.test:.3f}" if row.test is not None else "" if row.state == "finished" else row.state,
        f"{interval}{repeats}".strip(),
        f"{row.val:.3f}" if row.val is not None else "",
        row.backbone,
        row.phases,
        row.when,
        f"{row.seconds:.0f}" if row.seconds is not None else "",
        shorten(row.changes, CHANGES_WIDTH, placeholder=" ..."),
    )
