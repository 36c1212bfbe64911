"""Feature maps: what the stages of a network make of one image, from edges to parts."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlkit.data.samples import evenly_spread
from tlkit.errors import BackboneError
from tlkit.explain.sheet import Cell, draw_sheet, shown
from tlkit.explain.stage_maps import as_map, backbone_name, stage_outputs
from tlkit.models.classifier import Classifier

CHANNELS, STAGES = 8, 8


@torch.inference_mode()
def feature_maps(classifier: Classifier, images: Tensor) -> dict[str, Tensor]:
    """Return the map [B, C, h, w] of every stage that has places, in forward order. images: [B, C, H, W], normalised.

    Raises BackboneError if no stage has any.
    """
    classifier.eval()
    with stage_outputs(classifier) as outputs:
        classifier.features(images)
    found = {name: as_map(output, classifier.backbone) for name, output in outputs.items()}
    maps = {name: tensor.float().cpu() for name, tensor in found.items() if tensor is not None}
    if not maps:
        raise BackboneError(f"No stage of {backbone_name(classifier)} has a spatial map at this image size, so there are no feature maps.")
    return maps


def draw_feature_maps(file: Path, classifier: Classifier, image: NDArray[np.uint8], normalised: Tensor) -> None:
    """Draw the channels of every stage that vary most over one image. image: [S, S, C]; normalised: [1, C, S, S]."""
    maps = feature_maps(classifier, normalised)
    rows: list[tuple[str, list[Cell]]] = []
    for name in evenly_spread(list(maps), STAGES):
        of_stage = maps[name][0]
        chosen = of_stage.flatten(1).std(1).topk(min(CHANNELS, len(of_stage))).indices.tolist()
        size = "x".join(map(str, of_stage.shape[1:]))
        rows.append((f"{name}, {size}", [Cell(_scaled(of_stage[c]), f"channel {c}", pixelated=True) for c in chosen]))
    rows[0] = (rows[0][0], [Cell(shown(image), "the image"), *rows[0][1][: CHANNELS - 1]])
    draw_sheet(file, rows, "feature maps by stage, in forward order")


def _scaled(channel: Tensor) -> NDArray[np.float32]:
    low, high = channel.min(), channel.max()
    return ((channel - low) / (high - low).clamp_min(1e-12)).numpy()
