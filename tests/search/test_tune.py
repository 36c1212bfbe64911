"""`tlkit tune`: a real study in SQLite over real, tiny trainings."""

import csv
import json
import re
import signal
from pathlib import Path

import optuna
import pytest

from tests.shades import draw_shades
from tlkit.cli import main
from tlkit.recipe.load import load_recipe
from tlkit.search.tune import Space, label, without_test
from tlkit.training.setup import prepare

RECIPE = """
name: shades
data: {source: {folder: photos}, image_size: 32, resize: stretch, normalize: none, batch_size: 8, test: 0.25}
model: {backbone: test_resnet, weights: random}
phases: [{train: head, epochs: 2, lr: 1e-2}]
search:
  phases[0].lr: {log: [1e-6, 1e-1]}
  phases[0].epochs: {int: [1, 2]}
  augment: {choice: [[], [HorizontalFlip]]}
"""
TUNE = ("tune", "recipe.yaml", "--out", "study", "--sampler", "random")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of three trials in `study`."""
    folder = tmp_path_factory.mktemp("tune")
    draw_shades(folder / "photos")
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TLKIT_CACHE", str(folder / "cache"))
        assert main([*TUNE, "--trials", "3"]) == 0
    return folder


@pytest.fixture(autouse=True)
def _there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "workplace" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("workplace"))


def trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "study/trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_best_values_are_in_a_plain_recipe(workplace: Path) -> None:
    best = max(trials(workplace), key=lambda row: float(row["score"] or 0))
    recipe = load_recipe(workplace / "study/best.yaml")
    assert recipe.search is None
    first, *lines = (workplace / "study/best.yaml").read_text().splitlines()
    assert first.startswith("# Written by tlkit tune: phases[0].lr, phases[0].epochs, augment. Everything else")
    # The user's own lines and what was found, no defaults.
    assert lines[:3] == RECIPE.splitlines()[1:4]
    assert [line.split(":")[0] for line in lines[3:]] == ["phases", "augment"]
    (phase,) = recipe.gradient_phases.values()
    assert (f"{phase.lr:.6g}", str(phase.epochs)) == (f"{float(best['phases[0].lr']):.6g}", best["phases[0].epochs"])
    assert all(1e-6 <= float(row["phases[0].lr"]) <= 1e-1 for row in trials(workplace))


def test_the_page_has_its_plots_and_no_outside_resource(workplace: Path) -> None:
    page = (workplace / "study/study.html").read_text()
    for heading in ("History", "Each value alone", "Narrowed ranges"):
        assert f"<h2>{heading}</h2>" in page
    assert "<script src=" not in page
    assert "<link" not in page
    assert page.count('class="scroll') == page.count('tabindex="0" role="region"') >= 3  # what scrolls sideways does so by the keyboard


def test_a_study_goes_on_where_it_ended(workplace: Path) -> None:
    before = trials(workplace)
    assert main([*TUNE, "--trials", "4"]) == 0
    assert trials(workplace)[:3] == before
    assert len(trials(workplace)) == 4
    assert main([*TUNE, "--trials", "4"]) == 0  # nothing is left to do
    assert len(trials(workplace)) == 4
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{workplace / 'study/study.db'}")
    assert study.n_trials == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.weight_decay=0.1", "was begun with another recipe: optimizer.weight_decay = 0.05.\n"),
        ("early_stopping={patience: 2}", "was begun with another recipe: no early_stopping.patience, no early_stopping.min_delta.\n"),
        ("search={seed: {int: [0, 3]}}", "was begun with other ranges: augment.choice = [[], [HorizontalFlip]]"),
    ],
)
def test_a_study_of_something_else_is_refused(workplace: Path, capsys: pytest.CaptureFixture[str], change: str, message: str) -> None:
    assert main([*TUNE, change]) == 2
    assert message in capsys.readouterr().err


def test_a_worker_with_other_images_is_refused_and_the_study_stays_as_it_was(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (workplace / "study/study.db").read_bytes()
    first, other = sorted((workplace / "photos").rglob("*.png"))[:2]
    pixels = first.read_bytes()
    first.write_bytes(other.read_bytes())
    try:
        for out, storage in (("study", []), ("elsewhere", ["--storage", f"sqlite:///{workplace / 'study/study.db'}"])):
            assert main(["tune", "recipe.yaml", "--out", out, *storage]) == 2
            assert "The study 'shades' was begun with other images or splits." in capsys.readouterr().err
    finally:
        first.write_bytes(pixels)
    assert (workplace / "study/study.db").read_bytes() == before


def test_a_storage_that_can_not_be_opened_is_named(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "recipe.yaml", "--out", "elsewhere", "--storage", "nonsense"]) == 2
    error = capsys.readouterr().err
    assert "--storage nonsense: the study can't be opened: " in error
    assert "such as postgresql+pg8000://HOST/DATABASE with pip install" in error


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("null", "search is missing or empty.\n  Add what to vary, such as search: {'phases[0].lr': "),
        ("{}", "search is missing or empty."),
        ("{phases[0].lr: {log: [1e-3, 1e-1]}}", "Within braces, put a key such as phases[0].lr into quotes: {'phases[0].lr': ..}."),
        ("{'phases[0].lr': {log: [1e-1, 1e-3]}}", "is empty or reversed"),
        ("{'phases[0].lr': {log: [0, 1e-3]}}", "has no logarithm at its lower end"),
        ("{'phases[0].lr': {}}", "is empty"),
        ("{'phases[0].lr': {log: [1e-3, 1e-1], uniform: [0, 1]}}", "has log and uniform"),
        ("{'phases[0].rate': {uniform: [0, 1]}}", "rate"),
        ("{'phases[3].lr': {uniform: [0, 1]}}", "phases[3]"),
        ("{seed: {choice: [1]}}", "there is nothing to choose"),
        ("{model.head.dropout: {uniform: [0, 3]}}", "model.head.dropout"),
    ],
)
def test_a_search_that_cannot_be_is_named(workplace: Path, capsys: pytest.CaptureFixture[str], search: str, message: str) -> None:
    assert main(["tune", "recipe.yaml", f"search={search}", "--out", "other"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (workplace / "other").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.folds=3"], "data.folds = 3 can't be used by tlkit tune: a trial is validated on one split.\n  Search on one split"),
        (["trainer.devices=2"], "trainer.devices = 2 can't be used by tlkit tune: a trial trains on one device.\n  Set trainer.devices=1"),
        (["trainer.num_nodes=2"], "trainer.num_nodes = 2 can't be used by tlkit tune"),
    ],
)
def test_what_a_trial_can_not_do_is_refused(workplace: Path, capsys: pytest.CaptureFixture[str], changes: list[str], message: str) -> None:
    assert main(["tune", "recipe.yaml", "--out", "other", *changes]) == 2
    assert f"override {changes[0]}: {message}" in capsys.readouterr().err
    assert not (workplace / "other").exists()


def test_a_trial_whose_values_can_not_be_trained_with_is_given_up_and_the_search_goes_on(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "{data.image_size: {choice: [32, 48]}, model.backbone: {choice: [lenet5, test_resnet]}}"
    for out, search in (("rates", "{'phases[0].lr': {choice: [1e-2, 1e30]}}"), ("sizes", sizes)):
        assert main(["tune", "recipe.yaml", f"search={search}", "--out", out, "--sampler", "grid", "--trials", "4"]) == 0
        assert re.search(
            r"trial \d  given up: (The loss became nan|override data\.image_size=48: data\.image_size = 48 )", capsys.readouterr().err
        )
        with (workplace / out / "trials.csv").open(newline="") as file:
            assert {row["state"] for row in csv.DictReader(file)} == {"complete", "pruned"}


def test_a_device_that_only_some_values_ask_for_ends_their_trials(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = ["search={trainer.accelerator: {choice: [cpu, tpu]}}", "--sampler", "grid", "--trials", "2"]
    assert main(["tune", "recipe.yaml", *search, "--out", "devices"]) == 0
    assert "given up: trainer = {accelerator: tpu, " in capsys.readouterr().err
    assert load_recipe("devices/best.yaml").trainer.accelerator == "cpu"
    # One that every trial would ask for ends the search before it begins.
    assert main(["tune", "recipe.yaml", "trainer.accelerator=tpu", "--out", "none"]) == 2
    error = capsys.readouterr().err
    assert "trainer = {accelerator: tpu, " in error
    assert "trial" not in error


def test_of_equal_scores_the_fewest_epochs_are_taken_and_this_is_said(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = ["search={'phases[0].epochs': {choice: [3, 1, 2]}}", "phases[0].lr=1e-12", "--sampler", "grid", "--pruner", "none"]
    assert main(["tune", "recipe.yaml", *search, "--out", "equal", "--trials", "3"]) == 0
    printed = capsys.readouterr()
    assert "3 trials finished, by accuracy on validation; " in printed.err
    assert re.search(r"val accuracy +[\d.]+  \(best of 3 trials; 3 have it, and none of them trained fewer epochs\)", printed.out)
    (phase,) = load_recipe("equal/best.yaml").gradient_phases.values()
    assert phase.epochs == 1
    assert "3 have this score, and of these it is the first that trained the fewest epochs" in (workplace / "equal/study.html").read_text()


def test_a_search_whose_trials_were_all_given_up_says_why(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "recipe.yaml", "search={'phases[0].lr': {uniform: [1e30, 1e31]}}", "--out", "nan", "--trials", "2"]) == 2
    error = capsys.readouterr().err
    assert "None of 2 trials could be finished, the last one because: The loss became nan in batch" in error
    assert error.endswith("  Narrow the ranges of search:, and choose another --out.\n")
    assert "not_finite.csv" not in error  # which was in the folder of the trial, and is gone with it


@pytest.mark.parametrize(("kind", "search"), [("knn", "neighbours: {int: [1, 3]}"), ("svm", "c: {choice: [0.001, 0.1]}")])
def test_a_head_that_scikit_learn_fits_is_scored_as_the_run_validates(workplace: Path, kind: str, search: str) -> None:
    changes = [f"model.head={{kind: {kind}}}", "phases=[]", f"search={{model.head.{search}}}"]
    assert main(["tune", "recipe.yaml", *changes, "--out", kind, "--trials", "2"]) == 0
    assert main(["finetune", f"{kind}/best.yaml", "--out", f"{kind}_run"]) == 0
    with (workplace / kind / "trials.csv").open(newline="") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    assert max(scores) == pytest.approx(json.loads((workplace / f"{kind}_run/metrics.json").read_text())["val"]["accuracy"], abs=1e-6)


def test_a_value_is_shown_as_a_recipe_has_it() -> None:
    values = [0.00123456, 3, "all", {"lora": {"rank": 4}}, True, None, [1, 2]]
    assert list(map(label, values)) == ["0.001235", "3", "all", "{lora: {rank: 4}}", "true", "null", "[1, 2]"]


def test_a_folder_of_something_else_is_left_alone(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "recipe.yaml", "--out", "photos"]) == 2
    assert "--out photos is not empty and has no study.db" in capsys.readouterr().err
    assert not (workplace / "photos/study.db").exists()


def test_trials_have_no_test_images(workplace: Path) -> None:
    setup = prepare(Space.of("recipe.yaml", []).recipe({}))
    assert len(setup.samples.of("test")) == 10
    searched = without_test(setup)
    assert not searched.samples.of("test")
    assert not searched.data.samples.of("test")
    assert len(searched.samples.samples) == 30


def test_a_grid_has_at_least_so_many_combinations(workplace: Path) -> None:
    grid = Space.of("recipe.yaml", []).grid(18)
    assert grid["augment"] == ["[]", '["HorizontalFlip"]']
    assert grid["phases[0].lr"] == pytest.approx([1e-6, 10**-3.5, 1e-1])
    assert grid["phases[0].epochs"] == [1, 2]


def test_ctrl_c_says_how_to_go_on(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("tlkit.search.tune.run_trial", lambda *_: signal.raise_signal(signal.SIGINT))
    assert main([*TUNE[:2], "--out", "stopped"]) == 130
    assert capsys.readouterr().err.endswith("warning: interrupted; go on with the same command\nInterrupted.\n")
