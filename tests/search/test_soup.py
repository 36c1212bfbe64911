"""`tlkit soup` on runs whose heads are changed by hand, and on two seeds that were trained."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tests.shades import draw_shades
from tlkit.cli import main
from tlkit.evaluation.calibration import fit_calibration
from tlkit.evaluation.evaluate import evaluate, open_split
from tlkit.files import write_json
from tlkit.models.heads import last_linear
from tlkit.models.model_folder import ModelCard, find_model_folder, load_model, load_with_card, write_model_folder
from tlkit.recipe.fields.model import Head

RECIPE = """
name: shades
data: {source: {folder: photos}, image_size: 32, resize: stretch, normalize: none, batch_size: 8, leak_check: off}
model: {backbone: test_resnet, weights: random}
phases: [{train: head, epochs: 2, lr: 1e-2}]
abstain: {error: 0.5, coverage: 0.8}
trainer: {accelerator: cpu, devices: 1}
"""


def change(run: Path, bias: list[float], card: Callable[[ModelCard], ModelCard] = lambda card: card) -> None:
    """Add to the head's bias, and change what tlkit.json says."""
    classifier, described = load_with_card(run)
    with torch.no_grad():
        last_linear(classifier.head).bias += torch.tensor(bias)
    write_model_folder(find_model_folder(run), classifier, card(described))


@pytest.fixture
def runs(place: Path) -> Path:
    """`run` of an earlier version, with three classes; `up` and `down` on either side of it; `far`, which answers one class alone."""
    for name, bias in {"up": [2.0, 0, -2.0], "down": [-2.0, 0, 2.0], "far": [100.0, 0, 0]}.items():
        shutil.copytree("run", name)
        change(Path(name), bias)
    return place


def head_of(run: str) -> torch.Tensor:
    return last_linear(load_model(run).head).bias.detach()


def test_the_average_of_two_heads_is_the_one_between_them(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["soup", "up", "down", "far", "--out", "made/soup"]) == 0
    shown = capsys.readouterr()
    made, run = load_model("made/soup").state_dict(), load_model("run").state_dict()
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, run[name], rtol=0, atol=1e-6)  # of the bias: (w + 2 + w - 2) / 2
    metrics, before = (json.loads(Path(run, "metrics.json").read_text()) for run in ("made/soup", "run"))
    assert [(step["run"], step["added"]) for step in metrics["soup"]][2] == ("far", False)
    assert metrics["test"]["accuracy"] == before["test"]["accuracy"]
    assert metrics["val"]["loss"] == pytest.approx(before["val"]["loss"], abs=1e-6)
    *_, command, folder, image = shlex.split(shown.out.splitlines()[-1])
    assert (command, folder, Path(image).is_file()) == ("predict", "made/soup", True)
    assert "far  " in shown.err
    assert "left out" in shown.err
    assert "the mean of 2 of 3 runs" in shown.out
    for name in ("recipe.yaml", "split.csv"):
        assert Path("made/soup", name).read_bytes() == Path("run", name).read_bytes()
    html = Path("made/soup/report.html").read_text()
    assert '<a href="../../up/report.html">up</a>' in html
    assert (html.count("<td>1/2</td>"), html.count("<td>left out</td>")) == (2, 1)
    assert "Each of the runs above compared its splits" in html  # what doesn't apply to a soup
    assert html.count('class="im i') > 0
    assert main(["report", "made/soup", "--out", "again.html"]) == 0
    assert '<a href="up/report.html">up</a>' in Path("again.html").read_text()
    assert main(["compare", "run", "made/soup"]) == 0
    assert "+0.0 points" in capsys.readouterr().out


def test_the_best_run_stays_alone_where_no_average_validates_better(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["soup", "far", "run", "--out", "soup"]) == 0
    assert "those of run: of 2 runs, no average that was" in " ".join(capsys.readouterr().out.replace("│", "").split())
    assert torch.equal(head_of("soup"), head_of("run"))


def test_curves_of_a_soup_are_refused_by_its_name(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["soup", "up", "down", "--out", "soup"]) == 0
    capsys.readouterr()
    assert main(["compare", "run", "soup", "--curves", "curves.png"]) == 2
    shown = capsys.readouterr()
    assert shown.err == "soup has no epochs, as a soup of runs, and so no curves.\n  Leave --curves out, or draw the runs that went in.\n"
    assert "run   0." in shown.out
    assert not Path("curves.png").exists()


