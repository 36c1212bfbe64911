"""What two runs left, compared: splits, epochs, metrics, weights. No torch, so that a folder which is no run is reported at once."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlkit.data.splits.run_source import check_single, inner_runs, not_a_run
from tlkit.errors import RunError, as_written
from tlkit.evaluation.primary_metric import recorded_primary_metric
from tlkit.evaluation.run_metrics import read_epochs, read_metrics
from tlkit.files import sha256_of
from tlkit.terminal import counted

SHARE_TOLERANCE, IMAGES_TOLERANCE, CHANCE_TOLERANCE = 0.02, 2, 0.7
LOSS_TOLERANCE, LOSS_SLACK = 0.05, 0.01
COMPARED_BY_NAME = ("accuracy", "loss", "primary_metric", "lead")
"""Keys of a split's metrics that are compared in lines of their own, or name one that is."""
BY_CALIBRATE = ("abstain", "conformal")
"""Keys that `tlkit calibrate` adds to a run that has ended: running its recipe again doesn't give them."""
TOLERANCES = (
    f"a share of right answers within {SHARE_TOLERANCE:.0%}, {IMAGES_TOLERANCE} images or {CHANCE_TOLERANCE:g} / sqrt(images),"
    f" whichever is most, a loss within {LOSS_TOLERANCE:.0%} + {LOSS_SLACK:g}; epochs and weights are shown but not judged"
)
"""On another kind of machine. The last digits of a sum differ there, and every step of training makes the difference larger.

Twice the largest difference, or more, between six ways to compute the same recipe on CPUs: see docs/security.md.
"""


@dataclass(frozen=True)
class Finding:
    """What was compared, for people. within: inside the tolerances; same: to the last bit."""

    what: str
    was: str
    now: str
    same: bool
    within: bool


def check_finished(run: Path) -> None:
    """Raise RunError unless this is the folder of a whole run, or of a whole cross-validation."""
    if run.name.startswith("fold_") and (run.parent / "fold_1").is_dir() and (run.parent / "recipe.yaml").is_file():
        raise RunError(f"{run} is one fold of a cross-validation, which is run again as a whole.\n  Name {run.parent}.")
    if any(inner.name.startswith("seed_") for inner in inner_runs(run)):
        check_single(run)
    missing = [name for name in ("recipe.yaml", "metrics.json", "report.html") if not (run / name).is_file()]
    if missing:
        what = "there is no such folder" if not run.is_dir() else f"it has no {', '.join(missing)}"
        raise not_a_run(run, f"is no finished run: {what}")
    if "soup" in read_metrics(run):
        raise RunError(f"{run} is an average by tlkit soup, and was not trained.\n  Reproduce the runs that went in, then average those.")
    for folder in run_folders(run):
        metrics = read_metrics(folder)
        with as_written(folder / "metrics.json"):
            list(_metrics(metrics, metrics))  # which reads every figure that will be compared
        read_epochs(folder), weights_sha256(folder)


def run_folders(run: Path) -> list[Path]:
    """Return the run itself, or the folders of its folds or seeds in order."""
    return inner_runs(run) or [run]


def compare(was: Path, now: Path) -> list[Finding]:
    """Compare two finished runs, in the order in which differences arise."""
    return [_splits(was, now), _epochs(was, now), *_metrics(read_metrics(was), read_metrics(now)), *_weights(was, now)]


def epochs_to_compare(run: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv, without their times, and without the rate: it is the recipe's, and older runs have another step's."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "lr")} for row in read_epochs(run)]


def weights_sha256(run: Path) -> dict[str, str]:
    """Return the sha256 of every weights file in the model folder."""
    with as_written(run / "model", OSError):
        found = {file.name: sha256_of(file) for file in sorted((run / "model").glob("*.safetensors"))}
    if not found:
        raise RunError(f"{run / 'model'} holds no weights.\n  Expected a run folder whose run has ended.")
    return found


def _splits(was: Path, now: Path) -> Finding:
    before, after = ((run / "split.csv").read_bytes() for run in (was, now))
    same = before == after
    return Finding("splits", _images(before), _images(after), same=same, within=same)


def _images(manifest: bytes) -> str:
    return counted(len(manifest.splitlines()) - 1, "image")


def _epochs(was: Path, now: Path) -> Finding:
    """Compare the rows of metrics.csv; name the first value that differs. A column that only later versions have is left out."""
    before, after = epochs_to_compare(was), epochs_to_compare(now)
    for first, second in zip(before, after, strict=False):
        for key in first:
            if first[key] != second.get(key):
                place = f"metrics.csv, phase {first['phase']}, epoch {first['epoch']}, {key}"
                return Finding(place, first[key], second.get(key, "nothing"), same=False, within=True)
    return Finding("metrics.csv", counted(len(before), "row"), counted(len(after), "row"), same=len(before) == len(after), within=True)


def _metrics(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare the primary metric, accuracy and loss of each split within tolerances, and all its other metrics for equality."""
    for split in ("val", "test"):
        before, after = was.get(split), now.get(split)
        if before is None and after is None:
            continue
        if before is None or after is None:
            words = ("measured", "not there") if before else ("not there", "measured")
            yield Finding(split, words[0], words[1], same=False, within=False)
            continue
        for metric in dict.fromkeys((recorded_primary_metric(before), "accuracy", "loss")):
            first, second = before[metric], after.get(metric)
            within = second is not None and abs(first - second) <= _tolerance(metric, first, before["pictures"])
            now_label = "not there" if second is None else f"{second:.6g}"
            yield Finding(f"{split} {metric.replace('_', ' ')}", f"{first:.6g}", now_label, same=first == second, within=within)
        before = {key: value for key, value in _without_reasons(before).items() if key in after or key not in BY_CALIBRATE}
        after = _without_reasons(after)
        others = sorted(key for key in {**before, **after} if before.get(key) != after.get(key) and key not in COMPARED_BY_NAME)
        if others:
            yield Finding(f"{split}: others", "", f"{', '.join(others)} differ", same=False, within=True)


def _without_reasons(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return a split's metrics without the texts that say why a figure isn't there: earlier versions have none."""
    kept = dict(measured)
    for key, value in measured.items():
        if isinstance(value, dict) and isinstance(value.get("reason"), str):  # a class may be called so too
            kept[key] = {name: figure for name, figure in value.items() if name != "reason"}
    return {key: value for key, value in kept.items() if value != {}}


def _tolerance(metric: str, value: float, images: int) -> float:
    if metric == "loss":
        return LOSS_TOLERANCE * abs(value) + LOSS_SLACK
    return max(SHARE_TOLERANCE, IMAGES_TOLERANCE / images, CHANCE_TOLERANCE / math.sqrt(images))


def _weights(was: Path, now: Path) -> Iterator[Finding]:
    before, after = weights_sha256(was), weights_sha256(now)
    for name in {**before, **after}:
        first, second = before.get(name, "not there"), after.get(name, "not there")
        yield Finding(f"sha256 of {name}", first[:16], second[:16], same=first == second, within=True)


def first_beyond(findings: Sequence[Finding], *, to_the_bit: bool) -> Finding | None:
    """Return the first difference, in the order in which differences arise; None if there is none beyond the tolerances."""
    return next((finding for finding in findings if not (finding.same if to_the_bit else finding.within)), None)
