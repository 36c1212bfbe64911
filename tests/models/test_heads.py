"""Heads: what they compute, against hand arithmetic, torch and scikit-learn, and that each ships."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from tlkit.errors import RecipeError
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.models.heads import Cosine, LocallyConnected, NearestNeighbours
from tlkit.models.model_folder import ModelCard, check_can_ship, load_with_card, write_model_folder
from tlkit.recipe.fields.model import Head

PREPROCESSING = {
    "image_size": 64,
    "resize": "crop",
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


def classifier_with(head: Head, backbone: str = "resnet18") -> Classifier:
    torch.manual_seed(0)
    return Classifier(create_backbone(backbone, 64, pool=head.pool), head, 3, 64).eval()


def test_a_cosine_head_gives_the_scaled_cosine_of_the_angle() -> None:
    head = Cosine(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 0.0], [1.0, 1.0]]))
        head.scale.fill_(10.0)
    # The features (0, 5) stand at right angles to the first class and at 45 degrees to the second.
    torch.testing.assert_close(head(torch.tensor([[0.0, 5.0]])), torch.tensor([[0.0, 10 / 2**0.5]]))


def test_a_locally_connected_layer_with_equal_filters_everywhere_is_a_convolution() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 5, 3, padding=1)
    local = LocallyConnected(torch.Size([4, 3, 2]), 5)
    with torch.no_grad():
        local.weight.copy_(convolution.weight.flatten(1).expand(6, 5, 36))
        local.bias.copy_(convolution.bias.repeat_interleave(6))
    maps = torch.randn(2, 4, 3, 2)
    torch.testing.assert_close(local(maps), convolution(maps))


def test_each_place_of_a_locally_connected_layer_has_its_own_filter() -> None:
    local = LocallyConnected(torch.Size([1, 1, 2]), 1)
    with torch.no_grad():
        local.weight.zero_()
        local.weight[:, 0, 4] = torch.tensor([2.0, -3.0])  # the middle of the 3x3 patch
    assert local(torch.ones(1, 1, 1, 2)).flatten().tolist() == [2.0, -3.0]


def test_nearest_neighbours_vote_as_scikit_learns_do() -> None:
    random = np.random.default_rng(0)
    images, labels, others = random.normal(size=(60, 8)), random.integers(0, 3, 60), random.normal(size=(40, 8))
    head = NearestNeighbours(8, 3, neighbours=5)
    head.remember(torch.tensor(images), torch.tensor(labels))
    shares = head(torch.tensor(others)).exp()
    theirs = KNeighborsClassifier(5).fit(images, labels).predict_proba(others)
    # Five votes and a third of one more for each class, of six.
    np.testing.assert_allclose(shares.numpy(), (5 * theirs + 1 / 3) / 6)
    assert (shares.argmax(1).numpy() == theirs.argmax(1)).all()


@pytest.mark.parametrize("kind", ["mlp", "cosine", "locally_connected", "knn"])
def test_a_head_of_its_own_kind_reads_back_with_equal_logits(tmp_path: Path, kind: str) -> None:
    head = Head.model_validate({"kind": kind, "hidden": 16} if kind == "mlp" else {"kind": kind})
    classifier = classifier_with(head)
    if kind == "knn":
        classifier.head.remember(torch.randn(20, 512), torch.arange(20) % 3)
    check_can_ship("resnet18", head, classifier, 3, 64)
    write_model_folder(tmp_path, classifier, ModelCard("resnet18", head, ("a", "b", "c"), PREPROCESSING, {}, {}, {}))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(load_with_card(tmp_path)[0](images), classifier(images))


@pytest.mark.parametrize("backbone", ["resnet18", "googlenet", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
def test_pooling_is_that_of_the_map_and_ships_in_timms_own_words(tmp_path: Path, backbone: str, pool: str) -> None:
    head = Head.model_validate({"pool": pool})
    classifier = classifier_with(head, backbone)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        maps = classifier.backbone.forward_features(images)
        places = maps.flatten(2) if maps.ndim == 4 else maps[:, 1:].transpose(1, 2)  # a transformer's first token is no place
        expected = {"avg": places.mean(2), "max": places.amax(2), "avgmax": (places.mean(2) + places.amax(2)) / 2}[pool]
        torch.testing.assert_close(classifier.features(images), expected)
        check_can_ship(backbone, head, classifier, 3, 64)
        write_model_folder(tmp_path, classifier, ModelCard(backbone, head, ("a", "b", "c"), PREPROCESSING, {}, {}, {}))
        plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        torch.testing.assert_close(plain(images), classifier(images))
        assert torch.equal(load_with_card(tmp_path)[0](images), classifier(images))


@pytest.mark.parametrize("pool", [None, "max", "avgmax"])
@pytest.mark.parametrize(("backbone", "width"), [("vgg11", 512), ("alexnet", 256)])
def test_the_convolutions_alone_are_pooled_as_the_head_says(backbone: str, width: int, pool: str | None) -> None:
    head = Head.model_validate({"pool": pool})
    classifier = Classifier(create_backbone(backbone, 95, features="conv", pool=pool), head, 3, 95).eval()
    images = torch.randn(2, 3, 95, 95)
    with torch.inference_mode():
        maps = classifier.backbone.forward_features(images).flatten(2)
        expected = {None: maps.mean(2), "max": maps.amax(2), "avgmax": (maps.mean(2) + maps.amax(2)) / 2}[pool]
        torch.testing.assert_close(classifier.features(images), expected)
    assert expected.shape == (2, width)
    assert not any(parameter.ndim == 2 for parameter in classifier.backbone.parameters())


@pytest.mark.parametrize(
    ("backbone", "head", "problem"),
    [
        ("vit_tiny_patch16_224", {"kind": "locally_connected"}, "its features have no places"),
        ("vgg11", {"kind": "locally_connected"}, "its layers pre_logits"),
        ("vgg11", {"pool": "max"}, "it has dense layers instead of pooling"),
        ("mixer_s32_224", {"pool": "max"}, "Only avg pooling"),
        ("eva02_tiny_patch14_224", {"pool": "max"}, "it has only its own pooling"),
    ],
)
def test_a_head_that_does_not_fit_the_backbone_is_a_recipe_fault(backbone: str, head: dict[str, str], problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        classifier_with(Head.model_validate(head), backbone)
    (fault,) = caught.value.faults
    assert fault.key.startswith("model.head.")
    assert problem in fault.problem
