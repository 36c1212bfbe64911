"""One run: setup, phases, model folder, evaluation, report."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.data.quality.audit import compare_splits
from tlkit.data.quality.on_bad import several_frames, write_skipped
from tlkit.data.samples import Samples
from tlkit.data.splits.holdout import hash_images, manifest_rows, split_warnings, write_manifest
from tlkit.models.model_folder import ModelCard, save_model
from tlkit.recipe.fields.data import Data
from tlkit.recipe.fields.model import CLASSICAL_HEADS
from tlkit.recipe.load import recipe_yaml
from tlkit.recipe.schema import Recipe
from tlkit.recipe.summary import recipe_notes, recipe_warnings
from tlkit.training.checkpointing.resume import check_same_images, newest_state
from tlkit.training.distributed.launch import check_same
from tlkit.training.distributed.signals import Stop
from tlkit.training.environment import write_environment
from tlkit.training.results import choose_thresholds, measure_shipped, metric_notes, split_summary, write_results
from tlkit.training.run_folder import (
    FIRST,
    is_main_process,
    remove_unfinished_files,
)
from tlkit.training.setup import Setup

if TYPE_CHECKING:
    from rich.console import Console

LOG = logging.getLogger("tlkit")

SMALL_LEAK = 0.005
"""Share of the held-out pictures up to which a leak is told without a warning: it is within the noise of the figures."""


def train_and_measure(recipe: Recipe, ready: Setup, run: Path, *, began: float, resume: bool, stop: Stop) -> Path:
    """One run, from the pictures and weights that are there to everything in its folder, which is returned.

    began: by time.perf_counter(), for the seconds of the whole run. resume: the folder may hold an unfinished run, which goes on.
    """
    from tlkit.training.callbacks import start_log
    from tlkit.training.checkpointing.files import remove_others
    from tlkit.training.closed_form.classical import fit_classical_head
    from tlkit.training.phases import BEFORE, train_phases
    from tlkit.training.wise_ft import ship_best_blend

    samples, weights, classifier, data = ready.samples, ready.weights, ready.classifier, ready.data
    first = is_main_process()
    goes_on = resume and (run / FIRST).is_file()
    console = start_log(run / "log.txt", quiet=not first)
    data.hashes = hash_images(samples)
    rows = manifest_rows(samples, data.hashes)
    check_same("The pictures are", (", ".join(f"{key} {value}" for key, value in row.items()) for row in rows))
    audit = write_run_header(recipe, ready, run, rows, goes_on=goes_on, stop=stop, console=console) if first else {}
    resumed = newest_state(run, len(recipe.phases)) if goes_on else None
    check_same("The checkpoint to go on from is", [resumed.checkpoint.file.name if resumed is not None else "none"])
    began -= resumed.seconds if resumed is not None else 0.0
    result = train_phases(
        classifier,
        data,
        recipe,
        ready.trained,
        device=ready.devices.here,
        run=run,
        console=console,
        stop=stop,
        began=began,
        resumed=resumed,
    )
    if not first:
        return run
    if recipe.model.head.kind in CLASSICAL_HEADS:
        head, number = recipe.model.head, len(recipe.phases)
        result = fit_classical_head(classifier, data, head, recipe.cache, result, phase=number, run=run, console=console)
    if recipe.wise_ft:
        result = replace(result, wise_ft=ship_best_blend(classifier, run / "checkpoints" / BEFORE, data, console=console))

    card = ModelCard(
        backbone=recipe.model.backbone,
        head=recipe.model.head,
        classes=samples.classes,
        preprocessing=data.preprocessing.to_json(),
        mean_picture=data.preprocessing.mean_picture,
        recipe=recipe.model_dump(mode="json", by_alias=True),
        weights={"origin": weights.origin, "sha256": weights.sha256},
        metrics={},
        task=recipe.task,
        thresholds=choose_thresholds(classifier, data, result.device) if recipe.task == "multilabel" else (),
    )
    save_model(run / "model", classifier, card)
    metrics = measure_shipped(run / "model", ready, recipe, result, console=console)
    metrics["audit"] = audit
    metrics["seconds"] = {**result.seconds, "total": round(time.perf_counter() - began, 3)}
    write_results(run, recipe, samples, weights, result, metrics)
    remove_others(run / "checkpoints", [])
    return run


def write_run_header(
    recipe: Recipe, ready: Setup, run: Path, rows: list[dict[str, str]], *, goes_on: bool, stop: Stop, console: "Console"
) -> dict[str, Any]:
    """Writes what is known before anything is trained, and tells it. Returns the audit's figures.

    rows: of split.csv. goes_on: the folder holds an unfinished run.
    """
    from tlkit.data.preview import draw_preview
    from tlkit.training.checkpointing.files import write_whole

    samples, data = ready.samples, ready.data
    if goes_on:
        remove_unfinished_files(run)
        check_same_images(run / "split.csv", rows)
    else:
        write_whole(run / FIRST, recipe_yaml(recipe).encode())
    stop.hint = stop.hint or f"go on with the same command, --out {run} and --resume"
    write_environment(run, recipe, ready.devices.here)
    LOG.info("%s: %s, %s, into %s", recipe.name, split_summary(samples), recipe.model.backbone, run)
    if (devices := ready.devices.total) > 1 and recipe.gradient_phases:
        LOG.info("%d devices: %d pictures a step, %d on each", devices, data.batch_size, data.batch_size // devices)
    for note in ready.notes:
        LOG.info("weights: %s", note)
    for line in (*recipe_notes(recipe), *metric_notes(recipe, samples).values()):
        LOG.info("%s", line)
    for warning in (*recipe_warnings(recipe), *split_warnings(samples)):
        LOG.warning("%s", warning)
    report_left_out(samples, recipe.data, run)
    write_manifest(samples, data.hashes, run / "split.csv")
    audit = check_leaks(ready, console)
    if not goes_on and data.augmentation is not None and recipe.gradient_phases:
        draw_preview(data.train_dataloader().images, samples.classes, recipe, run / "augmentations.png")
    return audit


def report_left_out(samples: Samples, data: Data, run: Path) -> None:
    """What was left out, listed in skipped.csv, and files of which a part is used."""
    if data.on_bad == "skip":
        write_skipped(samples, run / "skipped.csv")
        total = len(samples.samples) + len(samples.skipped)
        if samples.skipped:
            LOG.warning("%d of %d pictures can't be read and are left out: %s", len(samples.skipped), total, run / "skipped.csv")
        else:
            LOG.info("all pictures can be read: none is left out")
    if several := several_frames(samples.samples):
        LOG.info("the first frame or page is taken of %d files that have several, such as %s", len(several), several[0])


def check_leaks(ready: Setup, console: "Console") -> dict[str, Any]:
    """Compares the splits, for the log here and for the metrics and the report later."""
    from tlkit.data.progress import images_progress

    with images_progress(console, "comparing the splits", len(ready.samples.samples)) as advance:
        verdict = compare_splits(ready.samples, ready.data.hashes, ready.data.preprocessing, advance)
    leaked = verdict["leaked_exact"] + verdict["leaked_near"]
    grave = leaked > SMALL_LEAK * verdict["held_out"]
    example = f"; such as {' = '.join(image['id'] for image in verdict['examples'][0]['pictures'][:2])}" if leaked else ""
    LOG.log(logging.WARNING if grave else logging.INFO, "%s%s (%s)", verdict["verdict"], example, verdict["compared"])
    return verdict
