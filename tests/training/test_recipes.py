"""Every recipe that ships is loaded, built, and makes a step of each of its phases, on a few made images and without its weights."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Callback
from PIL import Image
from rich.console import Console

from tests.thin import thin_networks
from tlkit.data.splits.holdout import hash_images
from tlkit.planning.trial import try_phase
from tlkit.recipe.fields.phases import Phase
from tlkit.recipe.load import load_recipe
from tlkit.system import shipped
from tlkit.training.closed_form.solve import solve_head
from tlkit.training.objective.objective import build_objective
from tlkit.training.setup import prepare

RECIPES = sorted(shipped("recipes").rglob("*.yaml"))
FROM_SCRATCH = ("classic_alexnet", "classic_lenet5", "classic_simple_cnn", "degradation_plain34", "degradation_residual34")
CLASSES = ("ant", "bee", "cow")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of three classes, two of each group, with one more label on some where several are wanted."""
    folder = tmp_path_factory.mktemp("made")
    drawn = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    rows = []
    for number, pixels in enumerate(drawn):
        Image.fromarray(pixels).save(folder / f"{number}.png")
        label = CLASSES[number % 3]
        several = f"{label}|{CLASSES[(number + 1) % 3]}" if number % 4 == 0 else label
        rows.append({"path": f"{number}.png", "label": label, "labels": several, "group": f"{label}{number // 6}"})
    with (folder / "made.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "made.csv"


def test_the_recipes_that_users_look_for_are_shipped() -> None:
    names = {path.stem for path in RECIPES}
    assert len(names) >= 17
    known_data = {"cifar_resnet", "cifar_vgg", "cifar_googlenet", "fashion_mnist_resnet", "fashion_mnist_full", *FROM_SCRATCH}
    own_data = {"folder_linear_probe", "folder_gradual_unfreeze", "multilabel", "imbalanced", "groups_and_folds", "big_data_webdataset"}
    assert known_data | own_data | {"quickstart"} <= names


@pytest.fixture(scope="module")
def _thin() -> Iterator[None]:
    with thin_networks():
        yield


@pytest.mark.usefixtures("_thin")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_built_and_steps_through_its_phases(path: Path, table: Path) -> None:
    written = load_recipe(path)
    label = "labels" if written.task == "multilabel" else "label"
    made = [f"data.source={{csv: {table}, label: {label}, separator: '|'}}", "data.batch_size=4", "data.workers=0"]
    # Large enough for every backbone, and the classics' own.
    size = written.data.image_size if written.model.weights == "random" else 64
    recipe = load_recipe(path, [*made, f"data.image_size={size}", "model.weights=random", "trainer.accelerator=cpu"])
    setup = prepare(recipe)
    setup.data.hashes = hash_images(setup.samples)
    assert setup.classifier.classes == CLASSES
    assert len(setup.phases) == len(written.phases) >= 1
    for spec in setup.phases:
        if isinstance(spec.phase, Phase):
            counter = Steps()
            try_phase(setup.classifier, setup.data, setup.learning, spec, callback=counter, max_steps=1, limit_val_batches=1)
            assert counter.steps == 1
        else:
            criterion = build_objective(setup.learning, setup.classifier, setup.samples).criterion
            row, _ = solve_head(setup.classifier, setup.data, spec, criterion=criterion, cache=setup.cache, console=Console(quiet=True))
            assert row["train/loss"] < 1.2  # log(3) is 1.1: no worse than a guess, nor for one of three labels yes or no


class Steps(Callback):
    steps = 0

    def on_train_batch_end(self, *arguments: object) -> None:
        self.steps += 1
