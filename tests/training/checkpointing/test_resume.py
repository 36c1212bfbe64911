"""A run that was cut off ends as if it never had been: same weights, bit for bit, and same figures."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tlkit.cli import main
from tlkit.errors import RunError
from tlkit.evaluation.evaluate import evaluate
from tlkit.models.classifier import Classifier
from tlkit.recipe.load import load_recipe
from tlkit.training.checkpointing.callback import Checkpoints
from tlkit.training.finetune import run_recipe

RECIPE = """
name: shades
data: {source: {folder: pictures}, image_size: 32, resize: stretch, normalize: dataset, batch_size: 8, validation: 0.2, test: 0.2}
model: {backbone: test_resnet, weights: random, head: {dropout: 0.2}}
phases:
  - {train: head, epochs: 2, lr: 1e-2}
  - {train: all, epochs: 3, lr: 1e-2}
trainer: {checkpoint_every: {minutes: 1e-6}}
"""
PLAIN: tuple[str, ...] = ()
EVERYTHING = (
    "augment=[{HorizontalFlip: {p: 0.5}}, {Rotate: {limit: 15}}]",
    "optimizer.accumulate=2",
    "ema={decay: 0.9}",
    "mix={mixup: 0.2, cutmix: 1.0}",
    "early_stopping={patience: 2}",
)
OTHERS = (
    "schedule={name: plateau, patience: 0}",
    "optimizer={name: momentum, accumulate: 3}",
    "loss={l2_sp: 0.01, label_smoothing: 0.1}",
    "imbalance=sampler",
    "wise_ft=true",
    "data.workers=2",
)
ADAPTERS = (
    "model.backbone=test_vit",
    "phases=[{train: {dora: {rank: 4}}, epochs: 2, lr: 1e-2}, {train: all, epochs: 1, lr: 1e-3}]",
    "ema={decay: 0.9}",
)
SOLVED = ("phases=[{train: head, solver: lbfgs}, {train: all, epochs: 2, lr: 1e-2}]",)


class Killed(BaseException):
    """In place of SIGKILL; nothing in tlkit catches it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 noisy images in three shades, and the recipe. 36 train, in five batches an epoch."""
    folder = tmp_path_factory.mktemp("shades")
    draws = np.random.default_rng(0)
    for name, shade in (("dark", 60), ("grey", 110), ("light", 150)):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            noisy = np.clip(draws.normal(shade, 60, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / "pictures" / name / f"{i:02d}.png")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def start(out: Path, overrides: tuple[str, ...] = PLAIN, *, resume: bool = False, killed_after: tuple[int, int, int] | None = None) -> Path:
    """killed_after: phase, epoch and batch of the checkpoint that is the last one written."""
    with pytest.MonkeyPatch.context() as patch:
        write = Checkpoints.write

        def then_kill(checkpoints: Checkpoints, state: Mapping[str, Any]) -> None:
            write(checkpoints, state)
            if tuple(state["run"][key] for key in ("phase", "epoch", "batch")) == killed_after:
                raise Killed

        patch.setattr(Checkpoints, "write", then_kill)
        if killed_after is None:
            return run_recipe(load_recipe("recipe.yaml", overrides), out=out, resume=resume)
        with pytest.raises(Killed):
            run_recipe(load_recipe("recipe.yaml", overrides), out=out, resume=resume)
        return out


def result(run: Path) -> tuple[bytes, dict[str, Any], list[str]]:
    """Weights, metrics.json and metrics.csv, without the seconds."""
    metrics = json.loads((run / "metrics.json").read_text())
    rows = [line.rpartition(",")[0] for line in (run / "metrics.csv").read_text().splitlines()]
    return (run / "model/model.safetensors").read_bytes(), {**metrics, "seconds": None}, rows


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[tuple[str, ...], Any]:
    """What uninterrupted runs end with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        runs = {
            overrides: start(place / f"whole{i}", overrides, resume=overrides == PLAIN)
            for i, overrides in enumerate((PLAIN, EVERYTHING, OTHERS, SOLVED, ADAPTERS))
        }
        return {overrides: result(run) for overrides, run in runs.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "places"),
    [
        (
            PLAIN,
            [
                (0, 0, 2),  # activations of the frozen part are kept
                (0, 0, 5),  # trained, not validated
                (0, 1, 0),  # between two epochs
                (1, 0, 0),  # between two phases
                (2, 0, 0),  # trained, not measured
            ],
        ),
        # After batch 1 or 3 there are gradients of half a step; after batch 5 an epoch isn't validated.
        (EVERYTHING, [(0, 0, 3), (1, 0, 1), (1, 1, 5), (1, 2, 0), (1, 2, 4)]),
        (OTHERS, [(0, 0, 1), (1, 0, 2), (1, 1, 0), (2, 0, 0)]),
        (SOLVED, [(1, 0, 0), (1, 1, 1)]),
        (ADAPTERS, [(0, 0, 3), (0, 1, 0), (1, 0, 0), (1, 0, 2)]),
    ],
)
def test_a_run_that_is_cut_off_again_and_again_ends_as_one_that_was_never_interrupted(
    place: Path, tmp_path: Path, whole: dict[tuple[str, ...], Any], overrides: tuple[str, ...], places: list[tuple[int, int, int]]
) -> None:
    run = tmp_path / "run"
    for where in places:
        start(run, overrides, resume=True, killed_after=where)
    assert result(start(run, overrides, resume=True)) == whole[overrides]
    seconds = json.loads((run / "metrics.json").read_text())["seconds"]
    phases = [value for name, value in seconds.items() if name.startswith("phase ")]
    assert len(phases) == 2
    assert seconds["total"] > sum(phases)
    resumed = re.findall(rf"resumed from {re.escape(str(run))}/checkpoints/\d+\.ckpt: (.*)\n", (run / "log.txt").read_text())
    assert resumed == [position(*where) for where in places]
    assert [file.name for file in (run / "checkpoints").iterdir() if file.suffix == ".ckpt"] == []


