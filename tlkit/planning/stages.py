"""What trains in one phase, stage by stage, and at which rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tlkit.models.freeze import NORMS_WITH_STATISTICS
from tlkit.training.module import PhaseModule


@dataclass(frozen=True)
class StageRow:
    """One stage in one phase.

    trained: how many of its parameters train. batchnorm: `adapts`, `held` or, without such layers, nothing.
    lr, weight_decay: None where nothing trains; weight_decay is that of its matrices and kernels.
    """

    name: str
    parameters: int
    trained: int
    batchnorm: str
    lr: float | None
    weight_decay: float | None


def stage_rows(module: PhaseModule, groups: Sequence[dict[str, Any]]) -> list[StageRow]:
    """Return a row per stage in forward order, then the head and any auxiliary heads. groups: the optimizer's."""
    classifier = module.classifier
    backbone = dict(classifier.backbone.named_parameters())
    parts = {stage.name: [backbone[name] for name in stage.parameters] for stage in classifier.stages}
    parts["head"] = list(classifier.head.parameters())
    if module.auxiliary is not None:
        parts["auxiliary"] = list(module.auxiliary.parameters())
    norms = {
        f"{path}.{name}": part
        for path, part in classifier.backbone.named_modules()
        if isinstance(part, NORMS_WITH_STATISTICS)
        for name, _ in part.named_parameters(recurse=False)
    }
    stages = {stage.name: stage.parameters for stage in classifier.stages}
    rows = []
    for name, parameters in parts.items():
        own = [group for group in groups if group["name"] == name]
        adapting = {norms[parameter].training for parameter in stages.get(name, ()) if parameter in norms}
        rows.append(
            StageRow(
                name,
                parameters=sum(parameter.numel() for parameter in parameters),
                trained=sum(parameter.numel() for group in own for parameter in group["params"]),
                batchnorm=" and ".join({True: "adapts", False: "held"}[training] for training in sorted(adapting)),
                lr=own[0]["lr"] if own else None,
                weight_decay=max(group["weight_decay"] for group in own) if own else None,
            )
        )
    return rows
