"""k-fold cross-validation: the page once for each fold, and the mean and range of what the folds measured."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlkit.evaluation.primary_metric import named_primary_metric, recorded_primary_metric
from tlkit.evaluation.report import write_folds_report
from tlkit.files import write_atomically, write_json
from tlkit.recipe.load import recipe_yaml
from tlkit.recipe.schema import Recipe
from tlkit.system import is_command_line
from tlkit.terminal import print_panel
from tlkit.training.distributed.launch import broadcast_from_main, local_main_process_first, start_processes
from tlkit.training.distributed.ranks import is_main_process
from tlkit.training.distributed.signals import Stop
from tlkit.training.log import log_to_file
from tlkit.training.run import train_and_measure
from tlkit.training.run_folder import FIRST, is_finished, make_fold_folders, make_run_folder
from tlkit.training.setup import prepare

LOG = logging.getLogger("tlkit")

Metrics = Mapping[str, Any]


def finetune_folds(recipe: Recipe, out: Path | None, *, resume: bool, stop: Stop) -> Path:
    """A whole run in `fold_1` to `fold_k` of the run folder that is returned, and what they say together in its metrics and report.

    Raises what a run raises, for the first fold before the folder is made. With `resume`, folds that are done stay as they are.
    """
    began = time.perf_counter()
    folds = recipe.data.folds or 0
    with local_main_process_first():
        setup = prepare(recipe, fold=1)

    if recipe.gradient_phases:
        start_processes(recipe.trainer, recipe_yaml(recipe))
    run = broadcast_from_main(lambda: make_run_folder(recipe.name, out, resume=resume))
    stop.resume_hint = f"go on with the same command, --out {run} and --resume"
    if is_main_process():
        write_atomically(run / FIRST, recipe_yaml(recipe))
    folders = make_fold_folders(run, folds, resume=resume)
    for fold, folder in enumerate(folders, 1):
        started = time.perf_counter()
        if resume and is_finished(folder):
            continue
        if fold > 1:
            setup = prepare(recipe, fold=fold)
        train_and_measure(recipe, setup, folder, began=started, resume=resume, stop=stop)
    if not is_main_process():
        return run
    each = [json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in folders]
    summary = summarize(each)
    summary["seconds"] = {f"fold {i}": metrics["seconds"]["total"] for i, metrics in enumerate(each, 1)}
    summary["seconds"]["total"] = round(time.perf_counter() - began, 3)
    write_json(run / "metrics.json", summary)
    write_folds_report(run / "report.html", name=recipe.name, summary=summary, recipe_yaml=recipe_yaml(recipe))
    with log_to_file(run / "log.txt"):
        LOG.info("%d folds done in %.0f s", folds, summary["seconds"]["total"])
        for split, figures in summary["over_folds"].items():
            for figure, found in figures.items():
                LOG.info("%s %s: mean %.3f, range %.3f to %.3f", split, figure.replace("_", " "), found["mean"], found["min"], found["max"])
    if is_command_line():
        print_folds(run, summary)
    return run


def summarize(each: Sequence[Metrics]) -> dict[str, Any]:
    """The folds' metrics.json together. test and val: means over the folds, under the names that a single run's metrics have.

    over_folds: split -> figure -> mean, min, max and the folds' own, of accuracy and of the primary metric.
    """
    # Where classes are just about uneven enough, folds may differ in their primary metric: the stricter one is then that of all.
    primary_metric = next((name for name in map(recorded_primary_metric, each) if name != "accuracy"), "accuracy")
    splits = [split for split in ("test", "val") if split in each[0]]
    figures = dict.fromkeys((primary_metric, "accuracy"))
    over_folds = {split: {figure: _spread([metrics[split][figure] for metrics in each]) for figure in figures} for split in splits}
    return {
        **{
            split: {**named_primary_metric(primary_metric), **{figure: over_folds[split][figure]["mean"] for figure in figures}}
            for split in splits
        },
        **named_primary_metric(primary_metric),
        "folds": len(each),
        "over_folds": over_folds,
        "pictures": [metrics["pictures"] for metrics in each],
        **({"limited_from": each[0]["limited_from"]} if "limited_from" in each[0] else {}),
    }


def _spread(values: list[float]) -> dict[str, Any]:
    return {"mean": sum(values) / len(values), "min": min(values), "max": max(values), "folds": values}


def print_folds(run: Path, summary: Metrics) -> None:
    """Print the end of a cross-validation on one screen."""
    from rich.markup import escape

    rows = [
        (
            f"{split} {figure.replace('_', ' ')}",
            f"[bold]{found['mean']:.3f}[/bold]  (mean of {summary['folds']} folds; {found['min']:.3f} to {found['max']:.3f})",
        )
        for split, figures in summary["over_folds"].items()
        for figure, found in figures.items()
    ]
    rows.append(("runs", escape(f"{run / 'fold_1'} to fold_{summary['folds']}")))
    rows.append(("report", escape(str(run / "report.html"))))
    rows.append(("to ship", "train once more without data.folds: these models say how good that one will be"))
    print_panel(str(run), rows)
