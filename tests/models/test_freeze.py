"""What is frozen stays as it was, to the last bit."""

import pytest
import torch
from torch import nn

from tests.thin import thin_networks
from tlkit.errors import RecipeError
from tlkit.models.backbones import create_backbone, stages
from tlkit.models.classifier import Classifier
from tlkit.models.freeze import BATCH_NORMS, NORMS_WITH_STATISTICS, frozen_modules, trained_parameters
from tlkit.recipe.fields.model import Head
from tlkit.recipe.fields.phases import FromStage, LastStages, Train

NORMS = (nn.BatchNorm2d,)


def classifier(name: str = "resnet18", size: int = 64) -> Classifier:
    torch.manual_seed(0)
    return Classifier(create_backbone(name, size), Head(dropout=0.5), 3, size)


def trained(model: Classifier, train: Train) -> frozenset[str]:
    return trained_parameters(train, model.backbone, model.stages, key="phases[0].train", name="the backbone")


def changed_by_training(model: Classifier) -> set[str]:
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    train_three_steps(model)
    after = model.state_dict()
    return {key for key in before if not torch.equal(before[key], after[key])}


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
@thin_networks()
def test_training_the_head_leaves_every_backbone_weight_and_buffer_bit_equal(name: str) -> None:
    model = classifier(name)
    model.train_only(trained(model, "head"))
    changed = changed_by_training(model)
    assert changed == {"head.1.weight", "head.1.bias"}


def test_training_from_layer4_moves_layer4_and_the_head_and_nothing_else() -> None:
    model = classifier()
    model.train_only(trained(model, FromStage(from_="layer4")))
    changed = changed_by_training(model)
    assert {key.split(".")[1] for key in changed if key.startswith("backbone")} == {"layer4"}
    # Every parameter of layer4 and every batch-norm statistic of it has moved.
    assert {key for key in model.state_dict() if key.startswith("backbone.layer4")} <= changed


def test_frozen_batchnorm_and_dropout_stay_in_eval_through_train_and_eval_round_trips() -> None:
    model = classifier("tf_efficientnet_lite0")
    model.train_only(trained(model, FromStage(from_="block5")))
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
    model.train_only(trained(model, FromStage(from_="block6")))
    model.train()
    assert not backbone.blocks[5].drop_path1.training
    assert not backbone.pos_drop.training
    assert backbone.blocks[6].drop_path1.training


def test_a_new_phase_unfreezes_what_the_last_one_froze() -> None:
    model = classifier()
    model.train_only(frozenset())
    assert frozen_modules(model.backbone) == {""}
    assert not any(p.requires_grad for p in model.backbone.parameters())
    model.train_only(trained(model, "all"))
    assert frozen_modules(model.backbone) == frozenset()
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.train().modules())


def test_an_unknown_stage_names_the_place_the_stages_and_the_nearest() -> None:
    backbone = create_backbone("resnet18", 64)
    with pytest.raises(RecipeError) as caught:
        trained_parameters(FromStage(from_="layr4"), backbone, stages(backbone), key="phases[1].train", name="resnet18")
    assert str(caught.value) == (
        "phases[1].train.from = 'layr4' is not a stage of resnet18.\n"
        "  Expected one of: stem, layer1, layer2, layer3, layer4. Did you mean 'layer4'?"
    )


def test_a_fully_trained_backbone_has_no_module_in_eval_mode() -> None:
    """timm's BatchNormAct2d has its activation as a child; it must follow its own parameters."""
    model = classifier("tf_efficientnet_lite0")
    model.train_only(trained(model, "all"))
    assert [name for name, module in model.named_modules() if not module.training] == []


def test_dropout_that_leads_a_block_is_off_before_the_first_trained_layer_and_on_behind_it() -> None:
    backbone = nn.Sequential(*(nn.Sequential(nn.Dropout(), nn.Linear(2, 2)) for _ in range(3)))
    backbone[0].requires_grad_(False)
    assert frozen_modules(backbone) == {"0", "1.0"}


def test_last_two_is_from_the_second_last_stage() -> None:
    model = classifier()
    assert trained(model, LastStages(last=2)) == trained(model, FromStage(from_="layer3"))


@pytest.mark.parametrize(
    ("name", "train"), [("resnet18", "norm"), ("convnext_atto", "norm"), ("resnet18", "bias"), ("convnext_atto", "bias")]
)
def test_norm_and_bias_move_those_parameters_and_no_others(name: str, train: Train) -> None:
    model = classifier(name)
    model.train_only(trained(model, train), batchnorm="frozen")
    changed = {key for key in changed_by_training(model) if key.startswith("backbone")}
    dimensions = {key: tensor.ndim for key, tensor in model.state_dict().items()}
    assert changed
    assert all(dimensions[key] == 1 for key in changed)
    assert all("norm" in key or "bn" in key or "downsample" in key or "stem.1" in key for key in changed) or train == "bias"
    assert all(key.endswith("bias") for key in changed) or train == "norm"


def test_frozen_batchnorm_keeps_every_statistic_while_all_weights_train() -> None:
    model = classifier()
    model.train_only(trained(model, "all"), batchnorm="frozen")
    changed = changed_by_training(model)
    assert not [key for key in changed if "running" in key or "num_batches" in key]
    assert {f"backbone.{parameter}" for parameter, _ in model.backbone.named_parameters()} <= changed


def test_asking_for_norms_that_are_not_there_or_too_many_stages_is_a_recipe_fault() -> None:
    vgg = classifier("vgg11", 32)
    with pytest.raises(RecipeError, match="has no normalisation layers"):
        trained(vgg, "norm")
    with pytest.raises(RecipeError, match=r"phases\[0\]\.train\.last = 9, but the backbone has 6 stages"):
        trained(vgg, LastStages(last=9))


def test_the_layers_with_statistics_are_all_that_torch_has() -> None:
    """torch's own base classes are private; lazy ones become these."""
    from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

    layers = [kind for name, kind in vars(nn).items() if isinstance(kind, type) and not name.startswith("Lazy")]
    assert {kind for kind in layers if issubclass(kind, _BatchNorm)} == set(BATCH_NORMS)
    assert {kind for kind in layers if issubclass(kind, _NormBase)} == set(NORMS_WITH_STATISTICS)
