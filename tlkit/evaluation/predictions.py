"""predictions.csv: what a run's model answers for every test image; predictions_val.csv for validation, of a run without a test split."""

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tlkit.data.samples import LABEL_SEPARATOR, Sample
from tlkit.errors import RunError, as_written, expected_one_of
from tlkit.files import write_csv

if TYPE_CHECKING:
    from torch import Tensor

PREDICTIONS = {"test": "predictions.csv", "val": "predictions_val.csv"}
COLUMNS = ("id", "label", "answer", "probability")


def prediction_rows(
    logits: "Tensor", samples: Sequence[Sample], classes: Sequence[str], thresholds: Sequence[float] = ()
) -> list[dict[str, str]]:
    """Return id, label, answer and the answer's probability of each image. logits: [N, K] in the order of the samples.

    thresholds: for multilabel, of each class; labels, answers and their probabilities are then separated by `|`.
    """
    if thresholds:
        each = logits.sigmoid()
        answers = [[i for i, bound in enumerate(thresholds) if row[i] > bound] for row in each.tolist()]
    else:
        each = logits.softmax(1)
        answers = [[answer] for answer in each.argmax(1).tolist()]
    return [
        {
            "id": sample.id,
            "label": LABEL_SEPARATOR.join(classes[label] for label in sample.labels),
            "answer": LABEL_SEPARATOR.join(classes[i] for i in answer),
            "probability": LABEL_SEPARATOR.join(f"{probabilities[i]:.6f}" for i in answer),
        }
        for sample, answer, probabilities in zip(samples, answers, each.tolist(), strict=True)
    ]


def write_predictions(run: Path, rows: Sequence[Mapping[str, str]], split: str) -> None:
    write_csv(run / PREDICTIONS[split], COLUMNS, rows)


def read_predictions(run: Path, split: str, classes: Collection[str]) -> list[dict[str, str]]:
    """Return the rows of a run's predictions.csv. classes: those of the run.

    Raises RunError if it is no such file; FileNotFoundError where there is none.
    """
    file = run / PREDICTIONS[split]
    with as_written(file, csv.Error), file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise RunError(f"{file}: the columns are {reader.fieldnames}.\n  Expected {','.join(COLUMNS)}, as `tlkit finetune` writes.")
        rows = []
        for row in reader:
            if None in row or None in row.values() or not all(map(_is_share, filter(None, row["probability"].split(LABEL_SEPARATOR)))):
                raise ValueError(f"line {reader.line_num} is no {','.join(COLUMNS)}.")
            several = [row[key] for key in ("label", "answer") if row[key] not in classes]  # a class may have the separator in its name
            if odd := [name for names in several for name in names.split(LABEL_SEPARATOR) if name and name not in classes]:
                raise ValueError(f"line {reader.line_num} has '{odd[0]}', which is no class. {expected_one_of(odd[0], list(classes))}")
            rows.append(row)
        return rows


def _is_share(text: str) -> bool:
    return 0 <= float(text) <= 1
