"""A trained classifier over batches of images: the one loop behind evaluate, predict and parity."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from tlkit.data.dataset import worker_explained
from tlkit.data.preprocess import Preprocessing
from tlkit.models.classifier import Classifier


@torch.inference_mode()
@worker_explained()
def infer(
    classifier: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    preprocessing: Preprocessing,
    *,
    outputs: Callable[[Tensor], Tensor] | None = None,
    on_batch: Callable[[int], None] = lambda count: None,
) -> tuple[Tensor, Tensor]:
    """Return logits [N, K] and labels [N] on the CPU, in the order of the batches.

    batches: images uint8 [B, C, H, W] and labels int64 [B]. on_batch is called with B after each.
    outputs: what to have in place of logits, such as `classifier.features`.
    """
    classifier.eval()
    device = next(classifier.parameters()).device
    normalize = preprocessing.normalizer().to(device)
    outputs = outputs or classifier
    found, labels = [], []
    for images, batch_labels in batches:
        found.append(outputs(normalize(images.to(device, non_blocking=True))).float().cpu())
        labels.append(batch_labels)
        on_batch(len(batch_labels))
    return torch.cat(found), torch.cat(labels)
