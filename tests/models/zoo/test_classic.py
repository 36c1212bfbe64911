"""The classics have the sizes of their papers, the stages people know, and train."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tlkit.errors import BackboneError
from tlkit.models.backbones import build_options, create_backbone, stages
from tlkit.models.classifier import Classifier
from tlkit.models.model_folder import ModelCard, check_can_ship, load_with_card, write_model_folder
from tlkit.models.zoo.layers import LocalResponseNorm
from tlkit.recipe.fields.model import Head
from tlkit.recipe.load import load_recipe
from tlkit.system import shipped

SIZES = [("lenet5", 28), ("lenet5", 32), ("simple_cnn", 28), ("alexnet", 64), ("plain18", 32), ("plain34", 32)]


def parameters_of(name: str, *, size: int, classes: int) -> int:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=classes, **build_options(name, size))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("lenet5", 32, ["conv1", "conv2", "conv3", "dense"]),
        ("simple_cnn", 28, ["conv1", "conv2", "dense"]),
        ("alexnet", 64, ["conv1", "conv2", "conv3", "conv4", "conv5", "dense"]),
        ("plain18", 32, ["stem", "layer1", "layer2", "layer3", "layer4"]),
    ],
)
def test_stages_have_the_names_people_know_and_hold_every_parameter_once(name: str, size: int, expected: list[str]) -> None:
    backbone = create_backbone(name, size)
    found = stages(backbone)
    assert [stage.name for stage in found] == expected
    assert [parameter for stage in found for parameter in stage.parameters] == [name for name, _ in backbone.named_parameters()]


def test_lenet5_has_the_papers_layers() -> None:
    """LeCun et al. 1998, section II.B: C5 has 48,120 connections, F6 10,164 parameters. C1 sees three colours here, C3 all maps."""
    counts = [sum(p.numel() for p in layer.parameters()) for layer in create_backbone("lenet5", 32).modules() if not list(layer.children())]
    assert [count for count in counts if count] == [6 * 76, 16 * 151, 48_120, 10_164]


def test_alexnet_has_the_papers_size() -> None:
    """Krizhevsky et al. 2012: 60 million parameters; 186,624, 64,896, 64,896 and 43,264 neurons in the second to fifth layer."""
    assert parameters_of("alexnet", size=224, classes=1000) == 60_965_224
    backbone = create_backbone("alexnet", 224).eval()
    neurons = []
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, maps: neurons.append(maps.numel()))
    with torch.inference_mode():
        maps = backbone.forward_features(torch.zeros(1, 3, 224, 224))  # type: ignore[operator]
    # The paper prints 253,440 for the first layer; by its own figure 2 it is 55 x 55 x 48 on each GPU.
    assert neurons == [55 * 55 * 96, 186_624, 64_896, 64_896, 43_264]
    assert maps.shape == (1, 256, 6, 6)


def test_local_response_norm_is_torchs_and_with_alexnets_numbers_the_papers() -> None:
    maps = torch.randn(2, 7, 3, 3)
    ours = LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)
    torch.testing.assert_close(ours(maps), nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)(maps))
    # Krizhevsky et al. 2012, section 3.3, for channel 3: the sum runs over channels 1 to 5, and alpha = 1e-4 is not divided by 5.
    expected = maps[:, 3] / (2 + 1e-4 * maps[:, 1:6].square().sum(1)) ** 0.75
    torch.testing.assert_close(ours(maps)[:, 3], expected)


def test_simple_cnn_has_the_lectures_layers() -> None:
    expected = (3 * 25 * 64 + 64) + (64 * 25 * 128 + 128) + (4 * 4 * 128 * 2048 + 2048) + (2048 * 1024 + 1024) + (1024 * 10 + 10)
    assert parameters_of("simple_cnn", size=28, classes=10) == expected


@pytest.mark.parametrize(("plain", "residual"), [("plain18", "resnet18"), ("plain34", "resnet34")])
def test_a_plain_network_is_its_residual_twin_without_the_shortcuts(plain: str, residual: str) -> None:
    with torch.device("meta"):
        twin = timm.create_model(residual).state_dict()
        shapes = {key: tensor.shape for key, tensor in timm.create_model(plain).state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in twin.items() if ".downsample." not in key}
    block = timm.create_model(plain).layer2[1].eval()
    nn.init.zeros_(block.bn2.weight)
    assert not block(torch.rand(1, 128, 4, 4)).any(), "something came past the convolutions"


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_one_step_lowers_the_loss(name: str, size: int) -> None:
    torch.manual_seed(0)
    classifier = Classifier(create_backbone(name, size), Head(), 3, size)
    check_can_ship(name, Head(), classifier, 3, size)
    classifier.train_only(frozenset(parameter for stage in classifier.stages for parameter in stage.parameters))
    for layer in classifier.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
    images, labels = torch.randn(8, 3, size, size), torch.arange(8) % 3
    optimizer = torch.optim.SGD(classifier.parameters(), lr=1e-4)
    before = cross_entropy(classifier(images), labels)
    before.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in classifier.parameters())
    optimizer.step()
    assert cross_entropy(classifier(images), labels) < before


@pytest.mark.parametrize(("name", "size"), [("lenet5", 28), ("simple_cnn", 32), ("plain18", 32)])
def test_the_model_folder_reads_back_with_equal_logits_also_in_plain_timm(tmp_path: Path, name: str, size: int) -> None:
    classifier = Classifier(create_backbone(name, size), Head(), 3, size).eval()
    preprocessing = {
        "image_size": size,
        "resize": "stretch",
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    write_model_folder(tmp_path / "model", classifier, ModelCard(name, Head(), ("a", "b", "c"), preprocessing, {}, {}, {}))
    loaded, _ = load_with_card(tmp_path)
    plain = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(loaded(images), classifier(images))
        torch.testing.assert_close(plain(images), classifier(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "fix"), [("lenet5", 64, "28 or 32 px"), ("simple_cnn", 128, "16 to 64"), ("alexnet", 32, "63 to")]
)
def test_a_size_that_can_not_be_taken_is_an_error_with_those_that_can(name: str, size: int, fix: str) -> None:
    with pytest.raises(BackboneError, match=rf"'{name}' can't be built for {size} px\.(.|\n)*takes {fix}"):
        create_backbone(name, size)


def test_images_of_another_size_than_it_was_built_for_are_refused() -> None:
    with pytest.raises(ValueError, match="images of 32 x 32 px, but this network takes 28 px"):
        create_backbone("lenet5", 28)(torch.zeros(1, 3, 32, 32))


FROM_SCRATCH = [recipe for path in sorted(shipped("recipes").rglob("*.yaml")) if (recipe := load_recipe(path)).model.weights == "random"]


def test_every_classic_has_a_recipe() -> None:
    assert [recipe.model.backbone for recipe in FROM_SCRATCH] == ["alexnet", "lenet5", "simple_cnn", "plain34", "resnet34"]
