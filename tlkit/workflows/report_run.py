"""`tlkit report RUN`: the page of a run that has ended, written again; what its folder lacks is computed again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tlkit.data.samples import Samples
from tlkit.data.splits.manifest import check_run_folder, samples_without_images
from tlkit.data.splits.run_source import check_single, recipe_of_run
from tlkit.errors import DataError, RunError
from tlkit.evaluation.answers import split_answers
from tlkit.evaluation.evaluate import OpenSplit, open_split
from tlkit.evaluation.intervals import multiclass_intervals
from tlkit.evaluation.predictions import PREDICTIONS, prediction_rows, read_predictions
from tlkit.evaluation.primary_metric import named_primary_metric, recorded_primary_metric
from tlkit.models.model_folder import load_with_card
from tlkit.report.images import Row, SplitImages
from tlkit.report.report import write_run_report
from tlkit.training.results import run_facts


def report_run(run: Path, *, file: Path | None = None, overrides: Sequence[str] = ()) -> Path:
    """Write the page of a run that has ended, and return the file. overrides: `KEY=VALUE` of the data, where they have moved.

    Raises RunError for what is no finished run. Without the images the page has all but them, and says why.
    """
    check_single(run, what="its own report.html")
    check_run_folder(run)
    metrics = read_metrics(run)
    recipe, split = recipe_of_run(run, overrides), "test" if "test" in metrics else "val"
    seen = _seen(run, split, overrides)
    card = seen.opened.card if seen.opened else load_with_card(run)[1]
    samples = seen.opened.samples if seen.opened else samples_without_images(run, card.classes, recipe.task)
    fold = metrics.get("fold")
    samples = replace(samples, source_size=metrics.get("limited_from", 0), fold=(fold["number"], fold["of"]) if fold else None)
    metrics["best"] = _completed_best(metrics["best"])
    metrics[split] = _completed(metrics[split], seen.answers, samples)
    file = file or run / "report.html"
    facts = run_facts(recipe, samples, metrics, card.weights["origin"])
    write_run_report(run, recipe, metrics, facts=facts, seen=seen, file=file)
    return file


def read_metrics(run: Path) -> dict[str, Any]:
    try:
        found = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        fix = f"Finish it first: the last lines of {run / 'log.txt'} say how to resume."
        raise RunError(f"{run} has no metrics.json: the run was interrupted, or is still going on.\n  {fix}") from error
    except ValueError as error:
        raise RunError(f"{run / 'metrics.json'} can't be read: {error}\n  Copy the run folder again.") from error
    return dict(found)


def _completed_best(best: Mapping[str, Any]) -> dict[str, Any]:
    """Return the best epoch as today's runs have it: earlier versions counted from 0."""
    before = int(best["phase"] == 0 or best["epoch"] == 0)
    numbers = {key: best[key] + before for key in ("phase", "epoch")}
    return {"fitted_by": "", "train_conditions": [], **best, **numbers}


def _seen(run: Path, split: str, overrides: Sequence[str]) -> SplitImages:
    """Return the run's answers, kept or computed again, and its images."""
    kept = read_predictions(run) if split == "test" and (run / PREDICTIONS).is_file() else None
    try:
        opened = open_split(run, split, overrides=overrides)
    except DataError as error:
        return SplitImages(kept or [], None, str(error).splitlines()[0])
    return SplitImages(_answers(opened, split) if kept is None else kept, opened)


def _answers(opened: OpenSplit, split: str) -> list[dict[str, str]]:
    batch_size = opened.recipe.data.known_batch_size
    found = split_answers(opened.classifier, opened.samples, split, opened.preprocessing, batch_size=batch_size, features=False)
    return prediction_rows(found.logits, opened.samples.of(split), opened.card.classes, opened.card.thresholds)


def _completed(measured: Mapping[str, Any], answers: Sequence[Row], samples: Samples) -> dict[str, Any]:
    """Return the metrics of a split with what an earlier version of tlkit didn't measure, where the answers give it."""
    named = {**named_primary_metric(recorded_primary_metric(measured)), **measured}
    if "intervals" in measured or not answers or samples.task == "multilabel":
        return named
    number = {name: label for label, name in enumerate(samples.classes)}
    unit = {sample.id: sample.unit for sample in samples.samples if sample.group is not None}
    called, labels = ([number[row[key]] for row in answers] for key in ("answer", "label"))
    groups = [unit.get(row["id"], row["id"]) for row in answers] if unit else []
    return {**named, "intervals": multiclass_intervals(called, labels, samples.classes, groups)}
