"""Layers whose backward pass torch computes in no fixed order on CUDA, in a form that gives the same numbers every time."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class PoolTo(nn.Module):
    """[B, C, H, W] -> [B, C, size, size]: adaptive average pooling, as a product with two matrices."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[-2:]
        if (height, width) == (self.size, self.size):
            return maps
        return _window_means(height, self.size, maps) @ maps @ _window_means(width, self.size, maps).T


def _window_means(length: int, size: int, like: Tensor) -> Tensor:
    """Return [size, length]: row i averages from floor(i * length / size) to ceil((i + 1) * length / size), as torch's windows do."""
    rows = []
    for i in range(size):
        start, end = i * length // size, -(-(i + 1) * length // size)
        rows.append([1 / (end - start) if start <= j < end else 0.0 for j in range(length)])
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


class LocalResponseNorm(nn.LocalResponseNorm):
    """torch's, with its sum over neighbouring channels written out; torch sums with 3-d pooling."""

    def forward(self, maps: Tensor) -> Tensor:
        channels = maps.shape[1]
        padded = functional.pad(maps.square(), (0, 0, 0, 0, self.size // 2, (self.size - 1) // 2))
        sums = torch.stack([padded[:, i : i + channels] for i in range(self.size)]).sum(0)
        return maps / (self.k + self.alpha / self.size * sums) ** self.beta
