"""How good is each way to transfer? The quickstart's images and weights, or others, one way after another, over several seeds.

    python -m tlkit.bench.ways --out runs/ways --seeds 5 data.image_size=96

Needs the extra `offline`, no network. A seed that has its metrics.json already is not run again, so an interrupted table goes on.
"""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from tlkit.recipe.load import load_recipe
from tlkit.training.finetune import run_recipe

HEAD_ONLY = "phases=[{train: head, epochs: 5, lr: 3e-3}]"
WAYS = {
    "head": (HEAD_ONLY,),
    "cosine head": (HEAD_ONLY, "model.head={kind: cosine, dropout: 0.2}"),
    "mlp head": (HEAD_ONLY, "model.head={kind: mlp, hidden: 256, dropout: 0.2}"),
    "svm on the features": ("phases=[]", "model.head={kind: svm}", "augment=[]"),
    "logistic regression on the features": ("phases=[]", "model.head={kind: logistic}", "augment=[]"),
    "5 nearest neighbours of the features": ("phases=[]", "model.head={kind: knn}", "augment=[]"),
    "norm": ("phases=[{train: norm, epochs: 5, lr: 3e-3}]",),
    "lora": ("phases=[{train: head, epochs: 2, lr: 3e-3}, {train: {lora: {rank: 8}}, epochs: 3, lr: 3e-3}]",),
    "head, then from the last stage": ("phases=[{train: head, epochs: 2, lr: 3e-3}, {train: {last: 1}, epochs: 3, lr: 1e-3}]",),
    "all": ("phases=[{train: all, epochs: 5, lr: 1e-3}]",),
    "head, then all": ("phases=[{train: head, epochs: 2, lr: 3e-3}, {train: all, epochs: 3, lr: 1e-3}]",),
}
NOT_FOR_EACH_BACKBONE = {"lora"}


def table_of_ways(out: Path, ways: Sequence[str], seeds: int, overrides: Sequence[str]) -> str:
    """Return the mean test accuracy of each way, its 95 % interval by Student's t and its range over the seeds, as Markdown."""
    lines = ["| way | test accuracy, mean | 95 % interval | range |", "|---|---|---|---|"]
    for way in ways:
        folder = out / way.replace(" ", "_").replace(",", "")
        run_recipe(load_recipe("quickstart", [*overrides, *WAYS[way]]), out=folder, resume=True, seeds=seeds)
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["over_seeds"]["test"]["accuracy"]
        (low, high), (least, most) = found["interval"], found["range"]
        lines.append(f"| {way} | {found['mean']:.3f} | {low:.3f} to {high:.3f} | {least:.3f} to {most:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = ArgumentParser("python -m tlkit.bench.ways", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0, at least two (default: 3)")
    parser.add_argument("--way", action="append", choices=WAYS, help="one of the ways; again for others (default: all, without lora)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes the quickstart recipe for all ways: data.image_size=96")
    arguments = parser.parse_intermixed_args()
    if arguments.seeds < 2:
        parser.error("--seeds: expected at least two, for an interval")
    ways = arguments.way or [way for way in WAYS if way not in NOT_FOR_EACH_BACKBONE]
    print(table_of_ways(arguments.out, ways, arguments.seeds, arguments.overrides))


if __name__ == "__main__":
    main()
