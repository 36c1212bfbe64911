"""A moving average goes on from a checkpoint with its counter: the average weighs its past by it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from PIL import Image

from tlkit.recipe.fields.learning import Ema
from tlkit.recipe.fields.phases import LastStages
from tlkit.recipe.load import load_recipe
from tlkit.recipe.schema import Recipe
from tlkit.training.callbacks.best_weights import moving_average
from tlkit.training.finetune import run_recipe
from tlkit.training.objective.objective import build_objective
from tlkit.training.phases import build_module
from tlkit.training.setup import prepare

RECIPE = """
name: halves
data: {source: {folder: pictures}, image_size: 32, resize: stretch, batch_size: 8, validation: 0.25, test: 0}
model: {backbone: test_resnet, weights: random}
phases: [{train: all, epochs: 2, lr: 1e-2}]
ema: {decay: 0.9}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    draws = np.random.default_rng(0)
    for name in ("dark", "light"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(16):
            shade = draws.integers(0, 120, (32, 32, 3)) + (120 if name == "light" else 0)
            Image.fromarray(shade.astype(np.uint8)).save(tmp_path / "pictures" / name / f"{i}.png")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return load_recipe("recipe.yaml")


def fit(recipe: Recipe, epochs: int, folder: Path, checkpoint: Path | None = None) -> tuple[int, dict[str, torch.Tensor]]:
    """The counter and the averaged weights at the end."""
    ready = prepare(recipe)
    ready.classifier.train_only(ready.phases[0].trained)
    (phase,) = recipe.gradient_phases.values()
    average: WeightAveraging = moving_average(recipe.ema or Ema())
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[average, ModelCheckpoint(folder, filename="last", enable_version_counter=False)],
        logger=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    learning = ready.learning
    objective = build_objective(learning, ready.classifier, ready.samples)
    module = build_module(ready.classifier, ready.data, objective, learning, phase)
    trainer.fit(module, datamodule=ready.data, ckpt_path=checkpoint)
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    return int(saved["averaging_state"]["n_averaged"]), saved["state_dict"]


def test_what_is_frozen_is_not_moved_by_the_average(recipe: Recipe, tmp_path: Path) -> None:
    recipe = recipe.model_copy(update={"phases": (recipe.phases[0].model_copy(update={"train": LastStages(last=1)}),)})
    before = prepare(recipe).classifier.state_dict()
    after = fit(recipe, 2, tmp_path / "run")[1]
    frozen = [name for name in before if name.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1"))]
    assert len(frozen) > 10
    assert all(torch.equal(before[name], after[f"classifier.{name}"]) for name in frozen)
    assert not torch.equal(before["head.1.weight"], after["classifier.head.1.weight"])


def test_counter_and_average_of_a_resumed_phase_are_those_of_one_that_was_not_interrupted(recipe: Recipe, tmp_path: Path) -> None:
    recipe = recipe.model_copy(update={"schedule": recipe.schedule.model_copy(update={"name": "constant"})})
    # 24 images in batches of 8 are 3 steps an epoch.
    assert fit(recipe, 1, tmp_path / "first")[0] == 3
    counter, resumed = fit(recipe, 2, tmp_path / "second", tmp_path / "first/last.ckpt")
    whole_counter, whole = fit(recipe, 2, tmp_path / "whole")
    assert counter == whole_counter == 6
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_run_with_an_average_brings_no_advice_of_lightnings(recipe: Recipe, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    run_recipe(recipe, out=tmp_path / "run")
    assert [str(warning.message) for warning in recwarn if "lightning" in warning.filename] == []
