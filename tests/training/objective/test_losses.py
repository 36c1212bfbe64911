"""Losses against hand arithmetic and torch's own."""

from math import exp, log, log1p
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from tlkit.data.samples import Sample, Samples
from tlkit.recipe.fields.learning import Loss
from tlkit.recipe.schema import Imbalance
from tlkit.training.objective.losses import build_criterion, class_weights, plain_loss, positive_weights


def made(*counts: int) -> Samples:
    """counts: training images of each class; as many validation images of the first."""
    images = [Sample(f"{label}/{i}", Path("none"), (label,), "train") for label, count in enumerate(counts) for i in range(count)]
    held_out = [Sample(f"v/{i}", Path("none"), (0,), "val") for i in range(sum(counts))]
    return Samples(tuple("abc"[: len(counts)]), (*images, *held_out))


def test_class_weights_are_one_in_the_mean_over_the_images() -> None:
    # 8 images, 6 of a and 2 of b: 8 / (2 * 6) and 8 / (2 * 2).
    weights = class_weights(torch.tensor([6.0, 2.0]))
    assert weights.tolist() == pytest.approx([2 / 3, 2.0])
    assert (6 * weights[0] + 2 * weights[1]) / 8 == pytest.approx(1.0)


def test_an_image_counts_by_the_weight_of_its_class_and_the_sum_is_shared_by_all() -> None:
    criterion = build_criterion(Loss(), "loss_weights", made(6, 2))
    # Equal logits: each image's cross-entropy is log 2. (2/3 + 2/3 + 2) / 3 = 10/9.
    assert criterion(torch.zeros(3, 2), torch.tensor([0, 0, 1])).item() == pytest.approx(10 / 9 * log(2))
    soft = one_hot(torch.tensor([0, 0, 1]), 2).float()
    assert criterion(torch.zeros(3, 2), soft).item() == pytest.approx(10 / 9 * log(2))  # as mixup gives them


def test_logit_adjustment_adds_log_priors_in_training_alone() -> None:
    criterion = build_criterion(Loss(), "logit_adjust", made(6, 2))
    # Logits 0 and priors 3/4, 1/4: the softmax is the priors.
    assert criterion(torch.zeros(1, 2), torch.tensor([1])).item() == pytest.approx(log(4))
    assert criterion(torch.zeros(1, 2), torch.tensor([0])).item() == pytest.approx(log(4 / 3))
    assert plain_loss(torch.zeros(1, 2), torch.tensor([1])).item() == pytest.approx(log(2))


@pytest.mark.parametrize("imbalance", ["none", "sampler", "loss_weights", "logit_adjust"])
def test_where_classes_are_alike_every_way_is_plain_cross_entropy(imbalance: Imbalance) -> None:
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(7, 3, generator=draws), torch.tensor([0, 1, 2, 2, 1, 0, 2])
    criterion = build_criterion(Loss(label_smoothing=0.1), imbalance, made(5, 5, 5))
    assert criterion(logits, labels).item() == pytest.approx(cross_entropy(logits, labels, label_smoothing=0.1).item(), abs=1e-6)


def several(imbalance: Imbalance, smoothing: float = 0.0) -> torch.nn.Module:
    """4 training images: one with a, three with b."""
    labels = [(0, 1), (1,), (1,), ()]
    samples = tuple(Sample(str(i), Path("none"), which, "train") for i, which in enumerate(labels))
    return build_criterion(Loss(label_smoothing=smoothing), imbalance, Samples(("a", "b"), samples, "multilabel"))


def test_binary_cross_entropy_asks_each_class_by_itself() -> None:
    # log(1 + e^-2) for the yes at logit 2; log(1 + e^1) for the no at logit 1.
    loss = several("none")(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx((log1p(exp(-2)) + log1p(exp(1))) / 2)
    assert plain_loss(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.0]])).item() == pytest.approx(loss.item())


def test_smoothing_of_yes_and_no_spreads_over_the_two_answers() -> None:
    # Targets 0.95 and 0.05 at logit 0: log 2 whatever they are; at logit 2 by hand.
    loss = several("none", 0.1)(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx((0.95 * log1p(exp(-2)) + 0.05 * log1p(exp(2)) + log(2)) / 2)


def test_images_with_a_rare_label_weigh_as_much_as_those_without_within_bounds() -> None:
    # a: 3 without for 1 with. b: 1 without for 3 with. At logit 0 each answer costs log 2.
    loss = several("loss_weights")(torch.zeros(1, 2), torch.ones(1, 2))
    assert loss.item() == pytest.approx((3 + 1 / 3) / 2 * log(2))
    assert positive_weights(torch.tensor([1.0, 1000.0, 500.0]), 1000).tolist() == pytest.approx([20.0, 0.05, 1.0])
