"""L2-SP: what trains of the backbone is pulled towards where it started, not towards zero."""

import torch
from torch import Tensor, nn

from tlkit.models.classifier import Classifier


class StartingPoint:
    """strength / 2 times the squared distance of the backbone from its weights at the time when this was made.

    Source: Li, Grandvalet and Davoine 2018, eq. 3, https://arxiv.org/abs/1802.01483
    """

    def __init__(self, classifier: Classifier, strength: float) -> None:
        self._strength = strength
        self._start = {name: parameter.detach().clone() for name, parameter in classifier.backbone.named_parameters()}

    def penalty(self, backbone: nn.Module) -> Tensor:
        """A scalar with a gradient for each parameter that trains."""
        distances = [torch.zeros((), device=next(backbone.parameters()).device)]
        for name, parameter in backbone.named_parameters():
            if parameter.requires_grad:
                # Moved once: the first step finds them where they were made.
                self._start[name] = self._start[name].to(parameter.device)
                distances.append((parameter - self._start[name]).square().sum())
        return self._strength / 2 * torch.stack(distances).sum()
