"""The model folder holds what was trained, and plain timm reads it."""

import json
import re
from math import nan
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tlkit.errors import BackboneError, RunError
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.models.model_folder import ModelCard, check_can_ship, find_model_folder, load_model, load_with_card, write_model_folder
from tlkit.recipe.fields.model import Head

FAMILIES = [
    "resnet18",
    "vgg11_bn",
    "tf_efficientnet_lite0",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "mobilenetv3_small_050",
    "resnetv2_50x1_bit",
    "convnext_atto",
    "densenet121",
    "regnetx_002",
]


def saved(folder: Path, name: str, head: Head, size: int = 64) -> Classifier:
    torch.manual_seed(0)
    classifier = Classifier(create_backbone(name, size), head, 3, size).eval()
    preprocessing = {
        "image_size": size,
        "resize": "crop",
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
    }
    write_model_folder(folder, classifier, ModelCard(name, head, ("a", "b", "ü"), preprocessing, {}, {"origin": "random"}, {}))
    return classifier


@pytest.mark.usefixtures("thin_vgg")
@pytest.mark.parametrize("name", FAMILIES)
def test_plain_timm_gives_the_same_logits_as_the_classifier(tmp_path: Path, name: str) -> None:
    classifier = saved(tmp_path / "model", name, Head(dropout=0.2))
    check_can_ship(name, Head(), classifier, 3, 64)
    plain = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(plain(images), classifier(images), atol=1e-5, rtol=1e-5)
    config = timm.data.resolve_model_data_config(plain)
    assert [*config["mean"], *config["std"], config["crop_pct"], *config["input_size"]] == [0.5, 0.4, 0.3, 0.2, 0.3, 0.4, 0.9, 3, 64, 64]


@pytest.mark.parametrize("name", ["vgg11", "alexnet"])
def test_plain_timm_gives_the_map_of_the_convolutions_alone(tmp_path: Path, name: str) -> None:
    classifier = Classifier(create_backbone(name, 64, features="conv", pool="max"), Head(pool="max"), 3, 64).eval()
    preprocessing = {"image_size": 64, "resize": "crop", "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.2] * 3}
    card = ModelCard(name, Head(pool="max"), ("a", "b", "c"), preprocessing, {}, {}, {}, features="conv")
    write_model_folder(tmp_path / "model", classifier, card)
    plain = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        (found,) = plain(images) if name == "vgg11" else (plain(images),)
        expected = classifier.backbone.forward_features(images) if name == "vgg11" else classifier.features(images)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(load_with_card(tmp_path)[0](images), classifier(images))


@pytest.mark.parametrize("head", [Head(), Head(kind="mlp", hidden=16)])
def test_a_saved_classifier_reads_back_bit_equal_with_its_classes(tmp_path: Path, head: Head) -> None:
    classifier = saved(tmp_path / "run/model", "test_resnet", head)
    loaded, card = load_with_card(tmp_path / "run")
    assert card.classes == ("a", "b", "ü")
    assert card.head == head
    for key, tensor in classifier.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key


def test_a_changed_weight_file_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model", "test_resnet", Head())
    state = load_file(tmp_path / "model/model.safetensors")
    state["fc.bias"] += 1
    save_file(state, tmp_path / "model/model.safetensors")
    with pytest.raises(RunError, match="sha256 differs"):
        load_with_card(tmp_path)


@pytest.mark.parametrize(("damage", "message"), [("", "can't be read"), ("{}", "can't be read"), ('{"format": 99}', "format 99")])
def test_a_damaged_tlkit_json_is_named(tmp_path: Path, damage: str, message: str) -> None:
    saved(tmp_path / "model", "test_resnet", Head())
    (tmp_path / "model/tlkit.json").write_text(damage)
    with pytest.raises(RunError, match=message):
        load_with_card(tmp_path)


def test_a_head_that_was_changed_by_hand_is_named_by_its_key(tmp_path: Path) -> None:
    saved(tmp_path / "model", "test_resnet", Head())
    file = tmp_path / "model/tlkit.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, "head": {**facts["head"], "kind": "linera", "dropout": 3}}))
    with pytest.raises(RunError) as raised:
        load_with_card(tmp_path)
    assert "tlkit.json can't be read: head.kind = 'linera' " in str(raised.value)
    assert "head.dropout = 3 " in str(raised.value)
    assert "pydantic" not in str(raised.value)
    file.write_text(json.dumps({**facts, "head": None}))
    with pytest.raises(RunError, match=r"tlkit.json can't be read: TypeError: 'NoneType'"):
        load_with_card(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "multilabel"}, "task = 'multilabel' goes with 3 thresholds, and thresholds has 0."),
        ({"thresholds": [0.5]}, "task = 'multiclass' goes with 0 thresholds, and thresholds has 1."),
        ({"task": "multi-label"}, "task = 'multi-label'. Expected one of: multiclass, multilabel. Did you mean 'multilabel'?"),
        ({"classes": ["a", "b", "a"]}, "classes has 'a' twice. Expected each class once."),
        ({"calibration": {"temperature": 0}}, "calibration.temperature = 0. Expected a number above 0."),
        ({"calibration": {"temperature": -2.5}}, "calibration.temperature = -2.5. Expected a number above 0."),
        ({"calibration": {"temperature": nan}}, "calibration.temperature = nan. Expected a number."),
        ({"conformal": {"coverage": "0.9", "quantile": 0.5, "pictures": 9}}, "conformal.coverage = '0.9'. Expected a number."),
    ],
)
def test_values_of_tlkit_json_that_were_changed_by_hand_are_named_by_their_key(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    saved(tmp_path / "model", "test_resnet", Head())
    file = tmp_path / "model/tlkit.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    with pytest.raises(RunError) as raised:
        load_model(tmp_path)
    assert str(raised.value).startswith(f"{file} can't be read: {message}\n")


def test_sha256_entries_can_not_point_outside_the_folder(tmp_path: Path) -> None:
    saved(tmp_path / "model", "test_resnet", Head())
    file = tmp_path / "model/tlkit.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sha256": {"../outside.safetensors": "0"}}))
    with pytest.raises(RunError):
        load_with_card(tmp_path)


def test_a_folder_without_a_model_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"neither tlkit\.json nor model/tlkit\.json"):
        find_model_folder(tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        find_model_folder(tmp_path / "nowhere")


def test_a_backbone_whose_classifier_is_no_linear_layer_is_refused_before_training() -> None:
    classifier = Classifier(create_backbone("resnet18", 64), Head(), 3, 64)
    with pytest.raises(BackboneError, match="mlp"):
        check_can_ship("resnet34", Head(), classifier, 3, 64)


def test_a_model_folder_whose_weights_are_nan_is_refused_with_the_file_and_the_tensor(tmp_path: Path) -> None:
    """As a run of an older version can have left it: the sha256 is right."""
    backbone = create_backbone("test_resnet", 32)
    key = next(key for key in backbone.state_dict() if key.endswith("running_var"))
    backbone.state_dict()[key][0] = float("nan")
    preprocessing = {"image_size": 32, "resize": "crop", "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    card = ModelCard("test_resnet", Head(), ("a", "b", "c"), preprocessing, {}, {}, {})
    write_model_folder(tmp_path / "model", Classifier(backbone, Head(), 3, 32), card)
    with pytest.raises(RunError, match=rf"model\.safetensors: {re.escape(key)} holds NaN or infinity in 1 of its"):
        load_with_card(tmp_path / "model")
