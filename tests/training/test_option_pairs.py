"""Options two by two: each pair is refused with its place and a fix, or trains.

Pairs that go together are trained three dozen options at a time, so that some forty recipes hold thousands of pairs.
`pytest -s tests/training/test_option_pairs.py` prints how many.
"""

import csv
import time
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.recipe.option_pairs import EXAMPLES, LEFT_OUT, WITH, Table, options
from tests.shades import draw_shades
from tlkit.data.splits.holdout import hash_images
from tlkit.recipe.schema import Recipe
from tlkit.training.context import RunContext
from tlkit.training.distributed.signals import current_stop
from tlkit.training.left_as_found import left_as_found
from tlkit.training.phases import Trained, Training, train_phases
from tlkit.training.run import _finished_head
from tlkit.training.scale_lr import with_scaled_lr
from tlkit.training.setup import prepare

OPTIONS_A_RECIPE = 36


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe's values, and tables of 40 images with one label each and with several."""
    folder = tmp_path_factory.mktemp("pairs")
    draw_shades(folder, size=32)
    for task, labels in (
        ("multiclass", {"dark": "dark", "light": "light"}),
        ("multilabel", {"dark": "dark|small", "light": "light|small"}),
    ):
        with (folder / f"{task}.csv").open("w", newline="") as file:
            rows = [(path.relative_to(folder), labels[path.parent.name]) for path in sorted(folder.rglob("*.png"))]
            csv.writer(file).writerows([("path", "label"), *rows[5:]])  # 15 dark ones and 20 light ones
    return {
        "name": "pairs",
        "csv_of": {task: str(folder / f"{task}.csv") for task in ("multiclass", "multilabel")},
        "data": {"image_size": 32, "batch_size": 8, "workers": 0},
        "model": {"backbone": "test_resnet", "weights": "random"},
        "phases": [{"train": "head", "epochs": 1, "lr": 1e-3}, {"train": "all", "epochs": 1, "lr": 1e-3}],
    }


def train(recipe: Recipe, folder: Path) -> Trained:
    """Train it as a run does, up to what is measured and shipped."""
    with left_as_found():
        recipe = with_scaled_lr(recipe)
        setup = prepare(recipe)
        setup.data.hashes = hash_images(setup.samples)
        folder.mkdir()
        context = RunContext(folder, Console(quiet=True), current_stop(), time.perf_counter())
        trained = train_phases(Training.begin(setup, recipe.trainer.checkpoint_every, context))
        return _finished_head(recipe, setup, context, trained)


def test_every_key_of_the_table_is_one_of_a_recipe() -> None:
    found = options()
    keys = {key for option in found for key in option.settings}
    assert keys >= EXAMPLES.keys() | WITH.keys()
    assert not keys & LEFT_OUT.keys()
    assert len(found) > 80
    assert {str(option) for option in found} >= {"imbalance=sampler", "ema={'decay': 0.25}", "model.head.hidden=2, model.head.kind=mlp"}


@pytest.mark.slow
def test_every_pair_of_options_is_refused_with_a_fix_or_trains(base: dict[str, Any], tmp_path: Path) -> None:
    began, cpu_began = time.perf_counter(), time.process_time()
    table = Table(base, most=OPTIONS_A_RECIPE)
    for chosen, error in table.refused.items():
        keys = {key for i in chosen for key in table.options[i].settings}
        for fault in error.faults:
            assert any(key.startswith(fault.key) or fault.key.startswith(key) for key in keys), fault
            assert fault.fix.endswith((".", "?")), fault
    failures = {}
    for number, chosen in enumerate(table.recipes):
        words = [str(table.options[i]) for i in chosen]
        try:
            trained = train(table.recipe(chosen), tmp_path / str(number))
            assert all(isfinite(row["val/loss"]) for row in trained.rows)
        except Exception as error:
            failures[" | ".join(words)] = f"{type(error).__name__}: {error}"
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    print(
        f"\n{len(table.options)} options, {sum(len(chosen) == 1 for chosen in table.refused)} of them refused;"
        f" {table.accepted} pairs train in {len(table.recipes)} recipes, {sum(len(chosen) == 2 for chosen in table.refused)} are refused;"
        f" {cpu:.0f} s of processor time, {seconds:.0f} s in all"
    )
    assert not failures, "\n\n".join(f"{words}\n  {error}" for words, error in failures.items())
