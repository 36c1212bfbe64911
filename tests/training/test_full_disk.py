"""A disk that becomes full ends a run with a message, and the run goes on once there is room."""

import errno
import os
from pathlib import Path

import pytest

from tlkit.commands.log import show_log
from tlkit.errors import RunError
from tlkit.files import _unfinished as unfinished
from tlkit.recipe.load import load_recipe
from tlkit.training.distributed.signals import Stop
from tlkit.training.finetune import run_recipe
from tlkit.training.outputs.log import LOG, log_to_file
from tlkit.training.outputs.run_folder import disk_full_explained, is_finished

FULL = Path("/dev/full")
"""Linux: whatever is written there finds no space left."""

RECIPE = """
name: full
data: {source: {bundled: fashion_mnist_mini}, image_size: 32, resize: stretch, batch_size: 16, limit: 80, workers: 0}
model: {backbone: test_resnet, weights: random}
phases: [{train: head, epochs: 1, lr: 1e-2}]
"""


@pytest.mark.skipif(not FULL.exists(), reason="Linux has /dev/full")
def test_a_run_whose_report_has_no_room_is_not_finished_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe, run = load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run"
    monkeypatch.setenv("TLKIT_CACHE", str(tmp_path / "cache"))

    def no_room_for_the_report(file: Path) -> Path:
        writing = unfinished(file)
        if file.name == "report.html":
            writing.symlink_to(FULL)
        return writing

    with monkeypatch.context() as patch:
        patch.setattr("tlkit.files._unfinished", no_room_for_the_report)
        with pytest.raises(RunError) as caught:
            run_recipe(recipe, out=run)
    assert str(caught.value) == (
        "The disk is full.\n  What was written before is whole: free some space, then "
        f"resume with the same command, --out {run} and --resume."
    )
    assert not is_finished(run)
    weights = (run / "model" / "model.safetensors").read_bytes()
    run_recipe(recipe, out=run, resume=True)
    assert is_finished(run)
    assert "</html>" in (run / "report.html").read_text()
    assert (run / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.skipif(not FULL.exists(), reason="Linux has /dev/full")
def test_a_line_that_the_log_has_no_room_for_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with show_log(), log_to_file(FULL):
        LOG.info("one line")
    printed = capsys.readouterr().err
    assert "one line" in printed
    assert "Traceback" not in printed


def test_the_file_that_the_system_names_is_reported() -> None:
    stop = Stop()
    stop.resume_hint = "go on"
    with (
        pytest.raises(RunError, match=r"^The disk is full: curves\.png can't be written\.\n.* then go on"),
        disk_full_explained(stop),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "curves.png")


def test_other_errors_and_those_before_a_run_has_begun_are_left_alone() -> None:
    for number, hint in ((errno.EIO, "go on"), (errno.ENOSPC, "")):
        stop = Stop()
        stop.resume_hint = hint
        with pytest.raises(OSError, match=os.strerror(number)), disk_full_explained(stop):
            raise OSError(number, os.strerror(number))
