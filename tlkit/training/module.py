"""One phase as Lightning sees it: one step shared by training and validation, one optimizer, one schedule."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed, nn
from torchmetrics import Metric

from tlkit.evaluation.metrics import PrimaryMetric
from tlkit.models.classifier import Classifier
from tlkit.models.split import Activations, Suffix
from tlkit.recipe.fields.learning import Mix, Optimizer, Schedule
from tlkit.recipe.fields.phases import Phase
from tlkit.recipe.schema import Task
from tlkit.training.auxiliary import AuxiliaryHeads
from tlkit.training.distributed.sharding import sharded
from tlkit.training.losses import StartingPoint, build_mix, plain_loss
from tlkit.training.metrics import MeanLoss, accuracy_of, count, score_of
from tlkit.training.optimizers import build_optimizer, build_schedule, can_fuse, parameter_groups

Batch = tuple[Tensor | Activations, Tensor]


class PhaseModule(LightningModule):
    """classifier: frozen as the phase says already. normalize: uint8 [B, C, H, W] -> float, on the batch's device.

    criterion: logits, labels -> the mean training loss of a batch. primary_metric: the figure that `val_score` is.
    """

    def __init__(
        self,
        classifier: Classifier,
        classes: int,
        *,
        normalize: Callable[[Tensor], Tensor],
        phase: Phase,
        optimizer: Optimizer,
        schedule: Schedule,
        task: Task,
        criterion: nn.Module,
        primary_metric: PrimaryMetric,
        mix: Mix,
        auxiliary: AuxiliaryHeads | None = None,
        start: StartingPoint | None = None,
        suffix: Suffix | None = None,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.criterion = criterion
        self.train_loss, self.val_loss = MeanLoss(of_finite=True), MeanLoss()
        self.train_accuracy = accuracy_of(task, classes)
        self.val_accuracy = accuracy_of(task, classes)
        self.val_score = score_of(primary_metric, classes)
        self.auxiliary = auxiliary
        if auxiliary is not None:
            auxiliary.follow(classifier)
        self._start = start
        # Not as a module of its own: its layers are the classifier's.
        self._suffix = [suffix] if suffix is not None else []
        self._compiled: Callable[[Tensor | Activations], Tensor] | None = None
        self._normalize = normalize
        self._task = task
        self._mix = build_mix(mix, classes)
        self._phase, self._optimizer, self._schedule = phase, optimizer, schedule
        self._processes = 1

    def configure_model(self) -> None:
        # Lightning 2.6 calls it once the processes know each other; a mesh of them is there with `strategy: fsdp` alone.
        if self.device_mesh is not None:
            self.classifier = sharded(self.classifier, self.device_mesh, self.trainer.strategy.root_device)
            # Lightning reads a checkpoint itself then, in which nothing is that hasn't changed yet: that is in place already.
            self.strict_loading = False

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        images, labels = batch
        if not isinstance(images, Tensor):
            return batch
        # Pictures travel as uint8, a quarter of the bytes, and become floats where they are used.
        images = self._normalize(images)
        return self._mix(images, labels) if self._mix is not None and self.trainer.training else (images, labels)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # What comes beside the classifier's own loss isn't logged, so that the figure compares with the validation loss.
        if self.auxiliary is None:
            loss = self._step(batch, batch_idx, "train")
        else:
            with self.auxiliary.listening(self.classifier.backbone) as auxiliary_logits:
                loss = self._step(batch, batch_idx, "train")
            for logits in auxiliary_logits:
                loss = loss + self.auxiliary.weight * self.criterion(logits, batch[1])
        if self._start is not None:
            loss = loss + self._start.penalty(self.classifier.backbone)
        return loss if self._processes == 1 else loss * self._weight(len(batch[1]), batch_idx)

    def _weight(self, images: int, step: int) -> float:
        """Gradients are averaged over processes: one counts by its pictures, of which the last step may have dealt it one less."""
        loader: Any = self.trainer.train_dataloader
        return float(images * self._processes / loader.sampler.images_of_step(step))

    def on_fit_start(self) -> None:
        self._processes = self.trainer.world_size

    def on_validation_start(self) -> None:
        # Batch-norm's statistics are each process's own while it trains; DDP gives the first one's to all, but not to weights that a moving
        # average is about to take the place of.
        if self._processes > 1:
            for buffer in self.classifier.buffers():
                distributed.broadcast(buffer, src=0)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._step(batch, batch_idx, "val")

    def _step(self, batch: Batch, batch_idx: int, split: str) -> Tensor:
        """Mean loss of one batch. images [B, C, H, W] or kept activations, labels [B] or, mixed or multilabel, [B, K]."""
        inputs, labels = batch
        logits = self._logits(inputs)  # [B, K]
        # Validation is measured against the labels as they are, so that its losses compare between recipes.
        trains = split == "train"
        loss: Tensor = self.criterion(logits, labels) if trains else plain_loss(logits, labels)
        mean_loss, accuracy = (self.train_loss, self.train_accuracy) if trains else (self.val_loss, self.val_accuracy)
        mean_loss.update(loss, len(labels))
        count(accuracy, self._task, logits, labels)
        figures: dict[str, Metric] = {f"{split}/loss": mean_loss, f"{split}/accuracy": accuracy}
        if not trains:
            count(self.val_score, self._task, logits, labels)
            figures["val/score"] = self.val_score
        # Lightning computes and resets them at the end of the epoch. Told in every step, it takes longer over it than over a linear head.
        if batch_idx == 0:
            self.log_dict(figures, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def figures(self) -> dict[str, Any]:
        """What the unfinished epoch has counted so far, in this process."""
        return {name: (metric.update_count, metric.metric_state) for name, metric in self._training_figures().items()}

    def go_on(self, figures: dict[str, Any]) -> None:
        """Goes on within an epoch. To be called when training starts. figures: from `figures`."""
        for name, metric in self._training_figures().items():
            # torchmetrics 1.9 has no public way to put a count back; without it, it warns that nothing was counted.
            metric._update_count, states = figures[name]
            for state, value in states.items():
                setattr(metric, state, value.to(self.device))
        # The batch that would have told Lightning of them is in the past.
        self.log_dict(self._training_figures(), on_step=False, on_epoch=True, batch_size=1)

    def _training_figures(self) -> dict[str, Metric]:
        return {"train/loss": self.train_loss, "train/accuracy": self.train_accuracy}

    def _logits(self, inputs: Tensor | Activations) -> Tensor:
        for suffix in self._suffix:
            suffix.train(self.training)
        if not self._phase.compile:
            return self._network(inputs)
        if self._compiled is None:
            # Else what earlier phases compiled would count against the variants that torch keeps; beyond them it compiles no more.
            torch.compiler.reset()
            # A function, and no module: that one would give every weight another name.
            self._compiled = torch.compile(self._network)
        return self._compiled(inputs)

    def _network(self, inputs: Tensor | Activations) -> Tensor:
        if isinstance(inputs, Tensor):
            logits: Tensor = self.classifier(inputs)
            return logits
        (suffix,) = self._suffix
        logits = self.classifier.head(suffix(*inputs))
        return logits

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.classifier, self._phase, self._optimizer, decay_backbone=self._start is None)
        if self.auxiliary is not None:
            groups += self.auxiliary.parameter_groups(self._phase.lr, self._optimizer.weight_decay)
        fused = self.device_mesh is None and can_fuse(self.device.type, str(self.trainer.precision))
        optimizer = build_optimizer(groups, self._optimizer, fused=fused)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = build_schedule(optimizer, self._schedule, steps)
        interval = "epoch" if self._schedule.name == "plateau" else "step"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval, "monitor": "val/loss"}}
