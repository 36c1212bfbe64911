"""95 % intervals of every figure that a split's answers give.

All are Wilson's: at a few dozen images, or near 100 %, percentiles of a bootstrap cover less than they promise, and can end outside of
0 and 1. A share of images has its own number of images. F1 is one too: of the images that are of a class or are predicted to be, the share
J (Jaccard's index) that is both, and F1 = 2 J / (1 + J). Means over classes, average precision, and everything where images come in groups
take an effective number: that of independent images which would vary as much as the bootstrap over images, or over groups, shows (drawn by
`Units`; Korn and Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts estimated from survey
data"), with their correction where groups are few. Of 500 made-up data sets they hold the true figure in 93 to 97 %, see the tests; in some
3 % fewer where a class has only about ten groups.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES, FEWEST_RESAMPLES = 500, 200
"""They give a standard error, to 3 % of itself; percentiles would need more."""
MOST_DRAWS = 3_000_000
"""Resamples times images (or groups, or cells of the confusion table): about a second. Beyond it there are fewer resamples."""
AT_ONCE = 4_000_000
Z = 1.959963984540054
"""97.5 % point of the normal distribution."""


def wilson(share: Any, number: Any) -> Floats:
    """Return [.., 2]: low and high of a share of a number of images, which need not be whole. 0 to 1 where there are none.

    SciPy's `proportion_ci` takes whole numbers alone, one at a time, and a second to import.
    Source: Wilson 1927, in Agresti and Coull 1998, eq. 2, https://doi.org/10.2307/2685469
    """
    p, n = np.asarray(share, float), np.maximum(np.asarray(number, float), 1e-9)
    middle = p + Z**2 / (2 * n)
    reach = Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    bounds: Floats = np.stack([middle - reach, middle + reach], -1) / (1 + Z**2 / n)[..., None]
    return np.where(n[..., None] < 1e-6, (0.0, 1.0), bounds.clip(0, 1))


def wilson_interval(successes: int, trials: int) -> list[float]:
    """Return [low, high]: Wilson's 95 % interval of a proportion."""
    low, high = wilson(successes / trials, trials).tolist()
    return [low, high]


def mean_interval(values: Sequence[float]) -> list[float]:
    """Return the 95 % interval of the mean of two or more shares, by Student's t, within 0 and 1."""
    from scipy.stats import t as student_t

    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / sqrt(len(values))
    reach = float(student_t.ppf(0.975, len(values) - 1)) * error
    return [max(0.0, mean - reach), min(1.0, mean + reach)]


def difference_interval(first: tuple[float, int], second: tuple[float, int]) -> list[float]:
    """Return [low, high]: the 95 % interval of the first share minus the second. Each is a share and the number of images behind it.

    Source: Newcombe 1998, method 10, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I
    """
    (a, n_a), (b, n_b) = first, second
    (low_a, high_a), (low_b, high_b) = wilson_interval(round(a * n_a), n_a), wilson_interval(round(b * n_b), n_b)
    return [a - b - hypot(a - low_a, high_b - b), a - b + hypot(high_a - a, b - low_b)]


