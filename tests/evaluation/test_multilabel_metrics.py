"""Multilabel figures and thresholds against scikit-learn's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
)
from torch import Tensor

from tlkit.data.samples import Sample, Samples
from tlkit.evaluation.metrics import best_thresholds, measure, measure_multilabel
from tlkit.evaluation.primary_metric import primary_metric_of
from tlkit.recipe.schema import Task


def made_up(n: int = 211, k: int = 4) -> tuple[Tensor, Tensor]:
    """Logits, many of them equal, and labels [n, k]."""
    draws = torch.Generator().manual_seed(2)
    labels = (torch.rand(n, k, generator=draws) < 0.3).float()
    logits = ((torch.randn(n, k, generator=draws) + 1.5 * labels - 1) * 5).round() / 5
    return logits, labels


def test_figures_equal_scikit_learns() -> None:
    logits, labels = made_up()
    thresholds = [0.3, 0.5, 0.7, 0.41]
    measured = measure_multilabel(logits, labels, list("abcd"), thresholds)
    probabilities = logits.double().sigmoid().numpy()
    called, truth = probabilities > thresholds, labels.numpy()
    precision, recall, f1, support = precision_recall_fscore_support(truth, called)
    assert measured["accuracy"] == pytest.approx((called == truth).mean())
    assert measured["exact_match"] == pytest.approx(accuracy_score(truth, called))
    assert measured["mean_average_precision"] == pytest.approx(average_precision_score(truth, probabilities, average="macro"))
    assert measured["micro"]["f1"] == pytest.approx(f1_score(truth, called, average="micro"))
    assert measured["macro"] == pytest.approx({"precision": precision.mean(), "recall": recall.mean(), "f1": f1.mean()})
    assert measured["loss"] == pytest.approx(np.mean([log_loss(truth[:, i], probabilities[:, i]) for i in range(4)]))
    for i, row in enumerate(measured["per_class"].values()):
        assert row["pictures"] == support[i]
        assert row["average_precision"] == pytest.approx(average_precision_score(truth[:, i], probabilities[:, i]))
        assert [row["precision"], row["recall"], row["f1"]] == pytest.approx([precision[i], recall[i], f1[i]])
        assert row["threshold"] == thresholds[i]


def test_a_class_without_images_is_left_out_of_the_mean_average_precision() -> None:
    logits, labels = made_up()
    labels[:, 2] = 0
    measured = measure_multilabel(logits, labels, list("abcd"), [0.5] * 4)
    assert measured["per_class"]["c"]["average_precision"] is None
    others = [0, 1, 3]
    expected = average_precision_score(labels[:, others].numpy(), logits[:, others].double().sigmoid().numpy(), average="macro")
    assert measured["mean_average_precision"] == pytest.approx(expected)


def test_no_other_threshold_has_a_better_f1() -> None:
    logits, labels = made_up()
    labels[:, 3] = 0
    thresholds = best_thresholds(logits, labels)
    probabilities = logits.double().sigmoid().numpy()
    for i in range(3):
        chosen = f1_score(labels[:, i], probabilities[:, i] > thresholds[i])
        assert chosen >= max(f1_score(labels[:, i], probabilities[:, i] > t) for t in np.linspace(0, 0.99, 100))
    assert thresholds[3] == 0.5


def test_a_threshold_is_half_way_between_two_images() -> None:
    # Probabilities 0.5, 0.75, 0.8, 0.9; the upper two have the class.
    logits = torch.tensor([[0.5], [0.75], [0.8], [0.9]], dtype=torch.float64).logit()
    assert best_thresholds(logits, torch.tensor([[0.0], [0.0], [1.0], [1.0]])) == pytest.approx((0.775,))
    assert best_thresholds(logits, torch.ones(4, 1)) == pytest.approx((0.25,))  # all of them: half-way to 0


def test_balanced_accuracy_equals_scikit_learns_and_leaves_absent_classes_out() -> None:
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(90, 4, generator=draws), torch.randint(3, (90,), generator=draws)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(labels, logits.argmax(1))
    assert measure(logits, labels, list("abcd"))["balanced_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("counts", "task", "primary_metric"),
    [
        ((50, 10), "multiclass", "accuracy"),
        ((51, 10), "multiclass", "balanced_accuracy"),
        ((10, 10), "multilabel", "mean_average_precision"),
    ],
)
def test_what_leads_follows_from_the_training_split_alone(counts: tuple[int, int], task: Task, primary_metric: str) -> None:
    training = [Sample(f"{label}/{i}", Path("none"), (label,), "train") for label, count in enumerate(counts) for i in range(count)]
    test = [Sample(f"t{i}", Path("none"), (0,), "test") for i in range(100)]
    assert primary_metric_of(Samples(("a", "b"), (*training, *test), task)) == primary_metric
