"""Several processes of one run, real ones: they give what one gives, agree on what they train on, and none waits for a dead one."""

import csv
import json
import os
import shutil
import signal
import subprocess
from ast import literal_eval
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from torch.distributed import TCPStore

from tests import warm
from tests.processes import errors_of, read_until, start
from tlkit.errors import DataError
from tlkit.recipe.load import load_recipe
from tlkit.training.distributed.launch import first_difference
from tlkit.training.distributed.ranks import is_main_process
from tlkit.training.finetune import run_recipe

COLOURS = {"blue": (40, 60, 200), "green": (30, 180, 60), "red": (210, 40, 50)}
ON_TWO = ["trainer.devices=2"]
LONG = "phases=[{train: all, epochs: 500, lr: 1e-4}]"

RECIPE = """
name: odd
data: {source: {folder: pictures}, image_size: 32, resize: stretch, normalize: dataset, batch_size: 16}
model: {backbone: lenet5, weights: random, head: {dropout: 0.0}}
phases:
  - {train: head, epochs: 1, lr: 1e-2}
  - {train: all, epochs: 2, lr: 1e-3}
optimizer: {accumulate: 2}
trainer: {accelerator: cpu, devices: 1}
"""


def stop_the_second() -> None:
    """Send the second process a signal in the first epoch of its second phase."""
    from tlkit.training.callbacks.metrics_table import MetricsTable

    def stop(table: Any, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
        if (table.phase, trainer.current_epoch, number, trainer.global_rank) == (2, 0, 2, 1):
            os.kill(os.getpid(), signal.SIGTERM)

    MetricsTable.on_train_batch_end = stop  # type: ignore[method-assign]


def note_weights_and_collectives() -> None:
    """Write down, after every epoch of a process, a digest of its weights and what it has exchanged with others in each batch."""
    from torch import distributed

    from tlkit.training.cache.activations import digest
    from tlkit.training.callbacks.metrics_table import MetricsTable

    add, all_reduce = MetricsTable.on_train_epoch_end, distributed.all_reduce
    calls: list[str] = []
    batches: list[list[str]] = []

    def counted(tensor: Any, *arguments: Any, group: Any = None, async_op: bool = False, **named: Any) -> Any:
        calls.append(f"{'device' if group is None else 'host'}, {'async' if async_op else 'waits'}")
        return all_reduce(tensor, *arguments, group=group, async_op=async_op, **named)

    def batch_noted(table: Any, *arguments: Any) -> None:
        batches.append(calls.copy())
        calls.clear()

    def noted(table: Any, trainer: Any, module: Any) -> None:
        with Path(f"weights_{trainer.global_rank}.txt").open("a") as file:
            print(table.phase, trainer.current_epoch, digest(module.classifier.backbone.state_dict()), file=file)
        with Path(f"collectives_{trainer.global_rank}.txt").open("a") as file:
            print(batches[1:], file=file)  # before the first batch, others may wait
        batches.clear()
        add(table, trainer, module)

    distributed.all_reduce = counted
    MetricsTable.on_train_batch_end = batch_noted  # type: ignore[method-assign]
    MetricsTable.on_train_epoch_end = noted  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """203 training, 101 validation and 203 test images, so noisy that not all can be classified, and the recipe."""
    folder = tmp_path_factory.mktemp("odd")
    draws = np.random.default_rng(0)
    names = list(COLOURS)
    for split, number in (("train", 203), ("val", 101), ("test", 203)):
        for name in names:
            (folder / "pictures" / split / name).mkdir(parents=True)
        for i in range(number):
            noisy = np.array(COLOURS[names[i % 3]]) * 0.1 + 100 + draws.normal(0, 150, (32, 32, 3))
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / "pictures" / split / names[i % 3] / f"{i:04d}.png")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def command(out: str, *overrides: str) -> list[str]:
    return ["finetune", "recipe.yaml", "--out", out, *overrides]


def run(place: Path, words: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run tlkit, which starts the other processes of the run itself."""
    return warm.run(*words, cwd=place, env=os.environ)


def start_machines(arguments: list[str], folders: tuple[Path, Path]) -> list["subprocess.Popen[str]"]:
    """torchrun as on two machines, which meet at a port that the system has chosen; the first one is number 0."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{store.port}", "--rdzv-conf", "is_host=0", "--local-addr", "127.0.0.1"]
    words = ["-m", "torch.distributed.run", "--nnodes", "2", *meet, *arguments]
    machines = [start(words, folder) for folder in folders]
    machines[0].store = store  # type: ignore[attr-defined]  # kept as long as the process is
    return machines


