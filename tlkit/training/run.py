"""One run: setup, phases, model folder, evaluation, report."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.data.quality.leak_report import compare_splits
from tlkit.data.quality.on_bad import several_frames, write_skipped
from tlkit.data.quality.value_range import range_warning
from tlkit.data.samples import Samples
from tlkit.data.splits.holdout import hash_images, manifest_rows, share_warnings, split_warnings, write_manifest
from tlkit.data.splits.run_source import write_origin
from tlkit.errors import TrainingError
from tlkit.evaluation.fit_trust import TrustOptions
from tlkit.files import remove_unfinished, write_atomically
from tlkit.models.image_sizes import border_warning
from tlkit.models.model_folder import ModelCard, write_model_folder
from tlkit.models.weights.state_files import not_finite
from tlkit.recipe.fields.data import Data, LeakCheck
from tlkit.recipe.fields.model import CLASSICAL_HEADS
from tlkit.recipe.load import recipe_yaml
from tlkit.recipe.schema import Recipe
from tlkit.recipe.summary import precision_warning, recipe_notes, recipe_warnings
from tlkit.terminal import counted
from tlkit.training.checkpointing.resume import check_same_images, newest_state
from tlkit.training.context import RunContext
from tlkit.training.distributed.launch import broadcast_from_main, check_same
from tlkit.training.distributed.ranks import is_main_process
from tlkit.training.distributed.signals import Stop
from tlkit.training.outputs.environment import write_environment
from tlkit.training.outputs.log import log_to_file, silent
from tlkit.training.outputs.run_folder import RECIPE_FILE
from tlkit.training.outputs.trained import read_trained, remove_trained, write_trained
from tlkit.training.results import choose_thresholds, measure_shipped, metric_notes, split_summary, write_results
from tlkit.training.setup import Setup

if TYPE_CHECKING:
    from rich.console import Console

    from tlkit.training.phases import Trained

LOG = logging.getLogger("tlkit")

SMALL_LEAK = 0.005
"""Share of the held-out images up to which a leak is logged without a warning: it is within the noise of the figures."""


def train_and_measure(recipe: Recipe, setup: Setup, folder: Path, *, began: float, resume: bool, stop: Stop) -> Path:
    """Run from the images and weights that are there to everything in the run's folder, which is returned.

    began: by time.perf_counter(), for the seconds of the whole run. resume: the folder may hold an unfinished run, which goes on.
    """
    from tlkit.data.progress import progress_console

    first = is_main_process()
    context = RunContext(folder, progress_console(quiet=not first), stop, began)
    with log_to_file(folder / "log.txt") if first else silent(), stop.resume_hint_logged():
        _train_and_measure(recipe, setup, context, resume=resume)
    return folder


def _train_and_measure(recipe: Recipe, setup: Setup, context: RunContext, *, resume: bool) -> None:
    from tlkit.training.batch_size.out_of_memory import memory_explained
    from tlkit.training.phases import Training, train_phases

    goes_on = resume and (context.folder / RECIPE_FILE).is_file()
    rows = _hash_and_compare(setup)
    audit = write_run_header(recipe, setup, context, rows, goes_on=goes_on) if is_main_process() else {}
    if goes_on and (saved := broadcast_from_main(lambda: read_trained(context.folder, setup.devices.here))):
        trained, seconds = saved
        context = replace(context, began=context.began - seconds)
    else:
        context = _resumed(context, len(recipe.phases)) if goes_on else context
        check_same("The checkpoint to resume from is", [context.resumed.checkpoint.file.name if context.resumed else "none"])
        with recipe.located(), memory_explained(setup.data.batch_size, recipe_yaml(recipe)):
            trained = train_phases(Training.begin(setup, recipe.trainer.checkpoint_every, context))
        if is_main_process():
            trained = _finished_head(recipe, setup, context, trained)
            if found := not_finite(setup.classifier.state_dict()):
                raise TrainingError(f"The trained network would answer NaN, so it is not shipped: {found}.")
            write_model_folder(context.folder / "model", setup.classifier, _model_card(recipe, setup, trained))
            write_trained(context.folder, trained, seconds=context.seconds)
    if is_main_process():
        _measure(recipe, setup, context, trained, audit)


def _hash_and_compare(setup: Setup) -> list[dict[str, str]]:
    """Return the rows of split.csv. Raises DataError if another process of the run has other images."""
    setup.data.hashes = hash_images(setup.samples)
    rows = manifest_rows(setup.samples, setup.data.hashes)
    check_same("The images are", (", ".join(f"{key} {value}" for key, value in row.items()) for row in rows))
    return rows


def _resumed(context: RunContext, phases: int) -> RunContext:
    """Return the context of a run that goes on from its newest checkpoint. phases: how many the recipe has."""
    resumed = newest_state(context.folder, phases)
    return replace(context, resumed=resumed, began=context.began - resumed.seconds) if resumed else context


def _finished_head(recipe: Recipe, setup: Setup, context: RunContext, trained: "Trained") -> "Trained":
    """Fit what is fitted after the phases: a head by scikit-learn, or the blend of the weights before and after fine-tuning."""
    from tlkit.training.closed_form.classical import fit_classical_head
    from tlkit.training.phases import BEFORE
    from tlkit.training.wise_ft import ship_best_blend

    if recipe.model.head.kind in CLASSICAL_HEADS:
        trained = fit_classical_head(setup, recipe.model.head, trained, phase=len(recipe.phases) + 1, context=context)
    if recipe.wise_ft:
        blend = ship_best_blend(setup.classifier, context.checkpoints / BEFORE, setup.data, console=context.console)
        trained = replace(trained, wise_ft=blend)
    return trained


def _measure(recipe: Recipe, setup: Setup, context: RunContext, trained: "Trained", audit: dict[str, Any]) -> None:
    """Measure what the model folder holds, and write metrics, curves and report."""
    from tlkit.training.checkpointing.files import remove_others

    folder = context.folder
    try:
        options = TrustOptions(recipe.abstain, recipe.unknown)
        metrics, seen = measure_shipped(folder / "model", setup, trained, recipe=recipe, options=options, console=context.console)
    except Exception:
        how = f"{context.stop.resume_hint}; or: tlkit evaluate {folder}"
        LOG.error("the model in %s is trained and complete, but measuring it failed. To measure it again, %s", folder / "model", how)
        raise
    metrics["audit"] = audit
    metrics["seconds"] = {**trained.seconds, "total": round(context.seconds, 3)}
    write_results(folder, recipe, setup, trained, metrics, seen)
    remove_others(context.checkpoints, [])
    remove_trained(folder)


def _model_card(recipe: Recipe, setup: Setup, trained: "Trained") -> ModelCard:
    preprocessing = setup.data.preprocessing
    return ModelCard(
        backbone=recipe.model.backbone,
        features=recipe.model.features,
        head=recipe.model.head,
        classes=setup.samples.classes,
        preprocessing=preprocessing.to_json(),
        mean_picture=preprocessing.mean_picture,
        recipe=recipe.model_dump(mode="json", by_alias=True),
        weights={"origin": setup.weights.origin, "sha256": setup.weights.sha256},
        metrics={},
        task=recipe.task,
        thresholds=choose_thresholds(setup.classifier, setup.data, trained.device) if recipe.task == "multilabel" else (),
    )


def write_run_header(recipe: Recipe, setup: Setup, context: RunContext, rows: list[dict[str, str]], *, goes_on: bool) -> dict[str, Any]:
    """Write what is known before anything is trained, and log it. Returns the audit's figures.

    rows: of split.csv. goes_on: the folder holds an unfinished run.
    """
    from tlkit.data.preview import draw_preview

    samples, data, folder = setup.samples, setup.data, context.folder
    if goes_on:
        remove_unfinished(folder)  # never whole, and as large as the network
        check_same_images(folder / "split.csv", rows, left_out={skipped.sample.id for skipped in samples.skipped})
    else:
        write_atomically(folder / RECIPE_FILE, recipe_yaml(recipe))
    context.stop.resume_hint = context.stop.resume_hint or f"resume with the same command, --out {folder} and --resume"
    write_origin(folder, recipe.origins())
    write_environment(folder, recipe.place_of(""), setup.devices.here)
    log_header(recipe, setup, folder)
    report_left_out(samples, recipe.data, folder)
    write_manifest(rows, folder / "split.csv")
    audit = check_leaks(setup, recipe.data.leak_check, context.console)
    if not goes_on and data.augmentation is not None and recipe.gradient_phases:
        draw_preview(data.train_dataloader().images, samples.classes, recipe, folder / "augmentations.png")
    return audit


def log_header(recipe: Recipe, setup: Setup, folder: Path) -> None:
    samples, batch_size = setup.samples, setup.data.batch_size
    LOG.info("%s: %s, %s, into %s", recipe.name, split_summary(samples), recipe.model.backbone, folder)
    if (devices := setup.devices.total) > 1 and recipe.gradient_phases:
        LOG.info("%d devices: %s a step, %d on each", devices, counted(batch_size, "image"), batch_size // devices)
    for note in setup.notes:
        LOG.info("weights: %s", note)
    for line in (*recipe_notes(recipe), *metric_notes(recipe.imbalance, samples).values()):
        LOG.info("%s", line)
    border = border_warning(recipe.model.backbone, setup.classifier.backbone, recipe.data.image_size)
    precision = precision_warning(recipe, setup.devices.here.type)
    of_splits = (*share_warnings(samples, recipe.data), *split_warnings(samples))
    for warning in (*([border] if border else []), *precision, *recipe_warnings(recipe), *of_splits):
        LOG.warning("%s", warning)


def report_left_out(samples: Samples, data: Data, run: Path) -> None:
    """Report what was left out, listed in skipped.csv, and files of which only a part is used."""
    if data.on_bad == "skip":
        write_skipped(samples, run / "skipped.csv")
        total = len(samples.samples) + len(samples.skipped)
        if samples.skipped:
            are = "is" if len(samples.skipped) == 1 else "are"
            LOG.warning("%d of %d images can't be read and %s left out: %s", len(samples.skipped), total, are, run / "skipped.csv")
        else:
            LOG.info("all images can be read: none is left out")
    if warning := range_warning([sample.image for sample in samples.of("train")], data):
        LOG.warning("%s", warning)
    if several := several_frames(samples.samples):
        files = counted(len(several), "file that has several, ", "files that have several, such as ")
        LOG.info("the first frame or page is taken of %s%s", files, several[0])


def check_leaks(setup: Setup, how: LeakCheck, console: "Console") -> dict[str, Any]:
    """Compare the splits. Returns the leak report, which is logged here, and is in the metrics and the report later."""
    from tlkit.data.progress import progress

    with progress(console, "comparing the splits", len(setup.samples.samples)) as advance:
        report = compare_splits(setup.samples, setup.data.hashes, setup.data.preprocessing, advance, how=how)
    leaked = (report["leaked_exact"] or 0) + (report["leaked_near"] or 0)
    grave = leaked > SMALL_LEAK * report["held_out"]
    example = f"; such as {' = '.join(image['id'] for image in report['examples'][0]['pictures'][:2])}" if leaked else ""
    LOG.log(logging.WARNING if grave else logging.INFO, "%s%s (%s)", report["verdict"], example, report["compared"])
    return report
