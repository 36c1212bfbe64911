"""One contract for every family: stages, each way to train, a new head, and a model folder that reads back."""

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tlkit.errors import RecipeError
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.models.freeze import trained_parameters
from tlkit.models.model_folder import ModelCard, check_can_ship, load_with_card, write_model_folder
from tlkit.recipe.fields.model import Features, Head
from tlkit.recipe.fields.phases import BatchNorm, FromStage, LastStages, Train

pytestmark = pytest.mark.usefixtures("thin")

# The smallest of each family, and the smallest images it takes, in pixels.
MODELS = {
    "lenet5": 28,
    "simple_cnn": 16,
    "alexnet": 63,
    "plain18": 32,
    "resnet18": 32,
    "resnet50": 32,
    "resnext50_32x4d": 32,
    "resnetv2_50x1_bit": 32,
    "vgg11": 32,
    "vgg11_bn": 32,
    "vgg11 conv": 32,
    "alexnet conv": 63,
    "googlenet": 32,
    "inception_v3": 75,
    "densenet121": 32,
    "mobilenetv2_035": 32,
    "mobilenetv3_small_050": 32,
    "efficientnet_b0": 32,
    "tf_efficientnet_lite0": 32,
    "ghostnet_050": 32,
    "regnetx_002": 32,
    "regnety_002": 32,
    "nf_regnet_b0": 32,
    "convnext_atto": 32,
    "vit_tiny_patch16_224": 32,
    "deit_tiny_distilled_patch16_224": 32,
    "swin_tiny_patch4_window7_224": 32,
    "mixer_s32_224": 64,
    "xcit_nano_12_p16_224": 32,
    "poolformer_s12": 32,
    "pit_ti_224": 224,
}
NORMALISED = [name for name in MODELS if name.split()[0] not in ("lenet5", "simple_cnn", "alexnet", "vgg11", "nf_regnet_b0")]


def features_of(name: str) -> Features:
    return "conv" if name.endswith(" conv") else "all"


def create(name: str, drop_path: float = 0.0) -> nn.Module:
    """Of "vgg11 conv": the convolutions alone."""
    return create_backbone(name.removesuffix(" conv"), MODELS[name], drop_path=drop_path, features=features_of(name))


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    """A module's fixture, so that all tests of one model follow each other and it is built once."""
    return str(request.param)


@lru_cache(maxsize=1)
def built(name: str) -> tuple[Classifier, dict[str, Tensor]]:
    """A classifier with drop path where the family has it, and its state, with batch-norm statistics as after training.

    Without those a random network of many layers gives zeros.
    """
    torch.manual_seed(0)
    try:
        backbone = create(name, drop_path=0.5)
    except RecipeError:
        backbone = create(name)
    model = Classifier(backbone, Head(dropout=0.5), 3, MODELS[name])
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images(name))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model, {key: tensor.clone() for key, tensor in model.state_dict().items()}


def classifier(name: str) -> Classifier:
    """As it was built: a step of another test may have gone before."""
    model, state = built(name)
    model.load_state_dict(state)
    model.zero_grad()
    return model


def images(name: str) -> Tensor:
    return torch.randn(4, 3, MODELS[name], MODELS[name], generator=torch.Generator().manual_seed(1))


def freeze(model: Classifier, train: Train, batchnorm: BatchNorm = "adapt") -> frozenset[str]:
    parameters = trained_parameters(train, model.backbone, model.stages, key="phases[0].train", name="the backbone")
    model.train_only(parameters, batchnorm)
    return parameters


def ways(model: Classifier) -> dict[str, Train]:
    second_last = model.stages[-2].name
    return {"head": "head", "all": "all", "from": FromStage(from_=second_last), "last": LastStages(last=1), "norm": "norm", "bias": "bias"}


def step(model: Classifier, name: str) -> set[str]:
    """One optimizer step in train mode; the names of the tensors that it changed since the model was built."""
    model.train()
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)
    loss = cross_entropy(model(images(name)), torch.tensor([0, 1, 2, 0]))
    assert torch.isfinite(loss)
    loss.backward()
    optimizer.step()
    before = built(name)[1]
    return {key for key, tensor in model.state_dict().items() if not torch.equal(before[key], tensor)}


