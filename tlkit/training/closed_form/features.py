"""The features of a whole split, as the head sees them."""

import logging
from collections.abc import Sequence

from rich.console import Console
from torch import Tensor

from tlkit.data.datamodule import ImageDataModule
from tlkit.data.progress import progress
from tlkit.errors import CacheUnavailable, TrainingError
from tlkit.models.classifier import Classifier
from tlkit.models.inference.batches import infer
from tlkit.recipe.fields.trainer import Cache
from tlkit.training.cache.activations import ActivationCache

LOG = logging.getLogger("tlkit")


def features_of(
    classifier: Classifier, data: ImageDataModule, splits: Sequence[str], cache: Cache, console: Console
) -> list[tuple[Tensor, Tensor]]:
    """Return features [N, F] and labels, [N] or for multilabel [N, K], of each split's images in order, without augmentation.

    Freezes the whole backbone. What is cached already is taken, and what is not is cached, as the cache allows.
    Raises TrainingError if a feature is NaN or infinite, with the first image of which it is.
    """
    found = _features_of(classifier, data, splits, cache, console)
    for split, (features, _) in zip(splits, found, strict=True):
        bad = (~features.isfinite()).any(1).nonzero().flatten().tolist()
        if bad:
            raise TrainingError(
                f"The backbone's features are NaN or infinite for {len(bad)} of {len(features)} {split} images. The first:"
                f" {data.samples.of(split)[bad[0]].id}\n  Its activations overflow there: use data.normalize=weights, or other weights."
            )
    return found


def _features_of(
    classifier: Classifier, data: ImageDataModule, splits: Sequence[str], cache: Cache, console: Console
) -> list[tuple[Tensor, Tensor]]:
    """Take them from the activation cache, or compute them where there can't be one. For the arguments see `features_of`."""
    classifier.train_only(frozenset())
    device = next(classifier.parameters()).device
    try:
        if cache.use:
            cached = ActivationCache(classifier, data, cache, device=device, precision="32-true", console=console)
            return [cached.features(split) for split in splits]
    except CacheUnavailable as why:
        LOG.info("the features are not cached: %s", why)
    found = []
    for split in splits:
        with progress(console, f"features of the {split} images", len(data.samples.of(split))) as advance:
            found.append(infer(classifier, data.whole(split), data.preprocessing, outputs=classifier.features, on_batch=advance))
    return found
