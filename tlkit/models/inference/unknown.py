"""The score of an image that is like none of training: one function for measuring, predicting and the exported network."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tlkit.models.inference.trust import Trust


class UnknownScore(nn.Module):
    """Map features [B, F] or [B, C, h, w] and logits [B, K] to scores [B, 1]; the higher, the less the image is like those of training.

    Source: Sun et al. 2022 on the k-th nearest neighbour, https://arxiv.org/abs/2204.06507, here one minus its cosine, which orders images
    as their distance does; Liu et al. 2020 on energy, https://arxiv.org/abs/2010.03759
    """

    def __init__(self, training_sample: Tensor | None, neighbours: int = 0) -> None:
        """training_sample: [M, F], of length 1; None scores by energy."""
        super().__init__()
        self.register_buffer("training_sample", None if training_sample is None else training_sample.float().T.contiguous())
        self.neighbours = neighbours

    @classmethod
    def of(cls, trust: Trust) -> "UnknownScore | None":
        if trust.unknown is None:
            return None
        sample = None if trust.training_sample is None else torch.from_numpy(trust.training_sample)
        return cls(sample, trust.unknown.neighbours)

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        if self.training_sample is None:
            return -logits.logsumexp(1, keepdim=True)
        vectors = normalize(as_vectors(features))
        nearest = (vectors @ cast(Tensor, self.training_sample)).topk(self.neighbours, dim=1).values
        return 1 - nearest[:, -1:]


def as_vectors(features: Tensor) -> Tensor:
    """Return features [B, F] as they are, and a map [B, C, h, w] averaged over its places: [B, C]."""
    return features.flatten(2).mean(2) if features.ndim > 2 else features
