"""Classifier: a backbone, a head, and the part of them that is frozen."""

from typing import Self

import torch
from torch import Tensor, nn

from tlkit.models.backbones import Stage, stages
from tlkit.models.freeze import set_trainable
from tlkit.models.heads import build_head
from tlkit.recipe.schema import BatchNorm, Head


class Classifier(nn.Module):
    """Normalised pictures [B, 3, H, W] -> logits [B, K].

    Memory format is channels_last, which is what convolutions on CPUs and tensor cores want.
    """

    def __init__(self, backbone: nn.Module, head: Head, classes: int, image_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.stages: tuple[Stage, ...] = stages(backbone)
        self.head = build_head(head, _feature_width(backbone, image_size), classes)
        self._frozen: frozenset[str] = frozenset()
        self.to(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, F], as the backbone's own classifier would see them."""
        features: Tensor = self.backbone.forward_head(self.backbone.forward_features(images), pre_logits=True)  # type: ignore[operator]
        return features

    def forward(self, images: Tensor) -> Tensor:
        # Without this a frozen backbone would keep every activation for a backward pass that never comes.
        with torch.set_grad_enabled(torch.is_grad_enabled() and "" not in self._frozen):
            features = self.features(images)
        logits: Tensor = self.head(features)  # [B, K]
        return logits

    def train_only(self, parameters: frozenset[str], batchnorm: BatchNorm = "adapt") -> None:
        """Goes into train mode with the head and these parameters of the backbone training.

        All else is frozen: no gradients, and in eval mode for good. batchnorm: see `set_trainable`.
        """
        self._frozen = set_trainable(self.backbone, parameters, batchnorm)
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self._frozen:
            self.backbone.get_submodule(name).eval()
        return self


@torch.inference_mode()
def _feature_width(backbone: nn.Module, image_size: int) -> int:
    """F, measured with one empty picture: timm's num_features is not what every family's forward_head gives."""
    training = backbone.training
    backbone.eval()
    images = torch.zeros(1, 3, image_size, image_size)
    width = int(backbone.forward_head(backbone.forward_features(images), pre_logits=True).shape[1])  # type: ignore[operator]
    backbone.train(training)
    return width
