"""`tlkit compare` of runs of several seeds: whether one recipe is better than another by more than what the seed decides."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tlkit.data.splits.manifest import check_run_folder
from tlkit.data.splits.run_source import inner_runs
from tlkit.errors import RunError, as_written
from tlkit.evaluation.run_metrics import read_metrics
from tlkit.evaluation.two_samples import holm
from tlkit.recipe.differences import recipe_differences
from tlkit.recipe.load import load_recipe
from tlkit.search.compare import Split, check_same_images, common_metric, held_out, result_in_words
from tlkit.terminal import counted


@dataclass(frozen=True)
class RecipeComparison:
    """A recipe against the first one. differences: of the metric, this run's less the first's, for each seed.

    low, high: the 95 % interval of their mean. p: corrected by Holm where several are compared.
    """

    baseline: Path
    run: Path
    differences: list[float]
    low: float
    high: float
    p: float

    @property
    def difference(self) -> float:
        return float(np.mean(self.differences))

    @property
    def better(self) -> int:
        """Return on how many seeds this recipe is better."""
        return sum(each > 0 for each in self.differences)

    @property
    def interval_note(self) -> str:
        return "" if self.high > self.low else "no interval: each seed has the same difference"

    @property
    def verdict(self) -> str:
        return result_in_words(self.difference, self.p, f"over {counted(len(self.differences), 'seed')}")


@dataclass(frozen=True)
class ComparedRecipes:
    """Runs of the same seeds. values: the metric of each run, for each seed. images: of the split, for each seed."""

    runs: list[Path]
    seeds: list[int]
    split: Split
    metric: str
    values: list[list[float]]
    images: list[int]
    comparisons: list[RecipeComparison]
    differences: dict[str, list[Any]]

    def as_json(self) -> dict[str, Any]:
        """Return plain values, under the names that a comparison of two trained models has."""
        each = [
            {
                "baseline": str(one.baseline),
                "run": str(one.run),
                "n": len(self.seeds),
                "difference": one.difference,
                "interval": [one.low, one.high],
                "interval_note": one.interval_note,
                "p": one.p,
                "better": one.better,
                "verdict": one.verdict,
            }
            for one in self.comparisons
        ]
        return {
            "metric": self.metric,
            "split": self.split,
            "test": "paired t-test over seeds",
            "seeds": self.seeds,
            "runs": [
                {"run": str(run), self.metric: float(np.mean(values)), "seeds": values}
                for run, values in zip(self.runs, self.values, strict=True)
            ],
            **each[0],
            "comparisons": each,
            "recipes": self.differences,
        }


def are_seeds(runs: Sequence[Path]) -> bool:
    """Return whether the runs are all of several seeds. Raises RunError if only some are, or one is no run."""
    several = [bool(found) and found[0].name.startswith("seed_") for found in map(inner_runs, runs)]
    if any(several) and not all(several):
        one, other = runs[several.index(True)], runs[several.index(False)]
        check_run_folder(other)
        fix = f"Name {one} and another run of --seeds, or one of its seeds, {inner_runs(one)[0]}, and {other}."
        raise RunError(f"{one} is a run of several seeds, and {other} is not: they can't be compared.\n  {fix}")
    return all(several)


def compare_recipes(runs: Sequence[Path]) -> ComparedRecipes:
    """Compare each recipe with the first, by the primary metric of the same seeds, whose held-out images are the same too.

    Raises RunError unless all runs have the same seeds, and on each the same images to be measured on.
    """
    seeds = [[int(folder.name.partition("_")[2]) for folder in inner_runs(run)] for run in runs]
    for run, of_run in zip(runs[1:], seeds[1:], strict=True):
        if of_run != seeds[0]:
            fix = "Train the missing ones: the same command with --seeds, --out and --resume."
            raise RunError(f"{runs[0]} has the seeds {_list(seeds[0])}, and {run} {_list(of_run)}.\n  {fix}")
    metric, found = common_metric(runs), [read_metrics(run) for run in runs]
    splits, images = [], []
    for seed in seeds[0]:
        folders = [run / f"seed_{seed}" for run in runs]
        split, (first, *others) = held_out(folders)
        for folder, other in zip(folders[1:], others, strict=True):
            check_same_images(split, folders[0], first, folder, other)
        splits.append(split)
        images.append(len(first))
    values = [_values(run, each, splits[0], metric, len(images)) for run, each in zip(runs, found, strict=True)]
    comparisons = []
    for run, measured in zip(runs[1:], values[1:], strict=True):
        differences = [now - was for was, now in zip(values[0], measured, strict=True)]
        comparisons.append(RecipeComparison(runs[0], run, differences, *paired_t(differences)))
    corrected = holm([one.p for one in comparisons])
    comparisons = [replace(one, p=p) for one, p in zip(comparisons, corrected, strict=True)]
    recipes = recipe_differences([load_recipe(run / "recipe.yaml") for run in runs])
    return ComparedRecipes(list(runs), seeds[0], splits[0], metric, values, images, comparisons, recipes)


def paired_t(differences: Sequence[float]) -> tuple[float, float, float]:
    """Return low and high of the 95 % interval of the mean difference, and the two-sided p-value, by Student's t.

    Where all differences are equal there is no interval, and p is that of the sign test, 2 / 2^n: they are equal since images are few, not
    because a further seed is certain to have the same.
    """
    from scipy.stats import ttest_1samp

    if np.ptp(differences) < 1e-12:
        return differences[0], differences[0], 2 * 0.5 ** len(differences) if abs(differences[0]) > 1e-12 else 1.0
    result = ttest_1samp(differences, 0.0)
    interval = result.confidence_interval(0.95)
    return float(interval.low), float(interval.high), float(result.pvalue)


def _values(run: Path, metrics: dict[str, Any], split: Split, metric: str, number: int) -> list[float]:
    with as_written(run / "metrics.json"):
        values = [float(value) for value in metrics["over_seeds"][split][metric]["seeds"]]
        if len(values) != number:
            raise ValueError(f"over_seeds has {counted(len(values), 'seed')}, and the folder {number}")
    return values


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
