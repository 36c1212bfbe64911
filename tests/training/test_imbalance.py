"""Runs on classes that differ more than five-fold."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkit.data.samples import Samples
from tlkit.evaluation.evaluate import evaluate
from tlkit.recipe.load import load_recipe
from tlkit.training.finetune import run_recipe
from tlkit.training.results import print_run

RECIPE = """
name: rare
data: {source: {folder: pictures}, image_size: 32, resize: stretch, normalize: none, batch_size: 16, validation: 0.3, test: 0.2}
model: {backbone: test_resnet, weights: random}
phases:
  - {train: all, epochs: 4, lr: 3e-3}
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 dim images, 14 that are a little brighter."""
    folder = tmp_path_factory.mktemp("rare")
    draws = np.random.default_rng(0)
    for name, number, level in (("bright", 14, 100), ("dim", 120, 80)):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(number):
            pixels = np.clip(level + draws.normal(0, 12) + draws.normal(0, 30, (32, 32, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"pictures/{name}/{i:03d}.png")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.mark.parametrize("imbalance", ["none", "loss_weights", "sampler", "logit_adjust"])
def test_balanced_accuracy_chooses_the_best_epoch_and_leads(
    workplace: Path, imbalance: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    run = run_recipe(load_recipe("recipe.yaml", [f"imbalance={imbalance}"]), out=workplace / imbalance)
    log = (run / "log.txt").read_text()
    scores = [float(line.split("balanced accuracy ")[1].split()[0]) for line in log.splitlines() if " val loss" in line]
    losses = [float(line.split("val loss ")[1].split()[0]) for line in log.splitlines() if " val loss" in line]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["primary_metric"] == metrics["lead"] == "balanced_accuracy"
    assert metrics["best"]["epoch"] == 1 + max(range(len(scores)), key=lambda epoch: (scores[epoch], -losses[epoch]))
    assert metrics["val"]["balanced_accuracy"] == pytest.approx(max(scores), abs=1e-4)
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val/balanced_accuracy"]) for row in rows] == pytest.approx(scores, abs=1e-4)
    assert list(rows[0])[:8] == ["phase", "epoch", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr", "seconds"]
    assert metrics["test"]["accuracy"] > 0
    assert evaluate(run, split="test") == metrics["test"]

    print_run(run, Samples(("bright", "dim"), ()), metrics)
    panel = capsys.readouterr().out
    assert panel.index("test balanced accuracy") < panel.index("accuracy  0.")
    said = "the largest class has 60 training images (dim), the smallest 7 (bright)"
    assert f"{said}, so balanced accuracy chooses the best epoch" in log
    assert (f"{imbalance}: " in log) == (imbalance != "none")
    report = (run / "report.html").read_text()
    assert "as the mean over classes (balanced accuracy)" in report
    assert said in report
