"""Auxiliary heads: classifiers in the middle of a backbone that speed up its training and are dropped after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tlkit.models.classifier import Classifier


class AuxiliaryHeads(nn.Module):
    """Auxiliary heads of the training; they are not part of the classifier, its weights or its model folder.

    heads: stage of the backbone -> a head on that stage's output. weight: of each head's loss, beside the classifier's own.
    """

    def __init__(self, heads: nn.ModuleDict, weight: float) -> None:
        super().__init__()
        self.heads = heads
        self.weight = weight

    def follow(self, classifier: Classifier) -> bool:
        """Train those heads that have a trained layer before them; the others would change nothing. Return whether there is one."""
        trained = {name for name, parameter in classifier.backbone.named_parameters() if parameter.requires_grad}
        reached = False
        for stage in classifier.stages:
            reached = reached or not trained.isdisjoint(stage.parameters)
            if stage.name in self.heads:
                self.heads[stage.name].requires_grad_(reached)
        return any(parameter.requires_grad for parameter in self.parameters())

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the heads' parameter groups for the optimizer. Biases and normalisation layers are not decayed."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        decayed = [parameter for parameter in trained if parameter.ndim > 1]
        others = [parameter for parameter in trained if parameter.ndim <= 1]
        groups = ((decayed, weight_decay), (others, 0.0))
        return [{"name": "auxiliary", "params": params, "lr": lr, "weight_decay": decay} for params, decay in groups if params]

    @contextmanager
    def listening(self, backbone: nn.Module) -> Iterator[list[Tensor]]:
        """Yield a list that collects the logits [B, K] of each trained head when the backbone runs inside the `with`.

        Hooks leave the backbone and the classifier as they are for everybody else, and are gone at the end.
        """
        logits: list[Tensor] = []
        hooks = [
            backbone.get_submodule(stage).register_forward_hook(lambda module, inputs, maps, head=head: logits.append(head(maps)))
            for stage, head in self.heads.items()
            if any(parameter.requires_grad for parameter in head.parameters())
        ]
        try:
            yield logits
        finally:
            for hook in hooks:
                hook.remove()


def has_auxiliary_heads(backbone: nn.Module) -> bool:
    return hasattr(backbone, "auxiliary_heads")


def build_auxiliary_heads(backbone: nn.Module, classes: int, weight: float) -> AuxiliaryHeads | None:
    """Create new heads for `classes` classes; None if the backbone has none, or if their loss has no weight."""
    if weight == 0 or not has_auxiliary_heads(backbone):
        return None
    return AuxiliaryHeads(backbone.auxiliary_heads(classes), weight)  # type: ignore[operator]
