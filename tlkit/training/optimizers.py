"""Parameter groups, optimizers and learning-rate schedules of one phase."""

import math
from dataclasses import dataclass
from typing import Any

import timm.optim
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from tlkit.errors import Fault, RecipeError, did_you_mean
from tlkit.models.classifier import Classifier
from tlkit.recipe.fields.learning import Optimizer, Schedule
from tlkit.recipe.fields.phases import Phase

OWN_NAMES = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")
"""Optimizers that are torch's own; timm's `sgd`, for example, uses Nesterov momentum."""


@dataclass(frozen=True)
class Optimization:
    """The optimizer, schedule and rates of one phase."""

    phase: Phase
    optimizer: Optimizer
    schedule: Schedule


def parameter_groups(classifier: Classifier, phase: Phase, optimizer: Optimizer, *, decay_backbone: bool = True) -> list[dict[str, Any]]:
    """Group the parameters that train in this phase by learning rate and weight decay, the head first.

    With `layer_decay` d, a stage n steps below the head gets lr * d^n; with `backbone_lr` r, every stage gets lr * r. The rate is
    written into the group's own `lr`: timm's `lr_scale` is ignored by torch's and Lightning's schedulers. Distance is counted over
    the whole backbone, so a stage has the same rate whether or not those below it train. Biases and normalisation layers are not decayed.
    decay_backbone: False if L2-SP replaces its weight decay.
    """
    groups = []
    for steps_below_head, (name, parameters) in enumerate(classifier.from_head_to_stem()):
        lr = phase.lr * (phase.layer_decay or 1.0) ** steps_below_head
        if steps_below_head > 0 and phase.backbone_lr is not None:
            lr = phase.lr * phase.backbone_lr
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        decayed = [parameter for parameter in trained if parameter.ndim > 1]
        others = [parameter for parameter in trained if parameter.ndim <= 1]
        decay = optimizer.weight_decay if decay_backbone or steps_below_head == 0 else 0.0
        for params, weight_decay in ((decayed, decay), (others, 0.0)):
            if params:
                groups.append({"name": name, "params": params, "lr": lr, "weight_decay": weight_decay})
    return groups


def check_optimizer_name(name: str) -> None:
    """Raise RecipeError for a name that neither torch nor timm has."""
    known = sorted({*OWN_NAMES, *map(str, timm.optim.list_optimizers())})  # type: ignore[attr-defined]
    if name not in known:
        nearest = did_you_mean(name, known)
        fix = f"Expected {', '.join(OWN_NAMES)}, or one of timm's. {nearest}".rstrip()
        raise RecipeError([Fault("optimizer.name", f"= '{name}' is not an optimizer.", fix)])


def build_optimizer(groups: list[dict[str, Any]], optimizer: Optimizer, *, fused: bool = False) -> torch.optim.Optimizer:
    """Build torch's optimizer for the seven well-known names, timm's for all others; every group keeps its own lr and weight decay.

    fused: use torch's fused steps if it has them: for tf_efficientnet_lite0 on two cores AdamW 15 ms instead of 80,
    Adam 13 instead of 50, SGD 5 instead of 30, and the weights are the same to 6e-7 after 35 steps.
    """
    one_kernel = fused or None  # None lets torch choose
    match optimizer.name:
        case "sgd":
            return torch.optim.SGD(groups, fused=one_kernel)
        case "momentum" | "nesterov":
            return torch.optim.SGD(groups, momentum=optimizer.momentum, nesterov=optimizer.name == "nesterov", fused=one_kernel)
        case "adagrad":
            return torch.optim.Adagrad(groups)
        case "rmsprop":
            return torch.optim.RMSprop(groups, momentum=optimizer.momentum)
        case "adam":
            return torch.optim.Adam(groups, fused=one_kernel)
        case "adamw":
            return torch.optim.AdamW(groups, fused=one_kernel)
    built: torch.optim.Optimizer = timm.optim.create_optimizer_v2(  # type: ignore[attr-defined]
        groups, optimizer.name, lr=groups[0]["lr"], weight_decay=optimizer.weight_decay
    )
    return built


def can_fuse(device: str, precision: str, *, clips: bool = False) -> bool:
    """Check whether torch's fused steps can be used. clips: gradients are clipped.

    Lightning's mixed precisions refuse to clip for a fused step (2.6.6), which unscales gradients itself, also where nothing is scaled.
    """
    return device in ("cpu", "cuda") and precision != "16-mixed" and not (clips and precision == "bf16-mixed")


def build_schedule(optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int) -> LambdaLR | ReduceLROnPlateau:
    """Build the schedule, a factor on every group's own lr. steps: of the phase. A plateau needs the validation loss each epoch."""
    if schedule.name == "plateau":
        return ReduceLROnPlateau(optimizer, factor=schedule.factor, patience=schedule.patience)
    return LambdaLR(optimizer, lambda step: lr_factor(step, schedule, steps))


def lr_factor(step: int, schedule: Schedule, steps: int) -> float:
    """Return the share of the highest learning rate at a step, 0-based.

    Warm-up rises linearly and reaches 1 at its last step. The schedule has the remaining steps: cosine and linear fall
    from 1 towards 0 at the end, step falls by `factor` after every share `every`, constant stays.

    Sources: cosine, Loshchilov and Hutter 2017, eq. 5 without restarts, https://arxiv.org/abs/1608.03983;
    one_cycle, Smith and Topin 2019, https://arxiv.org/abs/1708.07120, with the shape and numbers of torch's OneCycleLR.
    """
    if schedule.name == "one_cycle":
        return _one_cycle(step, steps)
    warmup = round((schedule.warmup or 0.0) * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    match schedule.name:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return 1 - done
        case "step":
            # The sum of shares such as 0.1 ten times over is a little below one.
            return schedule.factor ** math.floor(done / schedule.every + 1e-9)
    return 1.0


def _one_cycle(step: int, steps: int) -> float:
    """Return one_cycle's share: from 1/25 up to 1 over the first 30 % of steps, down to 1/250,000 at the last, both along half a cosine."""
    peak, last = 0.3 * steps - 1, steps - 1
    start, end, low, high = (0.0, peak, 1 / 25, 1.0) if step <= peak else (peak, last, 1.0, 1 / 250_000)
    done = min(1.0, (step - start) / max(1e-9, end - start))
    return high + 0.5 * (low - high) * (1 + math.cos(math.pi * done))
