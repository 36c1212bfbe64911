import pytest
import torch

from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.recipe.schema import Head, Optimizer, Phase, Schedule
from tlkit.training.optimizers import build_optimizer, build_schedule, lr_factor, parameter_groups


@pytest.fixture
def classifier() -> Classifier:
    return Classifier(create_backbone("resnet18", 64), Head(), 3, 64)


def phase(**values: object) -> Phase:
    return Phase.model_validate({"train": "all", "epochs": 1, "lr": 0.1, **values})


def test_layer_decay_is_written_into_the_rate_of_every_stage(classifier: Classifier) -> None:
    groups = parameter_groups(classifier, phase(layer_decay=0.5), Optimizer())
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == pytest.approx({"head": 0.1, "layer4": 0.05, "layer3": 0.025, "layer2": 0.0125, "layer1": 0.00625, "stem": 0.003125})


def test_layer_decay_holds_under_a_torch_scheduler(classifier: Classifier) -> None:
    optimizer = build_optimizer(parameter_groups(classifier, phase(layer_decay=0.5), Optimizer()), Optimizer())
    schedule = build_schedule(optimizer, Schedule(name="cosine"), steps=4)
    for _ in range(2):
        optimizer.step()
        schedule.step()
    # Half-way down the cosine every rate is half of what it was.
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert (rates["head"], rates["layer4"], rates["stem"]) == pytest.approx((0.05, 0.025, 0.0015625))


def test_biases_and_norms_are_not_decayed_and_no_parameter_is_in_two_groups(classifier: Classifier) -> None:
    groups = parameter_groups(classifier, phase(), Optimizer(weight_decay=0.05))
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}
    for group in groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] == 0) == (parameter.ndim <= 1)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(parameter) for parameter in classifier.parameters())


def test_frozen_parameters_are_in_no_group(classifier: Classifier) -> None:
    classifier.train_only(())
    assert {group["name"] for group in parameter_groups(classifier, phase(train="head"), Optimizer())} == {"head"}


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_each_optimizer_by_its_name(classifier: Classifier, name: str, kind: type) -> None:
    recipe = Optimizer.model_validate({"name": name})
    assert type(build_optimizer(parameter_groups(classifier, phase(), recipe), recipe)) is kind


def test_warm_up_rises_to_one_and_cosine_falls_to_zero() -> None:
    schedule = Schedule(name="cosine", warmup=0.2)
    # 10 steps, 2 of them warm-up: 1/2, 1, then cosine over 8 steps from 1; half-way (step 6) is 1/2.
    assert [lr_factor(step, schedule, 10) for step in (0, 1, 2, 6, 10)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])


def test_constant_stays_at_one_after_warm_up() -> None:
    assert [lr_factor(step, Schedule(name="constant", warmup=0.5), 4) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
