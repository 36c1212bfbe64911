"""The figure that chooses the best epoch, as results name it."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from tlkit.data.samples import LARGEST_FOLD, Samples
from tlkit.terminal import counted

PrimaryMetric = Literal["accuracy", "balanced_accuracy", "mean_average_precision"]
"""The figure that chooses the best epoch and stands first in every result."""


def primary_metric_of(samples: Samples) -> PrimaryMetric:
    """Return the metric that chooses the best epoch.

    Mean average precision for multilabel: it needs no threshold, and those are chosen after training.

    For one label per image, accuracy, or balanced accuracy (the mean of the classes' recalls) if classes differ more than five-fold.
    """
    if samples.task == "multilabel":
        return "mean_average_precision"
    counts = samples.training_counts()
    return "balanced_accuracy" if max(counts) > LARGEST_FOLD * min(counts) else "accuracy"


def metric_label(primary_metric: PrimaryMetric) -> str:
    return primary_metric.replace("_", " ")


def named_primary_metric(primary_metric: str) -> dict[str, str]:
    """Return what results name it under. `lead`, its only name in earlier versions, stays for one more."""
    return {"primary_metric": primary_metric, "lead": primary_metric}


def intervals_of(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the 95 % intervals of a split's metrics; those of an earlier version have one of the accuracy, or of exact matches, alone."""
    few = {name: measured[f"{name}_interval"] for name in ("accuracy", "exact_match") if f"{name}_interval" in measured}
    macro_f1 = {"macro_f1": measured["intervals"]["macro"]["f1"]} if "intervals" in measured else {}
    return {**few, **macro_f1, **measured.get("intervals", {})}


def images_of(measured: Mapping[str, Any]) -> str:
    """Return `1,000 images`, or `1,000 images in 10 groups`: what the intervals of a split's metrics are about."""
    groups = f" in {counted(measured['groups'], 'group')}" if "groups" in measured else ""
    return f"{counted(measured['pictures'], 'image')}{groups}"


def recorded_primary_metric(metrics: Mapping[str, Any]) -> str:
    """Return the primary metric that results name, those of earlier versions too. Raises KeyError or ValueError if there is none."""
    name = str(metrics["lead" if "lead" in metrics and "primary_metric" not in metrics else "primary_metric"])
    if name not in get_args(PrimaryMetric):
        raise ValueError(f"the primary metric '{name}' is none of {', '.join(get_args(PrimaryMetric))}.")
    return name
