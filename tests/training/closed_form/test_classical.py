"""Classical heads: the layer that ships gives scikit-learn's own answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch.nn.functional import cross_entropy

from tlkit.data.feature_scaler import FeatureScaler
from tlkit.data.samples import Sample, Samples
from tlkit.recipe.fields.model import Head
from tlkit.training.closed_form.classical import fit_head

Split = tuple[torch.Tensor, torch.Tensor]


def splits(classes: int) -> tuple[Split, Split]:
    random = np.random.default_rng(0)
    centres = random.normal(size=(classes, 6)) * 2
    labels = random.integers(0, classes, 160)
    # Features of very different sizes, as a backbone has them.
    features = ((centres[labels] + random.normal(size=(160, 6))) * [1, 10, 100, 1, 0.1, 5] + 7).astype(np.float32)
    return tuple((torch.tensor(features[part]), torch.tensor(labels[part])) for part in (slice(0, 120), slice(120, 160)))  # type: ignore[return-value]


def samples_of(labels: torch.Tensor) -> Samples:
    names = tuple("abcd"[: int(labels.max()) + 1])
    return Samples(names, tuple(Sample(str(i), Path(), (int(label),), "train") for i, label in enumerate(labels)))


@pytest.mark.parametrize("classes", [2, 4])
def test_a_logistic_head_gives_scikit_learns_probabilities(classes: int) -> None:
    train, val = splits(classes)
    scaler = FeatureScaler().fit(train[0].numpy())
    theirs = LogisticRegression(C=0.5, max_iter=1000).fit(scaler.transform(train[0].numpy()), train[1].numpy())
    with torch.no_grad():
        probabilities = fit_head(Head(kind="logistic", c=0.5), train, val, samples_of(train[1]))(val[0]).softmax(1)
    np.testing.assert_allclose(probabilities.numpy(), theirs.predict_proba(scaler.transform(val[0].numpy())), atol=1e-5)


@pytest.mark.parametrize("classes", [2, 4])
def test_an_svm_head_gives_scikit_learns_margins_over_the_temperature(classes: int) -> None:
    train, val = splits(classes)
    scaler = FeatureScaler().fit(train[0].numpy())
    theirs = LinearSVC(C=0.5, dual=True, random_state=0).fit(scaler.transform(train[0].numpy()), train[1].numpy())
    margins = theirs.decision_function(scaler.transform(val[0].numpy()))
    expected = np.stack([-margins / 2, margins / 2], axis=1) if classes == 2 else margins
    with torch.no_grad():
        logits = fit_head(Head(kind="svm", c=0.5), train, val, samples_of(train[1]))(val[0]).numpy()
    assert (logits.argmax(1) == theirs.predict(scaler.transform(val[0].numpy()))).all()
    np.testing.assert_allclose(logits / np.abs(logits).max(), expected / np.abs(expected).max(), atol=1e-4)


def test_without_a_c_the_logistic_regression_with_the_lowest_loss_and_the_svm_with_the_best_accuracy_are_taken() -> None:
    train, val = splits(4)

    def measured(head: Head) -> tuple[float, float]:
        with torch.no_grad():
            logits = fit_head(head, train, val, samples_of(train[1]))(val[0])
        return float(cross_entropy(logits, val[1])), float((logits.argmax(1) == val[1]).float().mean())

    assert measured(Head(kind="logistic"))[0] == min(measured(Head(kind="logistic", c=c))[0] for c in (1e-4, 1e-3, 1e-2, 1e-1, 1.0))
    assert measured(Head(kind="svm"))[1] == max(measured(Head(kind="svm", c=c))[1] for c in (1e-5, 1e-4, 1e-3, 1e-2))
