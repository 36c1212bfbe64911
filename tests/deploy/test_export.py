"""`tlkit export` as a user runs it: what it writes answers as the run's model does, and without torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tlkit.cli import main
from tlkit.data.decode import decode
from tlkit.data.preprocess import Preprocessing
from tlkit.deploy.runtime import load_runtime
from tlkit.models.backbones import create_backbone
from tlkit.models.checkpoint import ModelCard, load_model, save_model
from tlkit.models.classifier import Classifier
from tlkit.recipe.schema import Head

SPEC = {"image_size": 32, "resize": "crop", "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}

# Blocks what a machine that only serves doesn't have, then answers from the artifact.
WITHOUT_TORCH = """
import json, sys
for name in ("torch", "timm", "lightning", "torchvision", "pydantic", "safetensors", "sklearn", "onnx"):
    sys.modules[name] = None
from pathlib import Path
from tlkit.deploy.runtime import load_runtime
artifact, *files = map(Path, sys.argv[1:])
print(json.dumps(load_runtime(artifact).probabilities(files).tolist()))
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of several sizes and modes."""
    folder = tmp_path_factory.mktemp("pictures")
    draws = np.random.default_rng(0)
    files = []
    for i, mode in enumerate(("RGB", "L", "RGBA", "P", "CMYK")):
        height, width = draws.integers(20, 90, 2)
        image = Image.fromarray(draws.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
        files.append(folder / f"{i}.{'jpg' if mode == 'CMYK' else 'png'}")
        image.save(files[-1])
    return files


def model_folder(folder: Path, head: Head, classes: tuple[str, ...] = ("cat", "dog", "owl"), backbone: str = "test_resnet") -> Path:
    torch.manual_seed(0)
    classifier = Classifier(create_backbone(backbone, 32), head, len(classes), 32)
    save_model(folder / "model", classifier, ModelCard(backbone, head, classes, SPEC, {}, {}, {}))
    return folder


def by_torch(folder: Path, files: list[Path]) -> np.ndarray:
    """Probabilities by the model folder, [N, K]."""
    classifier, card = load_model(folder)
    spec = Preprocessing.from_json(card.preprocessing)
    images = torch.from_numpy(np.stack([spec.fit(decode(file, 3)) for file in files])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        probabilities: np.ndarray = classifier(spec.normalize(images)).softmax(1).numpy()
    return probabilities


@pytest.mark.parametrize("entrance", ["--raw", "--float"])
@pytest.mark.parametrize("kind", ["linear", "mlp", "cosine", "locally_connected", "svm"])
def test_an_exported_head_answers_as_torch_does(tmp_path: Path, pictures: list[Path], kind: str, entrance: str) -> None:
    folder = model_folder(tmp_path, Head(kind=kind))
    assert main(["export", str(folder), entrance]) == 0
    np.testing.assert_allclose(load_runtime(folder / "export/onnx").probabilities(pictures), by_torch(folder, pictures), atol=1e-5)


def test_an_artifact_answers_where_torch_is_not_installed(tmp_path: Path, pictures: list[Path]) -> None:
    folder = model_folder(tmp_path, Head())
    assert main(["export", str(folder), "--zip"]) == 0
    command = [sys.executable, "-c", WITHOUT_TORCH, str(folder / "export/onnx.zip"), *map(str, pictures)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose(np.array(eval(answer)), by_torch(folder, pictures), atol=1e-5)
