"""gradients.csv: how large the gradients and the weights of every layer are, epoch by epoch."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from tlkit.explain.gradient_flow import COLUMNS, GRADIENTS, Row, read_gradients
from tlkit.files import write_csv
from tlkit.models.classifier import Classifier


class GradientNorms(Callback):
    """Write gradients.csv: for every epoch and layer that trains the mean over the steps of its gradient's norm, and its weights' norm.

    Gradients are those that the optimizer gets: summed over the devices and unscaled. Layers are those with a matrix of weights; biases
    and normalisation are left out. A step with an infinite gradient, as float16 has some, doesn't count.
    """

    def __init__(self, run: Path, classifier: Classifier, phase: int) -> None:
        self._file, self._classifier, self._phase = run / GRADIENTS, classifier, phase
        self._layers: list[tuple[str, str, nn.Parameter]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._layers = trained_layers(self._classifier)
        self._restart()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def _restart(self) -> None:
        device = next(self._classifier.parameters()).device
        self._sums, self._steps = torch.zeros(len(self._layers), device=device), torch.zeros((), device=device)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        norms = _norms([parameter.grad if parameter.grad is not None else parameter.new_zeros(1) for _, _, parameter in self._layers])
        finite = norms.isfinite().all()  # stays on the device: no step waits for it
        self._sums += torch.where(finite, norms, 0)
        self._steps += finite

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch + 1
        gradients = (self._sums / self._steps.clamp_min(1)).tolist()
        weights = _norms([parameter.detach() for _, _, parameter in self._layers]).tolist()
        # A run that goes on from a checkpoint writes its epochs again.
        earlier = (
            [row for row in read_gradients(self._file) if (row.phase, row.epoch) < (self._phase, epoch)] if self._file.exists() else []
        )
        now = [
            Row(self._phase, epoch, stage, layer, gradient, weight)
            for (stage, layer, _), gradient, weight in zip(self._layers, gradients, weights, strict=True)
        ]
        write_csv(self._file, COLUMNS, (dict(zip(COLUMNS, row, strict=True)) for row in [*earlier, *now]), durable=False)


def trained_layers(classifier: Classifier) -> list[tuple[str, str, nn.Parameter]]:
    """Return stage, name and weights of every layer that trains, in forward order; the head is a stage of its own."""
    named = dict(classifier.backbone.named_parameters())
    places = [(stage.name, name, named[name]) for stage in classifier.stages for name in stage.parameters if name in named]
    places += [("head", f"head.{name}", parameter) for name, parameter in classifier.head.named_parameters()]
    return [(stage, name.removesuffix(".weight"), weights) for stage, name, weights in places if weights.requires_grad and weights.ndim > 1]


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors])
