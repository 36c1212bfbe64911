import pytest
import torch

from tlkit.evaluation.metrics import measure
from tlkit.training.objective.metrics import BalancedAccuracy, MeanLoss


def test_the_mean_loss_counts_every_image_once() -> None:
    loss = MeanLoss()
    loss.update(torch.tensor(1.0), 64)
    loss.update(torch.tensor(2.0), 8)
    assert float(loss.compute()) == pytest.approx((64 * 1 + 8 * 2) / 72)
    loss.reset()
    loss.update(torch.tensor(float("nan")), 8)
    assert torch.isnan(loss.compute())


def test_balanced_accuracy_that_chooses_an_epoch_is_the_reports() -> None:
    # Recalls 3/4 and 4/4; the third class has no images, and is called once. Counted as a recall of 0 it would make 0.583.
    labels, called = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), torch.tensor([0, 0, 0, 2, 1, 1, 1, 1])
    logits = torch.nn.functional.one_hot(called, 3).float()
    metric = BalancedAccuracy(3)
    for batch in range(0, 8, 3):
        metric.update(logits[batch : batch + 3], labels[batch : batch + 3])
    assert float(metric.compute()) == 0.875
    assert measure(logits, labels, ["a", "b", "c"])["balanced_accuracy"] == 0.875


def test_balanced_accuracy_of_three_thousand_classes_is_counted_in_little_memory() -> None:
    labels = torch.arange(3000)
    metric = BalancedAccuracy(3000)
    torch.use_deterministic_algorithms(True)  # with it torchmetrics' recall asks for 3,000 * 3,000² * 8 bytes
    try:
        metric.update(torch.eye(3000), labels)
    finally:
        torch.use_deterministic_algorithms(False)
    assert float(metric.compute()) == 1.0
