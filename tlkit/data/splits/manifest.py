"""The pictures of a run that has ended, in the splits that it trained with."""

from dataclasses import replace
from pathlib import Path

from tlkit.data.quality.on_bad import log_warnings
from tlkit.data.samples import LABEL_SEPARATOR, Sample, Samples, Skipped
from tlkit.data.sources.read import read_source
from tlkit.data.splits.holdout import read_manifest
from tlkit.errors import DataError, RunError, expected_one_of
from tlkit.recipe.load import load_recipe
from tlkit.recipe.schema import Task


def samples_of_run(run: Path, classes: tuple[str, ...]) -> Samples:
    """Return the samples as split.csv has them, from the source of the run's recipe. With `on_bad: skip`, missing ones are in `skipped`.

    Raises RunError if this is no run folder, DataError if pictures are gone or the classes aren't the model's.
    """
    check_run_folder(run)
    recipe = load_recipe(run / "recipe.yaml")
    skips = recipe.data.on_bad == "skip"
    source = read_source(recipe.data.source, Path(recipe.data.root), recipe.task, keep_missing=skips)
    log_warnings(source)
    return _as_split(source, run / "split.csv", classes, skips=skips)


def check_run_folder(run: Path) -> None:
    """Raises RunError where there is no split.csv."""
    if not (run / "split.csv").is_file():
        if (run / "fold_1").is_dir():
            raise RunError(f"{run} is a cross-validation, with a run for each fold.\n  Name one of them, such as {run / 'fold_1'}.")
        raise RunError(f"{run} is not a run folder: it has no split.csv. Expected one such as runs/quickstart/001.")


def _as_split(samples: Samples, manifest: Path, classes: tuple[str, ...], *, skips: bool) -> Samples:
    """The source's pictures in the splits that the run trained with."""
    by_id = {sample.id: sample for sample in samples.samples}
    rows = read_manifest(manifest)
    missing = [row for row in rows if row["id"] not in by_id]
    if missing and not skips:
        raise DataError(
            f"{len(missing)} pictures of {manifest} are no longer in the data source. The first: {missing[0]['id']}\n"
            "  Put them back, or evaluate on the machine that has them."
        )
    number = {name: label for label, name in enumerate(classes)}
    unknown = sorted({name for row in rows for name in _names(row["class"], samples.task)} - set(classes))
    if unknown:
        raise DataError(
            f"{manifest}: the class '{unknown[0]}' is not one of the model's. {expected_one_of(unknown[0], classes)}\n"
            "  Evaluate with the split.csv that the run has written."
        )
    samples_of_rows = [
        replace(
            by_id.get(row["id"], Sample(row["id"], Path(row["id"]), (), "")),
            labels=tuple(number[name] for name in _names(row["class"], samples.task)),
            split=row["split"],
        )
        for row in rows
    ]
    gone = tuple(Skipped(sample, "it is no longer in the data source") for sample in samples_of_rows if sample.id not in by_id)
    return Samples(classes, tuple(sample for sample in samples_of_rows if sample.id in by_id), samples.task, skipped=gone)


def _names(cell: str, task: Task) -> list[str]:
    """The classes in a cell of split.csv."""
    return [name for name in cell.split(LABEL_SEPARATOR) if name] if task == "multilabel" else [cell]