def test_stages_hold_every_parameter_once_and_run_in_their_order(name: str) -> None:
    model = classifier(name)
    parameters = [parameter for stage in model.stages for parameter in stage.parameters]
    assert sorted(parameters) == sorted(name for name, _ in model.backbone.named_parameters())
    assert len(model.stages) >= 3
    stage_of = {parameter: stage.name for stage in model.stages for parameter in stage.parameters}
    called: dict[str, None] = {}
    hooks = []
    for path, module in model.backbone.named_modules():
        own = {stage_of[f"{path}.{parameter}"] for parameter, _ in module.named_parameters(recurse=False) if path}
        hooks += [module.register_forward_pre_hook(lambda module, inputs, stage=stage: called.setdefault(stage)) for stage in own]
    with torch.inference_mode():
        model.eval()(images(name))
    for hook in hooks:
        hook.remove()
    assert list(called) == [stage.name for stage in model.stages]


@pytest.mark.parametrize("way", ["head", "all", "from", "last", "norm", "bias"])
def test_a_step_moves_what_trains_and_nothing_else(name: str, way: str) -> None:
    model = classifier(name)
    if way == "norm" and name not in NORMALISED:
        with pytest.raises(RecipeError, match="has no normalisation layers"):
            freeze(model, "norm")
        return
    inside = {f"backbone.{parameter}" for parameter in freeze(model, ways(model)[way])}
    inside |= {f"head.{parameter}" for parameter, _ in model.head.named_parameters()}
    changed = step(model, name)
    parameters = {parameter for parameter, _ in model.named_parameters()}
    assert changed & parameters <= inside
    assert {"head.1.weight", "head.1.bias"} <= changed
    assert way == "head" or any(parameter.startswith("backbone.") for parameter in changed & inside)
    trained_modules = {parameter.rpartition(".")[0] for parameter in inside}
    assert {buffer.rpartition(".")[0] for buffer in changed - parameters} <= trained_modules


def test_frozen_batchnorm_keeps_every_buffer_while_all_trains(name: str) -> None:
    model = classifier(name)
    freeze(model, "all", "frozen")
    assert step(model, name) <= {parameter for parameter, _ in model.named_parameters()}


@pytest.mark.parametrize("way", ["head", "from", "last"])
def test_what_comes_before_the_trained_part_is_the_same_in_train_and_eval_mode(name: str, way: str) -> None:
    """No dropout, no drop path, no statistics of the batch: before the first trained stage, or before the head."""
    model = classifier(name)
    first = {"head": model.head, "from": entrance(model, 2), "last": entrance(model, 1)}[way]
    freeze(model, ways(model)[way])
    seen: list[Tensor] = []
    hook = first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad():
        for _ in range(2):
            model.train()(images(name))
        model.eval()(images(name))
    hook.remove()
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def entrance(model: Classifier, last: int) -> nn.Module:
    """The first module with parameters of its own in the last so many stages."""
    names = {parameter.rpartition(".")[0] for stage in model.stages[-last:] for parameter in stage.parameters}
    return next(module for path, module in model.backbone.named_modules() if path in names)


def test_train_and_eval_round_trips_keep_what_is_frozen(name: str) -> None:
    model = classifier(name)
    freeze(model, LastStages(last=1))
    modes = {path: module.training for path, module in model.named_modules()}
    for _ in range(2):
        assert not any(module.training for module in model.eval().modules())
        assert {path: module.training for path, module in model.train().named_modules()} == modes
    assert set(modes.values()) == {True, False}
    freeze(model, "all")
    assert all(module.training for module in model.modules())


def test_a_new_head_ships_in_a_model_folder_with_equal_logits(tmp_path: Path, name: str) -> None:
    model, size = classifier(name).eval(), MODELS[name]
    backbone, features = name.removesuffix(" conv"), features_of(name)
    check_can_ship(backbone, Head(dropout=0.5), model, 3, size, features=features)
    preprocessing = {"image_size": size, "resize": "crop", "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    card = ModelCard(backbone, Head(dropout=0.5), ("a", "b", "c"), preprocessing, {}, {}, {}, features=features)
    write_model_folder(tmp_path / "model", model, card)
    loaded, _ = load_with_card(tmp_path / "model")
    with torch.inference_mode():
        logits = model(images(name))
        assert logits.shape == (4, 3)
        assert torch.isfinite(logits).all()
        assert torch.equal(loaded(images(name)), logits)


def test_there_are_at_least_20_models_of_12_families() -> None:
    families = {type(create_on_meta(name)).__name__ for name in MODELS}
    assert len(MODELS) >= 20
    assert len(families) >= 12


def create_on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return create(name)
