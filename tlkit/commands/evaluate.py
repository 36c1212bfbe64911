"""`tlkit evaluate`."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from typing import Any

from tlkit.commands.arguments import override_arguments
from tlkit.files import expanded
from tlkit.system import keep_freed_memory
from tlkit.terminal import counted, print_text, takes_unicode


def evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=expanded, metavar="RUN", help="a run folder, such as runs/quickstart/001")
    override_arguments(parser, "where the run's images are, if they have moved: data.source.folder=/photos, data.root=/downloads")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="the images to measure on (default: test)")
    help = "test-time augmentation: average over flip, crops (corners and centre), or N views augmented as in training"
    parser.add_argument("--tta", type=_tta, metavar="flip|crops|N", help=help)
    help = "cpu, cuda, cuda:1, mps, or auto: an accelerator if there is one (default: auto)"
    parser.add_argument("--device", default="auto", help=help)
    parser.add_argument("--format", choices=("table", "json"), default="table", help="default: table")


def _tta(text: str) -> Any:
    if text in ("flip", "crops"):
        return text
    if not text.isdigit() or not 1 <= int(text) <= 1000:
        raise ArgumentTypeError(f"'{text}' is not flip, crops or a number from 1 to 1000")
    return int(text)


def evaluate(arguments: Namespace) -> int:
    from tlkit.evaluation.evaluate import evaluate_run

    keep_freed_memory()
    metrics = evaluate_run(arguments.run, arguments.split, arguments.tta, device=arguments.device, overrides=arguments.overrides)
    if arguments.format == "json":
        import json

        print(json.dumps(metrics, indent=2, ensure_ascii=not takes_unicode()))
    else:
        print_text(metrics_table(metrics))
    return 0


def metrics_table(metrics: dict[str, Any]) -> str:
    """Return the metrics of one split, the primary metric first, then a row per class."""
    multilabel = "exact_match" in metrics
    figures = _figures(metrics)
    skipped = metrics.get("skipped", {})
    left_out = f"  ({len(skipped)} left out, since they can't be read)" if skipped else ""
    lines = [f"{'images':<23}{metrics['pictures']}{left_out}"]
    for name, value in figures.items():
        low, high = metrics.get(f"{name}_interval", (None, None))
        interval = f"  (95 % interval {low:.4f} to {high:.4f})" if low is not None else ""
        lines.append(f"{name.replace('_', ' '):<23}{value:.4f}{interval}")
    columns = ("precision", "recall", "f1", *(("average_precision", "threshold") if multilabel else ()))
    rows = {**metrics["per_class"], "mean": {**metrics["macro"], "average_precision": metrics.get("mean_average_precision")}}
    width = max(map(len, rows))
    lines += ["", f"{'class':<{width}}  images" + "".join(f"  {column.replace('_', ' '):>9}" for column in columns)]
    for name, row in rows.items():
        cells = (f"  {'' if row.get(column) is None else f'{row[column]:.4f}':>{max(9, len(column))}}" for column in columns)
        lines.append(f"{name:<{width}}  {row.get('pictures', ''):>8}{''.join(cells)}".rstrip())
    lines += [""] * bool(skipped) + [f"left out: {id_}: {reason}" for id_, reason in skipped.items()]
    return "\n".join([*lines, *_beside_tta(metrics)])


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


def _beside_tta(metrics: dict[str, Any]) -> Iterator[str]:
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
