"""The safetensors folder as the Hugging Face hub takes it and timm reads it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import ExifTags, Image

from tests import warm
from tests.local_hub import LocalHub, serve
from tlkit.data.preprocess import Preprocessing
from tlkit.deploy.export.model_card import model_card
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.models.model_folder import ModelCard, load_with_card, read_card, write_model_folder
from tlkit.recipe.fields.model import Head

SPEC = {"image_size": 32, "resize": "crop", "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
TEST = {"lead": "accuracy", "pictures": 60, "accuracy": 0.9, "accuracy_interval": [0.7985, 0.9534], "macro": {"f1": 0.89}}
METRICS = {"test": TEST, "val": {**TEST, "pictures": 20}, "pictures": {"train": 120, "val": 20, "test": 60}}
CLASSES = ("cat", "dog", "owl")


def card(origin: str = "hub timm/resnet18.a1_in1k", backbone: str = "resnet18", kind: str = "linear") -> ModelCard:
    recipe = {"name": "pets", "data": {"source": {"folder": "/home/me/photos"}}}
    return ModelCard(backbone, Head(kind=kind), CLASSES, SPEC, recipe, {"origin": origin}, METRICS)


def front_matter(text: str) -> dict[str, object]:
    _, head, _ = text.split("---\n", 2)
    found: dict[str, object] = yaml.safe_load(head)
    return found


def test_the_metadata_is_what_the_hub_reads() -> None:
    found = front_matter(model_card(card()))
    assert found["license"] == "apache-2.0"  # timm's own facts on resnet18.a1_in1k
    assert found["base_model"] == "timm/resnet18.a1_in1k"
    assert found["library_name"] == "timm"
    assert found["pipeline_tag"] == "image-classification"
    (model,) = found["model-index"]
    (result,) = model["results"]
    assert result["dataset"] == {"name": "folder: photos", "type": "custom", "split": "test"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.9, "name": "accuracy"}]


def test_the_text_says_task_sizes_intervals_licence_and_limits() -> None:
    text = model_card(card())
    assert "**Accuracy 0.9000** (95 % interval 0.798 to 0.953) on 60 test images." in text
    assert "| images | 120 train, 20 val, 60 test |" in text
    assert "| test | 60 | accuracy | 0.9000 | 0.7985 to 0.9534 |" in text
    assert "The pretrained weights (resnet18) are under apache-2.0." in text
    assert "measured on 60 images only" in text
    assert "/home/me" not in text


@pytest.mark.parametrize(
    ("origin", "license_name", "words"),
    [
        ("random", None, "trained from scratch"),
        ("file w.pth", None, "licence of the pretrained weights is not known"),
        ("package efficientnet-lite0", "apache-2.0", "are under apache-2.0"),
    ],
)
def test_a_licence_is_named_only_where_it_is_known(origin: str, license_name: str | None, words: str) -> None:
    text = model_card(card(origin))
    assert front_matter(text).get("license") == license_name
    assert words in text


def test_a_head_of_tlkits_own_is_reported() -> None:
    assert "Its cosine head is in head.safetensors, which timm alone doesn't read." in model_card(card(kind="cosine"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    classifier = Classifier(create_backbone("test_resnet", 32), Head(), 3, 32)
    write_model_folder(tmp_path / "model", classifier, card(backbone="test_resnet", origin="random"))
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"pictures/{i}.png")
    return tmp_path


def export(folder: Path, hub: LocalHub, **environment: str) -> subprocess.CompletedProcess[str]:
    words = ["export", str(folder), "--format", "safetensors", "--images", str(folder / "pictures"), "--push-to-hub", "me/it"]
    own = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x", "HF_HOME": str(folder / "hf"), **environment}
    return warm.run(*words, cwd=Path(__file__).parents[3], env={**os.environ, **own})


def test_an_uploaded_folder_is_loaded_by_timm_from_the_hub(folder: Path) -> None:
    with serve({}) as hub:
        done = export(folder, hub)
        assert done.returncode == 0, done.stderr
        assert "uploaded: " in done.stdout
        code = (
            "import json, timm, torch; model = timm.create_model('hf_hub:me/it', pretrained=True).eval()\n"
            "print(json.dumps([model.pretrained_cfg['label_names'], model(torch.ones(1, 3, 32, 32)).tolist()]))"
        )
        own = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "other")}
        asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **own}, check=True)
    classes, logits = json.loads(asked.stdout)
    assert classes == list(CLASSES)
    classifier, _ = load_with_card(folder)
    with torch.inference_mode():
        np.testing.assert_allclose(logits, classifier(torch.ones(1, 3, 32, 32)).numpy(), atol=1e-5)


def test_a_hub_that_refuses_is_quoted(folder: Path) -> None:
    with serve({}, status=403) as hub:
        done = export(folder, hub)
    assert done.returncode == 2
    assert "The upload to me/it failed: " in done.stderr
    assert "Log in with `hf auth login`" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_sent_where_the_hub_is_switched_off(folder: Path) -> None:
    with serve({}) as hub:
        done = export(folder, hub, HF_HUB_OFFLINE="1")
        assert not hub.requests
    assert done.returncode == 2
    assert "HF_HUB_OFFLINE is set" in done.stderr


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_the_cards_own_lines_see_what_tlkit_sees(folder: Path, resize: str, capsys: pytest.CaptureFixture[str]) -> None:
    classifier, made = load_with_card(folder)
    write_model_folder(folder / "model", classifier, replace(made, preprocessing={**SPEC, "resize": resize}))
    spec = Preprocessing.from_json(read_card(folder / "model").preprocessing)
    for file in sorted((folder / "pictures").iterdir()):
        sideways = Image.Exif()
        sideways[ExifTags.Base.Orientation] = 6
        Image.open(file).save(file.with_suffix(".jpg"), exif=sideways)
        lines = model_card(read_card(folder / "model")).split("```python\n")[1].split("```")[0]
        lines = lines.replace("hf_hub:OWNER/NAME", f"local-dir:{folder / 'model'}").replace("image.jpg", str(file.with_suffix(".jpg")))
        found: dict[str, Any] = {}
        exec(lines, found)  # as a reader of the card would
        ours = classifier(spec.normalize(torch.from_numpy(spec.read(file.with_suffix(".jpg"))[None]).permute(0, 3, 1, 2)))
        torch.testing.assert_close(ours, found["logits"], atol=1e-5, rtol=0)
        assert capsys.readouterr().out.strip() == CLASSES[int(ours.argmax())]


def test_what_timms_transforms_leave_to_the_reader_is_reported() -> None:
    assert "to lay transparent ones over white, and to make 8 bits of 16" in model_card(card())
    assert "timm's transforms" not in model_card(card(kind="cosine"))
