"""The image sizes that a backbone can take, and the border of an image that it doesn't see."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tlkit.errors import BackboneError, Fault, RecipeError, TlkitError
from tlkit.models.backbones import create_backbone, first_convolutions, pretrained_cfg
from tlkit.recipe.fields.model import Features
from tlkit.recipe.image_sizes import border_message

SMALLEST, LARGEST = 8, 4096
"""data.image_size is between these."""
TRIES = 64
"""Sizes that are tried on either side of one that a backbone can't take."""


@contextmanager
def explained_image_size(
    name: str, image_size: int, *, channels: int = 3, pool: str | None = None, features: Features = "all"
) -> Iterator[None]:
    """Raise RecipeError at data.image_size, with the nearest sizes that work, where what is built inside fails because of the size.

    Costs nothing where nothing fails. What fails for another reason is raised as it is.
    """
    try:
        yield
    except Exception as error:  # whatever a model's own code makes of a map without pixels
        if isinstance(error, TlkitError) and not isinstance(error, BackboneError):
            raise
        takes = trial_of_sizes(name, channels, pool, features)
        if takes(image_size):
            raise
        sizes = nearest_sizes(takes, image_size, _step(name), own=own_size(name))
        if not sizes:
            raise
        problem = f"= {image_size} can't be used with {name}."
        raise RecipeError([Fault("data.image_size", problem, f"Sizes near it that work: {' or '.join(map(str, sizes))}.")]) from error


def nearest_sizes(takes: Callable[[int], bool], image_size: int, step: int, own: int) -> list[int]:
    """Return the nearest size that works below image_size and the nearest above, of the multiples of `step`, else the backbone's own."""
    first = image_size // step * step
    below = range(first, max(SMALLEST, first - TRIES * step) - 1, -step)
    above = range(first + step, min(LARGEST, first + TRIES * step) + 1, step)
    found = [next((size for size in sizes if size != image_size and takes(size)), None) for sizes in (below, above)]
    return [size for size in found if size] or [size for size in (own,) if size != image_size and takes(size)]


def unseen_border(backbone: nn.Module, image_size: int) -> int:
    """Return how many columns at the right of an image, and rows at its bottom, no feature depends on: 1 for 33 px in patches of 16.

    Found by the gradient of the features for the image; only where the first convolution's stride doesn't divide image_size.
    """
    if image_size % _stride(backbone) == 0:
        return 0
    device, training = next(backbone.parameters()).device, backbone.training
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, int(backbone.in_chans), image_size, image_size, generator=generator).to(device).requires_grad_()  # type: ignore[arg-type]
    backbone.eval()
    try:
        with torch.enable_grad():
            features = backbone.forward_head(backbone.forward_features(images), pre_logits=True)  # type: ignore[operator]
            # Weighted, because the sum of features after a layer norm is constant.
            (gradient,) = torch.autograd.grad((features * torch.randn(features.shape, generator=generator).to(device)).sum(), images)
    finally:
        backbone.train(training)
    columns = gradient.abs().sum((0, 1, 2)).nonzero()
    return image_size - 1 - int(columns.max()) if len(columns) else 0


def border_warning(name: str, backbone: nn.Module, image_size: int) -> str:
    """Return a sentence on what is not seen of every image, or nothing."""
    unseen = unseen_border(backbone, image_size)
    return border_message(name, image_size, unseen, _stride(backbone)) if unseen else ""


def trial_of_sizes(name: str, channels: int = 3, pool: str | None = None, features: Features = "all") -> Callable[[int], bool]:
    """Return what says whether a backbone takes images of a size: without memory or numbers, on torch's meta device."""
    rebuilt = bool(pretrained_cfg(name).get("fixed_input_size"))

    def build(image_size: int) -> nn.Module:
        with torch.device("meta"):
            return create_backbone(name, image_size, channels=channels, pool=pool, features=features).eval()

    whole = None if rebuilt else build(own_size(name))

    def takes(image_size: int) -> bool:
        try:
            backbone = whole or build(image_size)
            with torch.device("meta"), torch.inference_mode():
                images = torch.zeros(1, channels, image_size, image_size)
                backbone.forward_head(backbone.forward_features(images), pre_logits=True)  # type: ignore[operator]
        except Exception:  # whatever a model's own code makes of a map without pixels
            return False
        return True

    return takes


def own_size(name: str) -> int:
    return int((pretrained_cfg(name).get("input_size") or (3, 224, 224))[-1])


def _step(name: str) -> int:
    """Return how far apart sizes are tried: where a backbone is built for one size, as many pixels as one value of its last map covers."""
    if not pretrained_cfg(name).get("fixed_input_size"):
        return 1
    with torch.device("meta"):
        backbone = create_backbone(name, own_size(name))
    taps = getattr(backbone, "feature_info", None)
    return int(taps[-1]["reduction"]) if isinstance(taps, list) else _stride(backbone)


def _stride(backbone: nn.Module) -> int:
    """Return the pixels from one value of the first convolution to the next: the side of a patch, for what cuts images into patches."""
    first = [backbone.get_submodule(name) for name in first_convolutions(backbone)]
    return max((layer.stride[0] for layer in first if isinstance(layer, nn.Conv2d)), default=1)
