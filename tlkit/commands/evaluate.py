"""`tlkit evaluate`."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tlkit.commands.arguments import device_argument, format_argument, moved_arguments, output_file
from tlkit.commands.log import show_log
from tlkit.files import expanded
from tlkit.report.templates import percent
from tlkit.system import keep_freed_memory
from tlkit.terminal import counted, padded, print_json, print_text, width_of

if TYPE_CHECKING:
    from tlkit.evaluation.calibrate import Calibrated


def evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=expanded, metavar="RUN", help="a run folder, such as runs/quickstart/001")
    moved_arguments(parser)
    parser.add_argument("--split", choices=("test", "val"), default="test", help="the images to measure on (default: test)")
    help = "test-time augmentation: average over flip, crops (corners and centre), or N views augmented as in training"
    parser.add_argument("--tta", type=_tta, metavar="flip|crops|N", help=help)
    device_argument(parser)
    format_argument(parser)


def _tta(text: str) -> Any:
    if text in ("flip", "crops"):
        return text
    if not text.isdigit() or not 1 <= int(text) <= 1000:
        raise ArgumentTypeError(f"'{text}' is not flip, crops or a number from 1 to 1000")
    return int(text)


def evaluate(arguments: Namespace) -> int:
    from tlkit.evaluation.evaluate import evaluate

    keep_freed_memory()
    with show_log():
        metrics = evaluate(arguments.run, split=arguments.split, tta=arguments.tta, device=arguments.device, overrides=arguments.overrides)
    if arguments.format == "json":
        print_json(metrics)
    else:
        print_text(metrics_table(metrics))
    return 0


def report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=expanded, metavar="RUN", help="the folder of a run that has ended, such as runs/quickstart/001")
    moved_arguments(parser)
    parser.add_argument("--out", type=output_file, metavar="FILE", help="the page to write (default: report.html in the run folder)")


def report(arguments: Namespace) -> int:
    from tlkit.workflows.report_run import report_run

    keep_freed_memory()
    with show_log():
        file = report_run(arguments.run, file=arguments.out, overrides=arguments.overrides)
    print_text(str(file))
    return 0


def metrics_table(metrics: dict[str, Any]) -> str:
    """Return the metrics of one split, the primary metric first, then a row per class, with their intervals."""
    from tlkit.evaluation.primary_metric import images_of, intervals_of

    multilabel = "exact_match" in metrics
    figures = _figures(metrics)
    skipped = metrics.get("skipped", {})
    left_out = f"  ({len(skipped)} left out, since they can't be read)" if skipped else ""
    lines = [f"{'images':<23}{metrics['pictures']}{left_out}"]
    bounds = intervals_of(metrics)
    images = images_of(metrics)
    for name, value in figures.items():
        interval = f"  (95 % interval {bounds[name][0]:.3f} to {bounds[name][1]:.3f}, {images})" if bounds.get(name) else ""
        lines.append(f"{name.replace('_', ' '):<23}{value:.4f}{interval}")
    columns = ("precision", "recall", "f1", *(("average_precision", "threshold") if multilabel else ()))
    rows = {**metrics["per_class"], "mean": {**metrics["macro"], "average_precision": metrics.get("mean_average_precision")}}
    mean = {**bounds.get("macro", {}), "average_precision": bounds.get("mean_average_precision")}
    spans = {**bounds.get("per_class", {}), "mean": mean} if "per_class" in bounds else {}
    width, across = max(map(width_of, ("class", *rows))), 17 if spans else 9
    widths = {column: max(across if column != "threshold" else 9, len(column)) for column in columns}
    lines += ["", f"{'class':<{width}}  images" + "".join(f"  {column.replace('_', ' '):>{widths[column]}}" for column in columns)]
    for name, row in rows.items():
        cells = (f"  {_cell(row.get(column), spans.get(name, {}).get(column)):>{widths[column]}}" for column in columns)
        lines.append(f"{padded(name, width)}  {row.get('pictures', ''):>6}{''.join(cells)}".rstrip())
    lines += [""] * bool(skipped) + [f"left out: {id_}: {reason}" for id_, reason in skipped.items()]
    return "\n".join([*lines, *_tta_lines(metrics)])


def _cell(value: float | None, bounds: Sequence[float] | None) -> str:
    """Return `0.808 (0.62-0.92)`, more digits where there is no interval, and nothing without a value."""
    if value is None:
        return ""
    return f"{value:.3f} ({bounds[0]:.2f}-{bounds[1]:.2f})" if bounds else f"{value:.4f}"


def _figures(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the metrics with a line of their own, the primary metric first."""
    multilabel = "exact_match" in metrics
    return {
        metrics["primary_metric"]: metrics[metrics["primary_metric"]],
        "macro_f1": metrics["macro"]["f1"],
        **({"micro_f1": metrics["micro"]["f1"]} if multilabel else {}),
        **{name: value for name, value in metrics.items() if name in ("accuracy", "exact_match") or name.startswith("top")},
        "loss": metrics["loss"],
    }


def _tta_lines(metrics: dict[str, Any]) -> Iterator[str]:
    """Yield the metrics without and with test-time augmentation, if both were measured."""
    if not (tta := metrics.get("tta")):
        return
    yield f"\nwith test-time augmentation ({tta['kind']}: {counted(tta['views'], 'view')} of each image, their probabilities averaged)"
    yield f"{'':<23}{'without':>9}  {'with':>9}"
    with_tta = _figures(tta)
    for name, value in _figures(metrics).items():
        yield f"{name.replace('_', ' '):<23}{value:>9.4f}  {with_tta[name]:>9.4f}"
    if "gained" in tta:
        gained = counted(tta["gained"], "wrong answer becomes", "wrong answers become")
        yield f"{gained} right, and {counted(tta['lost'], 'right one')} wrong."


