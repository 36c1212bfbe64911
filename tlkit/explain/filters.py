"""Filters of the first layer: what a network looks for in the pixels themselves."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tlkit.errors import BackboneError
from tlkit.explain.sheet import figure_file
from tlkit.models.backbones import first_convolutions

MOST = 64
"""Filters that are drawn."""


def first_filters(backbone: nn.Module) -> Tensor:
    """Return the weights of the first convolution, or of a transformer's patch embedding: [filters, C, h, w].

    Raises BackboneError if it has no filters larger than one pixel.
    """
    names = first_convolutions(backbone)
    weight = getattr(backbone.get_submodule(names[0]), "weight", None) if names else None
    if not isinstance(weight, Tensor) or weight.ndim != 4 or weight.shape[2] * weight.shape[3] == 1:
        raise BackboneError(f"{type(backbone).__name__} begins with no convolution whose filters could be drawn.")
    return weight.detach().float().cpu()


def draw_filters(file: Path, after: nn.Module, before: nn.Module | None) -> str:
    """Draw the first filters before and after fine-tuning, and return what is to be said of them."""
    now = first_filters(after)
    sides = [("after", now)] if before is None else [("before fine-tuning", first_filters(before)), ("after", now)]
    columns = min(8, len(now))
    rows = -(-min(MOST, len(now)) // columns)
    width, height = 0.2 + len(sides) * (0.42 * columns + 0.3), 0.85 + 0.42 * rows
    width = max(width, 4.2)
    with figure_file(file, width, height) as figure:
        for number, (title, weights) in enumerate(sides):
            axis = figure.add_axes((number / len(sides) + 0.02, 0.05, 1 / len(sides) - 0.04, 0.42 * rows / height))
            axis.imshow(_tiled(weights[:MOST], columns), interpolation="nearest", cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
        figure.suptitle("filters of the first layer", fontsize=12, fontweight="bold", x=0.03, y=0.97, ha="left")
    return _changed(now, sides[0][1] if before is not None else None)


def _changed(now: Tensor, before: Tensor | None) -> str:
    if before is None:
        return ""
    moved = (now - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1).clamp_min(1e-12)
    return f"Relative change of a filter by fine-tuning: {moved.median():.1%} in the median, {moved.max():.1%} at most."


def _tiled(weights: Tensor, columns: int) -> NDArray[np.float32]:
    """Put filters [F, C, h, w] side by side, grey being zero; each is scaled by its own largest weight."""
    scaled = 0.5 + 0.5 * weights / weights.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    scaled = scaled if scaled.shape[1] == 3 else scaled.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    padded = torch.nn.functional.pad(scaled, (0, 1, 0, 1), value=1.0)  # a white line between two
    missing = -len(padded) % columns
    padded = torch.cat([padded, torch.ones(missing, *padded.shape[1:])])
    count, _, height, width = padded.shape
    grid = padded.reshape(count // columns, columns, 3, height, width).permute(0, 3, 1, 4, 2)
    return grid.reshape(count // columns * height, columns * width, 3).numpy()
