"""The page: recipe -> pictures and weights -> classifier -> phases -> model folder -> measured results."""

import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.data.audit import compare_splits
from tlkit.data.on_bad import several_frames, write_skipped
from tlkit.data.samples import Samples
from tlkit.data.splits import hash_pictures, manifest_rows, split_warnings, write_manifest
from tlkit.models.checkpoint import ModelCard, save_model
from tlkit.recipe.fields.data import Data
from tlkit.recipe.fields.model import CLASSICAL_HEADS
from tlkit.recipe.load import recipe_yaml
from tlkit.recipe.schema import Recipe
from tlkit.recipe.summary import recipe_notes, recipe_warnings
from tlkit.training.batch_size import with_batch_size
from tlkit.training.ending import end_with_the_first, ending_together
from tlkit.training.environment import write_environment
from tlkit.training.processes import check_same, from_first, join_processes, one_a_machine_first, start_processes
from tlkit.training.ready import Ready, make_ready
from tlkit.training.results import choose_thresholds, counts_of, how_judged, measure_shipped, write_results
from tlkit.training.resume import check_same_pictures, newest_state, recipe_as_begun
from tlkit.training.run_folder import (
    FIRST,
    check_out,
    is_finished,
    is_first_process,
    make_run_folder,
    remove_unfinished_files,
    telling_of_a_full_disk,
)
from tlkit.training.scale_lr import with_scaled_lr
from tlkit.training.signals import Stop, heeding_signals

if TYPE_CHECKING:
    from rich.console import Console

LOG = logging.getLogger("tlkit")

SMALL_LEAK = 0.005
"""Share of the held-out pictures up to which a leak is told without a warning: it is within the noise of the figures."""


def finetune(recipe: Recipe, *, out: Path | None = None, resume: bool = False) -> Path:
    """Runs a recipe to its end and returns the run folder; with `data.folds` that holds a run folder for each fold.

    out: the folder to make; None takes the next free number under runs/NAME. resume: `out` may hold an unfinished run, which goes on.
    Raises TlkitError for what the user can mend, nearly always before the folder is made; Interrupted after Ctrl-C or a scheduler's signal.
    """
    began = time.perf_counter()
    end_with_the_first()
    with ending_together(), heeding_signals() as stop, telling_of_a_full_disk(stop):
        join_processes(recipe)
        check_out(out, resume=resume)
        recipe = with_scaled_lr(recipe)
        if resume and out is not None and from_first((out / FIRST).is_file):
            if from_first(lambda: is_finished(out)):
                if is_first_process():
                    print(f"{out}: this run is finished, and nothing is left to do.", file=sys.stderr)
                return out
            recipe = recipe_as_begun(out, recipe)
        recipe = with_batch_size(recipe)
        if recipe.data.folds:
            from tlkit.training.folds import finetune_folds

            return finetune_folds(recipe, out, resume=resume, stop=stop)
        with one_a_machine_first():
            ready = make_ready(recipe)
        start_processes(recipe)
        run = from_first(lambda: make_run_folder(recipe.name, out, resume=resume))
        return train_and_measure(recipe, ready, run, began=began, resume=resume, stop=stop)


def train_and_measure(recipe: Recipe, ready: Ready, run: Path, *, began: float, resume: bool, stop: Stop) -> Path:
    """One run, from the pictures and weights that are there to everything in its folder, which is returned.

    began: by time.perf_counter(), for the seconds of the whole run. resume: the folder may hold an unfinished run, which goes on.
    """
    from tlkit.training.callbacks import start_log
    from tlkit.training.checkpoint_files import remove_others
    from tlkit.training.classical import fit_classical_head
    from tlkit.training.phases import BEFORE, train_phases
    from tlkit.training.wise_ft import ship_best_blend

    samples, weights, classifier, data = ready.samples, ready.weights, ready.classifier, ready.data
    first = is_first_process()
    goes_on = resume and (run / FIRST).is_file()
    console = start_log(run / "log.txt", quiet=not first)
    data.hashes = hash_pictures(samples)
    rows = manifest_rows(samples, data.hashes)
    check_same("The pictures are", (", ".join(f"{key} {value}" for key, value in row.items()) for row in rows))
    audit = begin_folder(recipe, ready, run, rows, goes_on=goes_on, stop=stop, console=console) if first else {}
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


def begin_folder(
    recipe: Recipe, ready: Ready, run: Path, rows: list[dict[str, str]], *, goes_on: bool, stop: Stop, console: "Console"
) -> dict[str, Any]:
    """Writes what is known before anything is trained, and tells it. Returns the audit's figures.

    rows: of split.csv. goes_on: the folder holds an unfinished run.
    """
    from tlkit.training.checkpoint_files import write_whole
    from tlkit.training.preview import draw_preview

    samples, data = ready.samples, ready.data
    if goes_on:
        remove_unfinished_files(run)
        check_same_pictures(run / "split.csv", rows)
    else:
        write_whole(run / FIRST, recipe_yaml(recipe).encode())
    stop.hint = stop.hint or f"go on with the same command, --out {run} and --resume"
    write_environment(run, recipe, ready.devices.here)
    LOG.info("%s: %s, %s, into %s", recipe.name, counts_of(samples), recipe.model.backbone, run)
    if (devices := ready.devices.total) > 1 and recipe.gradient_phases:
        LOG.info("%d devices: %d pictures a step, %d on each", devices, data.batch_size, data.batch_size // devices)
    for note in ready.notes:
        LOG.info("weights: %s", note)
    for line in (*recipe_notes(recipe), *how_judged(recipe, samples).values()):
        LOG.info("%s", line)
    for warning in (*recipe_warnings(recipe), *split_warnings(samples)):
        LOG.warning("%s", warning)
    tell_of_files(samples, recipe.data, run)
    write_manifest(samples, data.hashes, run / "split.csv")
    audit = tell_of_leaks(ready, console)
    if not goes_on and data.augmentation is not None and recipe.gradient_phases:
        draw_preview(data.train_dataloader().pictures, samples.classes, recipe, run / "augmentations.png")
    return audit


def tell_of_files(samples: Samples, data: Data, run: Path) -> None:
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


def tell_of_leaks(ready: Ready, console: "Console") -> dict[str, Any]:
    """Compares the splits, for the log here and for the metrics and the report later."""
    from tlkit.data.progress import pictures_progress

    with pictures_progress(console, "comparing the splits", len(ready.samples.samples)) as advance:
        verdict = compare_splits(ready.samples, ready.data.hashes, ready.data.preprocessing, advance)
    leaked = verdict["leaked_exact"] + verdict["leaked_near"]
    grave = leaked > SMALL_LEAK * verdict["held_out"]
    example = f"; such as {' = '.join(picture['id'] for picture in verdict['examples'][0]['pictures'][:2])}" if leaked else ""
    LOG.log(logging.WARNING if grave else logging.INFO, "%s%s (%s)", verdict["verdict"], example, verdict["compared"])
    return verdict
