"""report.html: one page on a run, without outside resources, that can be sent by mail."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan, nan
from os.path import relpath
from pathlib import Path
from typing import Any

from PIL import Image

from tlkit.data.samples import LARGEST_FOLD
from tlkit.evaluation.intervals import Z, difference_interval
from tlkit.evaluation.primary_metric import intervals_of, recorded_primary_metric
from tlkit.evaluation.run_metrics import epoch_rows
from tlkit.files import read_facts, sha256_of, write_atomically
from tlkit.recipe.fields.phases import SolvedPhase
from tlkit.recipe.load import recipe_yaml
from tlkit.recipe.schema import Recipe
from tlkit.report.charts import curves, reliability, risk_coverage
from tlkit.report.images import PageImages, SplitImages, data_url, page_images
from tlkit.report.kept import keep
from tlkit.report.templates import decimals, percent, share_of, template
from tlkit.terminal import counted

MATRIX_CLASSES = 40
"""Up to so many classes the page has the whole confusion matrix, and one table of classes."""
FEW_CONFUSIONS, MANY_CONFUSIONS, HARDEST_CLASSES = 6, 30, 20
LARGE_GAP = 0.05
"""Between the accuracies of training and validation: more is called overfitting, where the images can prove it."""
MOST_ROWS = 5000
"""Rows of the table of all classes: the page stays below some megabytes."""
SHEET_PX = 760
RUNS_IN_EVERY_EPOCH = "its frozen part runs in every epoch"
"""What a run's log says, before the reason, of a phase whose activations aren't kept."""
NOT_MEASURED = "it was not measured in this run."
NONE_OF_A_SOUP = "an earlier version made this soup, and those of the runs were fitted to other weights. tlkit calibrate fits it to these."


@dataclass(frozen=True)
class RunPage:
    """What the page says. metrics: the content of metrics.json. rows: of metrics.csv, as numbers.

    facts: what was trained on what, label -> text, in the order to show. sheet: a data URL of augmented images.
    origins: key -> where the recipe has its value from, of those that aren't defaults. sha256: file -> digest.
    soup: the runs whose weights were averaged, and what that changed; empty for a run.
    """

    name: str
    metrics: Mapping[str, Any]
    facts: Mapping[str, Any]
    recipe_yaml: str
    phases: Sequence[Mapping[str, Any]] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    images: PageImages = field(default_factory=PageImages)
    sheet: str = ""
    origins: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    soup: Mapping[str, Any] = field(default_factory=dict)


def write_run_report(
    run: Path, recipe: Recipe, metrics: Mapping[str, Any], *, facts: Mapping[str, Any], seen: SplitImages, file: Path | None = None
) -> None:
    """Write the page of a run. metrics: the content of its metrics.json. file: if it is another than the run's report.html."""
    images = page_images(seen)
    if file in (None, run / "report.html") and seen.drawn is None:
        keep(run, "test" if metrics.get("test") else "val", facts, images)
    page = RunPage(
        recipe.name,
        metrics,
        facts,
        recipe_yaml(recipe),
        phases=() if "soup" in metrics else phase_rows(recipe, metrics, read_log(run)),
        rows=epoch_rows(run),
        images=images,
        sheet=_sheet(run / "augmentations.png"),
        origins=read_facts(run / "origin.json").get("values", {}),
        sha256={name: sha256_of(run / name) for name in ("model/model.safetensors", "split.csv") if (run / name).is_file()},
        versions=read_facts(run / "environment.json").get("versions", {}),
        soup=_soup(metrics, (file or run / "report.html").parent) if "soup" in metrics else {},
    )
    write_page(file or run / "report.html", page)


def write_page(file: Path, page: RunPage) -> None:
    metrics = page.metrics
    measured = metrics.get("test") or metrics["val"]
    primary_metric = measured.get("primary_metric", "accuracy")
    html = template("report.html").render(
        page=page,
        name=page.name,
        measured=measured,
        intervals=intervals_of(measured),
        multilabel="exact_match" in measured,
        measured_on="test" if metrics.get("test") else "validation",
        validation=metrics["val"],
        gap="" if page.soup else gap_note(metrics, page.phases),
        gain="" if page.soup else gain_note(page),
        weakest=_weakest(measured),
        best=metrics.get("best"),
        soup=page.soup,
        uneven=_is_uneven(measured),
        audit=metrics.get("audit"),
        facts=page.facts,
        recipe_yaml=page.recipe_yaml,
        curves=[] if page.soup else curves(page.rows, [row["name"] for row in page.phases], metrics["best"], primary_metric=primary_metric),
        calibration=_calibration(measured),
        no_calibration=(measured.get("calibration") or {}).get("reason") or (NONE_OF_A_SOUP if page.soup else NOT_MEASURED),
        cell_name=lambda i, j: f"cell-{i}-{j}",
        numbers={name: number for number, name in enumerate(measured["per_class"])},
        **_of_classes(measured),
    )
    write_atomically(file, html)  # a run that has it is finished: half of one, on a full disk, must not be there


