"""`tlkit compare RUN RUN...`: whether a difference between runs is more than chance, on the test images that they share.

Without test images, on the validation images that they share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tlkit.data.splits.holdout import read_manifest
from tlkit.data.splits.manifest import check_run_folder
from tlkit.errors import RunError, as_written
from tlkit.evaluation.evaluate import answers_on
from tlkit.evaluation.predictions import PREDICTIONS
from tlkit.evaluation.primary_metric import metric_label, recorded_primary_metric
from tlkit.evaluation.run_metrics import read_metrics
from tlkit.evaluation.two_samples import holm
from tlkit.recipe.differences import recipe_differences
from tlkit.recipe.load import load_recipe
from tlkit.search.paired import effective_number, mcnemar_mid_p, paired_interval, randomization_p
from tlkit.terminal import counted

Split = Literal["test", "val"]
Rows = Mapping[str, Mapping[str, str]]
"""The rows of a run's split.csv by id, of one split."""

SIGNIFICANT = 0.05
BOOTSTRAP_NEEDS = 100
"""Images or groups, about: from there on the interval held the true difference in 94 to 97 % of simulated pairs. docs/comparing.md."""
SEED = 0
"""Of the resamples: the same runs give the same interval each time."""
TESTS = {
    "accuracy": "McNemar's test, mid-p",
    "exact_match": "McNemar's test, mid-p",
    "balanced_accuracy": "randomization test",
    "groups": "randomization test over groups",
}


def result_in_words(difference: float, p: float, among: str) -> str:
    """Return a result in words. among: what the figures are of, `at n=1,000`."""
    p_label = f"p={p:.2g}" if p >= 0.001 else "p<0.001"
    if p >= SIGNIFICANT:
        return f"not distinguishable {among} ({p_label})"
    points = f"{100 * abs(difference):.1f}"
    return f"{'better' if difference > 0 else 'worse'} by {points} {'point' if points == '1.0' else 'points'} {among} ({p_label})"


@dataclass(frozen=True)
class Comparison:
    """A run against the first one. difference, low, high: of the metric, this run's less the first's; low to high is 95 %.

    gained, lost: images that only this run, and only the first, classifies correctly. p: corrected by Holm where several are compared.
    """

    baseline: Path
    run: Path
    n: int
    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p: float

    @property
    def interval_note(self) -> str:
        """Say so where no resamples differ: the runs agree, and the bootstrap doesn't say how sure the difference is. Empty elsewhere."""
        return "" if self.high - self.low > 1e-12 else "no interval: each resample has the same difference"

    @property
    def verdict(self) -> str:
        return result_in_words(self.difference, self.p, f"at n={self.n:,}")


@dataclass(frozen=True)
class Compared:
    """Runs on the same images of a split. values: each run's metric. test: how p was found. differences: of the recipes, key -> values.

    effective: as many images, or groups, as all of them would be if they counted alike.
    """

    runs: list[Path]
    split: Split
    metric: str
    test: str
    values: list[float]
    comparisons: list[Comparison]
    differences: dict[str, list[Any]]
    effective: float

    @property
    def drawn(self) -> str:
        """Say what the bootstrap draws."""
        if self.test == TESTS["groups"]:
            return f"groups of {self.split} images"
        return f"the {self.split} images{' of each class' if self.metric == 'balanced_accuracy' else ''}"

    @property
    def remark(self) -> str:
        """Say that the interval is too narrow, where the images are too few for a bootstrap; empty elsewhere."""
        if self.effective >= BOOTSTRAP_NEEDS:
            return ""
        what = counted(round(self.effective), "group" if self.test == TESTS["groups"] else "image")
        what = f"classes so small or uneven that they are worth {what}" if self.metric == "balanced_accuracy" else what
        return f"With {what}, expect the interval to be too narrow: a bootstrap needs about {BOOTSTRAP_NEEDS}. p is not affected."

    def as_json(self) -> dict[str, Any]:
        """Return plain values; the first comparison's stand at the top too, where two runs are compared they are all there is."""
        each = [
            {
                "baseline": str(one.baseline),
                "run": str(one.run),
                "n": one.n,
                "difference": one.difference,
                "interval": [one.low, one.high],
                "interval_note": one.interval_note,
                "p": one.p,
                "gained": one.gained,
                "lost": one.lost,
                "verdict": one.verdict,
            }
            for one in self.comparisons
        ]
        runs = [{"run": str(run), self.metric: value} for run, value in zip(self.runs, self.values, strict=True)]
        return {
            "metric": self.metric,
            "split": self.split,
            "test": self.test,
            "runs": runs,
            **each[0],
            "comparisons": each,
            "recipes": self.differences,
        }


