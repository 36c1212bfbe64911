"""The images of a run that has ended, in the splits that it trained with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tlkit.data.quality.on_bad import log_warnings
from tlkit.data.samples import LABEL_SEPARATOR, Sample, Samples, Skipped
from tlkit.data.sources.read import read_source
from tlkit.data.splits.holdout import hash_images, read_manifest
from tlkit.data.splits.run_source import check_single, not_a_run, overrides_from_start, recipe_of_run, where_else
from tlkit.errors import DataError, expected_one_of
from tlkit.files import expanded
from tlkit.recipe.schema import Recipe, Task


def samples_of_run(run: Path, classes: tuple[str, ...], overrides: Sequence[str] = ()) -> Samples:
    """Return a run's images as split.csv has them. With its `on_bad: skip`, images that are gone are in `skipped`.

    They are read where the recipe says, from the folder of now or else from the one in which the run was started.
    overrides: `KEY=VALUE` of the recipe, such as data.source.folder=DIR, in place of both.
    Raises RunError if this is no run folder, DataError if images are gone or the classes aren't the model's.
    """
    check_run_folder(run)
    recipe, rows = recipe_of_run(run, overrides), read_manifest(run / "split.csv")
    from_start = [] if overrides else [change for change in overrides_from_start(run, recipe) if change.startswith("data.")]
    try:
        try:
            source = _source(recipe, rows)
        except DataError:
            if not from_start:
                raise
            source = _source(recipe_of_run(run, from_start), rows)
    except DataError as error:
        raise DataError(f"{error}\n  {where_else(run, recipe)}") from error
    log_warnings(source)
    return _as_split(source, rows, run / "split.csv", classes)


def _source(recipe: Recipe, rows: Sequence[Mapping[str, str]]) -> Samples:
    """Return the images of the recipe's source. Raises DataError if it is missing, or one of the rows is not in it."""
    skips = recipe.data.on_bad == "skip"
    samples = read_source(recipe.data.source, expanded(recipe.data.root), recipe.task, keep_missing=skips)
    missing = [] if skips else sorted({row["id"] for row in rows} - {sample.id for sample in samples.samples})
    if missing:
        number = f"{len(missing)} of the run's {len(rows)} images {'is' if len(missing) == 1 else 'are'}"
        raise DataError(f"{number} no longer in the data source. The first: {missing[0]}")
    return samples


def check_run_folder(run: Path) -> None:
    """Raise RunError if there is no split.csv."""
    if not (run / "split.csv").is_file():
        check_single(run)
        raise not_a_run(run, "is not a run folder: it has no split.csv" if run.exists() else "does not exist")


def changed_images(run: Path, samples: Samples, split: str) -> list[str]:
    """Return the ids of a split's images whose content isn't that of the run's image of this name, by the sha256 in split.csv."""
    recorded = {row["id"]: row["sha256"] for row in read_manifest(run / "split.csv")}
    hashes = hash_images(replace(samples, samples=samples.of(split)))
    return [id_ for id_, found in hashes.items() if found != recorded[id_]]


def _as_split(samples: Samples, rows: Sequence[Mapping[str, str]], manifest: Path, classes: tuple[str, ...]) -> Samples:
    """Return the source's images in the splits that the run trained with. rows: of the manifest."""
    by_id = {sample.id: sample for sample in samples.samples}
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


def samples_without_images(run: Path, classes: tuple[str, ...], task: Task) -> Samples:
    """Return a run's samples as split.csv has them, where the images themselves can't be found."""
    number = {name: label for label, name in enumerate(classes)}
    rows = read_manifest(run / "split.csv")
    labels = (tuple(number[name] for name in _names(row["class"], task)) for row in rows)
    samples = (Sample(row["id"], Path(row["id"]), of, row["split"], row.get("group") or None) for row, of in zip(rows, labels, strict=True))
    return Samples(classes, tuple(samples), task)


def _names(cell: str, task: Task) -> list[str]:
    """Return the classes in a cell of split.csv."""
    return [name for name in cell.split(LABEL_SEPARATOR) if name] if task == "multilabel" else [cell]
