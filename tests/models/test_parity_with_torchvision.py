"""The same random weights give the same logits in timm's and tlkit's networks as in torchvision's."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from tlkit.models.zoo import classic, googlenet  # noqa: F401  # registers their models with timm

# timm's dense layers of VGG are convolutions over the whole map; torchvision's are flat.
VGG_DENSE = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}


def ours(name: str) -> nn.Module:
    """With random weights, biases and batch-norm statistics too: those of a new network are zeros and ones."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=1000).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
    return model


def theirs(name: str, model: nn.Module) -> nn.Module:
    """torchvision's network around our model's own tensors: vgg16 is in memory once."""
    options = {"aux_logits": False, "transform_input": True, "init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        network: nn.Module = torchvision.models.get_model(name, **options).eval()
    network.load_state_dict(in_torchvisions_names(model.state_dict()), strict=True, assign=True)
    return network


def in_torchvisions_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        dense = module in VGG_DENSE
        renamed[f"{VGG_DENSE.get(module, module)}.{kind}"] = tensor.flatten(1) if dense and kind == "weight" else tensor
    return renamed


@pytest.mark.parametrize(
    ("name", "allowed"), [("resnet18", 1e-5), ("resnet50", 1e-5), ("vgg16", 1e-5), ("vgg16_bn", 1e-5), ("googlenet", 1e-6)]
)
@torch.inference_mode()
def test_logits_are_torchvisions(name: str, allowed: float) -> None:
    model = ours(name)
    images = torch.randn(1, 3, 224, 224)
    expected = theirs(name, model)(images)
    difference = float((model(images) - expected).abs().max())
    print(f"{name} against torchvision: max difference {difference:.1e} of logits up to {expected.abs().max():.2f}")
    assert expected.std() > 0.01
    assert difference <= allowed


@torch.inference_mode()
def test_alexnets_maps_have_torchvisions_sizes_and_its_dense_layers_give_the_same() -> None:
    """No convolution of the two has the same shape and groups: torchvision's is the later one-GPU network (Krizhevsky 2014), with fewer
    channels and neither groups nor response normalisation; tlkit's is that of the 2012 paper. Sizes of maps and the dense layers agree.
    """
    model = ours("alexnet")
    with torch.device("meta"):
        network = torchvision.models.alexnet().eval()
    assert not convolutions(network.features) & convolutions(model.features)
    assert map_sides(model.features, "cpu") == map_sides(network.features, "meta") == [55, 27, 27, 13, 13, 13, 13, 6]

    names = {"pre_logits.2": "1", "pre_logits.5": "4", "fc": "6"}
    state = {key.rpartition("."): tensor for key, tensor in model.state_dict().items() if not key.startswith("features")}
    network.classifier.load_state_dict({f"{names[module]}.{kind}": tensor for (module, _, kind), tensor in state.items()}, assign=True)
    for side in (6, 13):
        maps = torch.randn(2, 256, side, side)
        expected = network.classifier(network.avgpool(maps).flatten(1))
        difference = float((model.forward_head(maps) - expected).abs().max())
        print(f"alexnet's dense part against torchvision, {side} x {side}: max difference {difference:.1e}")
        assert difference <= 1e-5


def convolutions(features: nn.Sequential) -> set[tuple[tuple[int, ...], int]]:
    return {(tuple(layer.weight.shape), layer.groups) for layer in features if isinstance(layer, nn.Conv2d)}


def map_sides(features: nn.Sequential, device: str) -> list[int]:
    """The side of the map after every convolution and pooling, for 224 px."""
    maps, sides = torch.zeros(1, 3, 224, 224, device=device), []
    for layer in features:
        maps = layer(maps)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            sides.append(maps.shape[-1])
    return sides
