"""Confident learning, against figures worked out by hand and data whose wrong labels are known."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tlkit.data.quality.label_errors import confident_joint, doubt_labels, predict_unseen

# Six images of two classes. Thresholds: mean of .9 .8 .1 = .6 for class 0, mean of .7 .9 .2 = .6 for class 1.
PROBABILITIES = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.1, 0.9], [0.8, 0.2]])
LABELS = np.array([0, 0, 0, 1, 1, 1])


def test_the_confident_joint_is_the_papers() -> None:
    assert confident_joint(PROBABILITIES, LABELS).tolist() == [[2, 1], [1, 2]]


def test_images_that_reach_no_threshold_are_counted_nowhere() -> None:
    probabilities = np.vstack([PROBABILITIES, [[0.5, 0.5]]])
    # Class 0's threshold falls to (.9 + .8 + .1 + .5) / 4 = .575, which .5 does not reach.
    assert confident_joint(probabilities, np.array([*LABELS, 0])).sum() == 6


def test_the_label_of_the_lowest_probability_is_doubted_first() -> None:
    found = doubt_labels(PROBABILITIES, LABELS)
    assert found.rows.tolist() == [2, 5]
    assert found.called.tolist() == [1, 0]
    np.testing.assert_allclose(found.confidences, [0.1, 0.2])


def test_a_label_that_is_the_likeliest_is_never_doubted() -> None:
    draws = np.random.default_rng(0)
    probabilities, labels = draws.dirichlet(np.ones(5), 500), draws.integers(0, 5, 500)
    found = doubt_labels(probabilities, labels)
    assert len(found.rows)
    assert (probabilities[found.rows].argmax(1) != labels[found.rows]).all()


def test_images_without_probabilities_are_not_judged() -> None:
    probabilities = np.vstack([PROBABILITIES, np.full((2, 2), np.nan)])
    assert doubt_labels(probabilities, np.array([*LABELS, 0, 1])).rows.tolist() == [2, 5]
    assert len(doubt_labels(np.full((3, 2), np.nan), np.array([0, 1, 1])).rows) == 0
    assert len(doubt_labels(np.zeros((0, 2)), np.zeros(0, int)).rows) == 0


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    found = load_digits()
    return found.data[:900].astype(np.float32), found.target[:900].astype(np.int64)


def test_most_wrong_labels_of_real_digits_are_found(digits: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = digits
    draws = np.random.default_rng(0)
    wrong = draws.choice(900, 30, replace=False)
    given = labels.copy()
    given[wrong] = (labels[wrong] + draws.integers(1, 10, 30)) % 10
    found = doubt_labels(predict_unseen(features, given, np.arange(900), classes=10, seed=0), given)
    hits = np.isin(found.rows, wrong)
    assert hits.sum() >= 24
    assert hits.mean() > 0.7
    assert (found.called[hits] == labels[found.rows[hits]]).mean() > 0.9


def test_a_copy_in_another_fold_does_not_teach_the_wrong_label() -> None:
    draws = np.random.default_rng(0)
    labels = np.arange(200) % 2
    features = draws.normal(size=(200, 600)) + 0.15 * np.where(labels, 1, -1)[:, None]
    labels[:20] = 1 - labels[:20]
    features, labels = np.vstack([features, features[:20]]).astype(np.float32), np.append(labels, labels[:20])
    own = np.r_[:20, 200:220]

    def confidence(units: np.ndarray) -> float:
        return float(predict_unseen(features, labels, units, classes=2, seed=0)[own, labels[own]].mean())

    assert confidence(np.append(np.arange(200), np.arange(20))) < 0.5 < confidence(np.arange(220))


def test_probabilities_are_the_same_for_the_same_seed(digits: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = digits
    first, second = (predict_unseen(features[:200], labels[:200], np.arange(200), classes=10, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first.sum(1), 1, atol=1e-6)


def test_a_class_of_two_images_is_left_out_and_the_others_are_judged(digits: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = digits[0][:200], digits[1][:200].copy()
    labels[:2] = 10
    probabilities = predict_unseen(features, labels, np.arange(200), classes=11, seed=0)
    assert np.isnan(probabilities).any(1).tolist() == [True, True, *[False] * 198]


def test_without_two_classes_to_tell_apart_nothing_is_judged() -> None:
    assert np.isnan(predict_unseen(np.ones((4, 2), np.float32), np.array([0, 0, 1, 1]), np.arange(4), classes=2, seed=0)).all()
