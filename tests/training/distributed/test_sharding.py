"""`strategy: fsdp` on two real processes over gloo: what DDP gives, with half of the weights on each."""

import csv
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import load_file

from tests import warm
from tlkit.errors import DeviceError, RecipeError
from tlkit.models.classifier import Classifier
from tlkit.recipe.fields.model import Head
from tlkit.recipe.fields.trainer import Trainer
from tlkit.recipe.load import load_recipe
from tlkit.training.distributed.sharding import blocks
from tlkit.training.trainer import check_devices

RECIPE = """
name: split
data: {source: {folder: pictures}, image_size: 32, resize: stretch, normalize: dataset, batch_size: 16}
model: {backbone: test_vit, weights: random, head: {dropout: 0.0}}
phases:
  - {train: head, epochs: 1, lr: 1e-2}
  - {train: {last: 2}, epochs: 2, lr: 1e-3}
  - {train: all, epochs: 1, lr: 1e-3, layer_decay: 0.75}
optimizer: {gradient_clip: 1.0}
trainer: {accelerator: cpu, devices: 2, strategy: fsdp}
"""


def note_what_is_held() -> None:
    """Write down, after every epoch of a process, how much of the weights and of the optimizer's moments it holds."""
    from torch.distributed.tensor import DTensor

    from tlkit.training.callbacks.metrics_table import MetricsTable

    add = MetricsTable.on_train_epoch_end

    def size(tensor: Any) -> int:
        return int((tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel())

    def noted(table: Any, trainer: Any, module: Any) -> None:
        held = sum(map(size, module.classifier.parameters()))
        states = trainer.optimizers[0].state.values()
        held_by_optimizer = sum(size(value) for state in states for name, value in state.items() if name == "exp_avg")
        with Path(f"held_{trainer.global_rank}.txt").open("a") as file:
            print(table.phase, held, held_by_optimizer, sum(p.numel() for p in module.classifier.parameters()), file=file)
        add(table, trainer, module)

    MetricsTable.on_train_epoch_end = noted  # type: ignore[method-assign]


def stop_the_first() -> None:
    """Send the first process a signal in its second phase, which splits and freezes."""
    from tlkit.training.callbacks.metrics_table import MetricsTable

    def stop(table: Any, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
        if (table.phase, trainer.current_epoch, number, trainer.global_rank) == (2, 1, 0, 0):
            os.kill(os.getpid(), signal.SIGTERM)

    MetricsTable.on_train_batch_end = stop  # type: ignore[method-assign]


def together(place: Path, *words: str, first: Callable[[], None] | None = None) -> list["subprocess.CompletedProcess[str]"]:
    """Run `tlkit finetune recipe.yaml WORDS` in two processes."""
    hook = {} if first is None else {"first": first}
    return warm.run_together("finetune", "recipe.yaml", *words, folders=(place, place), env=os.environ, **hook)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """75 training, 33 validation and 35 test images in noise, and the recipe. One process validates 3 batches, the other 2."""
    folder = tmp_path_factory.mktemp("split")
    draws = np.random.default_rng(0)
    for split, number in (("train", 75), ("val", 33), ("test", 35)):
        for i in range(number):
            name, colour = (("blue", (40, 60, 200)), ("green", (30, 180, 60)), ("red", (210, 40, 50)))[i % 3]
            (folder / "pictures" / split / name).mkdir(parents=True, exist_ok=True)
            noisy = np.array(colour) * 0.1 + 100 + draws.normal(0, 150, (32, 32, 3))
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(folder / "pictures" / split / name / f"{i:04d}.png")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def split(place: Path) -> Path:
    done = together(place, "--out", "split", first=note_what_is_held)
    assert [process.returncode for process in done] == [0, 0], done
    return place / "split"


def rows_of(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_network_that_is_split_learns_what_a_whole_one_does(place: Path, split: Path) -> None:
    done = together(place, "--out", "whole", "trainer.strategy=ddp")
    assert [process.returncode for process in done] == [0, 0], done
    for ddp, fsdp in zip(rows_of(place / "whole"), rows_of(split), strict=True):
        for name in ("train/loss", "val/loss", "train/accuracy", "val/accuracy", "lr"):
            assert fsdp[name] == pytest.approx(ddp[name], abs=1e-5), name
    one, other = (load_file(run / "model/model.safetensors") for run in (place / "whole", split))
    assert {name: tensor.shape for name, tensor in one.items()} == {name: tensor.shape for name, tensor in other.items()}
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-4


def test_each_process_holds_half_of_the_weights_and_of_what_the_optimizer_knows_of_them(place: Path, split: Path) -> None:
    """But for tensors of an odd first dimension: the first process gets the larger part of [3, F], the head's."""
    notes = [[list(map(int, line.split())) for line in (place / f"held_{rank}.txt").read_text().splitlines()] for rank in (0, 1)]
    assert [note[0] for note in notes[0]] == [1, 2, 2, 3]
    for (phase, held, moments, whole), (_, held_by_other, moments_of_other, _) in zip(*notes, strict=True):
        if phase == 1:  # where only the head trains, nothing is split
            assert held == held_by_other == whole
            continue
        assert held + held_by_other == whole
        assert held < 0.51 * whole
        assert abs(moments - moments_of_other) < 0.02 * whole
        assert (moments + moments_of_other == whole) == (phase == 3)


def test_a_split_run_that_is_stopped_goes_on_to_the_same_weights(place: Path, split: Path, tmp_path: Path) -> None:
    for name in ("pictures", "recipe.yaml"):
        (tmp_path / name).symlink_to(place / name)
    words = ["--out", "stopped", "--resume"]
    done = together(tmp_path, *words, first=stop_the_first)
    assert [process.returncode for process in done] == [75, 75], done
    assert list((tmp_path / "stopped/checkpoints").glob("*.ckpt"))
    done = together(tmp_path, *words)
    assert [process.returncode for process in done] == [0, 0], done
    assert "resumed from" in done[0].stderr
    assert (tmp_path / "stopped/model/model.safetensors").read_bytes() == (split / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("backbone", "number"),
    # By hand: 6 blocks; 4 blocks; 4 stages and 4 blocks (each stage's list holds one) ...
    [("test_vit", 6), ("test_resnet", 4), ("resnet18", 8), ("vit_tiny_patch16_224", 12), ("test_convnext", 13)],
)
def test_a_block_is_put_together_at_a_time(backbone: str, number: int) -> None:
    classifier = Classifier(timm.create_model(backbone, num_classes=0), Head(), 3, 64 if "vit" not in backbone else 224)
    found = blocks(classifier)
    assert len(found) == number
    in_blocks = {id(parameter) for block in found for parameter in block.parameters()}
    parameters = list(classifier.backbone.parameters())
    assert sum(p.numel() for p in parameters if id(p) in in_blocks) > 0.8 * sum(p.numel() for p in parameters)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "ema={decay: 0.9}",
            "ema can't be used with trainer.strategy = 'fsdp', which splits the weights over devices.\n  Remove it, or set",
        ),
        ("phases[2].compile=true", "phases[2].compile can't be used"),
        ("loss.l2_sp=0.1", "loss.l2_sp can't be used"),
        ("optimizer.name=lamb", "Use one of sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw, or set trainer.strategy to ddp."),
        ("data.batch_size={find: 0.8}", "Give it a number, or set trainer.strategy to ddp."),
        ("trainer.precision=16-mixed", "Use 32-true or bf16-mixed, or set"),
        ("model.backbone=googlenet", "model.auxiliary_loss can't be used"),
        ("trainer.devices=1", "Set it to auto, or trainer.devices to 2 or more."),
    ],
)
def test_what_cannot_be_split_is_refused_with_the_fix(place: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(place / "recipe.yaml", [override])
    assert message in str(error.value)


def test_one_device_has_nothing_to_split_over() -> None:
    with pytest.raises(DeviceError, match="and there is one"):
        check_devices(Trainer(accelerator="cpu", strategy="fsdp"))
