"""`tlkit.finetune` in a caller's own process leaves that process as it was."""

import json
import logging
import os
import shutil
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import albumentations  # noqa: F401  # imports of others may change what is compared: they come first
import matplotlib.pyplot
import pytest
import torch

import tlkit
import tlkit.training.phases
from tlkit.data.progress import progress_console
from tlkit.errors import RunError
from tlkit.system import as_command_line

PHOTOS = Path(__file__).parents[1] / "fixtures" / "before_layout" / "photos"
RECIPE: dict[str, Any] = {
    "name": "library",
    "data": {"source": {"folder": PHOTOS}, "validation": 0.25, "image_size": 28, "channels": 1, "batch_size": 6},
    "augment": ["HorizontalFlip"],
    "model": {"backbone": "lenet5", "weights": "random"},
    "phases": [{"train": "all", "epochs": 1, "lr": 1e-3}],
    "trainer": {"accelerator": "cpu"},
}


def state_of_the_process() -> dict[str, Any]:
    loggers = ["", "tlkit", "lightning", "lightning.pytorch", "lightning.fabric", "matplotlib", "PIL", "torch"]
    return {
        "signals": {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)},
        "loggers": {
            name: (logger.level, logger.propagate, logger.disabled, list(logger.handlers), list(logger.filters))
            for name in loggers
            if (logger := logging.getLogger(name))
        },
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "folder": os.getcwd(),
        "backend": matplotlib.get_backend(),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """One run, by a caller who listens to the logger; one of its test images is a training image too, of which it warns."""
    place = tmp_path_factory.mktemp("library")
    shutil.copytree(PHOTOS, place / "photos")
    shutil.copy(next((place / "photos/train/bag").iterdir()), place / "photos/test/bag/again.png")
    lines: list[logging.LogRecord] = []
    listener = logging.Handler()
    listener.emit = lines.append  # type: ignore[method-assign]
    logging.getLogger().addHandler(listener)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(logging.getLogger(), "level", logging.WARNING)
        patch.setitem(matplotlib.rcParams, "backend", "svg")
        before = state_of_the_process()
        data = {**RECIPE["data"], "source": {"folder": "photos"}}
        run = tlkit.finetune(tlkit.Recipe.from_dict({**RECIPE, "data": data}), out="run")
        yield {"run": run, "before": before, "after": state_of_the_process(), "lines": lines, "place": place}
    logging.getLogger().removeHandler(listener)


@pytest.mark.parametrize("what", ["signals", "loggers", "warnings", "environment", "deterministic", "folder", "backend"])
def test_a_run_leaves_the_process_as_it_was(found: dict[str, Any], what: str) -> None:
    assert found["after"][what] == found["before"][what]


def test_the_run_has_its_folder_its_metrics_and_its_model(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(found["place"])
    run = found["run"]
    assert run.folder == Path("run")
    assert run.metrics == json.loads(Path("run/metrics.json").read_text())
    model = run.model()
    assert model.classes == ("ankle-boot", "bag", "dress")
    assert not model.training
    assert tlkit.evaluate(run, split="val")["accuracy"] == run.metrics["val"]["accuracy"]


def test_the_lines_of_log_txt_reach_the_callers_handlers_by_the_callers_level(found: dict[str, Any]) -> None:
    """The root logger is at WARNING, as it is unless somebody changes it."""
    lines = (found["place"] / "run/log.txt").read_text().splitlines()
    assert any(" INFO done in " in line for line in lines)
    warned = [line.split(" WARNING ", 1)[1] for line in lines if " WARNING " in line]
    assert "in another split too" in " ".join(warned)
    assert [record.getMessage() for record in found["lines"] if record.name == "tlkit"] == warned


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    solved = {**RECIPE, "augment": [], "phases": [{"train": "head", "solver": "lbfgs", "weight_decay": 1.0}]}
    logging.getLogger("tlkit").addHandler(null := logging.NullHandler())  # else Python prints warnings itself
    tlkit.finetune(tlkit.Recipe.from_dict(solved), out=tmp_path / "run")
    logging.getLogger("tlkit").removeHandler(null)
    assert capfd.readouterr() == ("", "")


def test_a_command_draws_where_a_library_call_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any stream for a terminal then
    assert not progress_console().is_terminal
    with as_command_line():
        assert progress_console().is_terminal
        assert not progress_console(quiet=True).is_terminal
    assert not progress_console().is_terminal


def test_a_run_that_has_not_ended_has_no_metrics(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no metrics.json: the run was interrupted, .*\n  Resume it with the same command"):
        _ = tlkit.Run(tmp_path).metrics
