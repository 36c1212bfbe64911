"""Counts against scikit-learn's and hand arithmetic."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, precision_recall_fscore_support, top_k_accuracy_score
from torch import Tensor

from tlkit.evaluation.intervals import difference_interval, wilson_interval
from tlkit.evaluation.metrics import measure


def made_up(n: int, k: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    labels = torch.randint(k, (n,), generator=draws)
    logits = torch.randn(n, k, generator=draws) + 1.5 * torch.nn.functional.one_hot(labels, k)
    return logits, labels


def test_metrics_equal_scikit_learns() -> None:
    logits, labels = made_up(301, 7)
    measured = measure(logits, labels, [f"class {i}" for i in range(7)])
    called = logits.argmax(1)
    precision, recall, f1, support = precision_recall_fscore_support(labels, called)
    assert measured["accuracy"] == pytest.approx(accuracy_score(labels, called))
    assert measured["error"] == pytest.approx(1 - accuracy_score(labels, called))
    assert measured["top5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
    assert measured["loss"] == pytest.approx(log_loss(labels, logits.double().softmax(1)))
    assert measured["confusion"] == confusion_matrix(labels, called).tolist()
    for i, row in enumerate(measured["per_class"].values()):
        assert [row["pictures"], row["precision"], row["recall"], row["f1"]] == pytest.approx([support[i], precision[i], recall[i], f1[i]])
    assert measured["macro"] == pytest.approx({"precision": precision.mean(), "recall": recall.mean(), "f1": f1.mean()})


@pytest.mark.parametrize(("classes", "name"), [(2, None), (3, "top2_accuracy"), (5, "top4_accuracy"), (6, "top5_accuracy")])
def test_k_is_clamped_below_the_number_of_classes_and_left_out_where_it_would_say_nothing(classes: int, name: str | None) -> None:
    logits, labels = made_up(50, classes)
    measured = measure(logits, labels, [str(i) for i in range(classes)])
    assert [key for key in measured if key.startswith("top")] == ([name] if name else [])


def test_a_class_that_is_never_called_has_precision_zero() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
    measured = measure(logits, torch.tensor([0, 2, 1]), ["a", "b", "c"])
    assert measured["per_class"]["c"] == {"pictures": 1, "precision": 0.0, "recall": 0.0, "f1": 0.0}


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_three_thousand_classes_are_measured_without_images_times_classes_squared(deterministic: None) -> None:
    # torchmetrics' confusion matrix asks for 3,000 * 3,000² * 8 bytes here.
    logits, labels = made_up(3000, 3000)
    logits += 3 * torch.nn.functional.one_hot(labels, 3000)
    measured = measure(logits, labels, [f"class {i}" for i in range(3000)])
    called = logits.argmax(1)
    precision, recall, f1, support = precision_recall_fscore_support(labels, called, labels=range(3000), zero_division=0.0)
    assert 0.1 < measured["accuracy"] == accuracy_score(labels, called) < 0.99
    assert measured["macro"] == pytest.approx({"precision": precision.mean(), "recall": recall.mean(), "f1": f1.mean()})
    assert measured["balanced_accuracy"] == pytest.approx(recall[support > 0].mean())
    table = np.zeros((3000, 3000), dtype=int)
    for i, j, count in measured["confusion_cells"]:
        table[i, j] = count
    assert "confusion" not in measured
    assert len(measured["confusion_cells"]) <= 3000
    assert (table == confusion_matrix(labels, called, labels=range(3000))).all()


def test_wilson_interval_of_nothing_and_of_everything_stays_inside_zero_and_one() -> None:
    # By hand for n = 10, z^2 = 3.8415: z^2 / (n + z^2) = 0.2775
    assert wilson_interval(0, 10) == pytest.approx([0.0, 0.2775], abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx([0.7225, 1.0], abs=1e-4)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [((56, 70), (48, 80), (0.0524, 0.3339)), ((9, 10), (3, 10), (0.1705, 0.8090)), ((6, 7), (2, 7), (0.0582, 0.8062))],
)
def test_the_interval_of_a_difference_is_newcombes(first: tuple[int, int], second: tuple[int, int], expected: tuple[float, float]) -> None:
    # Newcombe 1998, table II, method 10.
    shares = [(right / images, images) for right, images in (first, second)]
    assert difference_interval(shares[0], shares[1]) == pytest.approx(expected, abs=5e-5)
