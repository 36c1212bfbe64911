"""`trainer.scale_lr`: a recipe for one device, run on several."""

from math import sqrt
from pathlib import Path

import pytest

from tlkit.errors import RecipeError
from tlkit.recipe.load import load_recipe
from tlkit.recipe.schema import Recipe
from tlkit.recipe.summary import recipe_notes
from tlkit.training.scale_lr import with_scaled_lr

RECIPE = """
name: scaled
data: {source: {folder: pictures}, batch_size: 16}
model: {backbone: lenet5, weights: random}
phases:
  - {train: head, solver: lbfgs}
  - {train: all, epochs: 1, lr: 1e-2}
  - {train: all, epochs: 2, lr: 1e-3}
trainer: {accelerator: cpu, devices: 4, strategy: ddp}
"""


def recipe(folder: Path, *overrides: str) -> Recipe:
    (folder / "recipe.yaml").write_text(RECIPE)
    return load_recipe(folder / "recipe.yaml", overrides)


@pytest.mark.parametrize(("scale", "factor"), [("linear", 4), ("sqrt", sqrt(4))])
def test_four_devices_take_four_batches_a_step_at_a_higher_rate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, scale: str, factor: float
) -> None:
    caplog.set_level("INFO", logger="tlkit")
    scaled = with_scaled_lr(recipe(tmp_path, f"trainer.scale_lr={scale}"))
    assert scaled.data.batch_size == 64
    assert [phase.lr for phase in scaled.gradient_phases.values()] == pytest.approx([1e-2 * factor, 1e-3 * factor])
    assert scaled.trainer.scale_lr is False  # so that the run's recipe.yaml gives the same again
    assert caplog.messages == [f"trainer.scale_lr: 4 devices take 4 x 16 images a step, at lr x {factor:.3g}"]
    assert with_scaled_lr(scaled) is scaled


def test_without_it_batch_size_and_rate_are_the_recipes_on_any_number_of_devices(tmp_path: Path) -> None:
    plain = recipe(tmp_path)
    assert with_scaled_lr(plain) is plain


def test_check_says_what_it_does(tmp_path: Path) -> None:
    (note,) = (note for note in recipe_notes(recipe(tmp_path, "trainer.scale_lr=sqrt")) if "scale_lr" in note)
    assert note == "trainer.scale_lr: n devices take n x 16 images a step, at lr times the square root of n."


def test_a_batch_size_that_is_found_is_one_for_all_devices_already(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"trainer.scale_lr takes batch_size for one device's(.|\n)*Set it to false"):
        recipe(tmp_path, "trainer.scale_lr=linear", "data.batch_size={find: 0.8}")
