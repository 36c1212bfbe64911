"""report.html of made-up runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tlkit.evaluation.curves import draw_curves
from tlkit.evaluation.metrics import measure
from tlkit.evaluation.report import write_report

AUDIT = {"verdict": "no leak found between splits", "compared": "", "unreadable": 0, "two_labels": 0, "examples": []}
ROW = {"phase": 1, "epoch": 1, "train/loss": 1.0, "train/accuracy": 0.5, "val/loss": 1.0, "val/accuracy": 0.5}


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("curves") / "curves.png"
    draw_curves([ROW], ["head"], file)
    return file


def page(curves: Path, metrics: dict[str, Any]) -> str:
    best = {"phase": 1, "epoch": 1, "train_accuracy": 0.5, "fitted_by": ""}
    file = curves.with_name("report.html")
    write_report(
        file,
        name="made up",
        metrics={"best": best, "audit": AUDIT, **metrics},
        facts={"classes": "many"},
        recipe_yaml="name: made up",
        curves=curves,
        augmentations=curves.with_name("none.png"),
    )
    return file.read_text(encoding="utf-8")


def test_three_thousand_classes_make_a_page_that_can_be_read(curves: Path) -> None:
    labels = torch.arange(3000).repeat(2)
    called = labels.clone()
    called[[7, 3007]] = 9  # both images of class 7
    called[11] = 12
    names = [f"species {i:04d}" for i in range(3000)]
    val = {"primary_metric": "accuracy", **measure(torch.nn.functional.one_hot(called, 3000).float(), labels, names)}
    html = page(curves, {"val": val})
    assert len(html) < 1_000_000
    hardest = html[html.index("The 20 classes with the lowest F1, of 3000") : html.index("<details>")]
    assert hardest.count('<th scope="row">species') == 20
    assert re.findall(r"species (\d+)", hardest)[:4] == ["0007", "0009", "0011", "0012"]  # F1: 0, 4/6, 2/3, 4/5
    assert "<li>2 of 2 species 0007 called species 0009</li><li>1 of 2 species 0011 called species 0012</li>" in html
    assert html.count('<th scope="row">species 2999') == 1  # in the table of all
    assert 'class="confusion"' not in html