@dataclass(frozen=True)
class Units:
    """What is drawn with replacement: images, groups of them, or equal images as one cell of the confusion table.

    counts: [U, 3 K + extra], sparse: images of each class that are hits, predicted and true, and what else is counted.
    times: [U], how often each unit is there.
    """

    counts: Any
    times: Floats

    @property
    def totals(self) -> Floats:
        """[3 K + extra]: of what was measured, without any drawing."""
        return np.asarray(self.times @ self.counts)

    @property
    def drawn(self) -> int:
        """Return how many images, or groups, a resample draws."""
        return int(self.times.sum())

    def resampled(self, of: Callable[[Floats], Floats]) -> Floats:
        """Return `of(sums [r, 3 K + extra])` of all resamples, [R, ..]."""
        return np.concatenate([of(weights @ self.counts) for weights in self.weights()])

    def weights(self) -> Iterator[Floats]:
        """Yield how often each unit is drawn, [r, U], some resamples at a time. Seeded: the same for the same counts."""
        units = len(self.times)
        resamples = max(FEWEST_RESAMPLES, min(RESAMPLES, MOST_DRAWS // units))
        draws = np.random.default_rng(0)
        at_once = max(1, AT_ONCE // units)
        for start in range(0, resamples, at_once):
            yield draws.multinomial(self.drawn, self.times / self.drawn, size=min(at_once, resamples - start)).astype(float)


def multiclass_intervals(predicted: Any, labels: Any, classes: Sequence[str], groups: Sequence[str] = ()) -> dict[str, Any]:
    """Return [low, high] of accuracy, balanced_accuracy, macro and per_class, named as in metrics.json.

    predicted, labels: [N], indices of classes. groups: of each image, where images come in groups; else empty.
    """
    predicted, labels, k = np.asarray(predicted), np.asarray(labels), len(classes)
    units = _groups_of(_one_label_each(predicted, labels, k), groups) if groups else _cells(predicted, labels, k)
    figures = units.totals
    point = _multiclass(figures[None], figures)[0]
    spread = units.resampled(lambda sums: _multiclass(sums, figures)).std(0)
    of_groups = _groups_with_class(units, k) if groups else None
    true = figures[2 * k :] if of_groups is None else of_groups[1]
    even = (true > 0).sum() ** 2 / (1 / true[true > 0]).sum()  # images or groups, if every class had as many
    accuracy, *means = (
        wilson(value, _effective(value, std, number, units.drawn if groups else 0))
        for value, std, number in zip(point[:5], spread[:5], (units.drawn, *4 * [min(even, units.drawn)]), strict=True)
    )
    if not groups:
        accuracy = wilson(point[0], len(labels))
    return {
        "accuracy": accuracy.tolist(),
        "balanced_accuracy": means[0].tolist(),
        "macro": dict(zip(("precision", "recall", "f1"), (bounds.tolist() for bounds in means[1:]), strict=True)),
        "per_class": _per_class(figures[: 3 * k].reshape(3, k), classes, spread[5:], of_groups),
    }


def multilabel_intervals(
    probabilities: Any, truth: Any, thresholds: Sequence[float], classes: Sequence[str], groups: Sequence[str] = ()
) -> dict[str, Any]:
    """Return [low, high] of accuracy, exact_match, mean_average_precision, macro and per_class, named as in metrics.json.

    probabilities, truth: [N, K]. groups: as for `multiclass_intervals`.
    """
    probabilities, truth = np.asarray(probabilities, float), np.asarray(truth).astype(bool)
    k, predicted = truth.shape[1], np.asarray(probabilities) > np.asarray(thresholds)
    units = _groups_of(_any_labels(predicted, truth), groups)
    figures = units.totals
    point = _multilabel(figures[None], figures)[0]
    spread = units.resampled(lambda sums: _multilabel(sums, figures)).std(0)
    bounds = wilson(point[:5], _effective(point[:5], spread[:5], units.drawn, units.drawn if groups else 0))
    per_class = _per_class(figures[: 3 * k].reshape(3, k), classes, spread[5:], _groups_with_class(units, k) if groups else None)
    precision = average_precision_intervals(probabilities, truth, groups)
    for row, found in zip(per_class.values(), precision[1:], strict=True):
        row["average_precision"] = found
    return {
        "accuracy": bounds[0].tolist(),
        "exact_match": bounds[1].tolist(),
        "mean_average_precision": precision[0],
        "macro": dict(zip(("precision", "recall", "f1"), bounds[2:].tolist(), strict=True)),
        "per_class": per_class,
    }


def _effective(value: Any, spread: Any, number: Any, groups: int = 0) -> Floats:
    """Return how many independent images would vary as much.

    number: where nothing varies, since all are right, or none. groups: that were drawn; 0 where images come singly.
    """
    value, spread = np.asarray(value, float), np.asarray(spread, float)
    independent = value * (1 - value) / np.maximum(spread, 1e-6) ** 2 * (few_groups(groups) if groups else 1)
    return np.asarray(np.where(spread > 1e-6, independent, number))


def few_groups(groups: int) -> float:
    """Return what an effective number is multiplied by, since the spread of a few groups is itself uncertain; 0 for a single one.

    Source: Korn and Graubard 1998, by the degrees of freedom; and a bootstrap's variance is smaller by (groups - 1) / groups.
    """
    from scipy.stats import t as student_t

    return (groups - 1) / groups * float(Z / student_t.ppf(0.975, groups - 1)) ** 2 if groups > 1 else 0.0


def _cells(predicted: NDArray[Any], labels: NDArray[Any], k: int) -> Units:
    """Return the cells of the confusion table as units: images of one cell are equal to every figure."""
    pairs, counts = np.unique(labels * k + predicted, return_counts=True)
    return Units(_one_label_each(pairs % k, pairs // k, k), counts.astype(float))


def _one_label_each(predicted: NDArray[Any], labels: NDArray[Any], k: int) -> Any:
    """Return [N, 3 K]: a row for each image, with 1 in the columns of its class and of the predicted one: hits, predicted, true."""
    from scipy.sparse import csr_array

    rows, right = np.arange(len(labels)), predicted == labels
    places = (np.concatenate([rows[right], rows, rows]), np.concatenate([labels[right], k + predicted, 2 * k + labels]))
    return csr_array((np.ones(len(places[0])), places), shape=(len(labels), 3 * k))


def _any_labels(predicted: NDArray[Any], truth: NDArray[Any]) -> Any:
    """Return [N, 3 K + 2]: as `_one_label_each`, then 1 for every image, and 1 if all its answers are right."""
    from scipy.sparse import csr_array

    exact = (predicted == truth).all(1, keepdims=True)
    return csr_array(np.hstack([predicted & truth, predicted, truth, np.ones_like(exact), exact]).astype(float))


def _groups_of(counts: Any, groups: Sequence[str]) -> Units:
    """Return groups as units, or the images where there are none."""
    from scipy.sparse import csr_array

    if groups:
        names, number = np.unique(np.asarray(groups), return_inverse=True)
        members = csr_array((np.ones(len(number)), (number, np.arange(len(number)))), shape=(len(names), len(number)))
        counts = members @ counts
    return Units(counts, np.ones(counts.shape[0]))


def _multiclass(sums: Floats, totals: Floats) -> Floats:
    """Return [r, 5 + 3 K]: accuracy, balanced accuracy, macro precision, recall and F1; then precision, recall and F1 of each class."""
    hits, _, true = np.split(sums, 3, axis=1)
    known = np.split(totals, 3)[2] > 0
    each = _precision_recall_f1(sums, totals)
    accuracy = hits.sum(1) / true.sum(1)
    return np.column_stack([accuracy, each[1][:, known].mean(1), *(figure.mean(1) for figure in each), *each])


def _multilabel(sums: Floats, totals: Floats) -> Floats:
    """Return [r, 5 + 3 K]: accuracy, exact match, macro precision, recall and F1; then precision, recall and F1 of each class."""
    hits, predicted, true = np.split(sums[:, :-2], 3, axis=1)
    images, exact = sums[:, -2], sums[:, -1]
    wrong = (predicted + true - 2 * hits).sum(1)
    each = _precision_recall_f1(sums[:, :-2], totals[:-2])
    accuracy = 1 - wrong / (images * hits.shape[1])
    return np.column_stack([accuracy, exact / images, *(figure.mean(1) for figure in each), *each])


def _precision_recall_f1(sums: Floats, totals: Floats) -> list[Floats]:
    """Return [r, K] three times. A class of which a resample has nothing stays at what was measured."""

    def shares(counted: Floats, of: Floats, measured: Floats | None) -> Floats:
        found = counted / np.maximum(of, 1)
        return found if measured is None else np.where(of > 0, found, measured)

    def each(sums: Floats, measured: list[Floats | None]) -> list[Floats]:
        hits, predicted, true = np.split(sums, 3, axis=-1)
        pairs = ((hits, predicted), (hits, true), (2 * hits, predicted + true))
        return [shares(*pair, known) for pair, known in zip(pairs, measured, strict=True)]

    return each(sums, list(each(totals, [None] * 3)))


def _groups_with_class(units: Units, k: int) -> Floats:
    """Return [3, K]: in how many groups each class is predicted, is true, and either."""
    has = np.stack([(units.counts[:, part * k : (part + 1) * k] > 0).sum(0) for part in (1, 2)]).astype(float)
    return np.stack([has[0], has[1], has.max(0)])


def _per_class(totals: Floats, classes: Sequence[str], spread: Floats, groups: Floats | None) -> dict[str, dict[str, Any]]:
    """Return the intervals of each class. totals: [3, K], hits, predicted, true.

    groups: [3, K], by `_groups_with_class`; None where images come singly.
    """
    hits, predicted, true = totals
    either = predicted + true - hits
    numbers = np.stack([predicted, true, either])
    shares = hits / np.maximum(numbers, 1)
    if groups is not None:
        spread = spread.reshape(3, -1)
        spread = np.stack([*spread[:2], spread[2] * (1 + shares[2]) ** 2 / 2])  # of J, where F1 = 2 J / (1 + J)
        # One design effect for all classes: that of a single class, of a few groups, is mostly noise.
        alone = (shares * (1 - shares) / np.maximum(numbers, 1)).sum(1, keepdims=True)
        effect = np.maximum(1, (spread**2).sum(1, keepdims=True) / np.maximum(alone, 1e-12))
        numbers = np.minimum(numbers / effect, groups)
    precision, recall, jaccard = wilson(shares, numbers)
    columns = (precision.tolist(), recall.tolist(), (2 * jaccard / (1 + jaccard)).tolist())
    return {name: dict(zip(("precision", "recall", "f1"), row, strict=True)) for name, *row in zip(classes, *columns, strict=True)}


def average_precision_intervals(probabilities: Floats, truth: NDArray[Any], groups: Sequence[str] = ()) -> list[list[float] | None]:
    """Return the interval of the mean over classes, then that of each class; None for a class without images."""
    known: NDArray[Any] = np.asarray(truth.any(0))
    found = [_average_precision(scores, right) for scores, right in zip(probabilities[:, known].T, truth[:, known].T, strict=True)]
    points, influence = np.array([point for point, _ in found]), np.column_stack([of_images for _, of_images in found])
    influence = np.column_stack([influence.mean(1), influence])
    positives = truth[:, known].astype(float)
    if groups:
        number = np.unique(np.asarray(groups), return_inverse=True)[1]
        influence, positives = (
            np.stack([np.bincount(number, of_images) for of_images in each.T], 1).astype(float) for each in (influence, positives)
        )
    values, spread = np.append(points.mean(), points), np.sqrt((influence**2).sum(0))
    numbers = np.append(positives.any(1).sum(), (positives > 0).sum(0))  # images, or groups, that have a class
    mean, *each = wilson(values, _effective(values, spread, numbers, len(set(groups)))).tolist()
    return [mean, *(each.pop(0) if is_known else None for is_known in known)]


def _average_precision(scores: Floats, truth: NDArray[Any]) -> tuple[float, Floats]:
    """Return average precision, and what each image adds to it, [N]: its derivative by the image's weight.

    The sum of the squares of the latter is the variance. The bootstrap's is the same, and takes ten seconds for 20 classes and 10,000
    images. Source: the infinitesimal jackknife, Efron 1981, https://doi.org/10.1093/biomet/68.3.589
    """
    order = np.argsort(-scores, kind="stable")
    ranked, true = -scores[order], truth[order].astype(float)
    first, last = (np.searchsorted(ranked, ranked, side=side) for side in ("left", "right"))  # of equal probabilities
    hits, predicted = np.cumsum(true)[last - 1], last.astype(float)
    value = float((true * hits / predicted).sum() / true.sum())
    below = [np.cumsum(terms[::-1])[::-1][first] for terms in (true / predicted, true * hits / predicted**2)]
    influence = np.empty(len(scores))
    influence[order] = (true * (hits / predicted + below[0] - value) - below[1]) / true.sum()
    return value, influence
