"""The features of a whole split, as the head sees them."""

from rich.console import Console
from torch import Tensor

from tlkit.data.datamodule import PictureData
from tlkit.data.pictures import make_loader
from tlkit.models.classifier import Classifier
from tlkit.models.inference import infer
from tlkit.training.callbacks import pictures_progress


def features_of(classifier: Classifier, data: PictureData, split: str, console: Console) -> tuple[Tensor, Tensor]:
    """Features [N, F] and labels, [N] or for multilabel [N, K], of the split's pictures in order, without augmentation."""
    samples = data.samples.of(split)
    loader = make_loader(samples, data.preprocessing, batch_size=data.batch_size, workers=data.workers, multi_hot=data.samples.multi_hot)
    with pictures_progress(console, f"features of the {split} pictures", len(samples)) as advance:
        return infer(classifier, loader, data.preprocessing.normalize, outputs=classifier.features, on_batch=advance)
