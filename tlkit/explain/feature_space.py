"""A map of feature space: images that the network finds alike are near each other, before and after fine-tuning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tlkit.explain.sheet import figure_file, shortened

MOST_CLASSES = 12
MARKERS = "os^Dv*PX<>hp"
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#000000", "#b8a800")
"""Source: Okabe and Ito, for colour-blind readers; the yellow is darker, for white paper. Markers tell apart what shares a colour."""


def project(features: Tensor) -> dict[str, NDArray[Any]]:
    """Return features [N, F] in two dimensions, [N, 2], by PCA and by t-SNE on the first 50 principal components."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count = len(features)
    components = PCA(n_components=min(50, count, features.shape[1]), random_state=0).fit_transform(features.numpy())
    neighbours = TSNE(perplexity=max(1.0, min(30.0, (count - 1) / 4)), init="random" if components.shape[1] < 2 else "pca", random_state=0)
    flat = np.pad(components[:, :2], ((0, 0), (0, max(0, 2 - components.shape[1]))))
    return {"PCA": flat, "t-SNE": neighbours.fit_transform(components)}


def draw_feature_space(file: Path, sides: Sequence[tuple[str, Tensor]], labels: Sequence[int], classes: Sequence[str]) -> None:
    """Draw PCA above t-SNE, a column for each side. sides: title and features [N, F]. labels: one of each image.

    Of more than 12 classes those with the most images have a colour, and all others are grey.
    """
    counts = np.bincount(labels, minlength=len(classes))
    named = [int(label) for label in np.argsort(-counts, kind="stable")[:MOST_CLASSES] if counts[label]]
    width = 1.9 + 4.2 * len(sides)
    with figure_file(file, width, 8.4) as figure:
        axes = figure.subplots(2, len(sides), squeeze=False)
        for column, (title, features) in enumerate(sides):
            for axis, (kind, points) in zip(axes[:, column], project(features).items(), strict=True):
                _scatter(axis, points, np.asarray(labels), named, classes)
                axis.set_title(f"{kind}, {title}", fontsize=10)
        handles, texts = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="center left", bbox_to_anchor=(1 - 1.75 / width, 0.5), frameon=False, fontsize=8)
        figure.suptitle(f"{len(labels)} validation images in feature space", fontsize=12, fontweight="bold", x=0.03, ha="left")
        figure.subplots_adjust(left=0.03, right=1 - 1.85 / width, bottom=0.03, top=0.9, wspace=0.06, hspace=0.12)


def _scatter(axis: Any, points: NDArray[Any], labels: NDArray[Any], named: Sequence[int], classes: Sequence[str]) -> None:
    others = ~np.isin(labels, named)
    if others.any():
        axis.scatter(*points[others].T, s=8, color="#bbbbbb", label=f"{len(classes) - len(named)} others")
    for number, label in enumerate(named):
        chosen = labels == label
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        axis.scatter(*points[chosen].T, s=18, color=color, marker=marker, alpha=0.75, lw=0, label=shortened(classes[label], 22))
    axis.set_xticks([])
    axis.set_yticks([])
