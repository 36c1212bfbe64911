"""`tlkit compare` on a real run of three classes and copies of it whose answers are changed by hand."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tlkit.cli import main
from tlkit.data.sources.read import read_source
from tlkit.data.splits.holdout import read_manifest
from tlkit.errors import RunError
from tlkit.evaluation.evaluate import answers_on, evaluate
from tlkit.evaluation.predictions import read_predictions, write_predictions
from tlkit.recipe.load import load_recipe

pytestmark = pytest.mark.usefixtures("draws")


@pytest.fixture
def runs(place: Path) -> Path:
    """A folder with `a`, a run of an earlier version without predictions.csv, and `b`, which answers every image right."""
    for name in ("a", "b"):
        shutil.copytree("run", name)
    rows = answers_on(Path("b"), "test")
    write_predictions(Path("b"), [{**row, "answer": row["label"]} for row in rows], "test")
    return place


def change(file: Path, column: str, value: Callable[[dict[str, str]], str]) -> None:
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, column: value(row)} for row in rows)


def test_an_earlier_run_answers_again_as_it_was_measured(runs: Path) -> None:
    rows = answers_on(Path("a"), "test")
    measured = json.loads(Path("a/metrics.json").read_text())["test"]
    assert sum(row["label"] == row["answer"] for row in rows) / len(rows) == measured["accuracy"]
    assert [row["id"] for row in rows][:1] == ["test/ankle-boot/00000.png"]
    assert all(1 / 3 < float(row["probability"]) <= 1 for row in rows)


def test_the_difference_is_gained_less_lost(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a", "b", "--format", "json", "--curves", "curves.png"]) == 0
    found = json.loads(capsys.readouterr().out)
    wrong = sum(row["label"] != row["answer"] for row in answers_on(Path("a"), "test"))
    assert (found["gained"], found["lost"], found["n"]) == (wrong, 0, 12)
    assert found["difference"] == pytest.approx(wrong / 12)
    assert found["p"] == pytest.approx(2 * 0.5**wrong - 0.5**wrong)  # by hand: 2 P(X <= 0) - P(X = 0), X of 2^-wrong
    assert found["interval"][0] <= found["difference"] <= found["interval"][1]
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")


def test_an_accuracy_has_every_digit_of_the_one_in_metrics_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_predictions(Path("b"), "test", {row["label"] for row in answers_on(Path("a"), "test")})
    other = {row["label"]: rows[i - 1]["label"] for i, row in enumerate(rows) if row["label"] != rows[i - 1]["label"]}
    write_predictions(Path("b"), [{**row, "answer": row["label"] if i < 5 else other[row["label"]]} for i, row in enumerate(rows)], "test")
    assert main(["compare", "a", "b", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][1]["accuracy"] == 5 / 12  # twelfths summed are 0.41666666666666663


def test_a_difference_within_noise_is_called_that(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a", "a"]) == 0
    out = capsys.readouterr().out
    assert "the recipes are the same" in out
    assert "not distinguishable at n=12 (p=1)" in out
    assert "a  +0.0 points, no interval: each resample has the same difference; 0 gained, 0 lost" in out
    assert main(["compare", "a", "a", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["interval"] == [0, 0]
    assert found["interval_note"] == found["comparisons"][0]["interval_note"] == "no interval: each resample has the same difference"


def test_few_images_make_an_interval_that_is_too_narrow_and_this_is_said(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a", "b"]) == 0
    remark = "With 12 images, expect the interval to be too narrow: a bootstrap needs about 100. p is not affected."
    assert remark in capsys.readouterr().out
    assert main(["compare", "a", "a"]) == 0  # which has no interval
    assert "too narrow" not in capsys.readouterr().out


def test_answers_that_are_no_class_are_named_with_the_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(Path("b/predictions.csv"), "answer", lambda row: "bagg" if row["id"].endswith("00000.png") else row["answer"])
    for words in (["compare", "a", "b"], ["report", "b"]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("b/predictions.csv can't be read: line 2 has 'bagg', which is no class. Expected one of: ")


def test_answers_are_compared_with_the_classes_that_both_runs_have(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(Path("b/predictions.csv"), "label", lambda row: "bag")
    assert main(["compare", "a", "b", "--format", "json"]) == 0
    assert [run["accuracy"] for run in json.loads(capsys.readouterr().out)["runs"]] == [0.75, 1.0]


def test_a_class_may_have_the_separator_of_several_labels_in_its_name(tmp_path: Path) -> None:
    rows = [{"id": "1", "label": "cat|dog", "answer": "cow", "probability": "0.500000"}]
    write_predictions(tmp_path, rows, "test")
    assert read_predictions(tmp_path, "test", ["cat|dog", "cow"]) == rows
    with pytest.raises(RunError, match="line 2 has 'cat', which is no class"):
        read_predictions(tmp_path, "test", ["cow", "dog"])


def test_recipes_are_compared_key_by_key(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path("b/recipe.yaml")
    recipe.write_text(
        recipe.read_text().replace("epochs: 3, lr: 0.003", "epochs: 3, lr: 0.01").replace("augment: [HorizontalFlip]", "augment: []")
    )
    assert main(["compare", "a", "b", "a"]) == 0
    out = capsys.readouterr().out
    assert out.index("recipes differ in") < out.index("test accuracy")
    assert "  phases[0].lr: 0.003 | 0.01 | 0.003" in out
    assert "Holm" in out


def test_what_tune_would_vary_is_no_difference_between_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path("b/recipe.yaml")
    recipe.write_text(recipe.read_text() + "search: {'phases[0].lr': {log: [1e-5, 1e-1]}}\n")
    assert main(["compare", "a", "b"]) == 0
    assert "the recipes are the same" in capsys.readouterr().out


def test_images_in_groups_are_drawn_by_group_and_this_is_said(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        change(Path(name) / "split.csv", "group", lambda row: row["id"][-5])
    assert main(["compare", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert "p by randomization test over groups; interval by a paired bootstrap over groups of test images." in out
    assert re.search(r"With \d groups?, expect the interval to be too narrow", out)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("split", lambda row: "val" if row["id"].endswith("00000.png") else row["split"], "12 and 11, of which 11 images in both"),
        ("sha256", lambda row: "0" * 64, "12 images of 12 had other bytes, the first test/ankle-boot/00000.png"),
        ("class", lambda row: "bag", "8 images of 12 had another label, the first test/ankle-boot/00000.png"),
    ],
)
def test_runs_on_other_test_images_are_refused(
    runs: Path, capsys: pytest.CaptureFixture[str], column: str, value: Callable[[dict[str, str]], str], message: str
) -> None:
    change(Path("b/split.csv"), column, value)
    assert main(["compare", "a", "b"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "takes two runs or more"),
        (["a", "photos"], "photos is not a run folder"),
        (["a", "unfinished"], "unfinished has no metrics.json: the run was interrupted"),
    ],
)
def test_what_is_no_finished_run_is_named(runs: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["compare", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", "{}", '{"val": []}', '{"val": {}, "lead": "acuracy"}', '{"val"'])
def test_damaged_metrics_are_named(runs: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    Path("b/metrics.json").write_text(text)
    assert main(["compare", "a", "b"]) == 2
    assert capsys.readouterr().err.startswith("b/metrics.json can't be read: ")


def test_runs_without_test_images_are_compared_on_validation_and_this_is_said(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        change(Path(name) / "split.csv", "split", lambda row: "train" if row["split"] == "test" else row["split"])
    measured = evaluate(Path("a"), split="val")
    assert main(["compare", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert "val accuracy  (" in out
    assert "No run has test images. Validation has chosen each run's best epoch" in out
    assert main(["compare", "a", "b", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["split"], found["gained"], found["lost"]) == ("val", 0, 0)
    assert [run["accuracy"] for run in found["runs"]] == pytest.approx([measured["accuracy"]] * 2)


def test_seeds_that_drew_other_validation_images_are_refused_with_the_way_to_fix_the_splits(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, last in (("a", "00000.png"), ("b", "00083.png")):
        change(Path(name) / "split.csv", "split", lambda row, last=last: "val" if row["id"].endswith(last) else "train")
    assert main(["compare", "a", "b"]) == 2
    problem, fix = capsys.readouterr().err.strip().splitlines()
    assert "a and b were validated on different images: " in problem
    # One line, which a terminal of any width folds by itself.
    assert fix.startswith("  Splits are drawn by `seed`")
    assert "or from a table or folders with splits of their own" in fix


def test_an_image_that_can_not_be_read_any_more_is_named_where_its_answer_was_not_kept(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Path("a/recipe.yaml")
    recipe.write_text(recipe.read_text().replace("on_bad: error", "on_bad: skip"))
    Path("photos/test/bag/00119.png").write_text("no image")
    assert main(["compare", "a", "b"]) == 2
    problem, fix = capsys.readouterr().err.splitlines()
    assert problem.startswith(
        "a has no predictions.csv with its answers, and 1 test image can't be read any more, the first test/bag/00119.png: "
    )
    assert fix == "  Restore what can't be read, or train it again."


def test_an_answer_that_is_gone_from_predictions_csv_is_named_with_what_brings_it_back(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("b/predictions.csv")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    assert main(["compare", "a", "b"]) == 2
    assert "b: 1 test image without an answer, the first test/dress/00421.png.\n  Copy b/predictions.csv again, or remove it" in (
        capsys.readouterr().err
    )
    file.unlink()
    assert main(["compare", "a", "b"]) == 0


def test_only_one_run_with_test_images_is_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(Path("b/split.csv"), "split", lambda row: "train" if row["split"] == "test" else row["split"])
    assert main(["compare", "a", "b"]) == 2
    assert "b has no test images, unlike a." in capsys.readouterr().err


def test_the_splits_of_a_run_are_a_table_to_train_from(runs: Path) -> None:
    """As docs/comparing.md says: two seeds of one folder then have the same validation and test images."""
    shutil.copy("a/split.csv", "photos/split.csv")
    table = {"csv": "photos/split.csv", "path": "id", "label": "class"}
    recipe = load_recipe("quickstart", [f"data.source={json.dumps(table)}"])
    samples = read_source(recipe.data.source, Path("data"), "multiclass")
    assert {(sample.id, sample.split) for sample in samples.samples} == {
        (row["id"], row["split"]) for row in read_manifest(Path("a/split.csv"))
    }
