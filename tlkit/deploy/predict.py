"""`tlkit predict RUN IMAGE...`: what a model says of picture files."""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlkit.data.decode import decode
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import LABEL_SEPARATOR
from tlkit.errors import DataError
from tlkit.models.checkpoint import load_model
from tlkit.models.classifier import Classifier

BATCH_SIZE = 32


@dataclass(frozen=True)
class Prediction:
    """logits: one a class, in the model's order. error: why the file has none. thresholds: of a multilabel model, one a class."""

    path: str
    logits: tuple[float, ...] = ()
    error: str | None = None
    thresholds: tuple[float, ...] = ()

    def ranked(self, classes: Sequence[str], top_k: int) -> list[tuple[str, float]]:
        """The top_k classes with their probabilities, the likeliest first. They sum to 1 over all classes, but for multilabel."""
        best = self._probabilities().topk(min(top_k, len(classes)))
        return [(classes[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    def called(self, classes: Sequence[str]) -> list[tuple[str, float]]:
        """Of a multilabel model: the classes above their thresholds, the likeliest first."""
        above = {classes[i] for i, p in enumerate(self._probabilities().tolist()) if p > self.thresholds[i]}
        return [(name, p) for name, p in self.ranked(classes, len(classes)) if name in above]

    def _probabilities(self) -> Tensor:
        """[K]"""
        logits = torch.tensor(self.logits, dtype=torch.float64)
        return logits.sigmoid() if self.thresholds else logits.softmax(0)


def predict(run: Path | str, images: Sequence[Path | str]) -> tuple[tuple[str, ...], list[Prediction]]:
    """The model's classes, and a prediction for each picture file in the order given.

    A file that can't be read gets a prediction with `error`. Needs neither training data nor network.
    Raises RunError if `run` holds no whole model.
    """
    classifier, card = load_model(Path(run))
    preprocessing = Preprocessing.from_json(card.preprocessing)
    predictions: list[Prediction] = []
    for start in range(0, len(images), BATCH_SIZE):
        predictions += _predict_batch(classifier, preprocessing, [str(image) for image in images[start : start + BATCH_SIZE]])
    return card.classes, [replace(prediction, thresholds=card.thresholds) for prediction in predictions]


def _predict_batch(classifier: Classifier, preprocessing: Preprocessing, paths: Sequence[str]) -> list[Prediction]:
    pictures: dict[int, NDArray[np.uint8]] = {}
    errors: dict[int, str] = {}
    for i, path in enumerate(paths):
        try:
            pictures[i] = preprocessing.fit(decode(Path(path), preprocessing.channels))
        except DataError as error:
            errors[i] = str(error)
    logits: dict[int, list[float]] = {}
    if pictures:
        images = torch.from_numpy(np.stack(list(pictures.values()))).permute(0, 3, 1, 2)  # [B, C, S, S]
        with torch.inference_mode():
            logits = dict(zip(pictures, classifier(preprocessing.normalize(images)).tolist(), strict=True))
    return [Prediction(path, tuple(logits.get(i, ())), errors.get(i)) for i, path in enumerate(paths)]


def predict_command(run: Path, images: Sequence[Path], output_format: str, top_k: int) -> int:
    """Prints predictions as table, json or csv on stdout; unreadable files are named on stderr, and make the exit code 2."""
    classes, predictions = predict(run, images)
    writers = {"table": _print_table, "json": _print_json, "csv": _print_csv}
    writers[output_format](classes, predictions, top_k)
    unreadable = [prediction for prediction in predictions if prediction.error]
    for prediction in unreadable:
        print(prediction.error, file=sys.stderr)
    if unreadable:
        print(f"{len(unreadable)} of {len(predictions)} files could not be read; the others were predicted.", file=sys.stderr)
    return 2 if unreadable else 0


def _print_table(classes: Sequence[str], predictions: Sequence[Prediction], top_k: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    multilabel = any(prediction.thresholds for prediction in predictions)
    columns = ("picture", "classes above their thresholds") if multilabel else ("picture", "class", "probability", "then")
    table = Table(*columns, box=None, header_style="bold")
    for prediction in predictions:
        if prediction.error:
            table.add_row(Text(prediction.path), Text("can't be read", style="red"))
        elif multilabel:
            table.add_row(Text(prediction.path), Text(_listed(prediction.called(classes)) or "none"))
        else:
            (best, probability), *others = prediction.ranked(classes, top_k)
            table.add_row(Text(prediction.path), Text(best), f"{probability:.3f}", Text(_listed(others)))
    console = Console()
    if not console.is_terminal:  # a pipe has no width to fold into
        console = Console(width=max(80, max(len(prediction.path) for prediction in predictions) + 100))
    console.print(table)


def _listed(ranked: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {probability:.3f}" for name, probability in ranked)


def _print_json(classes: Sequence[str], predictions: Sequence[Prediction], top_k: int) -> None:
    """logits are in the order of tlkit.json's classes, to the last bit: Python writes the shortest text that reads back equal."""
    rows = [
        {"path": prediction.path, "error": prediction.error}
        if prediction.error
        else {
            "path": prediction.path,
            **_answer(prediction, classes),
            "top": _as_json(prediction.ranked(classes, top_k)),
            "logits": prediction.logits,
        }
        for prediction in predictions
    ]
    json.dump(rows, sys.stdout, indent=1, ensure_ascii=False)
    print()


def _answer(prediction: Prediction, classes: Sequence[str]) -> dict[str, Any]:
    if prediction.thresholds:
        return {"classes": _as_json(prediction.called(classes))}
    ((best, probability),) = prediction.ranked(classes, 1)
    return {"class": best, "probability": probability}


def _as_json(ranked: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"class": name, "probability": probability} for name, probability in ranked]


def _print_csv(classes: Sequence[str], predictions: Sequence[Prediction], top_k: int) -> None:
    """A column for each rank; for a multilabel model one cell with all labels, as in the csv that it was trained from."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if any(prediction.thresholds for prediction in predictions):
        writer.writerow(["path", "label", "probability", "error"])
        for prediction in predictions:
            called = prediction.called(classes) if not prediction.error else []
            cells = (LABEL_SEPARATOR.join(map(str, column)) for column in (zip(*called, strict=True) if called else ((), ())))
            writer.writerow([prediction.path, *cells, prediction.error or ""])
        return
    top_k = min(top_k, len(classes))
    writer.writerow(["path", *(f"{column}{rank}" for rank in range(1, top_k + 1) for column in ("class", "probability")), "error"])
    for prediction in predictions:
        ranked = prediction.ranked(classes, top_k) if not prediction.error else [("", "")] * top_k
        writer.writerow([prediction.path, *(value for pair in ranked for value in pair), prediction.error or ""])
