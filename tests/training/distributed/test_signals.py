"""What Ctrl-C and a scheduler's signals do: a run saves at the end of the batch, and says by its exit code how to go on."""

import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import warm
from tests.processes import signal_itself_when_written
from tlkit.commands.signals import handle_signals
from tlkit.errors import Interrupted
from tlkit.training.checkpointing.files import good_checkpoints

RECIPE = """
name: patient
data: {source: {folder: pictures}, image_size: 32, resize: stretch, batch_size: 8, validation: 0.2, test: 0.2}
model: {backbone: test_resnet, weights: random}
phases: [{train: all, epochs: 500, lr: 1e-3}]
"""


def test_a_signal_stops_at_once_where_nobody_looks_for_it() -> None:
    with pytest.raises(Interrupted) as caught, handle_signals():  # noqa: PT012  (raised by whichever line runs then)
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert (str(caught.value), caught.value.code) == ("Stopped by SIGTERM.", 75)


def test_between_batches_one_signal_waits_and_only_a_second_ctrl_c_stops_at_once() -> None:
    with pytest.raises(Interrupted) as caught, handle_signals() as stop, stop.between_batches():  # noqa: PT012
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.requested == signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    assert caught.value.code == 75


def test_afterwards_signals_are_what_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with handle_signals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_schedulers_signal_saves_at_the_end_of_the_batch_and_exits_with_75(tmp_path: Path, number: signal.Signals) -> None:
    """The process sends it to itself when it writes the first epoch's row."""
    draws = np.random.default_rng(0)
    for name in ("dark", "light"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(draws.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(tmp_path / "pictures" / name / f"{i}.png")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    out = tmp_path / "run"
    words = ("finetune", "recipe.yaml", "--out", str(out), "--resume")
    first = partial(signal_itself_when_written, "metrics.csv", number)
    done = warm.start(*words, cwd=tmp_path, env=os.environ, out=tmp_path / "out", first=first).finished()
    assert done.returncode == 75, done.stderr
    assert f"stopped by {number.name}; resume with the same command, --out {out} and --resume" in done.stderr
    newest = good_checkpoints(out / "checkpoints")[-1].about
    assert (newest["epoch"], newest["batch"]) in ((1, 0), (1, 1))
    assert (out / "metrics.csv").read_text().count("\n") == 2