@pytest.fixture(scope="module")
def two(place: Path) -> Path:
    """A run on two processes that tlkit starts itself."""
    done = run(place, command("two", *ON_TWO))
    assert done.returncode == 0, done.stderr
    return place / "two"


def rows_of(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def metrics_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


def test_two_processes_learn_and_measure_what_one_does(place: Path, two: Path) -> None:
    """203 images are 12 batches of 16 and one of 11, which is a step of its own and of which one process gets 6 and the other 5."""
    assert run(place, command("one")).returncode == 0
    one = place / "one"
    for alone, shared in zip(rows_of(one), rows_of(two), strict=True):
        for name in ("train/loss", "val/loss", "train/accuracy", "val/accuracy", "lr"):
            assert shared[name] == pytest.approx(alone[name], abs=1e-6), name
    for split, images in (("test", 203), ("val", 101)):
        alone, shared = (metrics_of(run)[split] for run in (one, two))
        assert shared["pictures"] == images
        assert 0.4 < shared["accuracy"] < 0.99  # or it would be no proof
        assert shared["confusion"] == alone["confusion"]
        assert shared["accuracy"] == pytest.approx(alone["accuracy"], abs=1e-6)
        assert shared["macro"] == pytest.approx(alone["macro"], abs=1e-6)
    weights = [load_file(run / "model/model.safetensors") for run in (one, two)]
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < 1e-5


def test_two_machines_learn_what_one_does_and_hold_the_same_weights_after_every_epoch(place: Path, two: Path) -> None:
    """Without --out: the first process takes the next number, and tells the other. Each one notes its weights."""
    words = ["finetune", "recipe.yaml", "trainer.num_nodes=2"]
    done = warm.run_together(*words, folders=(place, place), env=os.environ, machines=True, first=note_weights_and_collectives)
    assert [process.returncode for process in done] == [0, 0], done
    assert done[0].stderr.count("phase 2/2 all  epoch 2/2") == 1
    assert "epoch" not in done[1].stderr
    assert [run.name for run in (place / "runs/odd").iterdir()] == ["001"]
    assert (place / "runs/odd/001/model/model.safetensors").read_bytes() == (two / "model/model.safetensors").read_bytes()
    first, second = ((place / f"weights_{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert first == second
    frozen, *trained = (line.split()[2] for line in second)
    assert len({frozen, *trained}) == 3  # what the second phase unfroze has moved, on the second process too
    for rank in (0, 1):
        batches = [literal_eval(line) for line in (place / f"collectives_{rank}.txt").read_text().splitlines()]
        assert batches == [[["host, async"]] * 12] * 3  # beside DDP's own: none waits for the device


def test_batchnorm_and_a_moving_average_are_the_same_on_both_processes(place: Path, tmp_path: Path) -> None:
    for name in ("pictures", "recipe.yaml"):
        (tmp_path / name).symlink_to(place / name)
    phases = "phases=[{train: head, epochs: 1, lr: 1e-2}, {train: {from: layer3}, epochs: 2, lr: 1e-2}, {train: all, epochs: 2, lr: 1e-3}]"
    words = ["finetune", "recipe.yaml", *ON_TWO, "model.backbone=test_resnet", "ema={decay: 0.9}", phases]
    done = warm.run_together(*words, folders=(tmp_path, tmp_path), env=os.environ, first=note_weights_and_collectives)
    assert [process.returncode for process in done] == [0, 0], done
    first, second = ((tmp_path / f"weights_{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert first == second
    assert len({line.split()[2] for line in second}) == 5


def test_adapters_begin_and_learn_on_two_processes_as_on_one(place: Path) -> None:
    words = ["model.backbone=test_vit", "phases=[{train: head, epochs: 1, lr: 1e-2}, {train: {lora: {rank: 4}}, epochs: 1, lr: 1e-3}]"]
    alone = run(place, command("lora_one", *words))
    together = warm.run_together(*command("lora_two", *words, *ON_TWO), folders=(place, place), env=os.environ)
    assert [process.returncode for process in (alone, *together)] == [0, 0, 0], (alone, *together)
    for alone, shared in zip(rows_of(place / "lora_one"), rows_of(place / "lora_two"), strict=True):
        for name in ("train/loss", "val/loss"):
            assert shared[name] == pytest.approx(alone[name], abs=1e-6), name


def test_machines_with_other_images_end_with_the_first_difference(place: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    shutil.copytree(place / "pictures", there / "pictures")
    shutil.copy(place / "recipe.yaml", there)
    changed = there / "pictures/train/green/0004.png"
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    words = command(str(tmp_path / "run"), "trainer.num_nodes=2", "data.normalize=none")
    first, second = warm.run_together(*words, folders=(place, there), env=os.environ, machines=True)
    assert (first.returncode, second.returncode) == (2, 2)
    assert "The images are not the same in all processes of this run.\n    process 0 (" in first.stderr
    assert first.stderr.count("id train/green/0004.png, class green, split train") == 2
    assert "not the same" not in second.stderr


@pytest.mark.parametrize(("victim", "message"), [(1, "The process of device 1 "), (0, "The first process of this run ")])
def test_a_killed_process_ends_the_run_with_one_message(place: Path, tmp_path: Path, victim: int, message: str) -> None:
    words = command(str(tmp_path / "run"), *ON_TWO, LONG)
    process = warm.start(*words, cwd=place, env=os.environ, out=tmp_path / "out")
    process.until("epoch 1/500")
    first = process.process.pid
    assert first is not None
    processes = [first, *children_of(first)]
    os.kill(processes[victim], signal.SIGKILL)
    done = process.finished()  # ends when the last process that holds the pipe has ended
    errors = done.stderr
    assert done.returncode == (2 if victim else -signal.SIGKILL)
    assert errors.count(f"{message}(number {processes[victim]})") == 1
    assert errors.count("Resume from the last checkpoint with the same command, --out and --resume.") == 1
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_process_killed_under_torchrun_ends_the_run_on_both_machines(place: Path, tmp_path: Path) -> None:
    """torchrun itself, whose part the tests above take."""
    machines = start_machines(["-m", "tlkit", *command(str(tmp_path / "run"), "trainer.num_nodes=2", LONG)], (place, place))
    first_process = machines[0]
    assert first_process.stderr is not None
    read_until(first_process.stderr, "epoch 1/500")
    (victim,) = children_of(machines[1].pid)
    os.kill(victim, signal.SIGKILL)
    first, second = (errors_of(machine) for machine in machines)
    assert all(machine.returncode for machine in machines)
    assert first.count("A process of this run has ended") == 1
    assert "Signal 9 (SIGKILL)" in second  # torchrun's own account, on the machine where it happened


def test_a_signal_to_one_process_saves_and_stops_both_and_the_run_goes_on_to_the_same_weights(place: Path, two: Path) -> None:
    words = command("stopped", *ON_TWO)
    stopped = warm.run_together(*words, folders=(place, place), env=os.environ, first=stop_the_second)
    assert [process.returncode for process in stopped] == [75, 75], stopped
    assert "".join(process.stderr for process in stopped).count("stopped by SIGTERM; resume with the same command") == 1
    resumed = warm.run_together(*words, "--resume", folders=(place, place), env=os.environ)
    assert [process.returncode for process in resumed] == [0, 0], resumed
    assert resumed[0].stderr.count("phase 2, epoch 1, after batch 4") == 1
    assert (place / "stopped/model/model.safetensors").read_bytes() == (two / "model/model.safetensors").read_bytes()


def test_processes_that_torchrun_has_started_but_the_recipe_does_not_ask_for_are_refused_once(place: Path, tmp_path: Path) -> None:
    """Each would train alone, into the same folder."""
    done = warm.run_together(*command(str(tmp_path / "run")), folders=(place, place), env=os.environ)
    assert [process.returncode for process in done] == [2, 2]
    assert "".join(process.stderr for process in done).count("Set trainer.devices=2 trainer.num_nodes=1, or start others.") == 1
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_shared_out_is_refused_before_anything_starts(place: Path, tmp_path: Path) -> None:
    recipe = load_recipe(place / "recipe.yaml", [f"data.source={{folder: '{place / 'pictures'}'}}", *ON_TWO, "data.batch_size=15"])
    with pytest.raises(DataError, match="15 can't be divided evenly among 2 devices"):
        run_recipe(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def children_of(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=True)
    return [int(line) for line in listed.stdout.split()]


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0"}, True),  # Lightning, after it has started another
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),  # the first of the second machine
        ({"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),  # torchrun
        ({"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1"}, True),  # torchrun under srun, which numbers machines by itself
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # Lightning in an interactive job
    ],
)
def test_one_process_of_all_is_the_first(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], first: bool) -> None:
    for key in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert is_main_process() == first


def test_the_first_difference_may_be_a_line_that_is_missing() -> None:
    assert first_difference(["a", "b"], ["a", "c"]) == ("b", "c")
    assert first_difference(["a"], ["a", "c"]) == ("(nothing more)", "c")
