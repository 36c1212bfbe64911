import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from tests import warm
from tests.shades import draw_shades
from tlkit.data import datamodule
from tlkit.data.augment import build_augmentation
from tlkit.data.datamodule import ImageDataModule
from tlkit.data.preprocess import Preprocessing
from tlkit.data.samples import Sample, Samples
from tlkit.errors import DataError
from tlkit.recipe.fields.augment import Transform

PREPROCESSING = Preprocessing(8, "stretch", 1.0, "bilinear", (0.0,) * 3, (1.0,) * 3)


def grey(value: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, np.uint8))


@pytest.fixture
def data() -> ImageDataModule:
    samples = tuple(
        Sample(f"{split}/{number}", lambda number=number: grey(number * 10), (number % 2,), split)
        for split, count in (("train", 10), ("val", 5), ("test", 3))
        for number in range(count)
    )
    noise = build_augmentation([Transform(name="GaussNoise", arguments={"p": 1.0})], 8)
    return ImageDataModule(Samples(("even", "odd"), samples), PREPROCESSING, noise, batch_size=4, workers=0, seed=3)


class Watching(lightning.LightningModule):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[bytes]] = {"train": [], "val": []}

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        self.seen["train"].append(batch[0].numpy().tobytes())
        return self.weight.sum()

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> None:
        self.seen["val"].append(batch[0].numpy().tobytes())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(data: ImageDataModule, epochs: int, folder: Path) -> Watching:
    module = Watching()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=data)
    return module


def test_only_training_is_augmented(data: ImageDataModule) -> None:
    plain = torch.cat([images for images, _ in data.val_dataloader()])
    assert plain[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
    assert (plain == plain[:, :1, :1, :1]).all()
    noisy = torch.cat([images for images, _ in data.train_dataloader()])
    assert not (noisy == noisy[:, :1, :1, :1]).all()
    assert [len(labels) for _, labels in data.test_dataloader()] == [3]


def test_two_phases_see_what_one_longer_phase_sees(data: ImageDataModule, tmp_path: Path) -> None:
    together = fitted(data, 3, tmp_path).seen
    first = fitted(data, 1, tmp_path).seen
    data.first_epoch = 1
    second = fitted(data, 2, tmp_path).seen
    assert first["train"] + second["train"] == together["train"]
    assert len(set(together["train"])) == len(together["train"])
    assert together["val"][:2] * 3 == together["val"]


def test_the_batch_size_is_over_all_devices(data: ImageDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datamodule, "_is_distributed", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    assert [len(labels) for _, labels in data.train_dataloader()] == [2, 2]  # five images for each; the fifth would be alone
    assert torch.cat([images for images, _ in data.val_dataloader()])[:, 0, 0, 0].tolist() == [10, 30]
    data.batch_size = 3
    with pytest.raises(DataError, match="use a multiple of 2"):
        data.check_shares(2)


RECIPE = """
name: worker
data: {source: {folder: images}, image_size: 32, batch_size: 8, workers: 1, validation: 0.2, test: 0.2}
model: {backbone: test_resnet, weights: random}
phases: [{train: all, epochs: 1000, lr: 1e-3}]
"""


def children(process: int) -> list[int]:
    return [int(child) for file in Path(f"/proc/{process}/task").glob("*/children") for child in file.read_text().split()]


def test_a_worker_that_is_killed_ends_the_run_with_one_message(tmp_path: Path) -> None:
    """By SIGBUS, as the kernel does where /dev/shm is full, at any line of the run: it need not be waiting for a batch."""
    draw_shades(tmp_path / "images", size=32)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    environment = {**os.environ, "TLKIT_CACHE": str(tmp_path / "cache")}
    run = warm.start("finetune", "recipe.yaml", "--out", "run", cwd=tmp_path, env=environment, out=tmp_path / "out")
    run.until("epoch 1/1000")
    assert run.process.pid is not None
    workers = children(run.process.pid)
    assert workers
    for worker in workers:
        with suppress(ProcessLookupError):  # those of validation end by themselves
            os.kill(worker, signal.SIGBUS)
    ended = run.finished()
    assert ended.returncode == 2, ended.stderr
    assert "epoch 1000/1000" not in ended.stderr
    assert ended.stderr.count("A worker process that reads images has died") == 1
    assert "/dev/shm" in ended.stderr
    assert "data.workers=0" in ended.stderr
    # Under load a worker ends later than the run, and its own clean-up reports that its socket in multiprocessing's folder is gone.
    said, _, after = ended.stderr.partition("data.workers=0")
    assert "Traceback" not in said
    assert "Traceback" not in after or re.search(r"FileNotFoundError: .*/pymp-\w+/listener-", after), after
