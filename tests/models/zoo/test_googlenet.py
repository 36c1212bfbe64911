"""GoogLeNet is torchvision's to the last digit, and its auxiliary heads are there for training alone."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy
from torchvision.models.googlenet import InceptionAux

from tlkit.data.normalize import Normalize
from tlkit.errors import WeightsError
from tlkit.models.backbones import create_backbone, pretrained_cfg, stages
from tlkit.models.classifier import Classifier
from tlkit.models.freeze import trained_parameters
from tlkit.models.model_folder import ModelCard, check_can_ship, load_with_card, write_model_folder
from tlkit.models.weights import sources as weights_module
from tlkit.models.weights.load import load_backbone
from tlkit.models.weights.sources import Weights, find_weights
from tlkit.models.zoo.googlenet import INCEPTIONS
from tlkit.models.zoo.layers import PoolTo
from tlkit.recipe.fields.learning import Optimizer, Schedule
from tlkit.recipe.fields.model import Head, Model
from tlkit.recipe.fields.phases import Phase, Train
from tlkit.training.module import PhaseModule
from tlkit.training.objective.auxiliary import AuxiliaryHeads, build_auxiliary_heads
from tlkit.training.objective.metrics import Scoring
from tlkit.training.objective.objective import Objective
from tlkit.training.optimizers import Optimization

SIZE = 64


def torchvisions(aux_logits: bool = False) -> torchvision.models.GoogLeNet:
    """As torchvision builds it for its ImageNet weights, with random ones."""
    torch.manual_seed(0)
    model = torchvision.models.googlenet(aux_logits=aux_logits, transform_input=True, init_weights=True)
    # Statistics of real maps: with fresh ones the values shrink to nothing on their way up, and every mistake with them.
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 1.0
    model.train()(torch.randn(4, 3, 96, 96))
    return model.eval()


def classifier_in_phase(train: Train) -> Classifier:
    torch.manual_seed(0)
    classifier = Classifier(create_backbone("googlenet", SIZE), Head(), 3, SIZE)
    classifier.train_only(trained_parameters(train, classifier.backbone, classifier.stages, key="train", name="googlenet"))
    return classifier


def phase_module(classifier: Classifier, auxiliary: AuxiliaryHeads | None) -> PhaseModule:
    module = PhaseModule(
        classifier,
        Objective(torch.nn.CrossEntropyLoss(), auxiliary=auxiliary),
        Scoring("multiclass", 3, "accuracy"),
        Optimization(Phase(train="all", epochs=1, lr=1e-2), Optimizer(), Schedule(name="constant")),
        normalize=Normalize(np.zeros((1, 1, 3), np.float32), (1.0, 1.0, 1.0)),
    )
    module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]
    return module


def test_outputs_equal_torchvisions_for_the_same_weights_normalisation_included() -> None:
    theirs = torchvisions()
    ours = timm.create_model("googlenet").eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected, difference = theirs(images), (ours(images) - theirs(images)).abs().max().item()
    print(f"googlenet against torchvision: max difference {difference:.1e} of logits up to {expected.abs().max():.2f}")
    assert expected.std() > 0.05
    assert difference <= 1e-6


def test_the_images_are_prepared_as_torchvisions_weights_want_them() -> None:
    theirs = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.transforms()
    cfg = pretrained_cfg("googlenet")
    assert (cfg["mean"], cfg["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) == (tuple(theirs.mean), tuple(theirs.std))
    assert (cfg["input_size"], cfg["interpolation"], cfg["crop_pct"]) == ((3, 224, 224), "bilinear", 224 / 256)


def test_stages_are_the_stem_and_the_nine_inception_modules() -> None:
    found = stages(create_backbone("googlenet", SIZE))
    assert [stage.name for stage in found] == ["stem", *INCEPTIONS]
    # Szegedy et al. 2015, table 1: three convolutions before the modules; six in each. Batch-norm doubles and biases treble that.
    assert [len(stage.parameters) for stage in found] == [9, *[18] * 9]


def test_pooling_to_a_size_gives_torchs_numbers() -> None:
    for shape in ((2, 3, 14, 14), (1, 2, 7, 5), (1, 2, 1, 1), (1, 2, 3, 4)):
        maps = torch.randn(shape)
        torch.testing.assert_close(PoolTo(4)(maps), adaptive_avg_pool2d(maps, 4))


def test_an_auxiliary_head_gives_what_torchvisions_gives() -> None:
    theirs = InceptionAux(512, 3).eval()
    ours = create_backbone("googlenet", SIZE).auxiliary_heads(3)["inception4a"].eval()  # type: ignore[operator]
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    maps = torch.randn(2, 512, 14, 14)
    torch.testing.assert_close(ours(maps), theirs(maps))


def test_training_adds_three_tenths_of_each_auxiliary_loss_and_validation_does_not() -> None:
    classifier = classifier_in_phase("all")
    auxiliary = build_auxiliary_heads(classifier.backbone, 3, 0.3)
    assert auxiliary is not None
    module = phase_module(classifier, auxiliary)
    # Dropout and batch statistics off: the second forward pass has to see the numbers of the first.
    module.eval()
    images, labels = torch.randn(4, 3, SIZE, SIZE), torch.tensor([0, 1, 2, 0])

    backbone = classifier.backbone
    x = backbone.maxpool1(backbone.conv1(backbone._transform_input(images)))
    x = backbone.maxpool2(backbone.conv3(backbone.conv2(x)))
    x = backbone.maxpool3(backbone.inception3b(backbone.inception3a(x)))
    first = backbone.inception4a(x)
    second = backbone.inception4d(backbone.inception4c(backbone.inception4b(first)))
    main = cross_entropy(classifier(images), labels)
    expected = main + 0.3 * sum(
        cross_entropy(auxiliary.heads[stage](maps), labels) for stage, maps in (("inception4a", first), ("inception4d", second))
    )

    assert expected > main + 0.5
    torch.testing.assert_close(module.training_step((images, labels), 0), expected)
    torch.testing.assert_close(module.validation_step((images, labels), 0), main)
    assert not any(child._forward_hooks for child in backbone.modules())


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("head", []),
        ({"from": "inception5a"}, []),
        ({"from": "inception4b"}, ["inception4d"]),
        ({"from": "inception4a"}, ["inception4a", "inception4d"]),
        ("all", ["inception4a", "inception4d"]),
    ],
)
def test_an_auxiliary_head_trains_only_if_something_before_it_does(train: object, expected: list[str]) -> None:
    classifier = classifier_in_phase(Phase.model_validate({"train": train, "epochs": 1, "lr": 1e-3}).train)
    auxiliary = build_auxiliary_heads(classifier.backbone, 3, 0.3)
    assert auxiliary is not None
    module = phase_module(classifier, auxiliary)
    before = {name: tensor.clone() for name, tensor in auxiliary.state_dict().items()}
    module.training_step((torch.randn(4, 3, SIZE, SIZE), torch.tensor([0, 1, 2, 0])), 0).backward()
    torch.optim.SGD([*classifier.head.parameters(), *auxiliary.parameters()], lr=0.1).step()
    moved = {name.split(".")[1] for name, tensor in auxiliary.state_dict().items() if not torch.equal(tensor, before[name])}
    assert sorted(moved) == expected
    assert len(auxiliary.parameter_groups(1e-3, 0.05)) == (2 if expected else 0)


def test_what_is_below_inception4a_stays_bit_equal_when_training_starts_there() -> None:
    classifier = classifier_in_phase(Phase.model_validate({"train": {"from": "inception4a"}, "epochs": 1, "lr": 1e-3}).train)
    module = phase_module(classifier, build_auxiliary_heads(classifier.backbone, 3, 0.3))
    before = {name: tensor.clone() for name, tensor in classifier.backbone.state_dict().items()}
    module.training_step((torch.randn(4, 3, SIZE, SIZE), torch.tensor([0, 1, 2, 0])), 0).backward()
    torch.optim.SGD([parameter for parameter in module.parameters() if parameter.grad is not None], lr=0.1).step()
    moved = {name.partition(".")[0] for name, tensor in classifier.backbone.state_dict().items() if not torch.equal(tensor, before[name])}
    assert sorted(moved) == list(INCEPTIONS[2:])


def test_no_weight_and_no_such_heads_mean_no_auxiliary_loss() -> None:
    assert build_auxiliary_heads(create_backbone("googlenet", SIZE), 3, 0.0) is None
    assert build_auxiliary_heads(create_backbone("resnet18", SIZE), 3, 0.3) is None


def test_the_model_folder_holds_no_auxiliary_heads_and_gives_equal_logits(tmp_path: Path) -> None:
    classifier = classifier_in_phase("all").eval()
    check_can_ship("googlenet", Head(), classifier, 3, SIZE)
    preprocessing = {
        "image_size": SIZE,
        "resize": "crop",
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    write_model_folder(tmp_path / "model", classifier, ModelCard("googlenet", Head(), ("a", "b", "c"), preprocessing, {}, {}, {}))
    assert not [key for key in load_file(tmp_path / "model/model.safetensors") if "aux" in key]
    loaded, _ = load_with_card(tmp_path)
    plain = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        assert torch.equal(loaded(images), classifier(images))
        torch.testing.assert_close(plain(images), classifier(images), atol=1e-6, rtol=0)


# --- weights ---


def test_torchvisions_file_loads_and_its_auxiliary_heads_are_left_out(tmp_path: Path) -> None:
    theirs = torchvisions(aux_logits=True)
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    backbone = load_backbone(Model(backbone="googlenet"), Weights("url", tmp_path / "googlenet.pth"), 224)
    state = theirs.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in backbone.state_dict().items())
    assert len(backbone.state_dict()) == len([key for key in state if not key.startswith(("aux", "fc."))])


def test_weights_come_from_the_cache_of_torchs_hub_if_their_checksum_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints/googlenet-1378be20.pth"
    file.parent.mkdir()
    file.write_bytes(b"cut short")
    with pytest.raises(WeightsError, match=r"googlenet-1378be20\.pth is not what its name says"):
        find_weights(Model(backbone="googlenet"))
    start = hashlib.sha256(b"cut short").hexdigest()[:8]
    cfg = {**pretrained_cfg("googlenet"), "url": f"https://nowhere.invalid/googlenet-{start}.pth"}
    monkeypatch.setattr(weights_module, "pretrained_cfg", lambda name: cfg)
    file.rename(file.with_name(f"googlenet-{start}.pth"))
    assert (find_weights(Model(backbone="googlenet")).sha256 or "").startswith(start)


def test_without_a_network_the_message_says_where_the_weights_were_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        find_weights(Model(backbone="googlenet"))
    message = str(caught.value)
    assert f"{tmp_path}/checkpoints (cache) and https://download.pytorch.org/models/googlenet-1378be20.pth: HF_HUB_OFFLINE" in message
    assert "weights to {file: FILE.safetensors}" in message


# --- channels ---


FOUR = (4, [0.485, 0.456, 0.406, 0.485], [0.229, 0.224, 0.225, 0.229])


@pytest.mark.parametrize(("channels", "mean", "std"), [(1, [0.449], [0.226]), FOUR])
def test_images_of_other_channels_reach_the_weights_at_mean_and_std_one_half(channels: int, mean: list[float], std: list[float]) -> None:
    """What is normalised with the mean and std of preprocessing comes to (image - 0.5) / 0.5."""
    backbone = create_backbone("googlenet", SIZE, channels=channels)
    image = torch.rand(2, channels, SIZE, SIZE)
    normalized = (image - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    torch.testing.assert_close(backbone._transform_input(normalized), (image - 0.5) / 0.5)  # type: ignore[operator]
