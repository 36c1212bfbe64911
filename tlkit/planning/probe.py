"""Measurements of a short trial of a phase: bytes, seconds, and the optimizer's parameter groups."""

import time
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tlkit.training.module import PhaseModule


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    copies: the second sets of weights that `ema` and `l2_sp` keep. activations: what the backward pass needs of one batch.
    """

    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.copies + self.activations


@dataclass
class MemoryProbe(Callback):
    """Reads the optimizer's groups and counts what it and autograd keep. activations: images of a batch -> bytes."""

    groups: list[dict[str, Any]] = field(default_factory=list)
    optimizer: int = 0
    activations: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._began = time.perf_counter()
        self._images = len(batch[0])
        # By the storage's address. What is computed beside the loss, as DoRA's norms are, is gone before the backward pass.
        self._kept: dict[int, tuple[list[ref[Tensor]], int]] = {}
        own = {tensor.untyped_storage().data_ptr() for tensor in (*pl_module.parameters(), *pl_module.buffers())}

        def note(tensor: Tensor) -> Tensor:
            storage, kept = tensor.untyped_storage(), tensor.detach()  # a result itself would keep the graph that it is kept for
            if storage.data_ptr() not in own:
                saved, _ = self._kept.get(storage.data_ptr(), ([], 0))
                self._kept[storage.data_ptr()] = [*saved, ref(kept)], storage.nbytes()
            return kept

        self._hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        self._hooks.__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._hooks.__exit__()
        self.activations[self._images] = sum(size for saved, size in self._kept.values() if any(tensor() is not None for tensor in saved))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        wait_for_device()
        self.seconds = (time.perf_counter() - self._began) / len(batch[0])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        (optimizer,) = trainer.optimizers
        # In 16-mixed the first steps may have been left out, and with them the optimizer's state.
        optimizer.step()
        self.groups = optimizer.param_groups
        self.optimizer = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))

    def memory(self, module: PhaseModule, images: int, *, copies: int) -> Memory:
        """Measure memory. images: of a batch on one device. Activations grow linearly with them, so two batch sizes are enough."""
        (few, at_few), *_, (more, at_more) = sorted({0: 0, **self.activations}.items())[-2:]
        bytes_per_image = (at_more - at_few) / (more - few)
        weights = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
        gradients = sum(parameter.nbytes for group in self.groups for parameter in group["params"])
        activations = max(0, round(at_few + bytes_per_image * (images - few)))
        return Memory(weights, gradients, self.optimizer, copies * weights, activations)


@dataclass
class Stopwatch(Callback):
    """Seconds that each batch takes to load and to train, and each image to validate."""

    loading: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    validating: list[float] = field(default_factory=list)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.loading.append(self._lap())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.training.append(self._lap())

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: Any) -> None:
        self._lap()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        self.validating.append(self._lap() / len(batch[0]))

    def _lap(self) -> float:
        wait_for_device()
        now = time.perf_counter()
        lap, self._mark = now - self._mark, now
        return lap


def wait_for_device() -> None:
    """Wait for the GPU, which continues to compute after torch has returned."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
