"""Prefix and suffix compose to the whole, for every family and boundary, and change nothing."""

import pytest
import torch
from torch import nn

from tests.thin import thin_networks
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.models.freeze import trained_parameters
from tlkit.models.split import CannotCut, cut
from tlkit.recipe.fields.model import Head
from tlkit.recipe.fields.phases import FromStage, Train

pytestmark = pytest.mark.usefixtures("thin_vgg")

SIZES = {
    "resnet18": 64,
    "vgg11_bn": 64,
    "vgg11_bn conv": 64,
    "googlenet": 64,
    "tf_efficientnet_lite0": 64,
    "mobilenetv3_small_050": 64,
    "densenet121": 64,
    "regnetx_002": 64,
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 64,
    "deit_tiny_distilled_patch16_224": 64,
    "hrnet_w18_small": 64,
    "lenet5": 32,
    "alexnet": 64,
}


def create(name: str) -> nn.Module:
    """Of "vgg11_bn conv": the convolutions alone."""
    return create_backbone(name.removesuffix(" conv"), SIZES[name], features="conv" if name.endswith(" conv") else "all")


def classifier_of(name: str, train: Train | str | dict[str, str]) -> Classifier:
    torch.manual_seed(0)
    classifier = Classifier(create(name), Head(), 3, SIZES[name])
    wanted = FromStage.model_validate(train) if isinstance(train, dict) else train
    classifier.train_only(trained_parameters(wanted, classifier.backbone, classifier.stages, key="train", name=name))  # type: ignore[arg-type]
    return classifier


def random_images(name: str, number: int = 4) -> torch.Tensor:
    return torch.randn(number, 3, SIZES[name], SIZES[name]).contiguous(memory_format=torch.channels_last)


def boundaries(name: str) -> list[str | dict[str, str]]:
    """Head alone, from the last stage, from the one in the middle."""
    names = [stage.name for stage in Classifier(create(name), Head(), 3, SIZES[name]).stages]
    return ["head", {"from": names[-1]}, {"from": names[len(names) // 2]}]


@pytest.mark.parametrize("name", SIZES)
@thin_networks()
def test_prefix_and_suffix_are_the_whole_in_both_modes(name: str) -> None:
    images = random_images(name)
    for train in boundaries(name):
        classifier = classifier_of(name, train)
        modes = {path: module.training for path, module in classifier.named_modules()}
        state = {key: value.clone() for key, value in classifier.state_dict().items()}
        found = cut(classifier, images[:1])
        assert {path: module.training for path, module in classifier.named_modules()} == modes
        assert all(torch.equal(value, state[key]) for key, value in classifier.state_dict().items())
        with torch.no_grad():
            activations = found.prefix(images)
        assert all(len(activation) == len(images) for activation in activations)
        torch.manual_seed(1)
        whole = classifier.features(images)
        classifier.load_state_dict(state)  # batch-norm has moved on
        torch.manual_seed(1)
        torch.testing.assert_close(found.suffix.train()(*activations), whole)
        classifier.eval()
        torch.testing.assert_close(found.suffix.eval()(*activations), classifier.features(images))


def test_training_the_suffix_trains_the_classifier_and_only_what_the_phase_says() -> None:
    classifier = classifier_of("resnet18", {"from": "layer4"})
    images = random_images("resnet18")
    found = cut(classifier, images[:1])
    with torch.no_grad():
        activations = found.prefix(images)
    classifier.head(found.suffix.train()(*[activation.clone() for activation in activations])).sum().backward()
    with_gradient = {name.partition(".")[0] for name, parameter in classifier.backbone.named_parameters() if parameter.grad is not None}
    assert with_gradient == {"layer4"}


@pytest.mark.parametrize(
    ("name", "train", "shapes"),
    [
        ("resnet18", "head", [(512,)]),
        ("resnet18", {"from": "layer4"}, [(256, 4, 4)]),
        ("resnet18", {"from": "layer1"}, [(64, 16, 16)]),
        ("googlenet", {"from": "inception5b"}, [(832, 2, 2)]),  # four branches of one map: cached once, pooled again
        ("vgg11_bn", "head", [(4096,)]),
        ("vgg11_bn conv", "head", [(512,)]),
        ("vgg11_bn conv", {"from": "conv5"}, [(512, 4, 4)]),
        ("vit_tiny_patch16_224", {"from": "block11"}, [(17, 192)]),
    ],
)
def test_what_crosses_the_cut_is_what_the_stage_takes(name: str, train: str | dict[str, str], shapes: list[tuple[int, ...]]) -> None:
    found = cut(classifier_of(name, train), random_images(name, 1))
    with torch.no_grad():
        assert [tuple(activation.shape[1:]) for activation in found.prefix(random_images(name, 2))] == shapes


def test_nothing_is_cut_where_the_first_layer_trains() -> None:
    with pytest.raises(CannotCut, match="no frozen layer comes before"):
        cut(classifier_of("vgg11_bn", "bias"), random_images("vgg11_bn", 1))


def test_a_network_that_looks_at_values_can_not_be_traced_and_says_so() -> None:
    classifier = classifier_of("resnet18", {"from": "layer4"})
    features = classifier.features
    classifier.features = lambda images: features(images) if images.sum() > 0 else features(-images)  # type: ignore[method-assign]
    with pytest.raises(CannotCut, match=r"torch.fx can't trace it"):
        cut(classifier, random_images("resnet18", 1))
