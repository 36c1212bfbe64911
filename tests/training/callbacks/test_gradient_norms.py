"""gradients.csv, against gradients that torch computes by itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import lightning
import pytest
import torch
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import tlkit
from tlkit.data.preprocess import Preprocessing
from tlkit.errors import RecipeError
from tlkit.explain import gradient_flow
from tlkit.explain.gradient_flow import GRADIENTS, Row, draw_gradients, read_gradients
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


def test_no_epoch_is_left_out_where_only_some_phases_have_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = [("block0", f"blocks.0.fc.lora_{name}.default") for name in "AB"] + [("head", "head.1")]
    plain = [("stem", "stem"), ("block0", "blocks.0.fc"), ("block1", "blocks.1.fc"), ("head", "head.1")]
    trained = {1: plain[-1:], 2: adapters, 3: plain, 4: adapters}
    rows = [Row(phase, epoch, *layer, phase / 10, 1.0) for phase, layers in trained.items() for epoch in (1, 2) for layer in layers]
    seen = []

    @contextmanager
    def figure_file(file: Path, width: float, height: float) -> Iterator[Figure]:
        seen.append(Figure(figsize=(width, height)))
        yield seen[0]

    monkeypatch.setattr(gradient_flow, "figure_file", figure_file)
    draw_gradients([("run", rows)], tmp_path / "gradients.png")
    above = seen[0].axes[:2]
    assert [axis.get_title() for axis in above] == ["run, phases 1, 3", "run, phases 2, 4"]
    drawn = [[line.get_ydata().tolist() for line in axis.lines] for axis in above]
    assert drawn == [[[0.3] * 4, [0.3] * 4, [0.1], [0.1]], [[value] * 3 for value in (0.2, 0.2, 0.4, 0.4)]]


def test_layers_that_are_frozen_have_no_row() -> None:
    classifier = tlkit.create_classifier("lenet5", ["a", "b"], PREPROCESSING, weights="random")
    classifier.train_only(frozenset())
    assert [stage for stage, _, _ in trained_layers(classifier)] == ["head"]


def test_sharded_gradients_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"trainer.log_gradients can't be used with trainer.strategy = 'fsdp'.*\n.*Set it to false"):
        load_recipe("quickstart", ["trainer.log_gradients=true", "trainer.strategy=fsdp", "trainer.devices=2"])
