"""The command that the README leads with, to its end, and what it says where nothing is available."""

import hashlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file

from tests import warm
from tests.local_hub import ARCHIVE, WEIGHTS, LocalHub, point_torchvision_here, resnet18_weights, serve, small_cifar10

SMALLER = ["data.image_size=32", "data.batch_size=32", "phases[0].epochs=1", "phases[1].epochs=1"]
COMMAND = ["finetune", "recipes/cifar_resnet.yaml"]
CIFAR10 = small_cifar10(images_a_batch=20)


def tlkit(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env = {**inherited, "HF_HOME": str(cwd / "hf"), **environment}
    return warm.run(*arguments, cwd=cwd, env=env)


@pytest.fixture(scope="module")
def weights() -> bytes:
    return resnet18_weights()


@pytest.fixture
def hub(weights: bytes) -> Iterator[LocalHub]:
    with serve({WEIGHTS: weights, ARCHIVE: CIFAR10.archive}) as hub:
        yield hub


def environment(hub: LocalHub, folder: Path) -> dict[str, str]:
    checkout = Path(__file__).parents[1]
    paths = [str(point_torchvision_here(folder / "start", hub.address, CIFAR10)), str(checkout)]
    return {"HF_ENDPOINT": hub.address, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.slow
def test_the_leading_command_runs_to_its_end_and_a_second_time_without_the_server(tmp_path: Path, hub: LocalHub, weights: bytes) -> None:
    first = tlkit(*COMMAND, *SMALLER, cwd=tmp_path, **environment(hub, tmp_path))
    assert first.returncode == 0, first.stderr
    run = tmp_path / "runs/cifar_resnet/001"
    expected = {"recipe.yaml", "split.csv", "metrics.csv", "metrics.json", "curves.png", "checkpoints", "model", "report.html", "log.txt"}
    assert expected <= {entry.name for entry in run.iterdir()}
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["pictures"] == {"train": 90, "val": 10, "test": 20}
    assert len(metrics["test"]["per_class"]) == 10
    facts = json.loads((run / "model/tlkit.json").read_text())
    assert facts["weights"]["origin"] == "hub timm/resnet18.a1_in1k"
    assert facts["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    trained, downloaded = load_file(run / "model/model.safetensors"), load(weights)
    assert trained["fc.weight"].shape == (10, 512)
    assert not trained["conv1.weight"].equal(downloaded["conv1.weight"])

    asked = len(hub.requests)
    assert set(hub.requests) == {WEIGHTS, ARCHIVE}  # and nothing that nobody asked for
    second = tlkit(*COMMAND, *SMALLER, "phases=[{train: head, epochs: 1, lr: 1e-3}]", cwd=tmp_path, **environment(hub, tmp_path))
    assert second.returncode == 0, second.stderr
    assert len(hub.requests) == asked
    frozen = load_file(tmp_path / "runs/cifar_resnet/002/model/model.safetensors")
    assert all(frozen[key].equal(tensor) for key, tensor in downloaded.items() if not key.startswith("fc."))


def test_a_tag_brings_its_own_weights(tmp_path: Path, hub: LocalHub, weights: bytes) -> None:
    """fb_swsl_ig1b_ft_in1k is not the default of resnet18."""
    tagged = WEIGHTS.replace("a1_in1k", "fb_swsl_ig1b_ft_in1k")
    hub.files = {tagged: weights, ARCHIVE: CIFAR10.archive}
    overrides = ["model.backbone=resnet18.fb_swsl_ig1b_ft_in1k", "phases=[{train: head, epochs: 1, lr: 1e-3}]", "data.channels=1"]
    done = tlkit(*COMMAND, *SMALLER[:2], *overrides, cwd=tmp_path, **environment(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    assert set(hub.requests) == {tagged, ARCHIVE}
    model = tmp_path / "runs/cifar_resnet/001/model"
    facts = json.loads((model / "tlkit.json").read_text())
    assert facts["backbone"] == "resnet18.fb_swsl_ig1b_ft_in1k"
    assert facts["weights"] == {"origin": "hub timm/resnet18.fb_swsl_ig1b_ft_in1k", "sha256": hashlib.sha256(weights).hexdigest()}
    assert "the first convolution (conv1) was converted from 3 to 1 channels" in done.stderr
    torch.testing.assert_close(load_file(model / "model.safetensors")["conv1.weight"], load(weights)["conv1.weight"].sum(1, keepdim=True))


def assert_names_both(finished: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    for part in ("CIFAR10 is not in", str(folder / "data"), "cs.toronto.edu", "set data.root"):
        assert part in finished.stderr
    for part in ("timm/resnet18.a1_in1k are not on this machine", str(folder / "hf/hub"), "model.weights to {file: FILE.safetensors}"):
        assert part in finished.stderr
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_network_one_message_names_both_missing_things(tmp_path: Path, offline: str) -> None:
    finished = tlkit(*COMMAND, cwd=tmp_path, HF_HUB_OFFLINE=offline, **no_network(tmp_path))
    assert_names_both(finished, tmp_path)


def no_network(folder: Path) -> dict[str, str]:
    """No host's name can be looked up, as on a machine without a cable."""
    (folder / "start").mkdir()
    (folder / "start/sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*arguments, **options):\n"
        "    raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')\n"
        "socket.getaddrinfo = refuse\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(folder / "start"), str(Path(__file__).parents[1])])}


def test_weights_alone_missing_are_named_alone(tmp_path: Path, hub: LocalHub) -> None:
    del hub.files[WEIGHTS]
    finished = tlkit(*COMMAND, *SMALLER, cwd=tmp_path, **environment(hub, tmp_path))
    assert finished.returncode == 2
    assert "timm/resnet18.a1_in1k" in finished.stderr
    assert "CIFAR10 is not in" not in finished.stderr


def test_a_damaged_archive_is_reported_and_never_taken_for_complete(tmp_path: Path, hub: LocalHub) -> None:
    hub.files[ARCHIVE] = CIFAR10.archive[: len(CIFAR10.archive) // 2]
    damaged = tlkit(*COMMAND, *SMALLER, cwd=tmp_path, **environment(hub, tmp_path))
    assert damaged.returncode == 2
    assert "CIFAR10" in damaged.stderr
    assert "Traceback" not in damaged.stderr
    hub.files[ARCHIVE] = CIFAR10.archive
    hub.requests.clear()
    again = tlkit(*COMMAND, *SMALLER, "phases=[{train: head, epochs: 1, lr: 1e-3}]", cwd=tmp_path, **environment(hub, tmp_path))
    assert again.returncode == 0, again.stderr
    assert ARCHIVE in hub.requests


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_hub_that_refuses_is_named_with_its_answer(tmp_path: Path, weights: bytes, status: int) -> None:
    with serve({WEIGHTS: weights}, status=status) as hub:
        finished = tlkit(*COMMAND, cwd=tmp_path, **environment(hub, tmp_path))
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert hub.address in finished.stderr


def test_a_hub_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        hub = LocalHub({}, address=address)
        variables = environment(hub, tmp_path)
        with (tmp_path / "start/sitecustomize.py").open("a") as file:
            file.write("from tlkit.data.sources import download\ndownload.SILENT_S = 1.0  # in place of 20\n")
        finished = tlkit(*COMMAND, cwd=tmp_path, **variables)
    assert finished.returncode == 2
    assert "timm/resnet18.a1_in1k are not on this machine" in finished.stderr