def compare_runs(runs: Sequence[Path]) -> Compared:
    """Compare each run with the first by the primary metric.

    Accuracy by McNemar's test; balanced accuracy, and images in groups, by a randomization test; intervals by a paired bootstrap.
    Multilabel runs are compared by the share of images with every label right, since mean average precision belongs to no single image.
    Runs none of which has test images are compared on their validation images.
    Raises RunError unless all runs have the same of these images with the same labels, and were chosen by the same metric.
    """
    for run in runs:
        check_run_folder(run)
    recipes = [load_recipe(run / "recipe.yaml") for run in runs]
    metric = common_metric(runs)
    metric = "exact_match" if metric == "mean_average_precision" else metric
    split, (first, *others) = held_out(runs)
    for run, other in zip(runs[1:], others, strict=True):
        check_same_images(split, runs[0], first, run, other)
    answers = [_right(run, split, first) for run in runs]
    labels = [row["class"] for row in first.values()]
    groups = [row["group"] or f"id {id_}" for id_, row in first.items()]
    has_groups = any(row["group"] for row in first.values())
    weights = _weights(labels, metric)
    strata = labels if metric == "balanced_accuracy" else [""] * len(labels)
    comparisons = []
    for run, right in zip(runs[1:], answers[1:], strict=True):
        difference = right.astype(int) - answers[0].astype(int)
        gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
        arguments: Any = (difference, weights, strata, groups if has_groups else None)
        exact = metric != "balanced_accuracy" and not has_groups
        p = mcnemar_mid_p(gained, lost) if exact else randomization_p(*arguments, seed=SEED)
        low, high = paired_interval(*arguments, seed=SEED)
        comparisons.append(Comparison(runs[0], run, len(labels), float(difference @ weights), low, high, gained, lost, p))
    corrected = holm([one.p for one in comparisons])
    comparisons = [replace(one, p=p) for one, p in zip(comparisons, corrected, strict=True)]
    values = [_metric(right, np.array(labels), metric) for right in answers]
    test, effective = TESTS["groups" if has_groups else metric], effective_number(weights, groups if has_groups else None)
    return Compared(list(runs), split, metric, test, values, comparisons, recipe_differences(recipes), effective)


def common_metric(runs: Sequence[Path]) -> str:
    """Return the primary metric of the runs. Raises RunError if they have different ones."""
    found = {}
    for run in runs:
        with as_written(run / "metrics.json"):
            found[str(run)] = recorded_primary_metric(read_metrics(run))
    metrics = dict.fromkeys(found.values())
    if len(metrics) > 1:
        each = ", ".join(f"{run} by {metric_label(metric)}" for run, metric in found.items())  # type: ignore[arg-type]
        raise RunError(f"These runs have different primary metrics: {each}.\n  Compare runs of one task, on data with the same counts.")
    return next(iter(metrics))


def held_out(runs: Sequence[Path]) -> tuple[Split, Sequence[Rows]]:
    """Return what the runs are compared on, and the rows of each run's split.csv: the test split, or validation where no run has one.

    Raises RunError if only some have one.
    """
    manifests = [read_manifest(run / "split.csv") for run in runs]
    tested = [{row["id"]: row for row in rows if row["split"] == "test"} for rows in manifests]
    if not any(tested):
        return "val", [{row["id"]: row for row in rows if row["split"] == "val"} for rows in manifests]
    for run, rows in zip(runs, tested, strict=True):
        if not rows:
            raise RunError(
                f"{run} has no test images, unlike {runs[0] if tested[0] else runs[-1]}.\n  Train it with a test split: data.test."
            )
    return "test", tested


def check_same_images(split: str, baseline: Path, first: Rows, run: Path, other: Rows) -> None:
    """Raise RunError unless both runs have the same images of the split: by id, bytes and label."""
    done = "tested" if split == "test" else "validated"
    common = [id_ for id_ in first if id_ in other]
    if len(common) < len(first) or len(common) < len(other):
        sizes = f"{len(first):,} and {len(other):,}, of which {counted(len(common), 'image')} in both"
        fix = (
            "Splits are drawn by `seed`: train both with the same `seed`, `data.limit` and source, or from a table or folders "
            "with splits of their own; docs/comparing.md says how to take those of an earlier run."
        )
        raise RunError(f"{baseline} and {run} were {done} on different images: {sizes}.\n  {fix}")
    for key, what in (("sha256", "bytes"), ("class", "a label")):
        differ = [id_ for id_ in common if first[id_][key] != other[id_][key]]
        if differ:
            raise RunError(
                f"{baseline} and {run} were {done} on images that differ: {counted(len(differ), 'image')} of {len(common):,} "
                f"had other {what}, the first {differ[0]}.\n  Train one of them again on the data of now.".replace("other a", "another")
            )


def _right(run: Path, split: Split, rows: Rows) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Return for each image of the split whether the run's answer is its class."""
    answers = {row["id"]: row["answer"] for row in answers_on(run, split)}
    missing = [id_ for id_ in rows if id_ not in answers]
    if missing:
        fix = f"Copy {run / PREDICTIONS[split]} again, or remove it: the model then answers again."
        raise RunError(f"{run}: {counted(len(missing), f'{split} image')} without an answer, the first {missing[0]}.\n  {fix}")
    return np.array([answers[id_] == row["class"] for id_, row in rows.items()])


def _metric(right: "np.ndarray[Any, np.dtype[np.bool_]]", labels: "np.ndarray[Any, np.dtype[np.str_]]", metric: str) -> float:
    """Return the metric; an accuracy by the division of metrics.json, so that no digit differs."""
    if metric != "balanced_accuracy":
        return float(right.mean())
    return float(np.mean([right[labels == name].mean() for name in np.unique(labels)]))


def _weights(labels: Sequence[str], metric: str) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Return what each image counts in the metric: alike, or each class alike."""
    if metric != "balanced_accuracy":
        return np.full(len(labels), 1 / len(labels))
    _, number, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.asarray(1 / (len(counts) * counts[number]))
