"""WiSE-FT: the blend of the weights before and after fine-tuning that validates best."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from tlkit.data.datamodule import ImageDataModule
from tlkit.data.progress import progress
from tlkit.evaluation.primary_metric import metric_label, primary_metric_of
from tlkit.models.classifier import Classifier
from tlkit.models.inference.batches import infer
from tlkit.training.objective.losses import plain_loss
from tlkit.training.objective.metrics import score

LOG = logging.getLogger("tlkit")

SHARES = tuple(tenth / 10 for tenth in range(11))


def ship_best_blend(classifier: Classifier, before: Path, data: ImageDataModule, *, console: Console) -> dict[str, Any]:
    """Leave the classifier with (1 - share) * before + share * after of the share with the best primary metric on validation.

    before: a state dict of the classifier when fine-tuning began; after is what it holds now. Of equal figures the lower loss wins.
    Returns `share` and, for each share whose network answers with numbers, the primary metric on validation and the loss.
    Source: Wortsman et al. 2022, eq. 1, https://arxiv.org/abs/2109.01903
    """
    old = load_file(before)
    new = {name: tensor.detach().cpu().clone() for name, tensor in classifier.state_dict().items()}
    samples, primary_metric = data.samples.of("val"), primary_metric_of(data.samples)
    tried = []
    with progress(console, "blends on the validation images", len(samples) * len(SHARES)) as advance:
        for share in SHARES:
            classifier.load_state_dict(blend(old, new, share))
            logits, labels = infer(classifier, data.whole("val"), data.preprocessing, on_batch=advance)
            if logits.isfinite().all():  # between two good networks there may be one that overflows
                figures = {primary_metric: score(data.samples, logits, labels), "loss": float(plain_loss(logits, labels))}
                tried.append({"share": share, **figures})
    best = max(tried, key=lambda row: (row[primary_metric], -row["loss"]))
    classifier.load_state_dict(blend(old, new, best["share"]))
    listed = " ".join(f"{row['share']:g}:{row[primary_metric]:.4f}" for row in tried)
    metric = metric_label(primary_metric)
    LOG.info("wise_ft  ships %g of the way to the fine-tuned weights; validation %s by share: %s", best["share"], metric, listed)
    return {"share": best["share"], "tried": tried}


def blend(old: Mapping[str, Tensor], new: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return (1 - share) * old + share * new. Integer counters are taken from the new ones."""
    return {name: torch.lerp(old[name], tensor, share) if tensor.is_floating_point() else tensor for name, tensor in new.items()}
