"""`trainer.logger`: what trackers hold is read back by their own clients."""

import csv
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.processes import HANGS_S, read_until
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


@pytest.mark.slow
def test_nothing_is_written_outside_the_run(workplace: Path) -> None:
    assert sorted(path.name for path in workplace.iterdir()) == ["photos", "recipe.yaml", "run"]
    assert not (workplace / "run/tensorboard").exists()


def test_the_csv_logger_has_the_epochs_of_a_phase(workplace: Path) -> None:
    logged = [float(row["val/loss"]) for row in rows(workplace / "run/csv/phase2/metrics.csv") if row["val/loss"]]
    assert logged == pytest.approx(val_losses(workplace / "run", 2))


def check_mlflow(store: str, run: Path, images: Path) -> None:
    """Compare what mlflow's client reads with the run's own files. images: a folder to take the plots into."""
    from mlflow import MlflowClient

    client = MlflowClient(store)
    (experiment,) = client.search_experiments(filter_string="name = 'tlkit'")
    runs = {run.data.tags["version"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"phase1", "phase2", "result"}
    for phase in (1, 2):
        history = client.get_metric_history(runs[f"phase{phase}"].info.run_id, "val/loss")
        assert [metric.value for metric in history] == pytest.approx(val_losses(run, phase))
    result = runs["result"]
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert result.data.metrics["test/accuracy"] == pytest.approx(test["accuracy"])
    assert result.data.params["model/backbone"] == "test_resnet"
    assert result.data.params["phases/1/epochs"] == "2"
    assert result.info.status == "FINISHED"
    plots = {"augmentations.png", "curves.png"}
    assert {file.path for file in client.list_artifacts(result.info.run_id)} == plots
    for name in plots:
        assert Path(client.download_artifacts(result.info.run_id, name, str(images))).read_bytes() == (run / name).read_bytes()


def test_mlflow_has_the_epochs_the_figures_the_recipe_and_the_plots(workplace: Path, tmp_path: Path) -> None:
    check_mlflow(f"sqlite:///{workplace / 'run/mlflow.db'}", workplace / "run", tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """mlflow's own tracking server on a port of this machine that the system chooses, with a database and images of its own."""
    stores = ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--artifacts-destination", str(tmp_path / "artifacts")]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "0", "--workers", "1", *stores],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # so that the web server that it starts can be ended with it
        preexec_fn=partial(signal.alarm, HANGS_S),
    )
    assert process.stderr is not None
    with process.stderr:
        try:
            started = read_until(process.stderr, "Uvicorn running on")
            threading.Thread(target=process.stderr.read, daemon=True).start()  # else the pipe would be full some day
            yield re.findall(r"http://127\.0\.0\.1:\d+", started)[-1]
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
def test_mlflows_own_server_has_them_too_and_the_run_folder_no_database(
    server: str, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    run = tmp_path / "run"
    assert main(["finetune", "recipe.yaml", "trainer.logger=[mlflow]", "--out", str(run)]) == 0
    assert not [path for path in run.iterdir() if path.name.startswith("mlflow")]
    (tmp_path / "images").mkdir()
    check_mlflow(server, run, tmp_path / "images")


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


@pytest.mark.parametrize("value", ["trackio", "[csv, trackio]"])
def test_a_logger_that_is_not_supported_names_those_that_are(value: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Why trackio isn't: docs/decisions/0016-no-trackio.md."""
    assert main(["check", str(workplace / "recipe.yaml"), f"trainer.logger={value}"]) == 2
    error = capsys.readouterr().err
    assert f"trainer.logger = {value!r} is text" in error or f"trainer.logger = {value} can't be used" in error
    assert "Expected a list of csv, tensorboard, mlflow, wandb" in error
