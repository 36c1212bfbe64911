"""A loss that is NaN or infinite: found in the batch in which it happens, with its images named."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from tlkit.cli import main

RECIPE = """
name: overflow
data: {{source: {{folder: {folder}}}, validation: 0.25, test: 0, image_size: 32, batch_size: 4, normalize: none}}
model: {{backbone: lenet5, weights: random}}
phases: [{{train: all, epochs: 3, lr: {lr}}}]
optimizer: {{name: sgd, weight_decay: 0, accumulate: {accumulate}}}
trainer: {{on_nan: {on_nan}}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draws = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(12):
            image = draws.integers(120 * label, 120 * label + 100, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


def finetune(folder: Path, on_nan: str, lr: float, accumulate: int = 1, overrides: Sequence[str] = ()) -> int:
    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder, on_nan=on_nan, lr=lr, accumulate=accumulate), encoding="utf-8")
    return main(["finetune", str(recipe), *overrides, "--out", str(folder.parent / "run")])


def named(run: Path) -> list[dict[str, str]]:
    with (run / "not_finite.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_training_stops_with_the_images_of_the_batch_and_what_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune(folder, "stop", lr=1e38) == 2
    printed = capsys.readouterr().err
    assert re.search(r"The loss became (nan|inf) in batch \d of epoch 1, phase 1\.", printed)
    assert "tlkit lr RECIPE" in printed
    assert "trainer.on_nan=skip" in printed
    assert "Traceback" not in printed
    rows = named(folder.parent / "run")
    assert len(rows) == 4  # the images of one batch
    assert {row["id"].split("/")[0] for row in rows} <= {"dark", "light"}
    assert len({row["id"] for row in rows}) == 4


# With three, the step comes one batch after the second, whose loss it is.
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_skipped_batches_leave_the_weights_finite(folder: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int) -> None:
    from tlkit.training.module import PhaseModule

    forward, calls = PhaseModule._network, []

    def sometimes_infinite(self: PhaseModule, inputs: object) -> object:
        logits = forward(self, inputs)  # type: ignore[arg-type]
        if not self.training:
            return logits
        calls.append(1)
        return logits * (float("inf") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(PhaseModule, "_network", sometimes_infinite)
    assert finetune(folder, "skip", lr=1e-2, accumulate=accumulate) == 0
    run = folder.parent / "run"
    assert {(row["epoch"], row["batch"]) for row in named(run)} == {("1", "2")}
    assert len(named(run)) == 4
    assert all(tensor.isfinite().all() for tensor in load_file(run / "model" / "model.safetensors").values())
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        assert all(float(row["train/loss"]) < 100 for row in csv.DictReader(file))


@pytest.mark.parametrize(
    ("on_nan", "message"),
    [("stop", "The validation loss became nan in epoch 1, phase 1"), ("skip", "No epoch had a validation loss that is a number")],
)
def test_nan_that_only_validation_sees_ships_no_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_nan: str, message: str
) -> None:
    from tlkit.training.module import PhaseModule

    forward = PhaseModule._network

    def statistics_overflow(self: PhaseModule, inputs: object) -> object:
        self.classifier.backbone.bn1.running_var.fill_(float("inf"))  # training takes the batch's own
        self.classifier.backbone.bn1.running_mean.fill_(float("inf"))
        return forward(self, inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(PhaseModule, "_network", statistics_overflow)
    assert finetune(folder, on_nan, lr=1e-3, overrides=["model.backbone=resnet10t", "phases[0].epochs=1"]) == 2
    printed, run = capsys.readouterr().err, folder.parent / "run"
    assert message in printed
    assert "learning rate is too high" not in printed
    assert ("backbone.bn1.running_mean" in printed) == (on_nan == "stop")
    assert not (run / "model").exists()
    assert not (run / "report.html").exists()


def test_a_loss_that_is_nan_before_any_step_is_not_laid_to_the_learning_rate(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tlkit.training.module import PhaseModule

    forward = PhaseModule._network
    monkeypatch.setattr(PhaseModule, "_network", lambda self, inputs: forward(self, inputs) * float("nan"))
    assert finetune(folder, "stop", lr=1e-3) == 2
    printed = capsys.readouterr().err
    assert "The loss became nan in batch" in printed
    assert "No step was taken before, so it isn't the learning rate" in printed
