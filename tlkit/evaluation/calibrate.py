"""`tlkit calibrate RUN`: promises of a finished run's answers, chosen on its validation images and put into its model folder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tlkit.data.samples import groups_of
from tlkit.data.splits.holdout import read_manifest
from tlkit.data.splits.manifest import check_run_folder
from tlkit.errors import DataError, RunError
from tlkit.evaluation.calibration import fit_calibration, why_uncalibrated
from tlkit.evaluation.evaluate import open_split
from tlkit.evaluation.fit_trust import add_promises
from tlkit.evaluation.promises import measure_promises
from tlkit.evaluation.run_metrics import read_metrics
from tlkit.files import write_json
from tlkit.models.inference.trust import Trust
from tlkit.models.model_folder import find_model_folder, read_card, update_metrics, update_trust


@dataclass(frozen=True)
class Calibrated:
    """trust: what the model folder says now. measured: what the promises came to on the test split; empty without one."""

    trust: Trust
    measured: dict[str, Any]


def calibrate_run(run: Path, *, error: float | None, coverage: float | None, overrides: Sequence[str] = ()) -> Calibrated:
    """Choose the threshold and the sets that are asked for, and write them into the run's model folder and metrics.json.

    Raises RunError, and changes nothing, if this is no finished run, if its model gives no probabilities, or if a promise can't be kept.
    """
    splits = _check(run, error, coverage)
    opened = open_split(run, "val", overrides=overrides)
    validation = opened.answers("val")
    trust = opened.card.trust
    if trust.calibration is None:  # a run of an earlier version
        trust = replace(trust, calibration=fit_calibration(validation, task=opened.card.task, head=opened.card.head))
    groups = groups_of(opened.samples.of("val"))
    promised = add_promises(trust, validation, error=error, coverage=coverage, groups=groups)
    if promised.reasons:
        fix = f"Ask for less, or train with more validation {'groups' if groups else 'images'}: data.validation."
        raise RunError("\n".join([*promised.reasons.values(), f"  {fix}"]))
    measured = {}
    if "test" in splits:
        test = open_split(run, "test", overrides=overrides).answers("test")
        measured = measure_promises(promised.trust, test.logits, test.labels.numpy())
    _write(run, promised.trust, measured)
    return Calibrated(promised.trust, measured)


def _check(run: Path, error: float | None, coverage: float | None) -> set[str]:
    """Return the splits that the run has images in."""
    if error is None and coverage is None:
        raise RunError("tlkit calibrate needs to know what to promise.\n  Add --error 0.02, --coverage 0.95, or both.")
    for option, value in (("--error", error), ("--coverage", coverage)):
        if value is not None and not 0 < value < 1:
            raise RunError(f"{option} {value:g} is not a share between 0 and 1.\n  Expected one such as {option} 0.05.")
    check_run_folder(run)
    card = read_card(find_model_folder(run))
    read_metrics(run)
    if why := why_uncalibrated(card.task, card.head):
        raise RunError(f"{run} can't be calibrated. {why}")
    splits = {row["split"] for row in read_manifest(run / "split.csv")}
    if "val" not in splits:
        raise DataError(f"{run / 'split.csv'} has no validation images, and only those can keep a promise.")
    return splits


def _write(run: Path, trust: Trust, measured: dict[str, Any]) -> None:
    folder = find_model_folder(run)
    update_trust(folder, trust)
    metrics = read_metrics(run)
    if measured:
        metrics["test"] |= measured
        write_json(run / "metrics.json", metrics)
        update_metrics(folder, metrics)
