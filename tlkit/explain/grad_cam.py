"""Grad-CAM: which places of an image speak for a class."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tlkit.errors import BackboneError
from tlkit.explain.stage_maps import as_map, backbone_name, check_stage, stage_outputs
from tlkit.explain.token_map import has_token_map, token_map
from tlkit.models.classifier import Classifier
from tlkit.models.heads import NearestNeighbours


def grad_cam(classifier: Classifier, images: Tensor, target: Tensor, *, stage: str | None = None, relative: bool = False) -> Tensor:
    """Compute a class-discriminative heat map for each image. The classifier is put into eval mode.

    Of a vision transformer it is a token map (see `token_map`), unless a stage is named.

    Args:
        classifier: A trained classifier; frozen layers don't matter.
        images: [B, C, H, W], normalised, on the classifier's device.
        target: [B], the class index to explain.
        stage: A name from `classifier.stages`. None takes the last with a map that the class depends on.
        relative: Explain the class's logit less the mean of all classes' logits, which softmax doesn't see. With many classes Adam makes
            all logits negative, and of the plain logit nothing is left: all zeros for each of 12 answers of a network with 300 classes.

    Returns:
        [B, H, W] in 0..1; all zeros where no activation speaks for the class.

    Raises:
        BackboneError: The stage has no spatial map, or the head no gradient, as k nearest neighbours.

    Source: Selvaraju et al. 2017, eq. 1-2, https://arxiv.org/abs/1610.02391
    """
    check_explainable(classifier)
    if stage is not None:
        check_stage(classifier, stage)
    classifier.eval()

    def score() -> Tensor:
        logits: Tensor = classifier.head(classifier.features(images.detach().clone().requires_grad_()))  # [B, K]
        chosen = logits.gather(1, target.to(logits.device)[:, None])[:, 0]
        return (chosen - logits.mean(1) if relative else chosen).sum()

    # Gradients flow whatever is frozen, also where the caller has switched them off.
    with torch.inference_mode(False), torch.enable_grad():
        if stage is None and has_token_map(classifier.backbone):
            heat = token_map(classifier.backbone, score)  # type: ignore[arg-type]
        else:
            with stage_outputs(classifier) as outputs:
                maps, gradients = _map_and_gradient(classifier, outputs, score(), stage)
            weights = gradients.mean((2, 3), keepdim=True)  # alpha of eq. 1: [B, C, 1, 1]
            heat = (weights * maps).sum(1).relu()  # eq. 2: [B, h, w]
    heat = interpolate(heat.float()[:, None], images.shape[2:], mode="bilinear")[:, 0]
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)


def check_explainable(classifier: Classifier) -> None:
    """Raise BackboneError if the head has no gradient."""
    if isinstance(classifier.head, NearestNeighbours):
        raise BackboneError(
            "A knn head has no gradient, so no heat map can say what its answer depends on.\n"
            "  Its answers are explained by the nearest training images; `head: {kind: linear}` has heat maps."
        )


def _map_and_gradient(classifier: Classifier, outputs: dict[str, Tensor], score: Tensor, stage: str | None) -> tuple[Tensor, Tensor]:
    """Return the map [B, C, h, w] of a stage and the gradient of the score at it: of the last stage where some gradient isn't zero."""
    found: list[tuple[Tensor, Tensor]] = []
    for name, output in reversed(outputs.items()):
        maps = as_map(output, classifier.backbone)
        if maps is None or stage not in (None, name):
            continue
        (gradient,) = torch.autograd.grad(score, output, retain_graph=True, allow_unused=True)
        of_map = None if gradient is None else as_map(gradient, classifier.backbone)
        found.append((maps.detach(), torch.zeros_like(maps) if of_map is None else of_map))
        if found[-1][1].any():
            return found[-1]
    if found:
        return found[0]
    what = f"Stage '{stage}' of {backbone_name(classifier)}" if stage else backbone_name(classifier)
    raise BackboneError(
        f"{what} has no spatial map at this image size, so there is no heat map.\n  Expected a stage whose output has more than one place."
    )
