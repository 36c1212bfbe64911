"""Networks that learn to tell a red square from a green one, at random places in noise: what decides is known."""

from functools import cache

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tlkit.models.classifier import Classifier
from tlkit.recipe.fields.model import Head

SIZE, SQUARE = 32, 12
Squares = tuple[Tensor, Tensor, Tensor]


class TwoLayers(nn.Module):
    """A convolution and ReLU; the head of a Classifier is the second layer."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.in_chans = convolution.in_channels
        self.conv = convolution
        self.relu = nn.ReLU(inplace=True)

    def forward_features(self, images: Tensor) -> Tensor:
        maps: Tensor = self.relu(self.conv(images))
        return maps

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        return maps.mean((2, 3))


def squares(count: int, seed: int) -> Squares:
    """Return images [N, 3, 32, 32], labels [N], and where the square is: [N, 32, 32], true or false."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, SIZE, SIZE, generator=random) * 0.3
    labels = torch.randint(2, (count,), generator=random)
    inside = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    for number, corner in enumerate(torch.randint(SIZE - SQUARE, (count, 2), generator=random).tolist()):
        inside[number, corner[0] : corner[0] + SQUARE, corner[1] : corner[1] + SQUARE] = True
        images[number, labels[number]][inside[number]] += 2
    return images, labels, inside


@cache
def trained(name: str) -> Classifier:
    """Return a classifier of the two kinds of squares that has learned them; tests must not change it."""
    torch.manual_seed(0)
    if name == "convolutional":
        first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        backbone: nn.Module = TwoLayers(second)
        backbone.conv, backbone.in_chans = nn.Sequential(first, nn.ReLU(), second), 3  # type: ignore[assignment]
    else:
        small = {"img_size": SIZE, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0}
        backbone = timm.create_model("vit_tiny_patch16_224", **small, global_pool=name)
    classifier = Classifier(backbone, Head(), ["red", "green"], SIZE)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    classifier.train()
    for step in range(80):
        images, labels, _ = squares(32, step)
        optimizer.zero_grad()
        cross_entropy(classifier(images), labels).backward()
        optimizer.step()
    return classifier.eval()
