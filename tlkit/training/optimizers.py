"""Parameter groups, optimizers and learning-rate schedules of one phase."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from tlkit.models.classifier import Classifier
from tlkit.recipe.schema import Optimizer, Phase, Schedule


def parameter_groups(classifier: Classifier, phase: Phase, optimizer: Optimizer) -> list[dict[str, Any]]:
    """What trains in this phase, grouped by learning rate and weight decay, the head first.

    With `layer_decay` d a stage that lies n steps below the head gets lr * d^n, written into the group's own `lr`:
    timm's `lr_scale` is ignored by torch's and Lightning's schedulers. Biases and normalisation layers are not decayed.
    """
    groups = []
    for steps_below_head, (name, parameters) in enumerate(_from_head_to_stem(classifier)):
        lr = phase.lr * (phase.layer_decay or 1.0) ** steps_below_head
        decayed = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        for params, weight_decay in ((decayed, optimizer.weight_decay), (others, 0.0)):
            if params:
                groups.append({"name": name, "params": params, "lr": lr, "weight_decay": weight_decay})
    return groups


def _from_head_to_stem(classifier: Classifier) -> Iterator[tuple[str, list[nn.Parameter]]]:
    yield "head", list(classifier.head.parameters())
    by_name = dict(classifier.backbone.named_parameters())
    for stage in reversed(classifier.stages):
        parameters = [by_name[name] for name in stage.parameters if by_name[name].requires_grad]
        if parameters:
            yield stage.name, parameters


def build_optimizer(groups: list[dict[str, Any]], optimizer: Optimizer) -> torch.optim.Optimizer:
    if optimizer.name == "sgd":
        return torch.optim.SGD(groups, momentum=optimizer.momentum)
    if optimizer.name == "adam":
        return torch.optim.Adam(groups)
    return torch.optim.AdamW(groups)


def build_schedule(optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int) -> LambdaLR:
    """Multiplies every group's own lr. steps: optimizer steps in the phase."""
    return LambdaLR(optimizer, lambda step: lr_factor(step, schedule, steps))


def lr_factor(step: int, schedule: Schedule, steps: int) -> float:
    """Share of the highest learning rate at a step, 0-based.

    Warm-up rises linearly and reaches 1 at its last step. Cosine then falls from 1 towards 0 at the end of the phase.
    Source of the cosine: Loshchilov and Hutter 2017, eq. 5 without restarts, https://arxiv.org/abs/1608.03983
    """
    warmup = round(schedule.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
