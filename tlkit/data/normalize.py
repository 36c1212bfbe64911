"""Normalisation on the device: the part of the preprocessing that runs beside the network."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Normalize(nn.Module):
    """Map images [B, C, S, S] uint8 to (images / 255 - mean) / std in float32, in their memory layout.

    mean: [S, S, C] or [1, 1, C], std: [C], in units of 0..1. Both follow the module to its device, are in no state dict, and stay in
    32 bits whatever the network's precision.
    """

    def __init__(self, mean: NDArray[np.float32], std: Sequence[float]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).permute(2, 0, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).div_(255).sub_(self.mean).div_(self.std)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        device: Any = fn(torch.empty(0, device=self.mean.device)).device
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self
