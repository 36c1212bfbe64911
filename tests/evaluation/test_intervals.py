"""95 % intervals hold the true figure of 95 of 100 data sets, whatever the figure."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score

from tlkit.evaluation import intervals
from tlkit.evaluation.intervals import average_precision_intervals, multiclass_intervals, multilabel_intervals, wilson

CLASSES = ["a", "b", "c", "d"]
DATA_SETS = 500
TABLE = np.array([[0.3, 0.05, 0.03, 0.02], [0.05, 0.2, 0.03, 0.02], [0.01, 0.01, 0.15, 0.03], [0.01, 0.01, 0.01, 0.07]])
"""Of an image: the probabilities of its class (row) and of what it is called (column)."""


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 100)


def true_figures() -> dict[str, float]:
    """The figures of endlessly many images."""
    right, called, true = TABLE.diagonal(), TABLE.sum(0), TABLE.sum(1)
    f1 = 2 * right / (called + true)
    return {
        "accuracy": right.sum(),
        "balanced accuracy": (right / true).mean(),
        "macro F1": f1.mean(),
        "precision of d": (right / called)[3],
        "recall of a": (right / true)[0],
        "F1 of a": f1[0],
    }


def named(found: dict[str, Any]) -> dict[str, list[float]]:
    a, d = found["per_class"]["a"], found["per_class"]["d"]
    return {
        "accuracy": found["accuracy"],
        "balanced accuracy": found["balanced_accuracy"],
        "macro F1": found["macro"]["f1"],
        "precision of d": d["precision"],
        "recall of a": a["recall"],
        "F1 of a": a["f1"],
    }


@pytest.mark.parametrize("in_a_group", [1, 3])
def test_intervals_hold_the_true_figure_of_93_to_97_in_100_data_sets(in_a_group: int) -> None:
    draws, truth, held = np.random.default_rng(1), true_figures(), Counter[str]()
    groups = [str(number) for number in np.repeat(np.arange(240), in_a_group)] if in_a_group > 1 else []
    for _ in range(DATA_SETS):
        cells = draws.choice(16, size=(240, in_a_group), p=TABLE.ravel())
        alike = draws.random(cells.shape) < 0.7  # images of a group mostly have one answer
        cells = np.where(alike, cells[:, :1], cells).ravel()
        for name, (low, high) in named(multiclass_intervals(cells % 4, cells // 4, CLASSES, groups)).items():
            held[name] += low <= truth[name] <= high
    assert held.keys() == truth.keys()
    assert all(0.93 <= number / DATA_SETS <= 0.97 for number in held.values()), held


@pytest.mark.parametrize("differ", [False, True])
@pytest.mark.parametrize("number", [3, 5, 10])
def test_intervals_of_few_groups_hold_the_true_accuracy(number: int, differ: bool) -> None:
    """50 images a group, right in 80 of 100; where groups differ, by a beta distribution. Without a correction 70 to 92 %."""
    draws, held = np.random.default_rng(0), 0
    groups = [str(group) for group in np.repeat(np.arange(number), 50)]
    for _ in range(DATA_SETS):
        rates = draws.beta(8, 2, number) if differ else np.full(number, 0.8)
        right, labels = draws.random(50 * number) < np.repeat(rates, 50), draws.integers(0, 4, 50 * number)
        low, high = multiclass_intervals(np.where(right, labels, (labels + 1) % 4), labels, CLASSES, groups)["accuracy"]
        held += low <= 0.8 <= high
    assert 0.93 <= held / DATA_SETS <= 0.98


def test_one_group_says_nothing() -> None:
    assert multiclass_intervals([0, 1, 1, 0], [0, 1, 0, 0], ["a", "b"], ["only"] * 4)["accuracy"][0] < 0.15  # as of one image


def test_mean_average_precision_of_93_to_97_in_100_data_sets_is_held() -> None:
    draws = np.random.default_rng(1)

    def drawn(images: int) -> tuple[Any, Any]:
        truth = draws.random((images, 2)) < (0.3, 0.5)
        return 1 / (1 + np.exp(-draws.normal(size=truth.shape) - 1.5 * truth)), truth

    scores, truth = drawn(200_000)
    expected, held = average_precision_score(truth, scores), 0
    for _ in range(DATA_SETS):
        low, high = average_precision_intervals(*drawn(300))[0]
        held += low <= expected <= high
    assert 0.93 <= held / DATA_SETS <= 0.97


def test_a_share_of_images_has_scipys_wilson_interval() -> None:
    for right, of in ((0, 7), (5, 9), (880, 1000), (12, 12)):
        expected = binomtest(right, of).proportion_ci(method="wilson")
        assert wilson(right / of, of).tolist() == pytest.approx([expected.low, expected.high])


def test_f1_by_hand() -> None:
    # 3 of a are called a, 1 is called b, 2 of b are called a: J = 3 / 6, F1 = 2 / 3. Wilson's of 3 in 6: 0.1876 to 0.8124.
    found = multiclass_intervals([0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1], ["a", "b"])
    assert found["per_class"]["a"]["f1"] == pytest.approx([2 * 0.1876 / 1.1876, 2 * 0.8124 / 1.8124], abs=1e-3)


def test_a_class_without_images_says_nothing_and_one_answered_all_right_stays_uncertain() -> None:
    found = multiclass_intervals([0, 0, 1], [0, 0, 1], ["a", "b", "never seen"])
    assert found["per_class"]["never seen"] == {"precision": [0.0, 1.0], "recall": [0.0, 1.0], "f1": [0.0, 1.0]}
    assert found["balanced_accuracy"][1] == 1
    assert 0.3 < found["balanced_accuracy"][0] < 0.6


def test_the_jackknife_of_average_precision_is_its_bootstrap() -> None:
    draws = np.random.default_rng(0)
    truth = draws.random(150) < 0.4
    scores = np.round(draws.normal(size=150) + truth, 1)  # with equal ones
    value, influence = intervals._average_precision(scores, truth)
    assert value == pytest.approx(average_precision_score(truth, scores))
    again = [average_precision_score(truth[rows], scores[rows]) for rows in draws.integers(0, 150, (2000, 150))]
    assert np.sqrt((influence**2).sum()) == pytest.approx(np.std(again), rel=0.08)


def test_intervals_of_many_labels_are_around_their_figures() -> None:
    truth = np.array([[1, 0], [1, 1], [0, 1], [0, 0]] * 25)
    found = multilabel_intervals(np.where(truth == 1, 0.8, 0.1), truth, [0.5, 0.5], ["a", "b"])
    assert found["exact_match"] == pytest.approx([wilson(1, 100)[0], 1])
    assert all(low < 1 == high for low, high in (found["accuracy"], found["mean_average_precision"], found["macro"]["f1"]))
    assert found["per_class"]["a"].keys() == {"precision", "recall", "f1", "average_precision"}


def test_where_all_answers_are_right_groups_are_as_sure_as_so_many_images() -> None:
    """60 images of 15 groups, which may all be alike: Wilson's interval of 15 of 15 has z = 1.96 as 15 / (15 + z^2) and 1."""
    labels, groups = [0, 1, 2] * 20, [str(number) for number in range(15) for _ in range(4)]
    low = 15 / (15 + 1.959963984540054**2)
    found = multiclass_intervals(labels, labels, ["a", "b", "c"], groups)
    for name in ("accuracy", "balanced_accuracy"):
        assert found[name] == pytest.approx([low, 1])
    assert found["macro"]["f1"] == pytest.approx([low, 1])
    truth = np.eye(3)[labels]
    several = multilabel_intervals(truth, truth, [0.5] * 3, ["a", "b", "c"], groups)
    for name in ("accuracy", "exact_match", "mean_average_precision"):
        assert several[name] == pytest.approx([low, 1]), name


def test_where_all_answers_are_right_a_class_is_as_sure_as_its_own_groups() -> None:
    """15 groups of four images, two of them with b: (1 + 1)^2 / (1 / 13 + 1 / 2) groups, if both classes had as many."""
    groups = [str(number) for number in range(15) for _ in range(4)]
    labels = [int(number >= 52) for number in range(60)]
    even = 2**2 / (1 / 13 + 1 / 2)
    found = multiclass_intervals(labels, labels, ["a", "b"], groups)
    z2 = 1.959963984540054**2
    assert found["balanced_accuracy"] == pytest.approx([even / (even + z2), 1])
    truth = np.eye(2)[labels]
    of_classes = average_precision_intervals(truth, truth > 0, groups)[1:]
    assert [row[0] for row in of_classes if row] == pytest.approx([13 / (13 + z2), 2 / (2 + z2)])
