"""`tlkit report RUN`: the page of a run that has ended, written again; what its folder lacks is computed again."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tlkit.data.samples import Samples
from tlkit.data.splits.manifest import check_run_folder, samples_without_images
from tlkit.data.splits.run_source import inner_runs, recipe_of_run
from tlkit.errors import DataError, RunError, as_written
from tlkit.evaluation.intervals import multiclass_intervals
from tlkit.evaluation.predictions import PREDICTIONS, read_predictions
from tlkit.evaluation.primary_metric import named_primary_metric, recorded_primary_metric
from tlkit.evaluation.run_metrics import read_metrics
from tlkit.recipe.load import load_recipe
from tlkit.recipe.schema import Recipe
from tlkit.report.images import Row, SplitImages
from tlkit.report.kept import read_kept
from tlkit.report.repeats import measured_runs, write_repeats_report
from tlkit.report.report import completed_best, write_run_report
from tlkit.terminal import counted

LOG = logging.getLogger("tlkit")


def report_run(run: Path, *, file: Path | None = None, overrides: Sequence[str] = ()) -> Path:
    """Write the page of a run that has ended, of its folds or seeds, or of a soup, and return the file.

    overrides: `KEY=VALUE` of the data, where they have moved. Raises RunError for what is no finished run. Without the images the page
    has all but them, and says why.
    """
    from jinja2 import TemplateError

    with as_written(f"{run / 'metrics.json'}, or another file that the page is made of,", TemplateError):
        return _written(run, file or run / "report.html", overrides)


def _written(run: Path, file: Path, overrides: Sequence[str]) -> Path:
    """Write the page, and return its file."""
    if inner := inner_runs(run):
        if overrides:
            fix = f"Leave {overrides[0]} out. With it, the page of one of them is written: tlkit report {inner[0]} {overrides[0]}"
            raise RunError(f"The page of {run} is about its {inner[0].name.partition('_')[0]}s together, and needs no images.\n  {fix}")
        for each in measured_runs(run, read_metrics(run)):
            _ = read_metrics(each)  # says of one that hasn't ended how to resume it
        write_repeats_report(run, load_recipe(run / "recipe.yaml"), file=file)
        return file
    check_run_folder(run)
    metrics = read_metrics(run)
    recipe, split = recipe_of_run(run, overrides), "test" if "test" in metrics else "val"
    if "best" in metrics:  # a soup has no epochs
        metrics["best"] = completed_best(metrics["best"])
    metrics[split] = {**named_primary_metric(recorded_primary_metric(metrics[split])), **metrics[split]}
    answers = read_predictions(run, split, metrics[split]["per_class"]) if (run / PREDICTIONS[split]).is_file() else None
    kept = None if overrides or answers is None else read_kept(run, split)
    if kept is not None and answers is not None:
        LOG.info("answers, thumbnails and heat maps are those that the run has kept")
        facts, drawn = kept
        seen = SplitImages(answers, None, drawn=drawn)
        if "intervals" not in metrics[split]:
            samples = samples_without_images(run, tuple(metrics[split]["per_class"]), recipe.task)
            metrics[split] = _completed(metrics[split], seen.answers, samples)
    else:
        seen = _seen(run, split, answers, overrides)
        samples, origin = _samples_and_origin(run, recipe, seen)
        fold = metrics.get("fold")
        samples = replace(samples, source_size=metrics.get("limited_from", 0), fold=(fold["number"], fold["of"]) if fold else None)
        metrics[split] = _completed(metrics[split], seen.answers, samples)
        facts = _facts(recipe, samples, metrics, origin)
    write_run_report(run, recipe, metrics, facts=facts, seen=seen, file=file)
    return file


def _facts(recipe: Recipe, samples: Samples, metrics: Mapping[str, Any], weights_origin: str) -> dict[str, str]:
    from tlkit.training.results import run_facts  # imports torch and Lightning

    return run_facts(recipe, samples, metrics, weights_origin)


def _samples_and_origin(run: Path, recipe: Recipe, seen: SplitImages) -> tuple[Samples, str]:
    """Return all samples of the run, and where its weights came from."""
    from tlkit.models.model_folder import load_with_card

    card = seen.opened.card if seen.opened else load_with_card(run)[1]
    samples = seen.opened.samples if seen.opened else samples_without_images(run, card.classes, recipe.task)
    return samples, card.weights["origin"]


def _seen(run: Path, split: str, kept: list[dict[str, str]] | None, overrides: Sequence[str]) -> SplitImages:
    """Return the run's answers, kept or computed again, and its images."""
    from tlkit.evaluation.evaluate import open_split

    try:
        opened = open_split(run, split, overrides=overrides)
    except DataError as error:
        return SplitImages(kept or [], None, str(error).splitlines()[0])
    if kept is None:
        LOG.info("%s has no %s: %s answered again", run, PREDICTIONS[split], counted(len(opened.samples.of(split)), f"{split} image"))
    else:
        LOG.info("the answers are those of %s", run / PREDICTIONS[split])
    LOG.info("thumbnails and heat maps are made again")
    return SplitImages(opened.rows(split) if kept is None else kept, opened)


def _completed(measured: Mapping[str, Any], answers: Sequence[Row], samples: Samples) -> dict[str, Any]:
    """Return the metrics of a split with what an earlier version of tlkit didn't measure, where the answers give it."""
    if "intervals" in measured or not answers or samples.task == "multilabel":
        return dict(measured)
    LOG.info("%s has no intervals: they are computed from the answers", "metrics.json")
    number = {name: label for label, name in enumerate(samples.classes)}
    unit = {sample.id: sample.unit for sample in samples.samples if sample.group is not None}
    predicted, labels = ([number[row[key]] for row in answers] for key in ("answer", "label"))
    groups = [unit.get(row["id"], row["id"]) for row in answers] if unit else []
    return {**measured, "intervals": multiclass_intervals(predicted, labels, samples.classes, groups)}