def calibrate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=expanded, metavar="RUN", help="a finished run, such as runs/quickstart/001")
    moved_arguments(parser)
    help = "name no class where that keeps the error of all other answers below this share, with 95 %% confidence"
    parser.add_argument("--error", type=float, metavar="SHARE", help=help)
    help = "also give a set of classes that holds the image's own for this share of images"
    parser.add_argument("--coverage", type=float, metavar="SHARE", help=help)
    format_argument(parser)


def calibrate(arguments: Namespace) -> int:
    from tlkit.evaluation.calibrate import calibrate_run

    keep_freed_memory()
    with show_log():
        found = calibrate_run(arguments.run, error=arguments.error, coverage=arguments.coverage, overrides=arguments.overrides)
    if arguments.format == "json":
        print_json({**found.trust.to_json(), "test": found.measured})
        return 0
    for line in (*_abstain_lines(found), *_set_lines(found)):
        print_text(line)
    print_text(f"{arguments.run} has it in its model folder: predict, export and serve keep to it.")
    print_text(f"Its report.html is as it was; to write it again: tlkit report {arguments.run}")
    return 0


def _abstain_lines(found: "Calibrated") -> Iterator[str]:
    if (abstain := found.trust.abstain) is None:
        return
    others = "the others" if abstain.threshold else "all answers"
    if abstain.threshold:
        yield f"threshold {abstain.threshold:.4f}: no class is named where none is as likely"
    else:
        yield "no threshold is needed: the promise is kept without abstaining"
    new = ", in new groups too" if abstain.groups else ""
    yield f"  promised: the error of {others} stays below {abstain.error:g}, with {abstain.confidence:.0%} confidence{new}"
    images = f"{counted(abstain.pictures, 'image')}{_in_groups(abstain.groups)}"
    yield f"  validation: {abstain.coverage:.0%} of {images} get an answer"
    if test := found.measured.get("abstain"):
        wrong = counted(test["mistakes"], "mistake")
        yield f"  test: {test['coverage']:.0%} of {counted(test['pictures'], 'image')} get an answer, with {wrong} ({test['error']:.3f})"


def _set_lines(found: "Calibrated") -> Iterator[str]:
    from tlkit.evaluation.promises import coverage_range

    if (sets := found.trust.conformal) is None:
        return
    low, high = coverage_range(sets)
    yield f"sets: every class whose probability is at least {1 - sets.quantile:.4f}"
    by, units = f"{sets.pictures} of validation{_in_groups(sets.groups)}", "groups" if sets.groups else "images"
    yield f"  promised: the set holds the image's own class for {100 * sets.coverage:g}% of images, by {by}"
    yield f"  that is the mean of choices by as many {units}: of 95 % of them, the sets hold it for {low:.0%} to {high:.0%}"
    if test := found.measured.get("conformal"):
        of, share = counted(test["pictures"], "image"), percent(test["coverage"], test["pictures"])
        yield f"  test: it does for {share}% of {of}; a set has {test['mean_size']:.2f} classes on average"


def _in_groups(groups: int) -> str:
    return f" in {counted(groups, 'group')}" if groups else ""


def drift_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=expanded, metavar="RUN", help="a finished run, such as runs/quickstart/001")
    parser.add_argument("folder", type=expanded, metavar="FOLDER", help="new images, in the folder and below it; they need no labels")
    moved_arguments(parser)
    format_argument(parser)


def drift(arguments: Namespace) -> int:
    from tlkit.workflows.drift import drift as measure_drift

    keep_freed_memory()
    with show_log():
        found = measure_drift(arguments.run, arguments.folder, overrides=arguments.overrides)
    if arguments.format == "json":
        print_json(found)
    else:
        print_text("\n".join(_drift_lines(found)))
    return 0


def _drift_lines(found: dict[str, Any]) -> Iterator[str]:
    new, known = counted(found["pictures"], "image"), counted(found["compared_with"], "validation image")
    rate = f"{found['false_alarm_rate']:.0%} of such comparisons find a difference where there is none"
    difference = f"differ in {' and '.join(found['differs_in'])}" if found["differs"] else "don't differ by more than chance"
    yield f"{new} {difference}, compared with {known} ({rate})."
    if found["unreadable"]:
        yield f"{counted(found['unreadable'], 'file')} can't be read and {'is' if found['unreadable'] == 1 else 'are'} left out."
    yield f"\n{'compared':<14}{'p, adjusted':>12}  known -> new"
    for name, test in found["tests"].items():
        values = [f"{median['known']:.0f} -> {median['new']:.0f}"] if (median := test.get("median")) else []
        values += [f"{label} {share['known']:.0%} -> {share['new']:.0%}" for label, share in test.get("shares", {}).items()]
        yield f"{name:<14}{test['p_adjusted']:>12.3f}  {', '.join(values)}".rstrip()
    yield "\nleast like the training images:"
    for image in found["most_different"]:
        yield f"  {image['score']:.3f}  {image['path']}{'  unlike any training image' if image.get('unknown') else ''}"
