"""Which epoch's weights ship."""

from math import inf, nan
from pathlib import Path

import torch

from tlkit.models.backbones import create_backbone
from tlkit.models.classifier import Classifier
from tlkit.recipe.fields.model import Head
from tlkit.training.callbacks.best_weights import BestWeights


def test_of_equal_figures_the_lower_loss_ships_and_no_epoch_whose_loss_is_no_number(tmp_path: Path) -> None:
    classifier = Classifier(create_backbone("test_resnet", 32), Head(), 2, 32)
    best = BestWeights(tmp_path / "best.safetensors", classifier)
    (bias,) = (parameter for name, parameter in classifier.head.named_parameters() if name.endswith("bias"))
    # Epochs 0 and 1 are those of a run that shipped the first, with a loss of 0.419.
    for epoch, (score, loss) in enumerate([(0.88, 0.419), (0.88, 0.352), (0.88, 0.36), (0.87, 0.1), (0.9, nan), (0.9, inf)]):
        bias.data.fill_(epoch)
        best.update(score, loss, epoch, keeps=True)
    assert (best.epoch, best.score, best.loss) == (1, 0.88, 0.352)
    best.restore()
    assert torch.equal(bias.data, torch.ones(2))
    best.update(0.881, 5.0, 6, keeps=True)
    assert best.epoch == 6
