"""Training losses, and compensation for classes with few images. Validation uses plain cross-entropy."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchvision.transforms import v2

from tlkit.data.samples import Samples
from tlkit.models.classifier import Classifier
from tlkit.recipe.fields.learning import Loss, Mix
from tlkit.recipe.schema import Imbalance

LARGEST_RATIO = 20.0
"""Bound on the weight of a multilabel class's images: a class of one image in a thousand would drown all others."""


def build_criterion(loss: Loss, imbalance: Imbalance, samples: Samples) -> nn.Module:
    """Build the loss: logits [B, K], labels -> the mean loss of the batch.

    Labels are [B] or soft [B, K] for multiclass, and [B, K] from 0 to 1 for multilabel. Priors and weights come from the training split.
    """
    counts = torch.tensor(samples.training_counts(), dtype=torch.float32)
    if samples.task == "multilabel":
        weights = positive_weights(counts, len(samples.of("train"))) if imbalance == "loss_weights" else None
        return BinaryCrossEntropy(loss.label_smoothing, weights)
    if imbalance == "loss_weights":
        return WeightedCrossEntropy(loss.label_smoothing, class_weights(counts))
    if imbalance == "logit_adjust":
        return LogitAdjusted(loss.label_smoothing, (counts / counts.sum()).log())
    return nn.CrossEntropyLoss(label_smoothing=loss.label_smoothing)


def class_weights(counts: Tensor) -> Tensor:
    """Return weights inverse to the counts [K], with mean 1 over the images: N / (K * count)."""
    return counts.sum() / (len(counts) * counts)


def positive_weights(counts: Tensor, images: int) -> Tensor:
    """Return negatives / positives of each class, [K], limited to 1/20 to 20."""
    return ((images - counts) / counts).clamp(1 / LARGEST_RATIO, LARGEST_RATIO)


class WeightedCrossEntropy(nn.Module):
    """Weighted cross-entropy, divided by the number of images; torch divides by the sum of their weights."""

    def __init__(self, label_smoothing: float, weights: Tensor) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.weights: Tensor
        self.register_buffer("weights", weights)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        summed = cross_entropy(logits, labels, weight=self.weights, label_smoothing=self.label_smoothing, reduction="sum")
        return summed / len(labels)


class LogitAdjusted(nn.Module):
    """Cross-entropy of logits with the classes' log priors [K] added; without them, as shipped, the logits don't favour large classes.

    Source: Menon et al. 2021, eq. 10 with tau = 1, https://arxiv.org/abs/2007.07314
    """

    def __init__(self, label_smoothing: float, log_priors: Tensor) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.log_priors: Tensor
        self.register_buffer("log_priors", log_priors)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits + self.log_priors, labels, label_smoothing=self.label_smoothing)


class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy of each class. Label smoothing moves the targets towards 0.5."""

    def __init__(self, label_smoothing: float, positive_weights: Tensor | None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.positive_weights: Tensor | None
        self.register_buffer("positive_weights", positive_weights)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        targets = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
        return binary_cross_entropy_with_logits(logits, targets, pos_weight=self.positive_weights)


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the validation loss, which compares between recipes. labels: [B], or float [B, K] for multilabel."""
    return cross_entropy(logits, labels) if labels.ndim == 1 else binary_cross_entropy_with_logits(logits, labels)


class StartingPoint:
    """The L2-SP penalty: strength / 2 times the squared distance of the backbone from its initial weights.

    Source: Li, Grandvalet and Davoine 2018, eq. 3, https://arxiv.org/abs/1802.01483
    """

    def __init__(self, classifier: Classifier, strength: float) -> None:
        self._strength = strength
        self._start = {name: parameter.detach().clone() for name, parameter in classifier.backbone.named_parameters()}

    def penalty(self, backbone: nn.Module) -> Tensor:
        """Return a scalar with a gradient for each parameter that trains."""
        distances = [torch.zeros((), device=next(backbone.parameters()).device)]
        for name, parameter in backbone.named_parameters():
            if parameter.requires_grad:
                # Moved once: the first step finds them where they were made.
                self._start[name] = self._start[name].to(parameter.device)
                distances.append((parameter - self._start[name]).square().sum())
        return self._strength / 2 * torch.stack(distances).sum()


def build_mix(mix: Mix, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Build the mixing of batches: images [B, C, H, W], labels [B] -> images, labels [B, K] that sum to one; None if the recipe has
    neither.

    Sources: mixup, Zhang et al. 2018, https://arxiv.org/abs/1710.09412; cutmix, Yun et al. 2019, https://arxiv.org/abs/1905.04899
    """
    kinds = [kind(alpha=alpha, num_classes=classes) for kind, alpha in ((v2.MixUp, mix.mixup), (v2.CutMix, mix.cutmix)) if alpha > 0]
    return v2.RandomChoice(kinds) if kinds else None
