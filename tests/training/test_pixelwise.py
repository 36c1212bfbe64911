"""`normalize: pixelwise` from end to end: the mean image is measured, subtracted, shipped and found again."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.shades import draw_shades
from tlkit.deploy.predict.predict import predict
from tlkit.errors import RunError
from tlkit.evaluation.evaluate import evaluate
from tlkit.recipe.load import load_recipe
from tlkit.training.finetune import run_recipe

RECIPE = """
name: shades
data: {source: {folder: pictures}, image_size: 32, resize: stretch, normalize: pixelwise, batch_size: 8, test: 0.25, validation: 0.25}
augment: [HorizontalFlip]
model: {backbone: test_resnet, weights: random}
phases: [{train: head, epochs: 1, lr: 1e-2}]
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shades")
    draw_shades(folder / "pictures", size=32)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def run(workplace: Path) -> Path:
    recipe = load_recipe(workplace / "recipe.yaml", [f"data.source={{folder: {workplace / 'pictures'}}}"])
    return run_recipe(recipe, out=workplace / "run")


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file)) / 255


def test_the_mean_image_is_that_of_the_training_split(run: Path, workplace: Path) -> None:
    rows = [line.split(",") for line in (run / "split.csv").read_text().splitlines()]
    training = [pixels(workplace / "pictures" / row[0]) for row in rows if row[2] == "train"]
    assert len(training) == 20
    found = load_file(run / "model/mean_picture.safetensors")["mean_picture"]
    np.testing.assert_allclose(found, np.mean(training, axis=0), atol=1e-6)


def test_the_model_folder_names_the_mean_image_and_stays_small(run: Path) -> None:
    facts = json.loads((run / "model/tlkit.json").read_text())
    file = run / "model/mean_picture.safetensors"
    assert facts["preprocessing"]["mean_picture"]["file"] == file.name
    assert facts["sha256"][file.name] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (run / "model/tlkit.json").stat().st_size < 20_000


def test_evaluate_gives_the_figures_of_the_run_again(run: Path) -> None:
    assert evaluate(run, split="test") == json.loads((run / "metrics.json").read_text())["test"]


def test_plain_timm_gives_the_same_once_the_mean_image_is_subtracted(run: Path, workplace: Path) -> None:
    facts = json.loads((run / "model/tlkit.json").read_text())
    config = json.loads((run / "model/config.json").read_text())["pretrained_cfg"]
    assert (config["mean"], config["std"]) == ([0.0] * 3, [1.0] * 3)
    files = sorted((workplace / "pictures").rglob("*.png"))
    mean = load_file(run / "model/mean_picture.safetensors")["mean_picture"]
    inputs = (np.stack([pixels(file) for file in files]) - mean) / np.array(facts["preprocessing"]["std"])
    plain = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    with torch.inference_mode():
        logits = plain(torch.from_numpy(inputs.transpose(0, 3, 1, 2)).float())
    _, found = predict(run, files)
    torch.testing.assert_close(torch.tensor([prediction.logits for prediction in found]), logits, atol=1e-4, rtol=0)


def test_another_mean_image_is_refused(run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(run / "model", model)
    image = load_file(model / "mean_picture.safetensors")["mean_picture"]
    save_file({"mean_picture": image + 1}, model / "mean_picture.safetensors")
    with pytest.raises(RunError, match="sha256 differs"):
        predict(model, [])
    facts = json.loads((model / "tlkit.json").read_text())
    facts["sha256"]["mean_picture.safetensors"] = hashlib.sha256((model / "mean_picture.safetensors").read_bytes()).hexdigest()
    (model / "tlkit.json").write_text(json.dumps(facts))
    with pytest.raises(RunError, match="another image than tlkit"):
        predict(model, [])


def test_the_log_says_what_plain_timm_needs(run: Path) -> None:
    assert "plain timm doesn't use it" in (run / "log.txt").read_text()


def test_weights_of_such_a_run_are_reported_to_have_seen_a_mean_image(run: Path, workplace: Path, tmp_path: Path) -> None:
    overrides = [f"data.source={{folder: {workplace / 'pictures'}}}", f"model.weights={{run: {run}}}", "data.normalize=weights"]
    again = run_recipe(load_recipe(workplace / "recipe.yaml", overrides), out=tmp_path / "again")
    assert "they were trained with a mean image subtracted" in (again / "log.txt").read_text()


def test_an_exported_network_holds_the_mean_image(run: Path, workplace: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from tlkit.deploy.export.export import ExportOptions, export_run

    (artifact,) = export_run(run, ExportOptions(out=tmp_path))
    files = sorted((workplace / "pictures").rglob("*.png"))[::5]
    ours, exported = predict(run, files)[1], predict(artifact, files)[1]
    for one, other in zip(ours, exported, strict=True):
        assert dict(one.ranked(("dark", "light"), 2)) == pytest.approx(dict(other.ranked(("dark", "light"), 2)), abs=1e-4)
