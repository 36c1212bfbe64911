import pytest
import torch

from tlkit.errors import RecipeError
from tlkit.models.backbones import check_backbone_name, create_backbone, stages

STAGES = {
    "resnet18": ["stem", "layer1", "layer2", "layer3", "layer4"],
    "vgg11": ["conv1", "conv2", "conv3", "conv4", "conv5", "dense"],
    "vgg16_bn": ["conv1", "conv2", "conv3", "conv4", "conv5", "dense"],
    "tf_efficientnet_lite0": ["stem", *(f"block{i}" for i in range(7))],
    "vit_tiny_patch16_224": ["patch_embed", *(f"block{i}" for i in range(12))],
    "convnext_atto": ["stem", "stage0", "stage1", "stage2", "stage3", "norm"],
    "densenet121": ["stem", "denseblock1", "denseblock2", "denseblock3", "denseblock4", "norm5"],
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_have_the_names_people_know_and_hold_every_parameter_once(name: str) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, 224)
    found = stages(backbone)
    assert [stage.name for stage in found] == STAGES[name]
    listed = [parameter for stage in found for parameter in stage.parameters]
    assert sorted(listed) == sorted(name for name, _ in backbone.named_parameters())


def test_the_five_convolutional_blocks_of_vgg16_have_2_2_3_3_3_layers() -> None:
    """Source: Simonyan and Zisserman 2015, table 1, configuration D."""
    with torch.device("meta"):
        found = stages(create_backbone("vgg16", 224))
    assert [sum(p.endswith(".weight") for p in stage.parameters) for stage in found] == [2, 2, 3, 3, 3, 2]


def test_an_unknown_backbone_gets_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"model.backbone = 'resnet81' is not a model(.|\n)*Did you mean 'resnet\d+'"):
        check_backbone_name("resnet81")


def test_an_unknown_tag_gets_the_tags_there_are() -> None:
    with pytest.raises(RecipeError, match=r"resnet18 has no weights 'a9_in1k'(.|\n)*Did you mean 'a[123]_in1k'"):
        check_backbone_name("resnet18.a9_in1k")
