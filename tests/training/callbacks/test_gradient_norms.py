"""gradients.csv, against gradients that torch computes by itself."""

from copy import deepcopy
from pathlib import Path

import lightning
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import tlkit
from tlkit.data.preprocess import Preprocessing
from tlkit.errors import RecipeError
from tlkit.explain.gradient_flow import GRADIENTS, draw_gradients, read_gradients
from tlkit.recipe.load import load_recipe
from tlkit.training.callbacks.gradient_norms import GradientNorms, trained_layers

pytestmark = pytest.mark.usefixtures("draws")

PREPROCESSING = Preprocessing(28, "stretch", 1.0, "bilinear", mean=(0.0,), std=(1.0,))


def test_norms_are_those_of_the_gradients_that_the_optimizer_gets(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = tlkit.create_classifier("lenet5", ["a", "b"], PREPROCESSING, weights="random")
    images, labels = torch.rand(8, 1, 28, 28), torch.arange(8) % 2
    alone = deepcopy(classifier).train()
    cross_entropy(alone(images), labels).backward()
    module = tlkit.PhaseModule.create(classifier, train="all", optimizer="sgd", lr=1e-2, weight_decay=0.0, schedule="constant")
    loader: DataLoader[tuple[torch.Tensor, ...]] = DataLoader(TensorDataset(images, labels), batch_size=8)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[GradientNorms(tmp_path, classifier, phase=3)],
    )  # fmt: skip
    trainer.fit(module, loader, loader)

    rows = read_gradients(tmp_path / GRADIENTS)
    assert [(row.phase, row.epoch) for row in rows] == [(3, 1)] * 5 + [(3, 2)] * 5
    assert [row.stage for row in rows[:5]] == ["conv1", "conv2", "conv3", "dense", "head"]
    weights = [weights for _, _, weights in trained_layers(alone)]
    expected = [float(layer.grad.norm()) for layer in weights if layer.grad is not None]
    assert [row.gradient_norm for row in rows[:5]] == pytest.approx(expected, rel=1e-4)
    stepped = [float((layer - 1e-2 * layer.grad).detach().norm()) for layer in weights if layer.grad is not None]
    assert [row.weight_norm for row in rows[:5]] == pytest.approx(stepped, rel=1e-4)

    draw_gradients([("one", rows), ("other", rows)], tmp_path / "gradients.png")
    assert (tmp_path / "gradients.png").stat().st_size > 5000


def test_layers_that_are_frozen_have_no_row() -> None:
    classifier = tlkit.create_classifier("lenet5", ["a", "b"], PREPROCESSING, weights="random")
    classifier.train_only(frozenset())
    assert [stage for stage, _, _ in trained_layers(classifier)] == ["head"]


def test_sharded_gradients_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"trainer.log_gradients can't be used with trainer.strategy = 'fsdp'.*\n.*Set it to false"):
        load_recipe("quickstart", ["trainer.log_gradients=true", "trainer.strategy=fsdp", "trainer.devices=2"])