def completed_best(best: Mapping[str, Any]) -> dict[str, Any]:
    """Return the best epoch as today's runs have it: earlier versions counted from 0."""
    before = int(best["phase"] == 0 or best["epoch"] == 0)
    numbers = {key: best[key] + before for key in ("phase", "epoch")}
    return {"fitted_by": "", "train_conditions": [], **best, **numbers}


def read_log(run: Path) -> str:
    try:
        return (run / "log.txt").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def phase_rows(recipe: Recipe, metrics: Mapping[str, Any], log: str) -> list[dict[str, Any]]:
    """Return what each phase trained, for how long and how fast.

    log: of the run, which says why nothing was kept of a frozen part; without it, that stays open.
    """
    rows = []
    seconds = [taken for name, taken in metrics["seconds"].items() if name.startswith("phase ")]
    for number, phase in enumerate(recipe.phases, 1):
        train = phase.train if isinstance(phase.train, str) else " ".join(f"{key} {value}" for key, value in dict(phase.train).items())
        epochs, lr = getattr(phase, "epochs", None), getattr(phase, "lr", None)
        taken = seconds[number - 1] if number <= len(seconds) else nan
        why = re.search(rf"phase {number}/\d+ .*{RUNS_IN_EVERY_EPOCH}: (.*)", log)
        kept = "off" if not recipe.cache.use else "its frozen part ran once" if log else ""
        rows.append(
            {
                "name": train,
                "epochs": epochs or "solved",
                "lr": f"{lr:g}" if lr else "",
                "seconds": f"{taken:.0f}" if taken == taken else "",
                "rate": f"{metrics['pictures']['train'] * (epochs or 1) / taken:.0f}" if taken and taken == taken else "",
                "decay_chosen": isinstance(phase, SolvedPhase) and phase.weight_decay is None,
                "cache": f"not kept: {why[1].strip()}" if why else "nothing is frozen" if train == "all" else kept,
            }
        )
    return rows


