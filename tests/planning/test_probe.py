"""What a trial of a phase counts."""

from typing import cast

import lightning.pytorch as pl
import torch

from tlkit.planning.probe import MemoryProbe


class OneLayer(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))


def test_what_is_computed_beside_the_loss_is_not_counted() -> None:
    """DoRA's norms have a graph that is gone before the backward pass, and its memory with it."""
    module, probe = OneLayer(), MemoryProbe()
    trainer = cast(pl.Trainer, None)
    probe.on_train_batch_start(trainer, module, (torch.ones(2, 3),), 0)
    aside = module.weight.exp().exp().sum()
    del aside
    loss = (module.weight * torch.ones(2, 3)).exp().sum()
    probe.on_before_backward(trainer, module, loss)
    # Six float32 of the images, which the product keeps, and six of the exponential's result; the weights are no activations.
    assert probe.activations == {2: 2 * 6 * 4}
