"""What is frozen stays as it was, to the last bit."""

import pytest
import torch
from torch import nn

from tlkit.errors import RecipeError
from tlkit.models.backbones import create_backbone, stages
from tlkit.models.classifier import Classifier
from tlkit.models.freeze import frozen_modules, trained_stages
from tlkit.recipe.schema import FromStage, Head

NORMS = (nn.BatchNorm2d,)


def classifier(name: str = "resnet18", size: int = 64) -> Classifier:
    torch.manual_seed(0)
    return Classifier(create_backbone(name, size), Head(dropout=0.5), 3, size)


def train_three_steps(model: Classifier, size: int = 64) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        model.train()
        images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        model(images)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "tf_efficientnet_lite0", "convnext_atto"])
def test_training_the_head_leaves_every_backbone_weight_and_buffer_bit_equal(name: str) -> None:
    model = classifier(name)
    model.train_only(trained_stages("head", model.stages, key="phases[0].train", backbone=name))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    train_three_steps(model)
    after = model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"head.1.weight", "head.1.bias"}


def test_training_from_layer4_moves_layer4_and_the_head_and_nothing_else() -> None:
    model = classifier()
    model.train_only(trained_stages(FromStage(from_="layer4"), model.stages, key="phases[0].train", backbone="resnet18"))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    train_three_steps(model)
    after = model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key.split(".")[1] for key in changed if key.startswith("backbone")} == {"layer4"}
    # Every parameter of layer4 and every batch-norm statistic of it has moved.
    assert {key for key in before if key.startswith("backbone.layer4")} <= changed


def test_frozen_batchnorm_and_dropout_stay_in_eval_through_train_and_eval_round_trips() -> None:
    model = classifier("tf_efficientnet_lite0")
    model.train_only(trained_stages(FromStage(from_="block5"), model.stages, key="phases[0].train", backbone="tf_efficientnet_lite0"))
    for _ in range(2):
        model.train()
        modes = {name: module.training for name, module in model.backbone.named_modules() if isinstance(module, NORMS)}
        assert all(not mode for name, mode in modes.items() if name == "bn1" or name.startswith(tuple(f"blocks.{i}." for i in range(5))))
        assert all(mode for name, mode in modes.items() if name == "bn2" or name.startswith(("blocks.5.", "blocks.6.")))
        assert model.head[0].training
        model.eval()
        assert not any(module.training for module in model.modules())


def test_drop_path_of_frozen_blocks_is_off_and_of_trained_blocks_on() -> None:
    import timm

    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, drop_path_rate=0.2, img_size=32)
    model = Classifier(backbone, Head(), 3, 32)
    model.train_only(trained_stages(FromStage(from_="block6"), model.stages, key="phases[0].train", backbone="vit"))
    model.train()
    assert not backbone.blocks[5].drop_path1.training
    assert not backbone.pos_drop.training
    assert backbone.blocks[6].drop_path1.training


def test_a_new_phase_unfreezes_what_the_last_one_froze() -> None:
    model = classifier()
    model.train_only(())
    assert frozen_modules(model.backbone) == {""}
    assert not any(p.requires_grad for p in model.backbone.parameters())
    model.train_only(model.stages)
    assert frozen_modules(model.backbone) == frozenset()
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.train().modules())


def test_an_unknown_stage_names_the_place_the_stages_and_the_nearest() -> None:
    found = stages(create_backbone("resnet18", 64))
    with pytest.raises(RecipeError) as caught:
        trained_stages(FromStage(from_="layr4"), found, key="phases[1].train", backbone="resnet18")
    assert str(caught.value) == (
        "phases[1].train.from = 'layr4' is not a stage of resnet18.\n"
        "  Expected one of: stem, layer1, layer2, layer3, layer4. Did you mean 'layer4'?"
    )


def test_a_fully_trained_backbone_has_no_module_in_eval_mode() -> None:
    """timm's BatchNormAct2d has its activation as a child; it must follow its own parameters."""
    model = classifier("tf_efficientnet_lite0")
    model.train_only(model.stages)
    assert [name for name, module in model.named_modules() if not module.training] == []
