"""What a classifier is worth, from its logits and the true labels. torchmetrics does the counting."""

from collections.abc import Sequence
from math import sqrt
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy


def measure(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Plain JSON values. logits [N, K], labels [N].

    `accuracy_interval` is the 95 % interval that N pictures allow. `topK_accuracy` is there where K classes leave something to
    miss: k = 5, or one less than the classes. `macro` is the mean over classes. `confusion[i][j]` counts pictures of class i that
    were called j. Precision of a class that was never called is 0.
    """
    # A second to import, which a run that can't start shouldn't wait for.
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_confusion_matrix,
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
    )

    k = len(classes)
    counts = multiclass_confusion_matrix(logits, labels, k)
    correct, total = int(counts.diagonal().sum()), len(labels)
    per_class = {
        "precision": multiclass_precision(logits, labels, k, average="none"),
        "recall": multiclass_recall(logits, labels, k, average="none"),
        "f1": multiclass_f1_score(logits, labels, k, average="none"),
    }
    top = min(5, k - 1)
    return {
        "pictures": total,
        "accuracy": correct / total,
        "accuracy_interval": wilson_interval(correct, total),
        "error": 1 - correct / total,
        **({f"top{top}_accuracy": float(multiclass_accuracy(logits, labels, k, average="micro", top_k=top))} if top > 1 else {}),
        "loss": float(cross_entropy(logits, labels)),
        "macro": {name: float(values.mean()) for name, values in per_class.items()},
        "per_class": {
            name: {"pictures": int(counts[i].sum()), **{metric: float(values[i]) for metric, values in per_class.items()}}
            for i, name in enumerate(classes)
        },
        "confusion": counts.tolist(),
    }


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> list[float]:
    """[low, high] of a proportion; z = 1.96 for 95 %.

    Source: Wilson 1927, in Agresti and Coull 1998, eq. 2, https://doi.org/10.2307/2685469
    """
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return [(centre - spread) / (1 + z * z / trials), (centre + spread) / (1 + z * z / trials)]
