"""report.html of made-up runs."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from tlkit.evaluation.metrics import measure
from tlkit.evaluation.run_metrics import epoch_rows
from tlkit.recipe.load import load_recipe
from tlkit.report.charts import curves, repeat_curves
from tlkit.report.curves import draw_curves, draw_metric, draw_runs
from tlkit.report.report import RUNS_IN_EVERY_EPOCH, RunPage, gain_note, gap_note, phase_rows, write_page
from tlkit.report.templates import images_like, percent
from tlkit.training.callbacks.metrics_table import write_metrics_table

pytestmark = pytest.mark.usefixtures("draws")

AUDIT = {"verdict": "no leak found between splits", "compared": "", "unreadable": 0, "two_labels": 0, "examples": []}
ROW = {"phase": 1, "epoch": 1, "train/loss": 1.0, "train/accuracy": 0.5, "val/loss": 1.0, "val/accuracy": 0.5}


@pytest.fixture(scope="module")
def curves_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("curves") / "curves.png"
    draw_curves([ROW], ["head"], file)
    return file


def page(curves_file: Path, metrics: dict[str, Any]) -> str:
    best = {"phase": 1, "epoch": 1, "train_accuracy": 0.5, "fitted_by": "", "train_conditions": []}
    file = curves_file.with_name("report.html")
    metrics = {"best": best, "audit": AUDIT, "pictures": {"train": 6000}, **metrics}
    write_page(file, RunPage("made up", metrics, {"classes": "many"}, "name: made up", rows=[ROW]))
    return file.read_text(encoding="utf-8")


def test_three_thousand_classes_make_a_page_that_can_be_read(curves_file: Path) -> None:
    labels = torch.arange(3000).repeat(2)
    called = labels.clone()
    called[[7, 3007]] = 9  # both images of class 7
    called[11] = 12
    names = [f"species {i:04d}" for i in range(3000)]
    val = {"primary_metric": "accuracy", **measure(torch.nn.functional.one_hot(called, 3000).float(), labels, names)}
    html = page(curves_file, {"val": val})
    assert len(html) < 1_000_000
    hardest = html[html.index("The 20 classes with the lowest F1, of 3000") : html.index("<details>")]
    assert hardest.count('<th scope="row" data-v="species') == 20
    assert re.findall(r'data-v="species (\d+)', hardest)[:4] == ["0007", "0009", "0011", "0012"]  # F1: 0, 4/6, 2/3, 4/5
    shown = re.sub(r"</?span[^>]*>", "", html)
    assert "<li>2 of 2 species 0007 called species 0009</li><li>1 of 2 species 0011 called species 0012</li>" in shown
    assert html.count('<th scope="row" data-v="species 2999') == 1  # in the table of all
    assert 'class="confusion"' not in html


def notes(
    train_accuracy: float,
    val_accuracy: float,
    images: int,
    *,
    conditions: Sequence[str] = (),
    fitted_by: str = "",
    multilabel: bool = False,
    decay_chosen: bool = False,
) -> str:
    """What is said of both accuracies, of so many training and as many validation images."""
    val = {"accuracy": val_accuracy, "pictures": images, **({"exact_match": 0.5} if multilabel else {})}
    best = {"phase": 1, "train_accuracy": train_accuracy, "fitted_by": fitted_by, "train_conditions": list(conditions)}
    return gap_note({"best": best, "val": val, "pictures": {"train": images}}, [{"decay_chosen": decay_chosen}])


def test_overfitting_is_reported_only_of_a_gap_that_the_images_can_prove() -> None:
    # Wilson's intervals by hand, n = 10: 0.7 in 0.397 to 0.892, 0.5 in 0.237 to 0.763; roots of the sums of squares: 0.402 and 0.326.
    assert notes(0.7, 0.5, 10) == "a gap of 20 points, which 10 validation images can't tell from none (95 % interval -20 to 53)."
    # n = 1,000: 0.6709 to 0.7276 and 0.4691 to 0.5309; 0.0425 and 0.0415.
    assert notes(0.7, 0.5, 1000) == (
        "a gap of 20.0 points (95 % interval 15.8 to 24.1), which indicates overfitting."
        " More images, augmentation, dropout or more weight decay may narrow it."
    )
    assert "More images, more augmentation, more dropout or" in notes(0.7, 0.5, 1000, conditions=["augmented", "with dropout"])
    assert notes(0.4, 0.5, 1000).startswith("no gap that would indicate overfitting (-10.0 points; 95 % interval -14.")
    assert notes(0.51, 0.5, 1_000_000).startswith("a gap of 1.00 points (95 % interval")
    assert "overfitting" not in notes(0.51, 0.5, 1_000_000)
    assert "A larger weight_decay, or more images," in notes(0.7, 0.5, 1000, fitted_by="L-BFGS")
    assert notes(0.7, 0.5, 1000, fitted_by="L-BFGS", decay_chosen=True).endswith("indicates overfitting. More images may narrow it.")


def test_accuracies_that_do_not_compare_are_not_compared() -> None:
    assert notes(0.9, 0.5, 1000, multilabel=True) == ""
    assert notes(1.0, 0.5, 1000, fitted_by="nearest neighbours") == ""
    assert notes(0.9, 0.5, 1000, conditions=["drawn class by class"]) == ""


def test_the_page_says_how_training_images_were_seen_only_where_it_was_so(curves_file: Path) -> None:
    logits, labels = torch.eye(2).repeat(20, 1), torch.arange(2).repeat(20)
    val = {"primary_metric": "accuracy", **measure(logits, labels, ["a", "b"])}
    plain = page(curves_file, {"val": val})
    assert "augmented" not in plain
    assert "dropout" not in plain.partition("The recipe, with every value")[0]
    best = {"phase": 1, "epoch": 1, "train_accuracy": 0.9, "fitted_by": "", "train_conditions": ["augmented", "with dropout"]}
    assert "the accuracy on training images (augmented, with dropout) was 0.900" in page(curves_file, {"val": val, "best": best})


def test_uneven_classes_are_reported_of_the_images_that_were_measured(curves_file: Path) -> None:
    for images, said in (([60, 10], True), ([12, 10], False)):
        labels = torch.arange(2).repeat_interleave(torch.tensor(images))
        val = {"primary_metric": "balanced_accuracy", **measure(torch.eye(2)[labels], labels, ["a", "b"])}
        html = page(curves_file, {"val": val})
        assert ("classes differ more than five-fold here" in html) == said
        assert re.search(r"accuracy on training images was 0\.\d+, and on validation images 1\.00:", html)  # what the gap is between


def test_curves_of_seeds_are_a_line_each() -> None:
    runs = [
        ("seed 1", [{**ROW, "val/accuracy": 0.25}, {**ROW, "epoch": 2}]),
        ("seed 2", [{**ROW, "val/accuracy": 0.75}, {**ROW, "epoch": 2}]),
    ]
    drawn: list[list[list[float]]] = []
    savefig = Figure.savefig
    with pytest.MonkeyPatch.context() as patch:

        def noted(figure: Figure, *arguments: Any, **named: Any) -> None:
            drawn.append([list(line.get_ydata()) for line in figure.axes[0].lines if str(line.get_label()).startswith("seed")])
            savefig(figure, *arguments, **named)

        patch.setattr(Figure, "savefig", noted)
        assert len(repeat_curves(runs, primary_metric="accuracy")) == 2
    assert drawn == [[[0.25, 0.5], [0.75, 0.5]], [[1.0, 1.0], [1.0, 1.0]]]


def test_curves_show_the_primary_metric(tmp_path: Path) -> None:
    name = "val/mean_average_precision"
    rows = [{**ROW, name: 0.25}, {**ROW, "epoch": 2, name: 0.75}]
    drawn: dict[str, list[float]] = {}
    savefig = Figure.savefig
    with pytest.MonkeyPatch.context() as patch:

        def noted(figure: Figure, *arguments: Any, **named: Any) -> None:
            for axis in figure.axes:
                drawn[axis.get_title() or axis.get_title(loc="left")] = list(axis.lines[-1].get_ydata())
            savefig(figure, *arguments, **named)

        patch.setattr(Figure, "savefig", noted)
        draw_curves(rows, ["all"], tmp_path / "curves.png", primary_metric="mean_average_precision")
        assert drawn == {"mean average precision": [0.25, 0.75], "accuracy": [0.5, 0.5], "loss": [1.0, 1.0]}
        for folder in ("a", "b"):  # as `tlkit compare --curves` draws them
            (tmp_path / folder).mkdir()
            write_metrics_table([{"lr": 0.1, "seconds": 1.0, **row} for row in rows], tmp_path / folder / "metrics.csv")
        drawn.clear()
        draw_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "curves.png")
        assert list(drawn) == ["validation mean average precision", "validation accuracy", "validation loss"]
        assert drawn["validation mean average precision"] == [0.25, 0.75]
        assert len(curves(epoch_rows(tmp_path / "a"), ["all"], {"phase": 1, "epoch": 2}, primary_metric="mean_average_precision")) == 4
        # Of an earlier version, whose metrics.csv had no column for it.
        assert len(curves([ROW], ["all"], {"phase": 1, "epoch": 1}, primary_metric="mean_average_precision")) == 2
        runs = [(folder, epoch_rows(tmp_path / folder)) for folder in ("a", "b")]
        assert len(repeat_curves(runs, primary_metric="mean_average_precision")) == 3


def test_curves_have_the_names_of_phases_as_text_and_do_without() -> None:
    axis = Figure().subplots()
    draw_metric(axis, [ROW, {**ROW, "phase": 2}], ["weight$_$"], "accuracy")
    assert [text.get_text() for text in axis.texts] == [r"weight\$_\$"]  # which matplotlib would take for a formula; phase 2 has no name
    axis.figure.canvas.draw()


def test_names_of_classes_are_text_whatever_they_contain(curves_file: Path) -> None:
    names = ['<script>alert("1")</script>', "שלום", "a & b"]
    labels = torch.arange(3).repeat(4)
    val = {"primary_metric": "accuracy", **measure(torch.eye(3)[labels], labels, names)}
    html = page(curves_file, {"val": val})
    assert html.count("<script>") == 1  # the page's own
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;" in html
    assert 'dir="auto">שלום' in html
    assert "There is no test split." in html


def test_shares_have_no_more_digits_than_the_images_carry() -> None:
    # A tenth of half the interval's width, 1.96 * 0.5 / sqrt(n): of 961 images 0.316 points, as far from 0.1 as from 1 by its logarithm.
    assert [percent(0.8864, images) for images in (100_000, 961, 960, 10)] == ["88.64", "88.6", "89", "89"]


def test_a_mean_over_seeds_has_the_digits_that_its_interval_carries() -> None:
    for interval, digits in (([0.871, 0.901], "88.6"), ([0.836, 0.936], "89"), ([0.8855, 0.8873], "88.64"), ([0.8864, 0.8864], "88.64")):
        assert percent(0.8864, images_like(interval)) == digits


def test_what_fine_tuning_bought_is_told_only_of_runs_with_a_frozen_probe(curves_file: Path) -> None:
    labels = torch.arange(2).repeat(100)
    called = torch.where(torch.arange(200) < 180, labels, 1 - labels)  # 90 %
    val = {"primary_metric": "accuracy", **measure(torch.eye(2)[called], labels, ["a", "b"])}
    best = {"phase": 2, "epoch": 1, "train_accuracy": 0.9, "fitted_by": "", "train_conditions": []}
    metrics = {"val": val, "best": best, "audit": AUDIT, "pictures": {"train": 1800}}
    rows = [{**ROW, "val/accuracy": 0.7}, {**ROW, "phase": 2, "val/accuracy": 0.9}]
    made = RunPage("made up", metrics, {}, "", phases=[{"name": "head"}, {"name": "all"}], rows=rows)
    # Newcombe's interval by hand: Wilson's of 180 and 140 in 200 are 0.8506 to 0.9343 and 0.6332 to 0.7593.
    assert gain_note(made) == (
        "Fine-tuning took accuracy from 70 % with a frozen backbone to 90 % on 200 validation images (+20 points, 95 % interval +12 to +28)"
    )
    assert gain_note(replace(made, phases=[{"name": "all"}, {"name": "all"}])) == ""


def test_what_fine_tuning_bought_is_said_in_the_primary_metric(curves_file: Path) -> None:
    best = {"phase": 2, "epoch": 1, "train_accuracy": 0.9, "fitted_by": "", "train_conditions": []}
    metric, figures = "balanced_accuracy", {"pictures": 2000, "accuracy": 0.95, "per_class": {}}
    # Wilson's intervals of 80 and 60 in 100 are 0.7112 to 0.8666 and 0.5020 to 0.6906.
    val = {"primary_metric": metric, metric: 0.8, "intervals": {metric: [0.7112, 0.8666], "macro": {"f1": [0.5, 0.6]}}, **figures}
    rows = [{**ROW, f"val/{metric}": 0.6}, {**ROW, "phase": 2, f"val/{metric}": 0.8}]
    metrics = {"val": val, "best": best, "audit": AUDIT, "pictures": {"train": 1800}}
    made = RunPage("made up", metrics, {}, "", phases=[{"name": "head"}, {"name": "all"}], rows=rows)
    change = "(+20 points, 95 % interval +7 to +32)"
    assert (
        gain_note(made)
        == f"Fine-tuning took balanced accuracy from 60 % with a frozen backbone to 80 % on 2,000 validation images {change}"
    )
    assert gain_note(replace(made, rows=[ROW, {**ROW, "phase": 2}])) == ""  # of an earlier version, which had no column for it
    # All right on what counts as 100 images: Wilson's is 100 / (100 + 1.96 ** 2) = 0.9630 to 1.
    perfect = {**val, metric: 1.0, "intervals": {metric: [0.9630, 1.0], "macro": {"f1": [0.9, 1]}}}
    assert gain_note(replace(made, metrics={**metrics, "val": perfect})).endswith("(+40 points, 95 % interval +30 to +50)")
    average = {**val, "primary_metric": "mean_average_precision", "mean_average_precision": 0.8, "exact_match": 0.5}
    average["intervals"] = {"mean_average_precision": [0.7112, 0.8666], "macro": {"f1": [0.5, 0.6]}}
    rows = [{**row, "val/mean_average_precision": row[f"val/{metric}"]} for row in rows]
    several = replace(made, metrics={**metrics, "val": average}, rows=rows)
    assert gain_note(several).startswith(
        "Fine-tuning took mean average precision from 0.60 with a frozen backbone to 0.80 on 2,000 validation"
    )
    assert gain_note(several).endswith("(+0.20, 95 % interval +0.07 to +0.32)")


def test_the_page_says_what_promises_came_to_or_why_there_are_none(curves_file: Path) -> None:
    labels = torch.arange(100) % 2
    test = {"primary_metric": "accuracy", **measure(torch.nn.functional.one_hot(labels, 2).float(), labels, ["cat", "dog"])}
    kept = {"threshold": 0.9, "promised_error": 0.08, "pictures": 1000, "answered": 640, "mistakes": 16, "coverage": 0.64, "error": 0.025}
    html = page(curves_file, {"val": test, "test": {**test, "abstain": kept, "unknown": {"pictures": 1000, "share_above_threshold": 0.06}}})
    assert 'It says "not sure" below a probability of 0.90, and so answers 640 of 1000 test images, 16 of them wrongly: 2 %' in html
    assert "6.0 % of 1000 test images, all of known classes, are called unlike any training image" in html
    all_answered = {**kept, "threshold": 0.0, "answered": 1000, "coverage": 1.0, "error": 0.016}
    html = page(curves_file, {"val": test, "test": {**test, "abstain": all_answered}})
    assert "since its promise is kept without abstaining: 16 of 1000 test images wrongly: 1.6 %, where less than 8 % was" in html
    html = page(curves_file, {"val": test, "test": {**test, "abstain": {"reason": "50 images are too few."}}})
    assert "It answers every image: 50 images are too few." in html
    assert "are called unlike" not in html


def test_no_class_is_the_weakest_where_all_are_equal(curves_file: Path) -> None:
    labels = torch.arange(100) % 2
    right = {"primary_metric": "accuracy", **measure(torch.nn.functional.one_hot(labels, 2).float(), labels, ["cat", "dog"])}
    wrong = {"primary_metric": "accuracy", **measure(torch.nn.functional.one_hot(labels[1:], 2).float(), labels[:-1], ["cat", "dog"])}
    for test in (right, wrong):
        assert "weakest" not in page(curves_file, {"val": test, "test": test})


def test_a_temperature_that_was_not_fitted_is_not_said_to_be(curves_file: Path) -> None:
    bins = [{"confidence": 0.4, "accuracy": 0.5, "count": 10}, {"confidence": 0.9, "accuracy": 0.8, "count": 10}]
    found = {
        "temperature": 1.0,
        "ece_before": 0.1,
        "ece_after": 0.1,
        "ece_before_interval": [0, 0.2],
        "bins_before": bins,
        "bins_after": bins,
    }
    labels = torch.arange(2).repeat(10)
    val = {"primary_metric": "accuracy", **measure(torch.eye(2)[labels], labels, ["a", "b"])}
    html = page(curves_file, {"val": {**val, "calibration": {**found, "reason": "40 images can't tell a temperature."}}})
    said = "0.00 to 0.20)</span>. No temperature was fitted: 40 images can&#39;t tell a temperature.</p>"
    assert f'The expected calibration error is 0.10 <span class="soft">(95 % interval {said}' in html
    html = page(curves_file, {"val": {**val, "calibration": {**found, "temperature": 1.5, "ece_after": 0.05}}})
    assert "as trained, and 0.05 with the temperature 1.50 that was fitted on validation.</p>" in html


def test_what_was_kept_of_a_phase_stays_open_without_a_log() -> None:
    recipe = load_recipe("quickstart", ["phases=[{train: head, epochs: 1, lr: 1e-3}]"])
    metrics = {"seconds": {"phase 1 head": 2.0}, "pictures": {"train": 100}}
    kept = {
        log: phase_rows(recipe, metrics, log)[0]["cache"] for log in ("", "begun", f"phase 1/1 head  {RUNS_IN_EVERY_EPOCH}: mix blends")
    }
    assert [*kept.values()] == ["", "its frozen part ran once", "not kept: mix blends"]
