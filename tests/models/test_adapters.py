"""Adapters train in place of the weights that they are on, and leave a plain network when they are merged."""

import pytest
import timm
import torch
from timm.models.beit import Beit
from torch import nn
from torch.nn.functional import cross_entropy

from tests.thin import thin_networks
from tlkit.errors import MissingExtraError, RecipeError
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.models.freeze import trained_parameters
from tlkit.models.split import cut
from tlkit.recipe.fields.model import Head
from tlkit.recipe.fields.phases import Adapter, Dora, Lora
from tlkit.recipe.schema import WITHOUT_LINEAR_LAYERS

SIZES = {"vit_tiny_patch16_224": 32, "swin_tiny_patch4_window7_224": 32, "test_convnext": 64, "mixer_s32_224": 64}
LORA, DORA = Lora.model_validate({"lora": {"rank": 8, "alpha": 16}}), Dora.model_validate({"dora": {"rank": 4}})


def classifier_of(name: str) -> Classifier:
    torch.manual_seed(0)
    return Classifier(create_backbone(name, SIZES.get(name, 32)), Head(), 3, SIZES.get(name, 32))


def adapted(model: Classifier, adapter: Adapter) -> frozenset[str]:
    weights = trained_parameters(adapter, model.backbone, model.stages, key="phases[0].train", name="the backbone", called=model.called)
    model.train_only(weights, adapter=adapter)
    return weights


def images(name: str) -> torch.Tensor:
    size = SIZES.get(name, 32)
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=SIZES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("adapter", [LORA, DORA], ids=["lora", "dora"])
@thin_networks()
def test_a_step_moves_adapters_and_head_alone_and_the_merged_network_answers_the_same(name: str, adapter: Adapter) -> None:
    model = classifier_of(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    stages = [stage.name for stage in model.stages]
    with torch.inference_mode():
        untrained = model.eval()(images(name))
    weights = adapted(model, adapter)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.plain_state().items())
    assert [stage.name for stage in model.stages] == stages
    assert model.changing & before.keys() == {f"backbone.{weight}" for weight in weights} | {"head.1.weight", "head.1.bias"}
    # Two matrices for each layer, and of DoRA a number for each output.
    layers = {weight: model.backbone.get_submodule(weight.removesuffix(".weight")) for weight in weights}
    rank, more = adapter.settings.rank, isinstance(adapter, Dora)
    expected = sum(rank * (layer.in_features + layer.out_features) + more * layer.out_features for layer in layers.values())  # type: ignore[operator]
    assert sum(parameter.numel() for parameter in model.backbone.parameters() if parameter.requires_grad) == expected
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model.train()(images(name)), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    with torch.inference_mode():
        trained = model.eval()(images(name))
        merged = model.plain_state()
        model.merge_adapters()
        model.train().eval()
        torch.testing.assert_close(model(images(name)), trained, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(trained, untrained, atol=1e-3)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, merged[key]) for key, tensor in model.state_dict().items())
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert moved == {f"backbone.{weight}" for weight in weights} | {"head.1.weight", "head.1.bias"}
    assert {type(module).__module__.split(".")[0] for module in model.modules()} <= {"torch", "timm", "tlkit"}


@thin_networks()
def test_what_comes_before_the_first_adapted_layer_is_cut_off_and_both_halves_are_the_whole(name: str) -> None:
    model = classifier_of(name)
    adapted(model, LORA)
    for layer in model.backbone.modules():
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad:
            nn.init.normal_(layer.weight, std=0.02)
    found = cut(model, images(name)[:1])
    with torch.no_grad():
        model.eval()
        torch.testing.assert_close(found.suffix.eval()(*found.prefix(images(name))), model.features(images(name)))


def test_a_network_without_linear_layers_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"phases\[0\]\.train = \{lora: \.\.\}, but the backbone has no linear layers below the head"):
        adapted(classifier_of("test_resnet"), LORA)


NO_LINEAR_LAYERS = ("densenet121", "efficientnet_b0", "mobilenetv1_100", "regnety_002", "resnet18", "resnet51q", "vgg11_bn")


@pytest.mark.parametrize("name", [*NO_LINEAR_LAYERS, "googlenet", "mobilenetv2_035", "plain18", "resnext50_32x4d", "seresnet18"])
def test_check_refuses_without_building_what_has_no_linear_layers(name: str) -> None:
    assert WITHOUT_LINEAR_LAYERS.fullmatch(name)
    with torch.device("meta"):
        backbone = timm.create_model(name, num_classes=0)
    every = {path for path, _ in backbone.named_modules()}
    with pytest.raises(RecipeError, match="has no linear layers below the head"):
        trained_parameters(LORA, backbone, (), key="phases[0].train", name=name, called=every)


def test_a_rank_above_the_narrowest_layer_is_refused_with_that_layer() -> None:
    wide = Dora.model_validate({"dora": {"rank": 193}})
    with pytest.raises(RecipeError, match=r"train\.dora\.rank = 193 is larger than \S+ \S+ layer (.|\n)*Expected at most 192") as caught:
        adapted(classifier_of("vit_tiny_patch16_224"), wide)
    assert [fault.key for fault in caught.value.faults] == ["phases[0].train.dora.rank"]


def test_layers_whose_weights_are_used_without_them_get_no_adapter() -> None:
    """timm's BEiT multiplies with `qkv.weight` itself, so an adapter on that layer would never run."""
    backbone = Beit(img_size=32, embed_dim=32, depth=1, num_heads=2, num_classes=0)
    weights = adapted(Classifier(backbone, Head(), 3, 32), LORA)
    assert weights == {f"blocks.0.{layer}.weight" for layer in ("attn.proj", "mlp.fc1", "mlp.fc2")}


def test_a_layer_that_two_places_share_has_one_adapter_and_both_names_when_merged() -> None:
    """CoaT's parallel blocks share their mlp."""
    model = classifier_of("test_vit")
    model.backbone.again = model.backbone.blocks[0].mlp
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    weights = adapted(model, LORA)
    assert not any(weight.startswith("again") for weight in weights)
    assert model.plain_state().keys() == before.keys()
    model.merge_adapters()
    assert model.state_dict().keys() == before.keys()


def test_a_missing_peft_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlkit.models.adapters.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"phases\[0\]\.train = \{lora: \.\.\} needs the package peft(.|\n)*tlkit\[adapters\]"):
        adapted(classifier_of("test_vit"), LORA)
