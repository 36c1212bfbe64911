"""The best weights, and a moving average of the weights."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from safetensors.torch import load_file
from torch import Tensor

from tlkit.models.classifier import Classifier
from tlkit.models.weights.state_files import write_tensors
from tlkit.recipe.fields.learning import Ema
from tlkit.training.checkpointing.files import put_back


class BestWeights(Callback):
    """Keep the weights of the epoch with the highest validation score over all phases; of equals, of the lowest validation loss.

    An epoch whose validation loss is NaN or infinite doesn't count.

    Tensors that aren't in the file are as in the classifier: only what a phase may change is written, and is added to the file before
    the phase. Of vgg11's half a gigabyte a head is 20 kB, and its epochs on cached activations take 20 ms.
    """

    def __init__(self, file: Path, classifier: Classifier) -> None:
        self.file = file
        self.score, self.loss = float("-inf"), float("inf")
        self.current_phase = self.phase = self.epoch = 0
        self._classifier = classifier
        self._changing: frozenset[str] = frozenset(classifier.state_dict())

    def state(self) -> tuple[float, int, int, float]:
        """Return what a checkpoint needs to know, beside the file of the weights."""
        return self.score, self.phase, self.epoch, self.loss

    def load_state(self, state: Sequence[Any], weights: Path | None, *, keeps: bool) -> None:
        """Go on from a checkpoint. weights: those that were the best then, if any. keeps: whether this process writes the weights."""
        self.score, self.phase, self.epoch, *loss = state
        self.loss = loss[0] if loss else float("inf")  # not in checkpoints of earlier versions
        if not keeps:
            return
        if weights is not None:
            put_back(weights, self.file)
        else:
            self.file.unlink(missing_ok=True)

    def begin_phase(self, number: int) -> None:
        self.current_phase = number

    def set_trainable_names(self, names: frozenset[str], *, keeps: bool) -> None:
        """Set the names of the classifier's trained tensors; call it before a phase. keeps: whether this process writes the weights."""
        self._changing = names
        if not keeps or not self.file.is_file():
            return
        best = load_file(self.file)
        if names - best.keys():
            write_tensors({**_tensors(self._classifier, names), **best}, self.file)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The metric itself: the figures that are logged are ready only after this hook, when a moving average is swapped out again.
        score, loss = (float(metric.compute()) for metric in (pl_module.val_score, pl_module.val_loss))  # type: ignore[union-attr, operator]
        self.update(score, loss, trainer.current_epoch + 1, keeps=trainer.is_global_zero)

    def update(self, score: float, loss: float, epoch: int, *, keeps: bool) -> None:
        """Keep the weights if the epoch is the best. score, loss: on validation. keeps: whether this process writes the weights."""
        if not isfinite(loss) or (score, -loss) <= (self.score, -self.loss):
            return
        self.score, self.loss, self.phase, self.epoch = score, loss, self.current_phase, epoch
        if keeps:
            write_tensors(_tensors(self._classifier, self._changing), self.file)

    def restore(self) -> None:
        self._classifier.load_state_dict(load_file(self.file), strict=False)


def save_state(classifier: Classifier, file: Path) -> None:
    write_tensors(_tensors(classifier, frozenset(classifier.state_dict())), file)


def _tensors(classifier: Classifier, names: frozenset[str]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.plain_state().items() if name in names}


def moving_average(ema: Ema) -> WeightAveraging:
    """Validate with the exponential moving average of all weights and batch-norm statistics, and keep it at the end of a phase.

    After n steps the past has the weight min(decay, (1 + n) / (10 + n)), so that a short phase doesn't stay near its start.

    Source of the warm-up: TensorFlow's ExponentialMovingAverage with num_updates.
    """

    def average(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        decay = min(ema.decay, (1 + int(steps)) / (10 + int(steps)))
        # Not averaged * decay + current * (1 - decay), which moves what is frozen by a last digit.
        return averaged + (current - averaged) * (1 - decay)

    return WeightAveraging(avg_fn=average)