def test_a_soup_is_neither_resumed_nor_trained_again(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["soup", "run", "up", "--out", "soup"]) == 0
    before = {path.name: path.stat().st_mtime_ns for path in Path("soup").iterdir()}
    capsys.readouterr()
    assert main(["finetune", "run/recipe.yaml", "--out", "soup", "--resume"]) == 2
    assert capsys.readouterr().err.splitlines()[-2].startswith("--out soup has a recipe.yaml but no log.txt")
    assert main(["reproduce", "soup"]) == 2
    assert "soup is an average by tlkit soup, and was not trained." in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in Path("soup").iterdir()} == before


def of_other_images(runs: Path, split: str) -> None:
    """Take the first image out of a split of `up`."""
    lines = (runs / "up/split.csv").read_text().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if f",{split}," in line)
    (runs / "up/split.csv").write_text("".join(lines[:first] + lines[first + 1 :]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda runs: change(runs / "up", [0, 0, 0], lambda card: replace(card, classes=("a", "b", "c"))), "differ in their classes: "),
        (lambda runs: of_other_images(runs, "val"), "were validated on different images: "),
        (lambda runs: of_other_images(runs, "test"), "were tested on different images: 12 and 11, of which 11 images in both"),
        (lambda runs: (runs / "up/metrics.json").unlink(), "has no metrics.json: the run was interrupted"),
        (lambda runs: (runs / "soup").mkdir() or (runs / "soup/notes").touch(), "--out soup is there already"),
    ],
)
def test_what_cannot_be_averaged_is_named(
    runs: Path, capsys: pytest.CaptureFixture[str], changed: Callable[[Path], object], message: str
) -> None:
    changed(runs)
    assert main(["soup", "run", "up", "--out", "soup"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not Path("soup/model").exists()


GREY = {"image_size": 20, "resize": "pad", "crop_pct": 1.0, "interpolation": "bilinear", "mean": [0.5], "std": [0.5]}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"backbone": "resnet18"}, "their backbone: lenet5 and resnet18"),
        ({"head": Head(kind="knn").model_dump()}, "up has the head knn, which can't be averaged"),
        ({"weights": {"origin": "elsewhere", "sha256": "0" * 64}}, "their initial weights"),
        ({"preprocessing": GREY}, "their preprocessing."),
    ],
)
def test_networks_of_another_kind_are_refused(
    runs: Path, capsys: pytest.CaptureFixture[str], facts: dict[str, object], message: str
) -> None:
    file = runs / "up/model/tlkit.json"
    write_json(file, {**json.loads(file.read_text()), **facts})
    assert main(["soup", "run", "up", "--out", "soup"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("words", "given"), [(["run"], "one run"), (["run", "./run"], "a run twice")])
def test_one_run_is_no_average(runs: Path, capsys: pytest.CaptureFixture[str], words: list[str], given: str) -> None:
    assert main(["soup", *words, "--out", "soup"]) == 2
    assert f"tlkit soup got {given}" in capsys.readouterr().err


def test_two_seeds_become_one_model_that_is_measured_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val", "test"):
        draw_shades(tmp_path / "photos" / split)
    Path("recipe.yaml").write_text(RECIPE)
    assert main(["finetune", "recipe.yaml", "--seeds", "2", "--out", "seeds"]) == 0
    assert main(["soup", "seeds", "--out", "soup"]) == 0
    metrics = json.loads(Path("soup/metrics.json").read_text())
    members = [load_model(step["run"]).state_dict() for step in metrics["soup"] if step["added"]]
    for name, tensor in load_model("soup").state_dict().items():
        torch.testing.assert_close(tensor.double(), sum(member[name].double() for member in members) / len(members))
    assert metrics["val"]["accuracy"] >= max(step["alone"] for step in metrics["soup"])
    facts, logits = json.loads(Path("soup/model/tlkit.json").read_text()), open_split(Path("soup"), "val").answers("val")
    assert facts["calibration"] == asdict(
        fit_calibration(logits, task="multiclass", head=Head())
    )  # a member's was fitted on its own answers
    assert {name: facts[name]["pictures"] for name in ("abstain", "conformal", "unknown")} == dict.fromkeys(
        ("abstain", "conformal", "unknown"), 40
    )
    assert metrics["unknown"] == facts["unknown"]
    assert {"risk_coverage", "abstain", "conformal", "unknown"} <= metrics["test"].keys()
    assert evaluate(Path("soup"), split="test") == metrics["test"]
    assert main(["export", "soup", "--format", "safetensors"]) == 0
