"""Activation maximisation: the image that excites a channel or a class most, made legible by regularisation.

Source: Olah, Mordvintsev and Schubert 2017, "Feature Visualization", https://distill.pub/2017/feature-visualization. Constants are those
of its code, Lucid, where nothing else is said: pixels are optimised as Fourier coefficients of decorrelated colours, and the network sees
them shifted, scaled and rotated at random, so that no single pixel can be exploited.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, pad

from tlkit.errors import BackboneError
from tlkit.explain.grad_cam import check_explainable
from tlkit.explain.stage_maps import as_map, check_stage, stage_outputs
from tlkit.models.classifier import Classifier

RATE = 0.05
TOTAL_VARIATION = 1.0
"""Weight of the mean absolute difference of neighbouring pixels. Looked at for a fine-tuned efficientnet-lite0 at 128 px: below 0.1 noise
hides the shapes of classes, and 3 flattens textures. Coefficients that fall faster than 1 / frequency gave clouds of colour.
"""
PADDING_PX, TURN_DEGREES, SCALES = 12, 10, (0.85, 1.15)
COLOURS = ((0.26, 0.27, 0.27), (0.09, 0.00, -0.09), (0.02, -0.05, 0.03))
"""Square root of the covariance of ImageNet's colours, divided by the largest norm of its columns below. Source: Lucid."""


@dataclass(frozen=True)
class Objective:
    """A channel of a stage, or a class where stage is empty. title: for people."""

    title: str
    stage: str
    index: int


def maximise(
    classifier: Classifier, objectives: Sequence[Objective], *, steps: int, on_step: Callable[[int], None] = lambda steps: None
) -> Tensor:
    """Return an image for each objective, [N, C, S, S] in 0..1: what raises the class's logit, or the mean over the channel's map.

    Raises BackboneError for a stage or channel that isn't there, and for a class of a head without a gradient.
    """
    check_objectives(classifier, objectives)
    preprocessing = classifier.given_preprocessing()
    classifier.eval()
    random = torch.Generator().manual_seed(0)
    image = _FourierImage(len(objectives), preprocessing.channels, preprocessing.image_size, random)
    image.to(next(classifier.parameters()).device)
    optimizer = torch.optim.Adam(image.parameters(), lr=RATE)
    scale: Tensor | None = None
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(steps):
            pixels = image()
            scores = _scores(classifier, preprocessing.normalize(255 * _moved(pixels, random)), objectives)
            scale = scores.detach().abs().clamp_min(1e-3) if scale is None else scale
            # Divided by its size, no channel's loss outweighs the regularisation.
            raised = (scores / scale.maximum(scores.detach().abs())).sum()
            loss = TOTAL_VARIATION * len(objectives) * _total_variation(pixels) - raised
            (gradient,) = torch.autograd.grad(loss, [image.spectrum])
            image.spectrum.grad = gradient
            optimizer.step()
            on_step(1)
        found: Tensor = image().detach().cpu()
        return found


def check_objectives(classifier: Classifier, objectives: Sequence[Objective]) -> None:
    for objective in objectives:
        if not objective.stage:
            check_explainable(classifier)
        else:
            check_stage(classifier, objective.stage)


class _FourierImage(nn.Module):
    """Images [N, C, S, S] in 0..1 as Fourier coefficients, each scaled by one over its frequency: all frequencies move alike."""

    def __init__(self, count: int, channels: int, size: int, random: torch.Generator) -> None:
        super().__init__()
        frequencies = torch.sqrt(torch.fft.fftfreq(size)[:, None] ** 2 + torch.fft.rfftfreq(size)[None] ** 2)
        self.size = size
        self.scale: Tensor
        self.colours: Tensor
        self.register_buffer("scale", size / frequencies.clamp_min(1 / size))  # [S, S // 2 + 1]
        colours = torch.tensor(COLOURS).T if channels == 3 else torch.eye(channels) * 0.27
        self.register_buffer("colours", colours / colours.norm(dim=0).max())
        self.spectrum = nn.Parameter(torch.randn(count, channels, *self.scale.shape, 2, generator=random) * 0.01)

    def forward(self) -> Tensor:
        waves = torch.view_as_complex(self.spectrum) * self.scale
        plain = torch.fft.irfft2(waves, s=(self.size, self.size)) / 4  # [N, C, S, S]
        return torch.einsum("dc,nchw->ndhw", self.colours, plain).sigmoid()


def _moved(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Shift, scale and rotate all images alike, about a grey border."""
    size = pixels.shape[-1]
    draw = torch.rand(4, generator=random).tolist()
    zoom = 1 / (SCALES[0] + (SCALES[1] - SCALES[0]) * draw[0])
    angle = torch.tensor((2 * draw[1] - 1) * TURN_DEGREES).deg2rad()
    shift = [(2 * value - 1) * 2 * min(PADDING_PX, size // 8) / size for value in draw[2:]]
    turn = zoom * torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
    affine = torch.cat([turn, torch.tensor(shift)[:, None]], 1).to(pixels)
    border = min(PADDING_PX, size // 8)
    padded = pad(pixels, [border] * 4, value=0.5)
    affine = affine * (size / (size + 2 * border))
    grid = affine_grid(affine.expand(len(pixels), 2, 3), [len(pixels), pixels.shape[1], size, size], align_corners=False)
    return grid_sample(padded, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _scores(classifier: Classifier, images: Tensor, objectives: Sequence[Objective]) -> Tensor:
    """Return what each image is to raise: [N]."""
    with stage_outputs(classifier) as outputs:
        features = classifier.features(images)
    logits = classifier.head(features) if any(not objective.stage for objective in objectives) else None
    return torch.stack([_score(classifier, outputs, logits, n, objective) for n, objective in enumerate(objectives)])


def _score(classifier: Classifier, outputs: dict[str, Tensor], logits: Tensor | None, n: int, objective: Objective) -> Tensor:
    if logits is not None and not objective.stage:
        return logits[n, objective.index]
    output = outputs[objective.stage]
    maps = as_map(output, classifier.backbone)
    found = output if maps is None else maps  # [B, C, h, w], or [B, C] behind the last map
    if objective.index >= found.shape[1]:
        raise BackboneError(
            f"--unit {objective.stage}:{objective.index}: the stage {objective.stage} has {found.shape[1]} channels.\n"
            f"  Expected a number from 0 to {found.shape[1] - 1}."
        )
    return found[n, objective.index].mean()


def _total_variation(pixels: Tensor) -> Tensor:
    return sqrt(pixels.shape[1]) * (pixels.diff(dim=2).abs().mean() + pixels.diff(dim=3).abs().mean())
