"""The training objective: the loss, its penalties, and the mixing of images and labels."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from tlkit.data.samples import Samples
from tlkit.models.classifier import Classifier
from tlkit.training.objective.auxiliary import AuxiliaryHeads, build_auxiliary_heads
from tlkit.training.objective.losses import StartingPoint, build_criterion, build_mix
from tlkit.training.specs import Learning


@dataclass(frozen=True)
class Objective:
    """criterion: logits, labels -> the mean training loss of a batch. mix: images, labels -> images, labels.

    Built once per run, so that auxiliary heads and the initial weights are kept from phase to phase.
    """

    criterion: nn.Module
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    auxiliary: AuxiliaryHeads | None = None
    start: StartingPoint | None = None


def build_objective(learning: Learning, classifier: Classifier, samples: Samples) -> Objective:
    """Build the objective. classifier: with its initial weights."""
    classes = len(samples.classes)
    return Objective(
        auxiliary=build_auxiliary_heads(classifier.backbone, classes, learning.auxiliary_loss),
        start=StartingPoint(classifier, learning.loss.l2_sp) if learning.loss.l2_sp else None,
        criterion=build_criterion(learning.loss, learning.imbalance, samples),
        mix=build_mix(learning.mix, classes),
    )
