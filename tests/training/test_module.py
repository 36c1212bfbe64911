"""What one step of the optimizer is: the mean over its own images, however they come."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from tlkit.data.datamodule import ImageDataModule
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Sample, Samples
from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.models.freeze import trained_parameters
from tlkit.recipe.fields.learning import Optimizer, Schedule
from tlkit.recipe.fields.model import Head
from tlkit.recipe.fields.phases import Phase
from tlkit.recipe.fields.trainer import Trainer
from tlkit.training.module import PhaseModule
from tlkit.training.objective.metrics import Scoring
from tlkit.training.objective.objective import Objective
from tlkit.training.optimizers import Optimization
from tlkit.training.trainer import build_trial_trainer, fit_unsaved

SIZE = 32
LR = 0.5


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8))


@pytest.mark.parametrize("images", [20, 24, 26])  # batches of 8: 8 8 4 / 8 8 8 / 8 8 8 2
@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_step_is_the_mean_over_its_own_images(images: int, accumulate: int) -> None:
    samples = Samples(("a", "b"), tuple(Sample(str(i), lambda i=i: noise(i), (i % 2,), "train") for i in range(images)))  # type: ignore[misc]
    preprocessing = Preprocessing(SIZE, "stretch", 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)
    torch.manual_seed(0)
    classifier = Classifier(create_backbone("lenet5", SIZE), Head(dropout=0.0), 2, SIZE)
    classifier.train_only(trained_parameters("all", classifier.backbone, classifier.stages, key="train", name="lenet5"))
    data = ImageDataModule(samples, preprocessing, batch_size=8, workers=0)
    batches = [(preprocessing.normalize(pixels), labels) for pixels, labels in data.train_dataloader()]
    expected = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    for start in range(0, len(batches), accumulate):
        step = batches[start : start + accumulate]
        expected = after_plain_step(classifier, expected, torch.cat([x for x, _ in step]), torch.cat([y for _, y in step]))

    optimizer = Optimizer(name="sgd", weight_decay=0.0, accumulate=accumulate)
    module = PhaseModule(
        classifier,
        Objective(nn.CrossEntropyLoss()),
        Scoring("multiclass", 2, "accuracy"),
        Optimization(Phase(train="all", epochs=1, lr=LR), optimizer, Schedule(name="constant")),
        normalize=preprocessing.normalizer(),
    )
    trainer = build_trial_trainer(Trainer(accelerator="cpu"), optimizer=optimizer, callbacks=[], max_epochs=1, limit_val_batches=0)
    fit_unsaved(trainer, module, data)
    for name, tensor in classifier.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


def after_plain_step(
    classifier: Classifier, state: dict[str, torch.Tensor], images: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Weights - lr * gradient of the mean cross-entropy over all images at once."""
    weights = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    loss = cross_entropy(torch.func.functional_call(classifier, weights, (images,)), labels)
    gradients = torch.autograd.grad(loss, list(weights.values()))
    return {name: (weights[name] - LR * gradient).detach() for name, gradient in zip(weights, gradients, strict=True)}
