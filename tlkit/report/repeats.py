"""report.html of several folds or seeds: mean and range of what they measured, and a link to the page of each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os.path import relpath
from pathlib import Path
from typing import Any

from tlkit.data.splits.run_source import inner_runs
from tlkit.evaluation.primary_metric import intervals_of, named_primary_metric, recorded_primary_metric
from tlkit.evaluation.run_metrics import epoch_rows, read_metrics
from tlkit.files import read_facts, sha256_of, write_atomically
from tlkit.recipe.load import recipe_yaml
from tlkit.recipe.schema import Recipe
from tlkit.report.charts import repeat_curves
from tlkit.report.report import HARDEST_CLASSES, MATRIX_CLASSES, MOST_ROWS, completed_best
from tlkit.report.templates import images_like, template


@dataclass(frozen=True)
class RepeatRun:
    """One fold or seed. folder: its name. best_epoch: `2 of phase 1`; empty where the head was fitted without epochs."""

    folder: str
    metrics: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    best_epoch: str

    @property
    def number(self) -> int:
        return int(self.folder.partition("_")[2])


@dataclass(frozen=True)
class RepeatsPage:
    """What the page says. over: split -> figure -> mean, min, max. class_figures: the columns of the table of classes."""

    kind: str
    runs: Sequence[RepeatRun]
    over: Mapping[str, Mapping[str, Any]]
    class_figures: Sequence[str]
    recipe_yaml: str
    origins: Mapping[str, str]
    sha256: Mapping[str, str]
    versions: Mapping[str, Any]


def write_repeats_report(run: Path, recipe: Recipe, *, file: Path | None = None) -> None:
    """Write the page on all folds or seeds, from what is in the run folder. file: if it is another than the run's report.html."""
    summary = read_metrics(run)
    summary |= named_primary_metric(recorded_primary_metric(summary))
    folders = measured_runs(run, summary)
    kind, runs = folders[0].name.partition("_")[0], [_read(folder) for folder in folders]
    split = "test" if "test" in runs[0].metrics else "val"
    measured = [each.metrics[split] for each in runs]
    figures = ("precision", "recall", "f1", *(["average_precision"] if "exact_match" in measured[0] else []))
    classes = list(_classes(measured, figures))
    by_f1 = sorted((row for row in classes if row["f1"]), key=lambda row: float(row["f1"]["mean"]))
    numbers = [found["pictures"] for found in measured]
    weights = {f"{folder.name}/{name}": folder / name for folder in folders for name in ("model/model.safetensors", "split.csv")}
    page = RepeatsPage(
        kind,
        runs,
        summary[f"over_{kind}s"],
        figures,
        recipe_yaml(recipe),
        origins=read_facts(folders[0] / "origin.json").get("values", {}),
        sha256={name: sha256_of(place) for name, place in weights.items() if place.is_file()},
        versions=read_facts(folders[0] / "environment.json").get("versions", {}),
    )
    html = template("repeats.html").render(
        page=page,
        name=recipe.name,
        summary=summary,
        split=split,
        n=min(numbers),
        of_mean=partial(_of_mean, runs=runs),
        intervals_of=intervals_of,
        images=(min(numbers), max(numbers)),
        weakest=by_f1[0] if by_f1 and by_f1[0]["f1"] != by_f1[-1]["f1"] else None,
        links={folder.name: Path(relpath(folder / "report.html", (file or run / "report.html").parent)).as_posix() for folder in folders},
        curves=repeat_curves([(f"{kind} {each.number}", each.rows) for each in runs], primary_metric=summary["primary_metric"]),
        classes=classes,
        hardest=by_f1[:HARDEST_CLASSES] if len(classes) > MATRIX_CLASSES else [],
        all_classes=classes if len(classes) <= MOST_ROWS else [],
    )
    write_atomically(file or run / "report.html", html)


def measured_runs(run: Path, summary: Mapping[str, Any]) -> list[Path]:
    """Return the folders of the folds or seeds that a summary is of: after `--seeds 3`, `--seeds 2 --resume` leaves one out."""
    return inner_runs(run)[: summary.get("seeds", summary.get("folds"))]


def _of_mean(split: str, found: Mapping[str, Any], runs: Sequence[RepeatRun]) -> float:
    """Return how many images a mean over runs carries the digits of. found: mean, min, max and, of seeds, the interval of the mean."""
    if "interval" in found and found["min"] < found["max"]:
        return images_like(found["interval"])
    numbers = [run.metrics[split]["pictures"] for run in runs]
    # Each fold validates on images of its own, all are tested on the same.
    return float(sum(numbers) if split == "val" else min(numbers))


def _read(folder: Path) -> RepeatRun:
    metrics = read_metrics(folder)
    best = completed_best(metrics["best"])
    return RepeatRun(folder.name, metrics, epoch_rows(folder), "" if best["fitted_by"] else f"{best['epoch']} of phase {best['phase']}")


def _classes(measured: Sequence[Mapping[str, Any]], figures: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield of each class its name, the fewest and most images of it, and mean, low and high of each figure; None of one without images."""
    for name in measured[0]["per_class"]:
        rows = [found["per_class"][name] for found in measured if name in found["per_class"]]
        images, seen = [row["pictures"] for row in rows], [row for row in rows if row["pictures"]]
        found = {key: _spread([float(row[key]) for row in seen]) for key in figures}
        yield {"name": name, "images": (min(images), max(images)), **found}


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    return {"mean": sum(values) / len(values), "low": min(values), "high": max(values)} if values else None
