"""WiSE-FT and L2-SP: the arithmetic by hand."""

import pytest
import torch

from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.recipe.fields.learning import Optimizer
from tlkit.recipe.fields.model import Head
from tlkit.recipe.fields.phases import Phase
from tlkit.training.objective.losses import StartingPoint
from tlkit.training.optimizers import parameter_groups
from tlkit.training.wise_ft import blend


def test_a_blend_is_on_the_line_between_and_keeps_the_new_counters() -> None:
    old = {"weight": torch.tensor([0.0, 4.0]), "batches": torch.tensor(3)}
    new = {"weight": torch.tensor([10.0, 0.0]), "batches": torch.tensor(9)}
    blended = blend(old, new, 0.25)
    assert blended["weight"].tolist() == [2.5, 3.0]
    assert blended["batches"] == 9
    assert torch.equal(blend(old, new, 0.0)["weight"], old["weight"])
    assert torch.equal(blend(old, new, 1.0)["weight"], new["weight"])


def test_l2_sp_pulls_what_trains_towards_where_it_started() -> None:
    classifier = Classifier(create_backbone("lenet5", 32), Head(), 3, 32)
    classifier.train_only(frozenset({"features.0.weight"}))
    start = StartingPoint(classifier, strength=0.5)
    assert float(start.penalty(classifier.backbone)) == 0
    moved = dict(classifier.backbone.named_parameters())["features.0.weight"]
    frozen = dict(classifier.backbone.named_parameters())["features.0.bias"]
    with torch.no_grad():
        moved.add_(2.0)
        frozen.add_(100.0)
    penalty = start.penalty(classifier.backbone)
    # 0.5 / 2 * 2 * 2 for each weight; its gradient is 0.5 * 2.
    assert float(penalty) == pytest.approx(moved.numel())
    penalty.backward()
    assert torch.allclose(moved.grad, torch.ones_like(moved))  # type: ignore[arg-type]
    assert frozen.grad is None


def test_with_l2_sp_only_the_head_decays_towards_zero() -> None:
    classifier = Classifier(create_backbone("lenet5", 32), Head(), 3, 32)
    classifier.train_only(frozenset(name for name, _ in classifier.backbone.named_parameters()))
    groups = parameter_groups(classifier, Phase(train="all", epochs=1, lr=1e-3), Optimizer(weight_decay=0.1), decay_backbone=False)
    assert {(group["name"] == "head", group["weight_decay"]) for group in groups} == {(True, 0.1), (True, 0.0), (False, 0.0)}
