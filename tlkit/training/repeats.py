"""Several runs of one recipe, one for each fold or seed, and the mean and range of what they measured."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tlkit.data.samples import Samples
from tlkit.errors import Fault, RecipeError
from tlkit.evaluation.intervals import mean_interval
from tlkit.evaluation.primary_metric import named_primary_metric, recorded_primary_metric
from tlkit.evaluation.run_metrics import read_metrics
from tlkit.files import write_atomically, write_json
from tlkit.recipe.load import recipe_yaml
from tlkit.recipe.schema import Recipe
from tlkit.report.repeats import write_repeats_report
from tlkit.system import is_command_line
from tlkit.terminal import print_panel, tlkit_command
from tlkit.training.distributed.launch import broadcast_from_main, local_main_process_first, start_processes
from tlkit.training.distributed.ranks import is_main_process
from tlkit.training.distributed.signals import Stop
from tlkit.training.outputs.log import SHOWN_OTHERWISE, log_to_file
from tlkit.training.outputs.run_folder import RECIPE_FILE, is_finished, make_folders, make_run_folder
from tlkit.training.results import predict_command
from tlkit.training.run import train_and_measure
from tlkit.training.setup import Setup, prepare

LOG = logging.getLogger("tlkit")

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Repeat:
    """One of the runs. number: of a fold, counted from 1, or the seed."""

    kind: Literal["fold", "seed"]
    number: int
    recipe: Recipe

    @property
    def folder(self) -> str:
        return f"{self.kind}_{self.number}"

    def prepare(self) -> Setup:
        return prepare(self.recipe, fold=self.number if self.kind == "fold" else 1)


def repeats_of(recipe: Recipe, seeds: int | None) -> list[Repeat]:
    """Return a run for each fold of the recipe, or for each of `seeds` seeds from the recipe's own on; empty for a single run.

    Raises RecipeError for both at once.
    """
    if seeds is not None and recipe.data.folds:
        problem = f"= {recipe.data.folds} can't be combined with --seeds {seeds}."
        with recipe.located():
            raise RecipeError([Fault("data.folds", problem, "Leave one out: --seeds alone, or data.folds alone.")])
    if seeds is not None:
        numbers = range(recipe.seed, recipe.seed + seeds)
        return [Repeat("seed", n, recipe.model_copy(update={"seed": n}).at_places_of(recipe)) for n in numbers]
    return [Repeat("fold", n, recipe) for n in range(1, (recipe.data.folds or 0) + 1)]


def lacks_seeds(run: Path, recipe: Recipe, seeds: int | None) -> bool:
    """Return whether a run of seeds has fewer of them than are wanted now."""
    there = [(run / repeat.folder).is_dir() for repeat in repeats_of(recipe, seeds) if repeat.kind == "seed"]
    return any(there) and not all(there)


def finetune_repeats(recipe: Recipe, repeats: Sequence[Repeat], out: Path | None, *, resume: bool, stop: Stop) -> Path:
    """Run each in a folder of its own, `fold_1` or `seed_0` and so on, of the run folder that is returned; then summarize them.

    Raises what a run raises, for the first one before the folder is made. With `resume`, runs that are finished stay as they are.
    """
    began = time.perf_counter()
    with local_main_process_first():
        setup = repeats[0].prepare()
    samples = setup.samples
    if recipe.gradient_phases:
        start_processes(recipe.trainer, recipe_yaml(recipe))
    run = broadcast_from_main(lambda: make_run_folder(recipe.name, out, resume=resume))
    stop.resume_hint = f"resume with the same command, --out {run} and --resume"
    if is_main_process():
        write_atomically(run / RECIPE_FILE, recipe_yaml(recipe))
    folders = make_folders(run, [repeat.folder for repeat in repeats], resume=resume)
    started, before = began, 0.0
    for repeat, folder in zip(repeats, folders, strict=True):
        if resume and is_finished(folder):
            before += read_metrics(folder)["seconds"]["total"]
            continue
        if repeat is not repeats[0]:
            started = time.perf_counter()
            setup = repeat.prepare()
        train_and_measure(repeat.recipe, setup, folder, began=started, resume=resume, stop=stop)
    if is_main_process():
        summary = _write_summary(run, recipe, repeats, seconds=before + time.perf_counter() - began)
        if is_command_line():
            print_repeats(run, repeats, summary, samples)
    return run


def _write_summary(run: Path, recipe: Recipe, repeats: Sequence[Repeat], *, seconds: float) -> Metrics:
    """Write the metrics and the report of several runs, and return the metrics. seconds: of all, with those of a run that was resumed."""
    kind = repeats[0].kind
    each = [read_metrics(run / repeat.folder) for repeat in repeats]
    summary = summarize(each, kind)
    summary["seconds"] = {f"{kind} {repeat.number}": metrics["seconds"]["total"] for repeat, metrics in zip(repeats, each, strict=True)}
    summary["seconds"]["total"] = round(seconds, 3)
    write_json(run / "metrics.json", summary)
    write_repeats_report(run, recipe)
    with log_to_file(run / "log.txt"):
        LOG.info("%d %ss done in %.0f s", len(repeats), kind, seconds)
        for split, figures in summary[f"over_{kind}s"].items():
            for figure, found in figures.items():
                words = (split, figure.replace("_", " "), found["mean"], found["min"], found["max"])
                LOG.info("%s %s: mean %.3f, range %.3f to %.3f", *words, extra=SHOWN_OTHERWISE)
    return summary


def summarize(each: Sequence[Metrics], kind: Literal["fold", "seed"]) -> dict[str, Any]:
    """Summarize the metrics of several runs. test and val: means, under the names that a single run's metrics have.

    over_folds or over_seeds: split -> figure -> mean, min, max and each run's own, of accuracy and of the primary metric. Over seeds also
    `interval`, the 95 % interval of the mean over seeds. Folds have none: they share training images, so that no estimate of their
    variance is unbiased (Bengio and Grandvalet 2004, https://www.jmlr.org/papers/v5/grandvalet04a.html).
    """
    # Where classes are just about uneven enough, runs may differ in their primary metric: the stricter one is then that of all.
    primary_metric = next((name for name in map(recorded_primary_metric, each) if name != "accuracy"), "accuracy")
    splits = [split for split in ("test", "val") if split in each[0]]
    figures = dict.fromkeys((primary_metric, "accuracy"))
    over = {split: {figure: _spread([metrics[split][figure] for metrics in each], kind) for figure in figures} for split in splits}
    return {
        **{
            split: {**named_primary_metric(primary_metric), **{figure: over[split][figure]["mean"] for figure in figures}}
            for split in splits
        },
        **named_primary_metric(primary_metric),
        f"{kind}s": len(each),
        f"over_{kind}s": over,
        "pictures": [metrics["pictures"] for metrics in each],
        **({"limited_from": each[0]["limited_from"]} if "limited_from" in each[0] else {}),
    }


def _spread(values: list[float], kind: Literal["fold", "seed"]) -> dict[str, Any]:
    interval = {"range": [min(values), max(values)], "interval": mean_interval(values)} if kind == "seed" else {}
    return {"mean": sum(values) / len(values), "min": min(values), "max": max(values), **interval, f"{kind}s": values}


def _spread_label(found: Mapping[str, Any], kind: Literal["fold", "seed"]) -> str:
    number = len(found[f"{kind}s"])
    if found["min"] == found["max"]:
        return f"all {number} {kind}s gave the same"
    interval = f"; 95 % interval of the mean {found['interval'][0]:.3f} to {found['interval'][1]:.3f}" if "interval" in found else ""
    return f"mean of {number} {kind}s; {found['min']:.3f} to {found['max']:.3f}{interval}"


def print_repeats(run: Path, repeats: Sequence[Repeat], summary: Metrics, samples: Samples) -> None:
    """Print the end of several runs on one screen. samples: of the first of them."""
    from rich.markup import escape

    kind = repeats[0].kind
    rows = []
    for split, figures in summary[f"over_{kind}s"].items():
        for figure, found in figures.items():
            rows.append((f"{split} {figure.replace('_', ' ')}", f"[bold]{found['mean']:.3f}[/bold]  ({_spread_label(found, kind)})"))
    rows.append(("runs", escape(f"{run / repeats[0].folder} to {repeats[-1].folder}")))
    rows.append(("report", escape(str(run / "report.html"))))
    if kind == "fold":
        rows.append(("to ship", "train once more without data.folds: the mean over folds estimates the accuracy of that model"))
        command = tlkit_command("finetune", str(run / RECIPE_FILE), "data.folds=null")
    else:
        command = predict_command(run / repeats[0].folder, samples.of("test") or samples.of("val"))
    print_panel(str(run), rows, [command])
