"""The recipe of the plans that tests look at, a plan of it, and what is printed of one."""

from io import StringIO

from rich.console import Console
from torch import nn

from tlkit.planning.plan import Plan, make_plan
from tlkit.planning.plan_table import print_plan
from tlkit.recipe.load import load_recipe

RECIPE = """
name: colours
data: {source: {folder: pictures}, image_size: 32, resize: stretch, batch_size: 8, validation: 0.2, test: 0.2}
model: {backbone: resnet18, weights: random}
phases:
  - {train: head, epochs: 1, lr: 0.1}
  - {train: {from: layer3}, epochs: 2, lr: 0.1, backbone_lr: 0.1, batchnorm: frozen}
  - {train: all, epochs: 3, lr: 0.1, layer_decay: 0.5}
"""
ONE_PHASE = "phases=[{train: all, epochs: 1, lr: 0.1}]"
SMALL = [ONE_PHASE, "model.backbone=test_resnet"]


def planned(*overrides: str) -> Plan:
    return make_plan(load_recipe("recipe.yaml", [*SMALL, *overrides]))


def shown(plan: Plan) -> str:
    console = Console(width=100, record=True, file=StringIO())
    print_plan(plan, console)
    return console.export_text()


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
