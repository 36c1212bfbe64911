"""What a run says at its end."""

import shlex
from pathlib import Path

import pytest

from tlkit.data.samples import Sample, Samples
from tlkit.evaluation.primary_metric import recorded_primary_metric
from tlkit.training.callbacks.metrics_table import MetricsTable
from tlkit.training.results import print_run


def test_the_command_at_the_end_can_be_copied_whatever_files_are_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, run = tmp_path / "Bag & Co" / "it's [red]1.png", tmp_path / "runs [bold]" / "001"
    samples = Samples(("a", "b"), (Sample("1", image, (0,), "test"),))
    metrics = {"test": {"pictures": 1, "primary_metric": "accuracy", "accuracy": 1.0, "accuracy_interval": (0.2, 1.0)}}
    print_run(run, samples, metrics)
    line = next(line for line in capsys.readouterr().out.splitlines() if "tlkit predict" in line)
    words = shlex.split(line[line.index("tlkit predict") :])
    assert words[:3] == ["tlkit", "predict", str(run)]
    assert Path(words[3]).resolve() == image


def test_results_of_earlier_versions_name_their_primary_metric_too() -> None:
    assert recorded_primary_metric({"lead": "balanced_accuracy"}) == "balanced_accuracy"
    assert recorded_primary_metric({"primary_metric": "accuracy", "lead": "accuracy"}) == "accuracy"


def test_a_run_that_goes_on_keeps_the_column_of_its_primary_metric(tmp_path: Path) -> None:
    figures = dict.fromkeys(("train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr", "seconds"), 0.5)
    table = MetricsTable(tmp_path / "metrics.csv", "balanced_accuracy")
    table.load_state([{"phase": 1, "epoch": 1, **figures, "val/score": 0.25}])  # as a checkpoint of an earlier version has it
    table.begin_phase(1)
    table.add({"epoch": 2, **figures, "val/score": 0.75}, writes=True)
    head, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert head == "phase,epoch,train/loss,train/accuracy,val/loss,val/accuracy,lr,seconds,val/balanced_accuracy"
    assert [row.rpartition(",")[2] for row in rows] == ["0.25", "0.75"]
    again = MetricsTable(tmp_path / "again.csv", "balanced_accuracy")
    again.load_state(table.state())
    assert again.rows == table.rows
