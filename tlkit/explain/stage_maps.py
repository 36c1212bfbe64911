"""What each stage of a backbone gives for a batch of images, as maps [B, C, h, w] whatever the family's own layout is."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt
from typing import Any

from torch import Tensor, nn

from tlkit.errors import BackboneError, expected_one_of
from tlkit.models.backbones import stage_modules
from tlkit.models.classifier import Classifier


@contextmanager
def stage_outputs(classifier: Classifier) -> Iterator[dict[str, Tensor]]:
    """Collect the output of every stage while the classifier runs inside the `with`, in forward order and in the family's layout.

    Of a stage that gives several tensors it is the map. Activations that follow a stage without a module of their own are part of it,
    as ReLU in VGG: what Grad-CAM and feature maps show is what the next layer sees. Pooling is not.
    """
    outputs: dict[str, Tensor] = {}

    def keep(stage: str) -> Any:
        def after(module: nn.Module, inputs: object, output: object) -> None:
            tensors = [part for part in (output if isinstance(output, tuple | list) else (output,)) if isinstance(part, Tensor)]
            if tensors:
                outputs[stage] = max(tensors, key=lambda tensor: tensor.ndim)

        return after

    def follow(module: nn.Module, inputs: object, output: object) -> None:
        last = next(reversed(outputs), None)
        if last is not None and isinstance(output, Tensor) and output.shape == outputs[last].shape:
            outputs[last] = output

    hooks = [
        module.register_forward_hook(keep(stage) if stage else follow)
        for stage, module in stage_modules(classifier.backbone, classifier.stages)
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def as_map(output: Tensor, backbone: nn.Module) -> Tensor | None:
    """Return a stage's output as a map [B, C, h, w]: of tokens [B, N, C] those of the image, on their grid. None if it has no places."""
    if output.ndim == 4:
        maps = output.permute(0, 3, 1, 2) if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else output
        return maps if maps.shape[2] * maps.shape[3] > 1 else None
    if output.ndim != 3:
        return None
    height, width = _grid(backbone, output.shape[1])
    # In timm the class token and others that are no part of the image come first.
    tokens = output[:, -height * width :]
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width) if height * width > 1 else None


def last_map_size(classifier: Classifier, images: Tensor) -> tuple[int, int]:
    """Return height and width of the last stage's map, in places; 1, 1 where no stage has one. images: [B, C, H, W], normalised."""
    with stage_outputs(classifier) as outputs:
        classifier.features(images)
    maps = [found for output in outputs.values() if (found := as_map(output, classifier.backbone)) is not None]
    return (maps[-1].shape[2], maps[-1].shape[3]) if maps else (1, 1)


def _grid(backbone: nn.Module, tokens: int) -> tuple[int, int]:
    grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    prefix = int(getattr(backbone, "num_prefix_tokens", 0) or 0)
    if grid and grid[0] * grid[1] in (tokens, tokens - prefix, tokens - 1):
        return int(grid[0]), int(grid[1])
    side = isqrt(tokens)
    return (side, side) if side * side in (tokens, tokens - prefix) else (0, 0)


def check_stage(classifier: Classifier, stage: str) -> None:
    """Raise BackboneError if the backbone has no stage of this name."""
    names = [found.name for found in classifier.stages]
    if stage not in names:
        raise BackboneError(f"'{stage}' is not a stage of {backbone_name(classifier)}.\n  {expected_one_of(stage, names)}")


def backbone_name(classifier: Classifier) -> str:
    return classifier.origin.backbone if classifier.origin else type(classifier.backbone).__name__
