"""report.html: one page on a run, without outside resources, that can be sent by mail."""

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_report(
    file: Path, *, name: str, metrics: Mapping[str, Any], facts: Mapping[str, Any], recipe_yaml: str, curves: Path, augmentations: Path
) -> None:
    """metrics: the content of metrics.json. facts: what was trained on what, label -> text, in the order to show.

    augmentations: a sheet of training pictures, which need not be there.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(loader=PackageLoader("tlkit", "evaluation"), autoescape=select_autoescape(), undefined=StrictUndefined)
    measured = metrics.get("test") or metrics["val"]
    page = environment.get_template("report.html").render(
        name=name,
        measured=measured,
        multilabel="exact_match" in measured,
        measured_on="test" if metrics.get("test") else "validation",
        validation=metrics["val"],
        gap=metrics["best"]["train_accuracy"] - metrics["val"]["accuracy"],
        best=metrics["best"],
        audit=metrics["audit"],
        facts=facts,
        recipe_yaml=recipe_yaml,
        curves=base64.b64encode(curves.read_bytes()).decode(),
        augmentations=base64.b64encode(augmentations.read_bytes()).decode() if augmentations.is_file() else "",
        mistakes=_commonest_mistakes(measured) if "confusion" in measured else [],
    )
    _write_whole(file, page)


def write_folds_report(file: Path, *, name: str, summary: Mapping[str, Any], recipe_yaml: str) -> None:
    """The page on a cross-validation, which leads to those of its folds. summary: the content of its metrics.json."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(loader=PackageLoader("tlkit", "evaluation"), autoescape=select_autoescape(), undefined=StrictUndefined)
    page = environment.get_template("folds.html").render(name=name, summary=summary, recipe_yaml=recipe_yaml)
    _write_whole(file, page)


def _write_whole(file: Path, page: str) -> None:
    """A run with a report.html is taken for finished: half of one, on a full disk, must not lie there."""
    writing = file.with_suffix(".writing")
    writing.write_text(page, encoding="utf-8")
    os.replace(writing, file)


def _commonest_mistakes(measured: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """(true class, called, pictures), the six commonest."""
    classes = list(measured["per_class"])
    mistakes = [
        (classes[i], classes[j], count) for i, row in enumerate(measured["confusion"]) for j, count in enumerate(row) if i != j and count
    ]
    return sorted(mistakes, key=lambda mistake: -mistake[2])[:6]