def _soup(metrics: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the runs that were tried, with a link from the folder to the page of each that is there, and the change on validation."""
    reports = ((step, Path(step["run"]) / "report.html") for step in metrics["soup"])
    steps = [{**step, "report": relpath(report, folder) if report.is_file() else ""} for step, report in reports]
    val, primary_metric = metrics["val"], recorded_primary_metric(metrics["val"])
    now, before, images = val[primary_metric], steps[0]["alone"], val["pictures"]
    members, change = sum(step["added"] for step in steps), ""
    if members > 1 and primary_metric == "accuracy":
        change = f" ({_points(now - before, difference_interval((now, images), (before, images)), images)})"
    return {"steps": steps, "members": members, "change": change}


def _points(change: float, interval: Sequence[float], images: float) -> str:
    return _change(100 * change, [100 * bound for bound in interval], decimals(images), " points")


def _change(change: float, interval: Sequence[float], digits: int, unit: str = "") -> str:
    low, high = interval
    return f"{change:+z.{digits}f}{unit}, 95 % interval {low:+z.{digits}f} to {high:+z.{digits}f}"


def _sheet(file: Path) -> str:
    """Return the sheet of augmented images, small."""
    if not file.is_file():
        return ""
    with Image.open(file) as sheet:
        small = sheet.convert("RGB")
        small.thumbnail((SHEET_PX, 10 * SHEET_PX))
        return data_url(small, quality=70)


def gain_note(page: RunPage) -> str:
    """Return what the later phases added to the frozen probe, on validation; empty where the run has not both."""
    probes = [number for number, phase in enumerate(page.phases, 1) if phase["name"] == "head"]
    metrics, val = page.metrics, page.metrics["val"]
    metric = str(val.get("primary_metric") or val.get("lead") or "accuracy")
    before = [row.get(f"val/{metric}", nan) for row in page.rows if row["phase"] in probes and row["phase"] < metrics["best"]["phase"]]
    # An earlier version's metrics.csv has accuracy alone.
    if not before or isnan(before[0]) or metrics["best"]["phase"] in probes or metrics["best"]["fitted_by"]:
        return ""
    images, probe, now = val["pictures"], max(before), val[metric]
    like = _images_behind(now, intervals_of(val)[metric]) if metric != "accuracy" else images
    low, high = difference_interval((now, like), (probe, like))
    is_share = metric != "mean_average_precision"
    old, new = (f"{percent(value, like)} %" if is_share else share_of(value, like) for value in (probe, now))
    change = _points(now - probe, (low, high), like) if is_share else _change(now - probe, (low, high), decimals(like) + 2)
    unproved = "" if low > 0 or high < 0 else ", which so few images can't tell from none"
    of = f"{metric.replace('_', ' ')} from {old} with a frozen backbone to {new} on {counted(images, 'validation image')}"
    return f"Fine-tuning took {of} ({change}{unproved})"


def _images_behind(share: float, interval: Sequence[float]) -> int:
    """Return of how many images a share has this interval by Wilson's formula: a mean over classes of different sizes has more spread.

    The bounds are the roots of (1 + Z^2/n) x^2 - (2 share + Z^2/n) x + share^2, whose product is share^2 / (1 + Z^2/n).
    """
    share, low, high = (share, *interval) if share >= 0.5 else (1 - share, 1 - interval[1], 1 - interval[0])
    return max(1, round(Z**2 / max(share**2 / (low * high) - 1, 1e-6)))


def _weakest(measured: Mapping[str, Any]) -> str:
    """Return the class with the lowest F1 of those that have images; empty where all have the same."""
    seen = {name: float(row["f1"]) for name, row in measured["per_class"].items() if row["pictures"]}
    return min(seen, key=seen.__getitem__) if len(set(seen.values())) > 1 else ""


def _calibration(measured: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the charts of how far probabilities can be believed; None where the run has none."""
    found = measured.get("calibration")
    if not found or "ece_before" not in found:  # there may be a reason in its place
        return None
    points = measured.get("risk_coverage") or []
    drawings = [reliability(found)] if found.get("bins_before") else []
    return {**found, "charts": [*drawings, *([risk_coverage(points)] if points else [])]}


def gap_note(metrics: Mapping[str, Any], phases: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return what the accuracies of training and validation say of each other; empty where they don't compare. phases: see `phase_rows`.

    A multilabel accuracy is a share of answers that aren't independent, a sampler draws classes as often as each other, and every training
    image is its own nearest neighbour.
    """
    best, val = metrics["best"], metrics["val"]
    conditions = best["train_conditions"]
    if "exact_match" in val or best["fitted_by"] == "nearest neighbours" or "drawn class by class" in conditions:
        return ""
    gap = best["train_accuracy"] - val["accuracy"]
    low, high = difference_interval((best["train_accuracy"], metrics["pictures"]["train"]), (val["accuracy"], val["pictures"]))
    points, *bounds = (percent(value, val["pictures"]) for value in (gap, low, high))
    interval = f"95 % interval {bounds[0]} to {bounds[1]}"
    if low <= 0 and (gap <= 0 or high <= LARGE_GAP):
        return f"no gap that would indicate overfitting ({points} points; {interval})."
    if low <= 0:
        return f"a gap of {points} points, which {counted(val['pictures'], 'validation image')} can't tell from none ({interval})."
    if gap <= LARGE_GAP:
        return f"a gap of {points} points ({interval})."
    chosen = best["fitted_by"] == "L-BFGS" and phases[best["phase"] - 1]["decay_chosen"]  # it is the best one already
    less = "More images" if chosen else _advice(best["fitted_by"], conditions)
    return f"a gap of {points} points ({interval}), which indicates overfitting. {less} may narrow it."


def _advice(fitted_by: str, conditions: Sequence[str]) -> str:
    if fitted_by:
        return f"A {'larger weight_decay' if fitted_by == 'L-BFGS' else 'smaller c'}, or more images,"
    augmentation = "more augmentation" if "augmented" in conditions else "augmentation"
    dropout = "more dropout" if "with dropout" in conditions else "dropout"
    return f"More images, {augmentation}, {dropout} or more weight decay"


def _is_uneven(measured: Mapping[str, Any]) -> bool:
    """Return whether classes differ as much in the images measured as makes balanced accuracy the primary metric in training."""
    counts = [row["pictures"] for row in measured["per_class"].values() if row["pictures"]]
    return bool(counts) and max(counts) > LARGEST_FOLD * min(counts)


def _of_classes(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of single classes: all of a few; of many the hardest ones, and the most frequent confusions."""
    classes = list(measured["per_class"])
    few = len(classes) <= MATRIX_CLASSES
    confusions, most = _confusions(measured), FEW_CONFUSIONS if few else MANY_CONFUSIONS
    seen = [name for name in classes if measured["per_class"][name]["pictures"]]
    return {
        "all_classes": classes if len(classes) <= MOST_ROWS else [],
        "hardest": [] if few else sorted(seen, key=lambda name: float(measured["per_class"][name]["f1"]))[:HARDEST_CLASSES],
        "confusions": confusions[:most],
        "confusions_left": len(confusions[most:]),
        "matrix": measured.get("confusion", []) if few else [],
        "listed": {(actual, called) for actual, called, _ in confusions[:most]},
    }


def _confusions(measured: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Return (true class, called, images) of all confusions, the most frequent first; of a multilabel split, none."""
    classes = list(measured["per_class"])
    table = ((i, j, count) for i, row in enumerate(measured.get("confusion", ())) for j, count in enumerate(row))
    cells = measured.get("confusion_cells", table)
    mistakes = [(classes[i], classes[j], count) for i, j, count in cells if i != j and count]
    return sorted(mistakes, key=lambda mistake: -mistake[2])
