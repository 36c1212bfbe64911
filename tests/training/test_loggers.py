"""`trainer.logger`: what trackers hold is read back by their own clients."""

import csv
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shades import draw_shades
from tlkit.cli import main

RECIPE = """
name: shades
data: {source: {folder: photos}, image_size: 32, resize: stretch, normalize: none, batch_size: 8, leak_check: off}
augment: [HorizontalFlip]
model: {backbone: test_resnet, weights: random}
phases: [{train: head, epochs: 1, lr: 1e-2}, {train: head, epochs: 2, lr: 1e-3}]
trainer: {accelerator: cpu, devices: 1, logger: [csv, mlflow, wandb]}
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that logs to all that write into the run folder."""
    folder = tmp_path_factory.mktemp("loggers")
    draw_shades(folder / "photos")
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT"):
            patch.delenv(variable, raising=False)
        assert main(["finetune", "recipe.yaml", "--out", "run"]) == 0
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def val_losses(run: Path, phase: int) -> list[float]:
    return [float(row["val/loss"]) for row in rows(run / "metrics.csv") if row["phase"] == str(phase)]


def test_nothing_is_written_outside_the_run(workplace: Path) -> None:
    assert sorted(path.name for path in workplace.iterdir()) == ["photos", "recipe.yaml", "run"]
    assert not (workplace / "run/tensorboard").exists()


def test_the_csv_logger_has_the_epochs_of_a_phase(workplace: Path) -> None:
    logged = [float(row["val/loss"]) for row in rows(workplace / "run/csv/phase2/metrics.csv") if row["val/loss"]]
    assert logged == pytest.approx(val_losses(workplace / "run", 2))


def test_mlflow_has_the_epochs_the_figures_the_recipe_and_the_plots(workplace: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workplace / 'run/mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'tlkit'")
    runs = {run.data.tags["version"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"phase1", "phase2", "result"}
    for phase in (1, 2):
        history = client.get_metric_history(runs[f"phase{phase}"].info.run_id, "val/loss")
        assert [metric.value for metric in history] == pytest.approx(val_losses(workplace / "run", phase))
    result = runs["result"]
    test = json.loads((workplace / "run/metrics.json").read_text())["test"]
    assert result.data.metrics["test/accuracy"] == pytest.approx(test["accuracy"])
    assert result.data.params["model/backbone"] == "test_resnet"
    assert result.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(result.info.run_id)} == {"augmentations.png", "curves.png"}


def blocks(log: bytes, *, header: int) -> Iterator[bytes]:
    """Yield the records of wandb's file, which is a log of LevelDB's: blocks of 32 KiB, records of checksum, length, type and data."""
    place, record = 0, b""
    while place + 7 <= len(log):
        if (left := 32768 - (place + header) % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", log[place + 4 : place + 7])
        record += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_has_the_epochs_offline(workplace: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted((workplace / "run/wandb").glob("offline-run-*/*.wandb")):
        records = []
        for data in blocks(file.read_bytes()[7:], header=7):
            record = Record()
            record.ParseFromString(data)
            records.append({item.key or item.nested_key[0]: item.value_json for item in record.history.item})
        found.append([float(record["val/loss"]) for record in records if "val/loss" in record])
    assert [losses for losses in found if len(losses) == 2] == [pytest.approx(val_losses(workplace / "run", 2))]
    assert len(found) == 3


def test_a_logger_without_its_package_is_found_by_check(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setitem(sys.modules, "wandb", None)
    for command in (["check", "recipe.yaml"], ["finetune", "recipe.yaml", "--out", "other"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "recipe.yaml:7: trainer.logger has wandb, which needs a package that is not installed." in error
        assert "pip install 'tlkit[wandb]'" in error
    assert not Path("other").exists()
