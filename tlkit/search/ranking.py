"""Does `tlkit rank` name the backbone that is best after training? Ranks backbones, trains each of them, and compares the two orders.

    python -m tlkit.search.ranking quickstart resnet10t@random tf_efficientnet_lite0 --out runs/ranking --set data.image_size=64

Prints each backbone's primary metric by its frozen features and of the trained model on the test split, best first, and Spearman's rank
correlation of the two. What `--out` has already is not run again.
"""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import spearmanr

from tlkit.evaluation.primary_metric import recorded_primary_metric
from tlkit.recipe.load import load_recipe
from tlkit.search.rank import Candidate, Measuring, Ranked, candidates_of, rank
from tlkit.training.finetune import run_recipe

MOST_IMAGES = 5000


def ranked_and_trained(recipe_file: str, backbones: Sequence[str], out: Path, overrides: Sequence[str]) -> list[tuple[Ranked, float]]:
    """Return each backbone's row of `rank` and the primary metric on test after the recipe's phases, in the order of `rank`."""
    recipe = load_recipe(recipe_file, overrides)
    candidates = {each.name: each for each in candidates_of(recipe, backbones, None, offline=True)}
    rows = rank(recipe_file, overrides, list(candidates.values()), out / "ranked", Measuring(MOST_IMAGES))
    return [(row, _trained(recipe_file, candidates[row.backbone], out, overrides)) for row in rows if row.score is not None]


def _trained(recipe_file: str, candidate: Candidate, out: Path, overrides: Sequence[str]) -> float:
    model = [f"model.backbone={candidate.backbone}", f"model.weights={json.dumps(candidate.weights)}"]
    folder = run_recipe(load_recipe(recipe_file, [*overrides, *model]), out=out / candidate.name.replace("/", "_"), resume=True)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return float(metrics["test"][recorded_primary_metric(metrics)])


def main() -> None:
    parser = ArgumentParser("python -m tlkit.search.ranking", description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", help="a recipe file, or the name of a bundled recipe")
    parser.add_argument("backbones", nargs="+", help="NAME, NAME@random or NAME@FILE.safetensors, as for `tlkit rank`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the ranking and the runs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the recipe, for ranking and training")
    arguments = parser.parse_args()
    both = ranked_and_trained(arguments.recipe, arguments.backbones, arguments.out, arguments.set)
    print("| backbone | by its features | after training |\n|---|---|---|")
    for row, trained in both:
        print(f"| {row.backbone} | {row.score:.3f} | {trained:.3f} |")
    found = spearmanr([row.score for row, _ in both], [trained for _, trained in both])
    print(f"\nSpearman's rank correlation over {len(both)} backbones: {found.statistic:.2f} (p={found.pvalue:.3f})")


if __name__ == "__main__":
    main()
