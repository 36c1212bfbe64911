"""The sanity check of heat maps: with weights randomised from the head down, a map of what the network has learned has to change."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from statistics import mean

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from tlkit.explain.grad_cam import grad_cam
from tlkit.models.classifier import Classifier

CHANGED = 0.5
"""Rank correlation with the trained network's maps below which a map counts as changed."""


@dataclass(frozen=True)
class Randomised:
    """Maps [B, H, W] after all from the head down to `down_to` is random. correlation: mean of the images' rank correlations with the
    trained network's maps. empty: how many of the B maps have no contrast, which count as 0 in it.
    """

    down_to: str
    maps: Tensor
    correlation: float
    empty: int = 0


def randomised_maps(
    classifier: Classifier, images: Tensor, target: Tensor, *, relative: bool, on_step: Callable[[int], None] = lambda steps: None
) -> list[Randomised]:
    """Return maps with ever more random weights: of the head, then of stage after stage towards the image.

    Each is of the class that the random network calls, against all others: for the trained one's answer it often has no map at all.
    relative: of the trained network's maps, see `grad_cam`.

    Source: Adebayo et al. 2018, cascading randomisation, https://arxiv.org/abs/1810.03292. A layer is randomised by permuting its own
    weights, and batch-norm takes its statistics from these images, so that activations stay in their range and only what was learned is
    gone.
    """
    expected = grad_cam(classifier, images, target, relative=relative)
    random = deepcopy(classifier)
    found = []
    generator = torch.Generator().manual_seed(0)
    for name, parameters in random.from_head_to_stem():
        for parameter in parameters:
            shuffled = parameter.detach().flatten()[torch.randperm(parameter.numel(), generator=generator).to(parameter.device)]
            parameter.data = shuffled.reshape(parameter.shape)
        _take_statistics(random.eval(), images)
        with torch.no_grad():
            predicted = random(images).argmax(1)
        maps = grad_cam(random, images, predicted, relative=True)
        correlation = mean(_rank_correlation(*pair) for pair in zip(expected, maps, strict=True))
        found.append(Randomised(name, maps, correlation, empty=sum(bool(one.std() == 0) for one in maps)))
        on_step(1)
    return found


def sanity_note(found: list[Randomised]) -> str:
    """Return whether the maps pass: from some stage down, those of a network that knows ever less are other maps."""
    alike = [number for number, step in enumerate(found) if abs(step.correlation) >= CHANGED]
    first = alike[-1] + 1 if alike else 0
    if first == len(found):
        return (
            f"Sanity check failed: with all weights random the maps still have a rank correlation of {found[-1].correlation:.2f} with"
            " these. They show more of the image than of what was learned."
        )
    empty, drawn = sum(step.empty for step in found[first:]), sum(len(step.maps) for step in found[first:])
    if empty == drawn:
        return (
            f"The sanity check can't tell: with the weights random from the head down to '{found[first].down_to}' and further, no place"
            " speaks for any class, so that there are no maps to compare."
        )
    return (
        f"Sanity check passed: with the weights random from the head down to '{found[first].down_to}' and further, the rank"
        f" correlation with these maps stays below {CHANGED}; with all random it is {found[-1].correlation:.2f}."
        f"{f' Of those {drawn} maps {empty} are empty, and count as 0.' if empty else ''}"
    )


def _take_statistics(network: nn.Module, images: Tensor) -> None:
    """Set the running statistics of every batch-norm layer to those of what these images send into it."""

    def take(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)  # [C, B * H * W]
        norm.running_mean.copy_(values.mean(1))  # type: ignore[operator]
        norm.running_var.copy_(values.var(1, correction=0))  # type: ignore[operator]

    norms = [module for module in network.modules() if getattr(module, "running_var", None) is not None]
    hooks = [norm.register_forward_pre_hook(take) for norm in norms]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()


def _rank_correlation(one: Tensor, other: Tensor) -> float:
    return float(spearmanr(one.flatten().cpu(), other.flatten().cpu()).statistic) if one.std() > 0 and other.std() > 0 else 0.0
