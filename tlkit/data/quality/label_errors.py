"""Labels that predictions contradict: confident learning.

Source: Northcutt, Jiang, Chuang 2021, Confident Learning: Estimating Uncertainty in Dataset Labels, https://arxiv.org/abs/1911.00068
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
FEWEST_UNITS = 3
"""With fewer images (or groups of them) of a class, the other folds teach too little to contradict a label."""
C_FEATURES = 4.0
"""scikit-learn's C times the number of standardised features: held back enough not to learn single wrong labels by heart. Of 40 wrong
labels among 2,000 images it found 35 to 37 in the top 80 over three seeds; a third as much, or three times, finds one or two fewer."""
MOST_STEPS = 200


@dataclass(frozen=True)
class Doubts:
    """rows: images whose label is doubted, the worst first. called: for each of them the likeliest class.

    confidences: probability of the label, 0..1.
    """

    rows: NDArray[np.int64]
    called: NDArray[np.int64]
    confidences: NDArray[np.float64]


def doubt_labels(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> Doubts:
    """Find labels that a model contradicts.

    probabilities: [N, K], of each image by a model that was not trained on it; rows of NaN aren't judged.
    The number of wrong labels of a class is that of the confident joint, scaled to the class's images. The least likely labels are doubted
    first (the paper's prune by class), except labels that are the likeliest class. Then those of any class that are as unlikely as nine
    tenths of these: if nearly all labels are right, a confident model's thresholds are so high that the joint counts too few.
    """
    judged = np.flatnonzero(~np.isnan(probabilities).any(axis=1))
    unseen: NDArray[np.float64] = np.asarray(probabilities[judged], np.float64)
    given = labels[judged]
    own = unseen[np.arange(len(given)), given]
    joint = confident_joint(unseen, given)
    wrong = 1 - np.diag(joint) / np.maximum(joint.sum(axis=1), 1)  # the share of each class that is counted to others
    doubted = np.zeros(len(given), bool)
    for label, share in enumerate(wrong):
        members = np.flatnonzero(given == label)
        if joint[label].any():
            doubted[members[np.argsort(own[members], kind="stable")][: round(share * len(members))]] = True
    likeliest = unseen.argmax(axis=1) if len(given) else given
    doubted &= likeliest != given
    if doubted.any():
        doubted |= (likeliest != given) & (own <= np.quantile(own[doubted], 0.9))
    rows = np.flatnonzero(doubted)
    rows = rows[np.argsort(own[rows], kind="stable")]
    return Doubts(judged[rows], likeliest[rows], own[rows])


def confident_joint(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return C of equation 1, [K, K]: by label, each image counts for the likeliest of the classes whose threshold it reaches, if any.

    A class's threshold is the mean probability that the images labelled so have for it.
    """
    classes = probabilities.shape[1]
    thresholds = [probabilities[labels == label, label].mean() if (labels == label).any() else 2.0 for label in range(classes)]
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    counted = reached.max(axis=1, initial=-1) >= 0
    joint = np.zeros((classes, classes), np.int64)
    np.add.at(joint, (labels[counted], reached[counted].argmax(axis=1)), 1)
    return joint


def predict_unseen(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    units: NDArray[np.int64],
    *,
    classes: int,
    seed: int,
    on_fold: Callable[[int], None] = lambda folds: None,
) -> NDArray[np.float64]:
    """Return the probabilities, [N, K], of each image by logistic regression on the other images' features, in stratified folds.

    units: images with the same number stay in one fold. A copy of a wrongly labelled image in the other folds would teach its label.
    Images of classes with too few units are left NaN, and so are those in the folds that a class of few units fills.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline

    from tlkit.data.feature_scaler import FeatureScaler

    found = np.full((len(labels), classes), np.nan)
    enough = [label for label in range(classes) if len(np.unique(units[labels == label])) >= FEWEST_UNITS]
    rows = np.flatnonzero(np.isin(labels, enough))
    if len(enough) < 2:
        return found
    x, y, groups = features[rows], labels[rows], units[rows]
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer units than folds
        warnings.simplefilter("ignore", ConvergenceWarning)  # ranks are settled long before the last digits are
        for learned, held in folds.split(x, y, groups):
            model = make_pipeline(FeatureScaler(), LogisticRegression(C=C_FEATURES / x.shape[1], max_iter=MOST_STEPS))
            taught = np.unique(y[learned])
            if len(held) and len(taught) > 1:
                judged = held[np.isin(y[held], taught)]
                scores = np.zeros((len(judged), classes))
                scores[:, taught] = model.fit(x[learned], y[learned]).predict_proba(x[judged]) if len(judged) else 0
                found[rows[judged]] = scores
            on_fold(1)
    return found
