"""How predictions are written: a table for people, csv and json lines for programs; a row at a time, so that a file grows as it is made."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from itertools import islice
from typing import Any, Self

from tlkit.data.samples import LABEL_SEPARATOR
from tlkit.deploy.predict.prediction import Prediction
from tlkit.deploy.predict.predictor import Predictor
from tlkit.models.inference.trust import Trust
from tlkit.terminal import output_console, printable, width_of

# Rows of one table: the columns of the next thousand images are as wide as those need.
TABLE_ROWS = 1000


@dataclass(frozen=True)
class OutputOptions:
    """What is written for each image. least: the probability below which no class is predicted.

    trust: the model's; what it has of sets, unknown images and abstaining has a place of its own, after all else.
    bound: above which a multilabel model predicts a class, in words.
    """

    classes: tuple[str, ...]
    multilabel: bool
    top_k: int
    least: float | None
    trust: Trust = field(default_factory=Trust)
    bound: str = "their thresholds"

    @classmethod
    def of(cls, predictor: Predictor, top_k: int, threshold: float | None) -> Self:
        """Return what is written of a model's answers. threshold: takes the place of the one below which a model names no class."""
        multilabel = bool(predictor.thresholds)
        least = None if multilabel else threshold if threshold is not None else predictor.trust.least
        bound = cls.bound if threshold is None else f"{threshold:g}"
        return cls(predictor.classes, multilabel, min(top_k, len(predictor.classes)), least, predictor.trust, bound)

    @property
    def has_notes(self) -> bool:
        return self.trust.abstain is not None or self.trust.unknown is not None


@dataclass(frozen=True)
class Layout:
    """begin + row + between + row ... + end is the whole text."""

    begin: str
    row: Callable[[Prediction], str]
    between: str
    end: str


def layout(name: str, question: OutputOptions, *, ascii_only: bool = False) -> Layout:
    """Return how rows are written. name: csv, json or jsonl. ascii_only: JSON escapes every other character."""
    if name == "csv":
        columns = csv_columns(question)
        return Layout(_csv_line(columns), lambda prediction: _csv_line(_csv_cells(prediction, question)), "", "")
    begin, between, end = ("", "", "") if name == "jsonl" else ("[\n", ",\n", "\n]\n")
    line_end = "\n" if name == "jsonl" else ""
    return Layout(begin, lambda prediction: _json_text(prediction, question, ascii_only=ascii_only) + line_end, between, end)


def csv_columns(question: OutputOptions) -> list[str]:
    """Return a column per rank; for a multilabel model one column with all labels, as in the csv that it was trained on."""
    beside = [
        name
        for name, holds in (("set", question.trust.conformal), ("unknown", question.trust.unknown), ("note", question.has_notes))
        if holds
    ]
    if question.multilabel:
        return ["path", "label", "probability", "error", *beside]
    ranks = [f"{column}{rank}" for rank in range(1, question.top_k + 1) for column in ("class", "probability")]
    return ["path", *(["answer", "abstains"] if question.least is not None else []), *ranks, "error", *beside]


def _beside(prediction: Prediction, question: OutputOptions) -> dict[str, Any]:
    """Return what stands behind all else: the conformal set, whether the image is unlike those of training, and a note in words."""
    trust = question.trust
    values: dict[str, Any] = {"set": prediction.likely(question.classes, trust)} if trust.conformal else {}
    if trust.unknown:
        values["unknown"] = prediction.is_unknown(trust)
    return values | ({"note": prediction.note(trust, question.least)} if question.has_notes else {})


def _csv_cells(prediction: Prediction, question: OutputOptions) -> list[object]:
    if prediction.error:
        # On one line, so that every image has one.
        cells = dict.fromkeys(csv_columns(question), "")
        return list({**cells, "path": prediction.path, "error": " ".join(prediction.error.split())}.values())
    beside = map(_csv_text, _beside(prediction, question).values())
    if question.multilabel:
        called = prediction.called(question.classes)
        return [prediction.path, *(LABEL_SEPARATOR.join(str(pair[i]) for pair in called) for i in (0, 1)), "", *beside]
    ranked = prediction.ranked(question.classes, question.top_k)
    abstains = prediction.abstains(question.least)
    # No class has the empty name, but one may be called "abstains".
    answer = [] if question.least is None else ["" if abstains else ranked[0][0], str(abstains).lower()]
    return [prediction.path, *answer, *(value for pair in ranked for value in pair), "", *beside]


