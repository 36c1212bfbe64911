"""What fine-tuning has changed, stage by stage: the weights themselves, and what comes out of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tlkit.explain.sheet import figure_file
from tlkit.explain.stage_maps import stage_outputs
from tlkit.models.classifier import Classifier
from tlkit.models.inference.unknown import as_vectors


@dataclass(frozen=True)
class Drift:
    """relative_l2: norm of the change over norm of the weights before. cka: linear CKA of the outputs, 1 where they are the same up to
    rotation and scale; None where it can't be measured.
    """

    stage: str
    relative_l2: float
    cka: float | None


def weight_drift(before: Classifier, after: Classifier, batches: Iterable[Tensor]) -> list[Drift]:
    """Measure every stage in forward order. batches: normalised images [B, C, H, W], a few hundred in all."""
    outputs = [(_means(before, images), _means(after, images)) for images in batches]
    old, new = dict(before.backbone.named_parameters()), dict(after.backbone.named_parameters())
    found = []
    for stage in after.stages:
        change = sum(float((new[name] - old[name]).detach().square().sum()) for name in stage.parameters)
        size = sum(float(old[name].detach().square().sum()) for name in stage.parameters)
        pairs = [(a[stage.name], b[stage.name]) for a, b in outputs if stage.name in a and stage.name in b]
        cka = linear_cka(torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])) if pairs else None
        found.append(Drift(stage.name, (change / size) ** 0.5 if size else 0.0, cka))
    return found


@torch.inference_mode()
def _means(classifier: Classifier, images: Tensor) -> dict[str, Tensor]:
    """Return each stage's output averaged over its places: [B, C]."""
    classifier.eval()
    with stage_outputs(classifier) as outputs:
        classifier.features(images)
    return {name: _mean_over_places(output, classifier.backbone).cpu() for name, output in outputs.items()}


def _mean_over_places(output: Tensor, backbone: nn.Module) -> Tensor:
    """Return [B, C] of [B, C, h, w], of [B, h, w, C], or of tokens [B, N, C]."""
    channels_last = output.ndim == 3 or getattr(backbone, "output_fmt", "NCHW") == "NHWC"
    return output.flatten(1, -2).mean(1) if channels_last and output.ndim > 2 else as_vectors(output)


def linear_cka(one: Tensor, other: Tensor) -> float | None:
    """Return linear CKA of features [N, F] and [N, G] of the same images; None where either doesn't vary.

    Source: Kornblith et al. 2019, section 3, https://arxiv.org/abs/1905.00414
    """
    one, other = (features.double() - features.double().mean(0) for features in (one, other))
    own = (one.T @ one).norm() * (other.T @ other).norm()
    return float((other.T @ one).norm() ** 2 / own) if own > 0 else None


def draw_drift(file: Path, drift: list[Drift]) -> None:
    names = [found.stage for found in drift]
    with figure_file(file, max(6.0, 1.6 + 0.62 * len(drift)), 5.6) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        above.bar(range(len(drift)), [found.relative_l2 for found in drift], color="#0b5cad")
        above.set_ylabel("relative change\nof the weights (L2)")
        below.plot(range(len(drift)), [float("nan") if found.cka is None else found.cka for found in drift], "o-", color="#9a6a00")
        below.set(ylabel="linear CKA of\nthe outputs", ylim=(-0.03, 1.05), xticks=range(len(drift)))
        below.set_xticklabels(names, rotation=35 if len(drift) > 6 else 0, ha="right" if len(drift) > 6 else "center", fontsize=8)
        for axis in (above, below):
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        figure.suptitle("drift from the weights before fine-tuning", fontsize=12, fontweight="bold", x=0.03, ha="left")
        figure.subplots_adjust(left=1.1 / figure.get_figwidth(), right=0.97, bottom=0.17, top=0.9, hspace=0.12)
