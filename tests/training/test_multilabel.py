"""Images with any number of labels, from the table to what predict says."""

import csv
import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tlkit.cli import main
from tlkit.data.splits.holdout import read_manifest
from tlkit.deploy.predict.predict import predict
from tlkit.evaluation.evaluate import evaluate
from tlkit.models.model_folder import load_with_card
from tlkit.recipe.fields.learning import Mix
from tlkit.recipe.load import load_recipe
from tlkit.training.finetune import run_recipe
from tlkit.training.objective.losses import build_mix
from tlkit.training.objective.metrics import Scoring

COLOURS = {"blue": 2, "green": 1, "red": 0}

RECIPE = """
name: lamps
task: multilabel
data: {source: {csv: lamps.csv}, image_size: 32, resize: stretch, normalize: none, batch_size: 8, validation: 0.25, test: 0.2}
model: {backbone: test_resnet, weights: random}
phases:
  - {train: all, epochs: 6, lr: 1e-2}
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 images in which each colour channel is lit or dark by chance, and a table that says which."""
    folder = tmp_path_factory.mktemp("lamps")
    draws = np.random.default_rng(0)
    rows = ["path,label"]
    for i in range(120):
        lit = [name for name in COLOURS if draws.random() < 0.4]
        pixels = draws.integers(0, 80, (32, 32, 3))
        pixels[:, :, [COLOURS[name] for name in lit]] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.png")
        rows.append(f"{i:03d}.png,{'|'.join(lit)}")
    (folder / "lamps.csv").write_text("\n".join(rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def run(workplace: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        return run_recipe(load_recipe("recipe.yaml"), out=Path("run")).absolute()


def truth(workplace: Path) -> dict[str, set[str]]:
    with (workplace / "lamps.csv").open() as file:
        return {row["path"]: set(filter(None, row["label"].split("|"))) for row in csv.DictReader(file)}


def test_lamps_are_reported_apart_and_mean_average_precision_leads(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["primary_metric"] == metrics["lead"] == metrics["test"]["primary_metric"] == "mean_average_precision"
    assert metrics["test"]["mean_average_precision"] > 0.9  # lit is 150 levels brighter: anything less means that training is broken
    assert 0.8 < metrics["test"]["accuracy"] <= 1
    assert "confusion" not in metrics["test"]
    assert "mean average precision" in (run / "report.html").read_text()
    why = "A temperature is fitted for one label per image; with several, each class has its own threshold, from validation."
    assert metrics["test"]["calibration"] == {"reason": why}
    assert f"<p>No calibration: {why}</p>" in (run / "report.html").read_text()


def test_the_best_epoch_is_that_of_the_highest_mean_average_precision(run: Path) -> None:
    lines = (run / "log.txt").read_text().splitlines()
    scores = [float(line.split("mean average precision ")[1].split()[0]) for line in lines if " val loss" in line]
    losses = [float(line.split("val loss ")[1].split()[0]) for line in lines if " val loss" in line]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["best"]["epoch"] == 1 + max(range(len(scores)), key=lambda epoch: (scores[epoch], -losses[epoch]))
    assert metrics["val"]["mean_average_precision"] == pytest.approx(max(scores), abs=1e-4)


def test_a_multilabel_run_is_not_calibrated_and_says_why(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(run), "--error", "0.05"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "can't be calibrated. A temperature is fitted for one label per image" in said


def test_the_manifest_holds_all_labels_of_an_image(run: Path, workplace: Path) -> None:
    rows = read_manifest(run / "split.csv")
    assert {row["id"]: set(filter(None, row["class"].split("|"))) for row in rows} == truth(workplace)
    assert {row["split"] for row in rows} == {"train", "val", "test"}


def test_thresholds_ship_and_evaluate_uses_them(run: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    card = json.loads((run / "model/tlkit.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    assert card["task"] == "multilabel"
    assert len(card["thresholds"]) == 3
    assert [row["threshold"] for row in metrics["test"]["per_class"].values()] == card["thresholds"]
    for split in ("test", "val"):
        assert evaluate(run, split=split) == metrics[split]


def test_predict_calls_the_classes_above_their_thresholds(run: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(workplace / name) for name in sorted(truth(workplace))]
    assert main(["predict", str(run), *files, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    thresholds = load_with_card(run)[1].thresholds
    for row in rows:
        probabilities = 1 / (1 + np.exp(-np.array(row["logits"])))
        expected = {name for name, p, t in zip(sorted(COLOURS), probabilities, thresholds, strict=True) if p > t}
        assert {called["class"] for called in row["classes"]} == expected
    right = [{called["class"] for called in row["classes"]} == truth(workplace)[Path(row["path"]).name] for row in rows]
    assert np.mean(right) > 0.7

    assert main(["predict", str(run), *files, "--format", "csv"]) == 0
    table = list(csv.DictReader(StringIO(capsys.readouterr().out)))
    assert list(table[0]) == ["path", "label", "probability", "error", "unknown", "note"]
    assert [row["label"].split("|") if row["label"] else [] for row in table] == [[c["class"] for c in row["classes"]] for row in rows]

    assert main(["predict", str(run), *files[:5]]) == 0
    assert "classes above their thresholds" in capsys.readouterr().out


def test_a_quantized_export_is_judged_by_exact_match_and_calls_it_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--quantize", "int8", "--max-drop", "1", "--out", str(tmp_path), f"data.source.csv={run.parent / 'lamps.csv'}"]
    assert main(["export", str(run), *words]) == 0
    shown = capsys.readouterr().out
    assert main(["evaluate", str(run), "--split", "val", "--format", "json", words[-1]]) == 0
    assert f"float32 -> int8: exact match {json.loads(capsys.readouterr().out)['exact_match']:.4f} -> " in shown


def test_weights_smoothing_mixup_and_cutmix_train_too(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    overrides = ["imbalance=loss_weights", "loss.label_smoothing=0.1", "mix={mixup: 0.4, cutmix: 1.0}", "phases[0].epochs=2"]
    run = run_recipe(load_recipe("recipe.yaml", overrides), out=workplace / "mixed")
    assert "imbalance" in (run / "report.html").read_text()
    _, predictions = predict(run, [workplace / "000.png"])
    assert len(predictions[0].logits) == 3


def test_mixup_blends_label_sets_by_the_share_of_their_images() -> None:
    torch.manual_seed(0)
    mix = build_mix(Mix(mixup=1.0), 3)
    assert mix is not None
    images = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 4, 4).clone()
    mixed, soft = mix(images, torch.tensor([[1.0, 1, 0], [0, 1, 0]]))
    share = float(mixed[1, 0, 0, 0])  # of image 1, which is all ones, in itself
    assert soft[1].tolist() == pytest.approx([1 - share, 1.0, 0.0])


def test_logits_between_zero_and_one_are_not_taken_for_probabilities() -> None:
    scoring = Scoring("multilabel", 2, "mean_average_precision")
    metric = scoring.accuracy()
    scoring.count(metric, torch.tensor([[0.2, 0.4]]), torch.tensor([[1.0, 0.0]]))  # both say yes
    assert float(metric.compute()) == 0.5


def test_a_class_without_a_validation_image_keeps_the_threshold_of_one_half_and_is_reported(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    rows = [f"{path},{'|'.join(sorted(labels))},{'train' if 'red' in labels else 'val'}" for path, labels in truth(workplace).items()]
    rows += [f"{path},green|blue,train" for path in ("blue.png", "green.png")]
    for name in ("blue.png", "green.png"):
        Image.new("RGB", (32, 32), (0, 200, 200)).save(workplace / name)
    (workplace / "unseen.csv").write_text("\n".join(["path,label,split", *rows]))
    overrides = ["data.source={csv: unseen.csv}", "data.test=0", "phases[0].epochs=1"]
    run = run_recipe(load_recipe("recipe.yaml", overrides), out=workplace / "unseen")
    assert "no validation image of red: the threshold stays at 0.5" in (run / "log.txt").read_text()
    assert load_with_card(run)[1].thresholds[2] == 0.5
    answered = {line.split(",")[0] for line in (run / "predictions_val.csv").read_text().splitlines()[1:]}
    assert answered == {row.split(",")[0] for row in rows if row.endswith(",val")}
    assert json.loads((run / "metrics.json").read_text())["val"]["per_class"]["red"]["average_precision"] is None
