"""`tlkit predict ARTIFACT`: the answers of the run that it was exported from, without torch."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tlkit.cli import main
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.models.model_folder import ModelCard, write_model_folder
from tlkit.recipe.fields.model import Head

pytest.importorskip("onnxruntime")
PREPROCESSING = {"image_size": 32, "resize": "crop", "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.4] * 3, "std": [0.3] * 3}
# As a command line, in a Python that has no torch, no pydantic and no network.
WITHOUT_TORCH = """
import socket, sys
for name in ("torch", "torchvision", "timm", "lightning", "pydantic"):
    sys.modules[name] = None
socket.socket = None
from tlkit.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, its artifact with features as `export/onnx`, and 50 images in `photos`."""
    folder = tmp_path_factory.mktemp("artifact")
    torch.manual_seed(0)
    classifier = Classifier(create_backbone("lenet5", 32), Head(), 3, 32)
    write_model_folder(folder / "model", classifier, ModelCard("lenet5", Head(), ("cat", "dog", "owl"), PREPROCESSING, {}, {}, {}))
    draws = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for i in range(50):
        Image.fromarray(draws.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(folder / f"photos/{i:02d}.png")
    assert main(["export", str(folder / "model"), "--features", "--out", str(folder / "export"), "--images", str(folder / "photos")]) == 0
    return folder


def test_an_artifact_answers_as_its_run_does_without_torch(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(workplace / "photos"), "--format", "csv"]
    assert main(["predict", str(workplace / "model"), *words]) == 0
    by_run = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    command = [sys.executable, "-c", WITHOUT_TORCH, "predict", str(workplace / "export/onnx"), *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    by_artifact = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["path"] for row in by_artifact] == [row["path"] for row in by_run]
    assert [row["class1"] for row in by_artifact] == [row["class1"] for row in by_run]
    for ours, theirs in zip(by_artifact, by_run, strict=True):
        assert float(ours["probability1"]) == pytest.approx(float(theirs["probability1"]), abs=1e-5)


def test_an_artifact_gives_features_where_it_was_exported_with_them(workplace: Path, tmp_path: Path) -> None:
    for model, file in (("model", "run.npz"), ("export/onnx", "artifact.npz")):
        assert main(["predict", str(workplace / model), str(workplace / "photos"), "--features", "--out", str(tmp_path / file)]) == 0
    with np.load(tmp_path / "run.npz") as run, np.load(tmp_path / "artifact.npz") as artifact:
        assert list(run["paths"]) == list(artifact["paths"])
        assert artifact["features"] == pytest.approx(run["features"], abs=1e-4)


def test_an_artifact_without_features_says_how_to_get_them(workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(workplace / "model"), "--out", str(tmp_path), "--images", str(workplace / "photos")]) == 0
    words = ["predict", str(tmp_path / "onnx"), str(workplace / "photos"), "--features", "--out", str(tmp_path / "f.npz")]
    assert main(words) == 2
    assert "Export the run with --features" in capsys.readouterr().err
