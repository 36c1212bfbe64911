import pytest
import torch

from tlkit.training.metrics import MeanLoss


def test_the_mean_loss_counts_every_image_once() -> None:
    loss = MeanLoss()
    loss.update(torch.tensor(1.0), 64)
    loss.update(torch.tensor(2.0), 8)
    assert float(loss.compute()) == pytest.approx((64 * 1 + 8 * 2) / 72)
    loss.reset()
    loss.update(torch.tensor(float("nan")), 8)
    assert torch.isnan(loss.compute())
