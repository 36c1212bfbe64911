"""Heads: features [B, F], or the map [B, C, H, W] of a locally connected one, -> logits [B, K]."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, unfold

from tlkit.recipe.fields.model import Head

LINEAR_HEADS = ("linear", "svm", "logistic")
"""Heads that are one linear layer, however it was fitted: they ship as timm's own classifier."""

COSINE_SCALE = 16.0
"""Initial value of a cosine head's learned scale: logits between -16 and 16 allow a probability of 0.99 with a hundred classes."""


def build_head(head: Head, features: torch.Size, classes: int) -> nn.Module:
    """Build a head with nn.Linear's own initialisation.

    features: [F], or [C, H, W] for a locally connected head.
    A larger initialisation, as timm gives some families, cost a frozen probe 9 points of accuracy.
    """
    width = features[0]
    match head.kind:
        case "mlp":
            hidden = [nn.Linear(width, head.hidden), nn.GELU(), nn.Dropout(head.dropout)]
            return nn.Sequential(*hidden, nn.Linear(head.hidden, classes))
        case "cosine":
            return nn.Sequential(nn.Dropout(head.dropout), Cosine(width, classes))
        case "locally_connected":
            local = LocallyConnected(features, head.filters)
            hidden = [local, nn.ReLU(), nn.Flatten(), nn.Dropout(head.dropout)]
            return nn.Sequential(*hidden, nn.Linear(head.filters * features[1] * features[2], classes))
        case "knn":
            return NearestNeighbours(width, classes, head.neighbours)
    return nn.Sequential(nn.Dropout(head.dropout), nn.Linear(width, classes))


def trained_head(head: Head) -> Head:
    """Return the head that phases train by gradients: a linear one in place of a nearest-neighbour head, which has none."""
    return Head(pool=head.pool) if head.kind == "knn" else head


class Cosine(nn.Module):
    """scale * cos(angle between the features and a class's own direction): [B, F] -> [B, K]. The scale is learned.

    Source: Gidaris and Komodakis 2018, eq. 5, https://arxiv.org/abs/1804.09458
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, features))
        self.scale = nn.Parameter(torch.tensor(COSINE_SCALE))
        nn.init.normal_(self.weight, std=features**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * linear(normalize(features, dim=1), normalize(self.weight, dim=1))


class LocallyConnected(nn.Module):
    """A 3x3 convolution with filters of its own at every place of the map: [B, C, H, W] -> [B, filters, H, W], zeros around it.

    Source: Taigman et al. 2014 (DeepFace), section 3.1; initialisation that of a convolution with as many inputs.
    """

    def __init__(self, features: torch.Size, filters: int) -> None:
        super().__init__()
        channels, height, width = features
        inputs = channels * 9
        self.weight = nn.Parameter(torch.empty(height * width, filters, inputs).uniform_(-(inputs**-0.5), inputs**-0.5))
        self.bias = nn.Parameter(torch.zeros(filters * height * width))

    def forward(self, maps: Tensor) -> Tensor:
        patches = unfold(maps, kernel_size=3, padding=1)  # [B, C * 9, H * W]
        filtered = torch.einsum("bip,pfi->bfp", patches, self.weight).flatten(1) + self.bias
        batch, _, height, width = maps.shape
        return filtered.reshape(batch, -1, height, width)


class NearestNeighbours(nn.Module):
    """The share of votes of the k training images with the nearest features, as log-probabilities: [B, F] -> [B, K].

    One vote more is shared evenly by all classes, so that no class is impossible. Distances are scikit-learn's, Euclidean.
    """

    def __init__(self, features: int, classes: int, neighbours: int) -> None:
        super().__init__()
        self.classes, self.neighbours = classes, neighbours
        self.pictures: Tensor
        self.register_buffer("pictures", torch.empty(0, features))  # [N, F]; the name is that of model folders since the first
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64))  # [N]

    def remember(self, features: Tensor, labels: Tensor) -> None:
        """Keep the training images' features [N, F] and labels [N]."""
        self.pictures, self.labels = features.clone(), labels.clone()

    def forward(self, features: Tensor) -> Tensor:
        from sklearn.neighbors import NearestNeighbors

        index = NearestNeighbors(n_neighbors=min(self.neighbours, len(self.labels))).fit(self.pictures.cpu().numpy())
        nearest = torch.from_numpy(index.kneighbors(features.cpu().numpy(), return_distance=False))  # [B, k]
        votes = nn.functional.one_hot(self.labels.cpu()[nearest], self.classes).sum(1)  # [B, K]
        shares = (votes + 1 / self.classes) / (nearest.shape[1] + 1)
        return shares.log().to(features)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: object) -> None:
        """Take as many images as the file has, which isn't known before."""
        self.remember(*(torch.empty_like(state_dict[prefix + name]) for name in ("pictures", "labels")))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def last_linear(head: nn.Module) -> nn.Linear:
    """Return the layer that gives the logits of a head in LINEAR_HEADS. Raises TypeError for other heads."""
    *_, last = head.children()
    if not isinstance(last, nn.Linear):
        raise TypeError(f"the head ends in {type(last).__name__}")
    return last
