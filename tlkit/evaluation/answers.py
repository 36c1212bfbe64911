"""What a classifier answers on one split: logits, labels and features, computed once and handed on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tlkit.data.dataset import ImageDataset, ImageLoader, make_loader
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Samples
from tlkit.models.classifier import Classifier
from tlkit.models.inference.batches import infer
from tlkit.models.inference.unknown import as_vectors


@dataclass(frozen=True)
class Answers:
    """Of N images, in the order of the split's samples, on the CPU.

    logits: [N, K] float32. labels: [N], or [N, K] of 0 and 1 for multilabel. features: [N, F] float32, what the head sees; a map is
    averaged over its places; [N, 0] where they weren't asked for.
    """

    logits: Tensor
    labels: Tensor
    features: Tensor


def split_answers(
    classifier: Classifier,
    samples: Samples,
    split: str,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    features: bool = True,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Answers:
    """Run the classifier over one split, by the loop and the preprocessing that predict uses. The classifier stays on its device.

    features: False saves the memory of those of a large split.
    """
    loader = make_loader(ImageDataset(samples.of(split), preprocessing, multi_hot=samples.multi_hot), batch_size=batch_size)
    return loader_answers(classifier, loader, preprocessing, features=features, on_batch=on_batch)


def loader_answers(
    classifier: Classifier,
    loader: ImageLoader,
    preprocessing: Preprocessing,
    *,
    features: bool = True,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Answers:
    """Do what `split_answers` does for the images of a loader."""
    outputs = partial(logits_and_features, classifier) if features else classifier
    both, labels = infer(classifier, loader, preprocessing, outputs=outputs, on_batch=on_batch)
    k = len(classifier.classes)
    return Answers(both[:, :k].contiguous(), labels, both[:, k:].contiguous())


def logits_and_features(classifier: Classifier, images: Tensor) -> Tensor:
    """Return logits and features of a normalised batch, in one tensor: [B, K + F]."""
    features = classifier.features(images)
    return torch.cat([classifier.head(features).float(), as_vectors(features).float()], 1)