def position(phase: int, epoch: int, batch: int) -> str:
    """As the log says it."""
    if phase == 2:
        return "all phases are done"
    return f"phase {phase + 1}, epoch {epoch + 1}{f', after batch {batch}' if batch else ''}"


def test_what_no_phase_has_changed_is_in_no_checkpoint_and_has_to_be_what_it_was(place: Path, tmp_path: Path) -> None:
    run = start(tmp_path / "run", EVERYTHING, killed_after=(0, 1, 3))
    (*_, newest) = sorted((run / "checkpoints").glob("*.ckpt"))
    state = torch.load(newest, weights_only=True)
    for part in ("state_dict", "current_model_state"):
        names = {name for name in state[part] if name.startswith("classifier.")}
        assert names == {"classifier.head.1.weight", "classifier.head.1.bias"}
    assert set(load_file(run / "checkpoints/best.safetensors")) == {"head.1.weight", "head.1.bias"}

    def other_weights(*arguments: Any, **named: Any) -> Classifier:
        classifier = Classifier(*arguments, **named)
        with torch.no_grad():
            next(classifier.backbone.parameters()).add_(1)
        return classifier

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tlkit.training.setup.Classifier", other_weights)
        with pytest.raises(RunError, match=r"The weights that the run started from have changed"):
            start(run, EVERYTHING, resume=True)


def test_best_weights_of_a_head_phase_are_whole_again_after_all_layers_have_trained(place: Path, tmp_path: Path) -> None:
    """The later phase's rate spoils everything, so that the head's weights ship, on the backbone as it was."""
    phases = "phases=[{train: head, epochs: 2, lr: 1e-2}, {train: {last: 1}, epochs: 1, lr: 10.0}, {train: all, epochs: 1, lr: 10.0}]"
    both = [phases, "optimizer={name: sgd}", "schedule={name: constant}"]
    shipped = [load_file(start(tmp_path / "all", tuple(both)) / "model/model.safetensors")]
    both[0] = "phases=[{train: head, epochs: 2, lr: 1e-2}]"
    shipped.append(load_file(start(tmp_path / "head", tuple(both)) / "model/model.safetensors"))
    assert json.loads((tmp_path / "all/metrics.json").read_text())["best"]["phase"] == 1
    assert shipped[0].keys() == shipped[1].keys()
    assert all(torch.equal(tensor, shipped[1][name]) for name, tensor in shipped[0].items())


