"""Sizes that a backbone can't take are refused with the nearest that work, and a border that it doesn't see is named."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import timm
import torch
from torch import nn

from tlkit.errors import BackboneError, RecipeError
from tlkit.models.backbones import create_backbone, pretrained_cfg
from tlkit.models.classifier import Classifier
from tlkit.models.image_sizes import border_warning, explained_image_size, unseen_border
from tlkit.recipe.fields.model import Head


def build(name: str, image_size: int) -> Classifier:
    with explained_image_size(name, image_size):
        return Classifier(create_backbone(name, image_size), Head(), ("a", "b"), image_size)


def plain_timm_takes(name: str, image_size: int) -> bool:
    """On torch's meta device: shapes alone, without numbers."""
    options = {"img_size": image_size} if pretrained_cfg(name).get("fixed_input_size") else {}
    try:
        with torch.device("meta"), torch.inference_mode():
            timm.create_model(name, **options).eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


# vgg11: five poolings halve 32 px to 1. convnext: a stride of 4 and three of 2. maxvit: windows of a thirty-second of the image.
@pytest.mark.parametrize(
    ("name", "size", "nearest"),
    [
        ("vit_tiny_patch16_224", 10, [16]),
        ("mixer_s32_224", 20, [32]),
        ("convnext_atto", 20, [32]),
        ("vgg11", 20, [32]),
        ("googlenet", 8, [15]),
        ("simple_cnn", 8, [16]),
        ("alexnet", 40, [64]),
        ("test_maxvit", 100, [96, 128]),
    ],
)
@pytest.mark.usefixtures("thin_vgg")
def test_a_size_that_a_backbone_cannot_take_is_refused_with_sizes_that_work(name: str, size: int, nearest: list[int]) -> None:
    problem = f"data.image_size = {size} can't be used with {name}."
    fix = f"Sizes near it that work: {' or '.join(map(str, nearest))}."
    with pytest.raises(RecipeError, match=re.escape(f"{problem}\n  {fix}")):
        build(name, size)
    assert not plain_timm_takes(name, size)
    assert all(plain_timm_takes(name, found) for found in nearest)


@pytest.mark.parametrize(
    ("name", "size", "nearest"), [("vit_huge_patch14_224", 10, [14]), ("vgg19", 20, [32]), ("hrnet_w64", 100, [96, 128])]
)
def test_large_backbones_take_what_the_table_says_of_them(name: str, size: int, nearest: list[int]) -> None:
    assert not plain_timm_takes(name, size)
    assert all(plain_timm_takes(name, found) for found in nearest)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"])
def test_families_that_take_any_size_are_built_at_the_smallest_that_a_recipe_may_name(name: str) -> None:
    classifier = build(name, 8).eval()
    assert classifier(torch.zeros(1, 3, 8, 8)).shape == (1, 2)


def test_what_fails_for_another_reason_is_raised_as_it_is() -> None:
    with pytest.raises(BackboneError, match="has no map"), explained_image_size("resnet18", 64):
        raise BackboneError("has no map")
    with pytest.raises(RecipeError, match=r"model\.head\.pool"), explained_image_size("alexnet", 20):
        create_backbone("alexnet", 64, pool="max")


# By arithmetic: size modulo the side of a patch, where nothing is padded.
@pytest.mark.parametrize(
    ("name", "size", "unseen"),
    [
        ("vit_tiny_patch16_224", 33, 1),
        ("vit_tiny_patch16_224", 48, 0),
        ("vit_small_patch14_dinov2", 30, 2),
        ("swin_tiny_patch4_window7_224", 34, 2),
        ("mixer_s32_224", 40, 8),
        ("convnext_atto", 35, 3),
        ("convnext_atto", 36, 0),  # its second stage drops the last of 9 columns, which 7 x 7 convolutions have spread before
        ("resnet18", 33, 0),
        ("googlenet", 33, 0),
        ("tf_efficientnet_lite0", 33, 0),
        ("vgg11", 33, 0),
    ],
)
@pytest.mark.usefixtures("thin_vgg")
def test_the_border_that_no_feature_depends_on_is_found(name: str, size: int, unseen: int) -> None:
    backbone = create_backbone(name, size).train()
    with whole(backbone):
        assert unseen_border(backbone, size) == unseen
    warning = border_warning(name, backbone, size)
    assert bool(warning) == bool(unseen)
    assert f"{unseen} px at the right and the bottom" in warning or not unseen


@contextmanager
def whole(backbone: nn.Module) -> Iterator[None]:
    """Asserts that neither modes, statistics nor gradients change inside."""
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    yield
    assert backbone.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
