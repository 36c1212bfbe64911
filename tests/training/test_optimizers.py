import pytest
import timm.optim
import torch

from tlkit.errors import RecipeError
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.recipe.fields.learning import Optimizer, Schedule
from tlkit.recipe.fields.model import Head
from tlkit.recipe.fields.phases import Phase
from tlkit.training.optimizers import build_optimizer, build_schedule, check_optimizer_name, lr_factor, parameter_groups


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
    classifier.train_only(frozenset())
    assert {group["name"] for group in parameter_groups(classifier, phase(train="head"), Optimizer())} == {"head"}


KINDS = [
    ("sgd", torch.optim.SGD),
    ("momentum", torch.optim.SGD),
    ("nesterov", torch.optim.SGD),
    ("adagrad", torch.optim.Adagrad),
    ("rmsprop", torch.optim.RMSprop),
    ("adam", torch.optim.Adam),
    ("adamw", torch.optim.AdamW),
    ("lion", timm.optim.Lion),
    ("lamb", timm.optim.Lamb),
]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_each_optimizer_by_its_name(classifier: Classifier, name: str, kind: type) -> None:
    recipe = Optimizer.model_validate({"name": name})
    assert type(build_optimizer(parameter_groups(classifier, phase(), recipe), recipe)) is kind


def test_warm_up_rises_to_one_and_cosine_falls_to_zero() -> None:
    schedule = Schedule(name="cosine", warmup=0.2)
    # 10 steps, 2 of them warm-up: 1/2, 1, then cosine over 8 steps from 1; half-way (step 6) is 1/2.
    assert [lr_factor(step, schedule, 10) for step in (0, 1, 2, 6, 10)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])


def test_a_phase_of_more_than_the_head_warms_up_unless_the_recipe_says_otherwise() -> None:
    assert Schedule().of_phase("all").warmup == Schedule(name="step").of_phase("norm").warmup == 0.1
    assert Schedule(warmup=0.0).of_phase("all").warmup == 0.0
    # 20 steps, 2 of them warm-up; the head alone begins at its highest rate, and one_cycle rises by itself.
    assert [lr_factor(step, Schedule().of_phase("all"), 20) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert lr_factor(0, Schedule().of_phase("head"), 20) == 1.0
    assert Schedule(name="one_cycle").of_phase("all") == Schedule(name="one_cycle")


def test_constant_stays_at_one_after_warm_up() -> None:
    assert [lr_factor(step, Schedule(name="constant", warmup=0.5), 4) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_linear_falls_evenly_and_step_drops_after_every_share() -> None:
    assert [lr_factor(step, Schedule(name="linear"), 4) for step in range(4)] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    drops = Schedule(name="step", factor=0.1, every=0.5)
    assert [lr_factor(step, drops, 4) for step in range(4)] == pytest.approx([1.0, 1.0, 0.1, 0.1])


def test_one_cycle_is_torchs_one_cycle() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=20, cycle_momentum=False)
    for step in range(20):
        assert lr_factor(step, Schedule(name="one_cycle"), 20) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        if step < 19:
            reference.step()


def test_a_plateau_drops_every_groups_rate_by_the_factor(classifier: Classifier) -> None:
    optimizer = build_optimizer(parameter_groups(classifier, phase(backbone_lr=0.1), Optimizer()), Optimizer())
    schedule = build_schedule(optimizer, Schedule(name="plateau", factor=0.5, patience=1), steps=0)
    for loss in (1.0, 1.0, 1.0):
        schedule.step(loss)  # type: ignore[arg-type]
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert (rates["head"], rates["layer4"], rates["stem"]) == pytest.approx((0.05, 0.005, 0.005))


def test_an_unknown_optimizer_gets_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"optimizer\.name = 'adamv' is not an optimizer(.|\n)*Did you mean 'adam"):
        check_optimizer_name("adamv")


def test_decayed_rates_are_the_same_when_lower_stages_are_frozen(classifier: Classifier) -> None:
    classifier.train_only(frozenset(classifier.stages[-1].parameters))
    rates = {group["name"]: group["lr"] for group in parameter_groups(classifier, phase(layer_decay=0.5), Optimizer())}
    assert rates == pytest.approx({"head": 0.1, "layer4": 0.05})


def test_every_named_optimizer_moves_head_and_backbone(classifier: Classifier) -> None:
    for name in ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lion", "lamb"):
        recipe = Optimizer(name=name)
        optimizer = build_optimizer(parameter_groups(classifier, phase(lr=1e-3), recipe), recipe)
        before = [parameter.detach().clone() for parameter in (classifier.head[-1].weight, classifier.backbone.conv1.weight)]
        classifier(torch.randn(2, 3, 64, 64)).logsumexp(1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        after = (classifier.head[-1].weight, classifier.backbone.conv1.weight)
        assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True)), name
