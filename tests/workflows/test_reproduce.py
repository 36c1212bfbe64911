"""A run that is run again gives the same bits; what differs is reported, what is missing is reported before any training."""

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from tests import warm
from tests.shades import draw_shades
from tlkit.cli import main
from tlkit.recipe.load import load_recipe
from tlkit.system import cache_folder
from tlkit.training.finetune import run_recipe
from tlkit.workflows import compare_runs as finished
from tlkit.workflows.compare_runs import _epochs, _metrics
from tlkit.workflows.reproduce import _activations_of_its_own

RECIPE = """
name: shades
data: {source: {folder: pictures}, image_size: 32, resize: stretch, normalize: dataset, batch_size: 8, test: 0.25, workers: 0}
augment: [HorizontalFlip: {p: 0.5}]
model: {backbone: test_resnet, weights: random, head: {dropout: 0.2}}
phases: [{train: head, epochs: 1, lr: 1e-2}, {train: all, epochs: 1, lr: 1e-2}]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 noisy images each of light and dark, and a run on them."""
    folder = tmp_path_factory.mktemp("shades")
    draw_shades(folder / "pictures", dark=110, light=140)
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TLKIT_SECRET_FOR_TESTS", "hush-hush-5")
        run_recipe(load_recipe("recipe.yaml"), out=Path("run"))
        run_recipe(load_recipe("recipe.yaml", ["data.folds=2", "phases=[{train: head, epochs: 1, lr: 1e-2}]"]), out=Path("folds"))
    return folder


def edit_environment(run: Path, **cpu: object) -> None:
    facts = json.loads((run / "environment.json").read_text())
    facts["cpu"].update(cpu)
    (run / "environment.json").write_text(json.dumps(facts))


def test_a_run_is_reproduced_to_the_last_bit(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "run", "--out", "again"]) == 0
    printed = capsys.readouterr().out
    assert "Reproduced, bit for bit" in printed
    assert "DIFFERS" not in printed
    for name in ("model/model.safetensors", "split.csv", "recipe.yaml"):
        assert (workplace / "again" / name).read_bytes() == (workplace / "run" / name).read_bytes()