def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used_or_the_run_begins_again(
    place: Path, tmp_path: Path, whole: dict[tuple[str, ...], Any]
) -> None:
    run = start(tmp_path / "run", killed_after=(0, 1, 1))
    for file in (run / "checkpoints").glob("*.ckpt"):
        file.write_bytes(b"")
    start(run, resume=True, killed_after=(1, 0, 2))
    assert "there is no checkpoint" in (run / "log.txt").read_text()
    older, newest = sorted((run / "checkpoints").glob("*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    assert result(start(run, resume=True)) == whole[PLAIN]
    log = (run / "log.txt").read_text()
    assert f"checkpoint {newest} is damaged and not used: {newest.name} isn't as it was written (1000 bytes)" in log
    assert f"resumed from {older}: phase 2, epoch 1, after batch 1" in log


def test_resume_starts_a_run_where_there_is_none_and_leaves_a_finished_one_alone(
    place: Path, whole: dict[tuple[str, ...], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """`whole` started one with --resume."""
    written = (place / "whole0/report.html").stat().st_mtime_ns
    assert main(["finetune", "recipe.yaml", "--out", "whole0", "--resume"]) == 0
    assert "whole0: this run is finished, and nothing is left to do.\n" in capsys.readouterr().err
    assert (place / "whole0/report.html").stat().st_mtime_ns == written
    assert result(place / "whole0") == whole[PLAIN]


def test_without_resume_an_unfinished_run_is_named_and_left_as_it_is(place: Path, tmp_path: Path) -> None:
    run = start(tmp_path / "run", killed_after=(0, 0, 1))
    with pytest.raises(RunError, match=r"holds a run that is not finished\.\n  Resume it with --resume"):
        start(run)


def test_a_recipe_that_changed_is_refused_with_what_changed(place: Path, tmp_path: Path) -> None:
    run = start(tmp_path / "run", killed_after=(0, 0, 1))
    with pytest.raises(RunError) as caught:
        start(run, ("phases[1].lr=0.02", "optimizer.name=sgd", "augment=[{HorizontalFlip: {p: 0.5}}]", "data.workers=1"), resume=True)
    changes = str(caught.value).splitlines()[1:-2]
    assert sorted(changes) == [
        "    augment: [] -> (not there)",
        "    augment[0].arguments.p: (not there) -> 0.5",
        '    augment[0].name: (not there) -> "HorizontalFlip"',
        '    optimizer.name: "adamw" -> "sgd"',
        "    phases[1].lr: 0.01 -> 0.02",
    ]
    assert "--init-from" in str(caught.value)


def test_images_that_changed_are_refused_with_their_number_and_ids(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(place, tmp_path / "copy", ignore=shutil.ignore_patterns("whole*"))
    monkeypatch.chdir(tmp_path / "copy")
    run = start(tmp_path / "run", killed_after=(0, 0, 1))
    Image.new("RGB", (32, 32)).save("pictures/dark/03.png")
    Path("pictures/light/19.png").unlink()
    with pytest.raises(RunError) as caught:
        start(run, resume=True)
    assert "    1 changed: dark/03.png\n    1 gone: light/19.png\n" in str(caught.value)


def test_resume_needs_the_folder(place: Path) -> None:
    with pytest.raises(RunError, match=r"--resume needs the folder .*\n  Add --out DIR"):
        run_recipe(load_recipe("recipe.yaml"), resume=True)


def test_a_folder_of_something_else_is_not_resumed(place: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").write_bytes(b"")
    with pytest.raises(RunError, match=r"has no recipe\.yaml, so it is not a run that could be resumed"):
        start(tmp_path / "photos", resume=True)


def test_init_from_takes_the_weights_of_a_run_and_nothing_else(place: Path, tmp_path: Path, whole: object) -> None:
    out = tmp_path / "run"
    assert main(["finetune", "recipe.yaml", "phases=[{train: head, epochs: 1, lr: 1e-2}]", "--out", str(out), "--init-from", "whole0"]) == 0
    assert load_recipe(out / "recipe.yaml").model.weights.run == "whole0"
    card = json.loads((out / "model/tlkit.json").read_text())
    assert "whole0" in card["weights"]["origin"]


def test_folds_that_are_done_stay_and_the_one_that_was_cut_off_goes_on(place: Path, tmp_path: Path) -> None:
    data = "data={source: {folder: pictures}, image_size: 32, resize: stretch, batch_size: 8, test: 0.2, folds: 2}"
    folds = (data, "phases=[{train: head, epochs: 1, lr: 1e-2}, {train: all, epochs: 1, lr: 1e-2}]")
    uncut = start(tmp_path / "uncut", folds)
    run, first = tmp_path / "run", None
    with pytest.MonkeyPatch.context() as patch:
        write = Checkpoints.write

        def kill_in_the_second(checkpoints: Checkpoints, state: Mapping[str, Any]) -> None:
            write(checkpoints, state)
            if (run / "fold_1/report.html").exists() and state["run"]["phase"] == 1:
                raise Killed

        patch.setattr(Checkpoints, "write", kill_in_the_second)
        with pytest.raises(Killed):
            run_recipe(load_recipe("recipe.yaml", folds), out=run)
    first = (run / "fold_1/report.html").stat().st_mtime_ns
    start(run, folds, resume=True)
    assert (run / "fold_1/report.html").stat().st_mtime_ns == first
    assert [result(run / f"fold_{i}") for i in (1, 2)] == [result(uncut / f"fold_{i}") for i in (1, 2)]
    assert json.loads((run / "metrics.json").read_text())["folds"] == 2


def test_a_run_whose_measuring_failed_keeps_its_model_and_is_measured_without_training(
    place: Path, tmp_path: Path, whole: dict[tuple[str, ...], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **named: Any) -> None:
        raise RuntimeError("you tried to allocate 216000000000 bytes")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("tlkit.training.run.measure_shipped", fails)
        with pytest.raises(RuntimeError, match="216000000000"):
            start(run)
    assert f"or: tlkit evaluate {run}" in (run / "log.txt").read_text()
    fitted_when_measured = {"calibration", "risk_coverage"}
    expected = {name: value for name, value in whole[PLAIN][1]["test"].items() if name not in fitted_when_measured}
    assert evaluate(run, split="test") == expected
    with monkeypatch.context() as patch:
        patch.setattr("tlkit.training.phases.train_phases", fails)
        start(run, resume=True)
    assert result(run) == whole[PLAIN]
    assert not (run / "checkpoints/trained.json").exists()