def _csv_text(value: str | bool | list[str]) -> str:
    return LABEL_SEPARATOR.join(value) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else value


def _csv_line(cells: Iterable[object]) -> str:
    line = StringIO()
    # A name that holds \r is quoted because the end of the line does.
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _json_text(prediction: Prediction, question: OutputOptions, *, ascii_only: bool) -> str:
    values = json_values(prediction, question)
    text = json.dumps(values, ensure_ascii=ascii_only)
    # A name that is no UTF-8 is written with escapes, which json reads back as the same name.
    return text if text.isascii() or _is_unicode(text) else json.dumps(values)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_values(prediction: Prediction, question: OutputOptions) -> dict[str, Any]:
    """Return plain values. logits: in the order of the model's classes, exact: Python writes the shortest text that reads back equal."""
    if prediction.error:
        return {"path": prediction.path, "error": prediction.error}
    top = _as_json(prediction.ranked(question.classes, question.top_k))
    logits = {"logits": prediction.logits} if prediction.logits else {}
    return {"path": prediction.path, **answer_values(prediction, question), "top": top, **logits, **_beside(prediction, question)}


def answer_values(prediction: Prediction, question: OutputOptions) -> dict[str, Any]:
    if question.multilabel:
        return {"classes": _as_json(prediction.called(question.classes))}
    ((best, probability),) = prediction.ranked(question.classes, 1)
    if question.least is None:
        return {"class": best, "probability": probability}
    abstains = prediction.abstains(question.least)
    return {"class": None if abstains else best, "abstains": abstains, "probability": probability}


def _as_json(ranked: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"class": name, "probability": probability} for name, probability in ranked]


def print_tables(predictions: Iterable[Prediction], question: OutputOptions) -> None:
    remaining = iter(predictions)
    while block := list(islice(remaining, TABLE_ROWS)):
        _print_table(block, question)


def _print_table(predictions: Sequence[Prediction], question: OutputOptions) -> None:
    from rich.table import Table
    from rich.text import Text

    columns = ["image", f"classes above {question.bound}"] if question.multilabel else ["image", "class", "probability", "then"]
    if any(prediction.note(question.trust, question.least) for prediction in _readable(predictions, question)):
        columns.append("note")
    table = Table(box=None, header_style="bold")
    console = output_console()
    longest = max(width_of(prediction.path) for prediction in predictions)
    for column in columns:
        width = min(max(longest, len(column)), console.width // 2) if column == "image" else None
        table.add_column(column, overflow="fold", width=width, no_wrap=column == "probability")
    for prediction in predictions:
        if prediction.error:
            table.add_row(Text(printable(prediction.path)), Text("can't be read", style="red"))
        else:
            cells = (prediction.path, *_table_cells(prediction, question), prediction.note(question.trust, question.least))
            table.add_row(*(Text(printable(cell)) for cell in cells[: len(columns)]))
    console.print(table)


def _readable(predictions: Sequence[Prediction], question: OutputOptions) -> list[Prediction]:
    """Return the predictions that may have a note."""
    return [prediction for prediction in predictions if not prediction.error] if question.has_notes else []


def _table_cells(prediction: Prediction, question: OutputOptions) -> Iterator[str]:
    if question.multilabel:
        yield _label(prediction.called(question.classes)) or "none"
        return
    ranked = prediction.ranked(question.classes, question.top_k)
    best, probability = ranked[0]
    abstains = prediction.abstains(question.least)
    yield "abstains" if abstains else best
    yield f"{probability:.3f}"
    yield _label(ranked if abstains else ranked[1:])


def _label(ranked: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {probability:.3f}" for name, probability in ranked)