@pytest.mark.slow
def test_other_processes_and_other_numbers_of_workers_give_the_same_bits(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything that is drawn at random: dropout, drop path, augmentation and mixup; and a moving average."""
    changes = ["phases=[{train: all, epochs: 2, lr: 1e-2}]", "model.drop_path=0.1", "mix={mixup: 0.2}", "ema={decay: 0.9}"]
    found = set()
    for number, workers in enumerate((0, 0, 2)):
        words = ["finetune", "recipe.yaml", *changes, f"data.workers={workers}", "--out", f"run_{number}"]
        monkeypatch.setenv("TLKIT_CACHE", str(workplace / f"cache_{number}"))
        if number:
            done = warm.run(*words, cwd=workplace, env=os.environ)
            assert done.returncode == 0, done.stderr
        else:  # this process has another hash seed than those that are forked
            assert main(words) == 0
        found.add(sha256((workplace / f"run_{number}" / "model" / "model.safetensors").read_bytes()).hexdigest())
    assert len(found) == 1


def test_a_cross_validation_is_reproduced_fold_by_fold(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "folds", "--out", "again"]) == 0
    assert "fold_2: " in capsys.readouterr().out
    assert main(["reproduce", "folds/fold_1"]) == 2
    assert "is one fold of a cross-validation, which is run again as a whole.\n  Name folds." in capsys.readouterr().err


def test_what_came_out_otherwise_is_not_reproduced_and_the_first_difference_is_named(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = workplace / "run" / "metrics.csv"
    lines = metrics.read_text().splitlines()
    loss = lines[1].split(",")[2]
    metrics.write_text("\n".join([lines[0], lines[1].replace(loss, "9.0", 1), *lines[2:]]) + "\n")
    assert main(["reproduce", "run", "--out", "again"]) == 2
    printed = capsys.readouterr().out
    assert f"NOT reproduced: metrics.csv, phase 1, epoch 1, train/loss was 9.0 and is {loss}" in printed


def test_on_another_machine_tolerances_hold_and_what_differs_is_listed(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = json.loads((workplace / "run" / "environment.json").read_text())["cpu"]["instruction_set"]
    other = "AVX2" if here != "AVX2" else "AVX512"
    edit_environment(workplace / "run", instruction_set=other, cores=1_000)
    metrics = json.loads((workplace / "run" / "metrics.json").read_text())
    metrics["test"]["loss"] *= 1.01
    (workplace / "run" / "metrics.json").write_text(json.dumps(metrics))
    assert main(["reproduce", "run", "--out", "again"]) == 0
    printed = capsys.readouterr().out
    assert f"This is another kind of machine: cpu.instruction_set was {other}, is {here}." in printed
    assert "cores" not in printed  # they change no number
    assert "Reproduced within the tolerances: a share of right answers within 2%, 2 images or 0.7 / sqrt(images)" in printed
    metrics["test"]["loss"] *= 1.2
    (workplace / "run" / "metrics.json").write_text(json.dumps(metrics))
    assert main(["reproduce", "run", "--out", "once_more"]) == 2
    assert "NOT reproduced: test loss was" in capsys.readouterr().out


@pytest.mark.parametrize(("images", "within", "beyond"), [(10, 2, 3), (200, 9, 10), (1000, 22, 23), (10_000, 200, 201)])
def test_a_share_may_differ_by_more_where_fewer_images_tell_it(images: int, within: int, beyond: int) -> None:
    tolerance = finished._tolerance("accuracy", 0.8, images)
    assert within / images <= tolerance < beyond / images


def test_images_that_are_gone_changed_or_new_are_named_before_any_training(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dark = workplace / "pictures" / "dark"
    Image.new("RGB", (24, 24)).save(dark / "03.png")
    assert main(["reproduce", "run", "--out", "again"]) == 2
    assert "1 changed: dark/03.png" in capsys.readouterr().err
    (dark / "03.png").unlink()
    assert main(["reproduce", "run", "--out", "again"]) == 2
    assert "The images are not those of the run (run/split.csv):\n    1 gone: dark/03.png\n" in capsys.readouterr().err
    assert not (workplace / "again").exists()


def test_what_is_no_finished_run_is_reported_at_once(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace / "run" / "metrics.json").write_text("{}")
    for run, words in (
        ("nowhere", "nowhere is no finished run: there is no such folder."),
        ("pictures", "pictures is no finished run: it has no recipe.yaml, metrics.json, report.html."),
        ("run", "metrics.json can't be read: it has no 'val'"),
    ):
        assert main(["reproduce", run]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(("split", "key"), [("val", "primary_metric"), ("test", "loss")])
def test_a_figure_that_is_to_be_compared_and_is_not_there_is_named_before_any_training(
    workplace: Path, capsys: pytest.CaptureFixture[str], split: str, key: str
) -> None:
    file = workplace / "run" / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics[split] = {name: value for name, value in metrics[split].items() if name not in (key, "lead")}
    file.write_text(json.dumps(metrics))
    assert main(["reproduce", "run", "--out", "again"]) == 2
    assert capsys.readouterr().err.startswith(f"run/metrics.json can't be read: it has no '{key}'\n")
    assert not Path("again").exists()


def test_the_environment_says_what_could_differ_and_nothing_private(workplace: Path) -> None:
    text = (workplace / "run" / "environment.json").read_text()
    facts = json.loads(text)
    assert {"tlkit", "python", "torch", "timm", "torchvision", "lightning", "albumentations", "numpy", "pillow"} <= set(facts["versions"])
    assert set(facts["cpu"]) == {"model", "instruction_set", "cores", "threads"}
    assert facts["flags"]["deterministic"] is True
    assert facts["device"] == {"type": "cpu"}
    assert "hush-hush-5" not in text
    assert str(Path.home()) not in text


def test_what_calibrate_has_added_is_not_expected_of_the_recipe() -> None:
    measured = {"primary_metric": "accuracy", "accuracy": 0.5, "loss": 1.0, "pictures": 6}
    calibrated = {**measured, "abstain": {"threshold": 0.5}, "conformal": {"coverage": 0.9}}
    assert all(finding.same for finding in _metrics({"test": calibrated}, {"test": measured}))
    assert not all(finding.same for finding in _metrics({"test": calibrated}, {"test": {**measured, "abstain": {"threshold": 0.6}}}))


def test_why_a_figure_is_absent_is_no_figure_that_differs() -> None:
    """Runs of earlier versions don't say why a multilabel model has no calibration."""
    measured = {"primary_metric": "accuracy", "accuracy": 0.9, "loss": 0.4, "pictures": 100, "per_class": {"reason": {"f1": 0.5}}}
    explained = {**measured, "calibration": {"reason": "A temperature is fitted for one label per image."}}
    assert all(finding.same for finding in _metrics({"test": measured}, {"test": explained}))
    fitted = {**measured, "calibration": {"reason": "too few", "temperature": 1.0}}
    assert not all(finding.same for finding in _metrics({"test": measured}, {"test": fitted}))
    assert not all(finding.same for finding in _metrics({"test": measured}, {"test": {**measured, "per_class": {"reason": {"f1": 0.4}}}}))


def test_a_column_of_metrics_csv_that_an_earlier_version_did_not_write_is_no_difference(tmp_path: Path) -> None:
    for name, text in (("was", "phase,epoch,val/loss\n1,1,0.5\n"), ("now", "phase,epoch,val/loss,val/balanced_accuracy\n1,1,0.5,0.9\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(text)
    assert _epochs(tmp_path / "was", tmp_path / "now").same
    assert not _epochs(tmp_path / "now", tmp_path / "was").same
    with (tmp_path / "now/metrics.csv").open("a") as file:
        file.write("1,2,0.4,0.9\n")
    assert not _epochs(tmp_path / "was", tmp_path / "now").same


def test_a_cache_that_can_not_be_written_does_not_keep_a_run_from_being_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has no home folder."""
    monkeypatch.setenv("TLKIT_CACHE", "/dev/null/cache")
    with _activations_of_its_own():
        assert cache_folder().is_dir()
