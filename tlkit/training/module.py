"""One phase as Lightning sees it: one step shared by training and validation, one optimizer, one schedule."""

from collections.abc import Callable
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed, nn
from torchmetrics import Metric

from tlkit.data.dataset import EpochSampler
from tlkit.data.normalize import Normalize
from tlkit.models.classifier import Classifier
from tlkit.models.freeze import trained_parameters
from tlkit.models.split import Activations, Suffix
from tlkit.recipe.fields.learning import Loss, Optimizer, Schedule
from tlkit.recipe.fields.phases import Phase
from tlkit.recipe.validate import document_of, validated
from tlkit.training.distributed.sharding import sharded
from tlkit.training.objective.losses import plain_loss
from tlkit.training.objective.metrics import MeanLoss, Scoring
from tlkit.training.objective.objective import Objective
from tlkit.training.optimizers import Optimization, build_optimizer, build_schedule, can_fuse, check_optimizer_name, parameter_groups
from tlkit.training.private_api import leave_out_of_ddp, metric_state, set_metric_state

Batch = tuple[Tensor | Activations, Tensor]


class PhaseModule(LightningModule):
    """Train a classifier as one phase of a recipe says. `PhaseModule.create` makes one from plain arguments, for a Trainer of your own.

    It logs `train/loss`, `train/accuracy`, `val/loss`, `val/accuracy`, `val/score`, `test/loss` and `test/accuracy`, each over all images
    of an epoch and over all processes; `Trainer.predict` gives probabilities [B, K].

    Args:
        classifier: Frozen already as the phase says.
        objective: The training loss.
        scoring: The metrics, and which of them is `val/score`.
        optimization: The phase with its rates, the optimizer and the schedule.
        normalize: Maps uint8 images [B, C, S, S] to the classifier's input.
        suffix: The layers after cached activations, if batches are activations; None if they are images.
    """

    def __init__(
        self,
        classifier: Classifier,
        objective: Objective,
        scoring: Scoring,
        optimization: Optimization,
        *,
        normalize: Normalize,
        suffix: Suffix | None = None,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.criterion = objective.criterion
        self.train_loss, self.val_loss = MeanLoss(of_finite=True), MeanLoss()
        self.train_accuracy, self.val_accuracy = scoring.accuracy(), scoring.accuracy()
        self.val_score = scoring.score()
        self.test_loss, self.test_accuracy = MeanLoss(), scoring.accuracy()
        self.auxiliary = objective.auxiliary
        if self.auxiliary is not None:
            self.auxiliary.follow(classifier)
        self.normalize = normalize
        leave_out_of_ddp(self, [f"normalize.{name}" for name, _ in normalize.named_buffers()])
        self._start, self._mix = objective.start, objective.mix
        # Not as a module of its own: its layers are the classifier's.
        self._suffix = [suffix] if suffix is not None else []
        self._compiled: Callable[[Tensor | Activations], Tensor] | None = None
        self._scoring = scoring
        self._processes = self._accumulate = 1
        self._phase, self._optimizer, self._schedule = optimization.phase, optimization.optimizer, optimization.schedule

    @classmethod
    def create(
        cls,
        classifier: Classifier,
        *,
        train: Any = "head",
        lr: float = 1e-3,
        optimizer: str = "adamw",
        weight_decay: float = 0.05,
        schedule: str = "cosine",
        label_smoothing: float = 0.0,
    ) -> Self:
        """Freeze what doesn't train, and make a module for any Trainer.

        Batch-norm layers that train take the statistics of each batch, and there is no warm-up.

        Args:
            classifier: With its preprocessing, as `create_classifier` and `load_model` give it. Each image has one label.
            train: What trains, as in a recipe: head, all, norm, bias, `{"from": STAGE}`, `{"last": N}`, `{"lora": {"rank": R}}` or `dora`.
                After training with the last two, `classifier.merge_adapters()` makes it a plain network again; so does a further
                `create`.
            lr: The highest learning rate.
            optimizer: sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw, or one of timm's.
            weight_decay: Not applied to biases and normalisation layers.
            schedule: cosine, constant, linear, step, one_cycle or plateau, over all steps that the Trainer will make.
            label_smoothing: Share of the target that is spread over all classes.

        Returns:
            The module. Batches are (images, labels): uint8 images are normalised on the device, floats are taken as normalised.

        Raises:
            RecipeError: A value can't be used, or the backbone has no such stage.
            BackboneError: The classifier was made without preprocessing.
        """
        preprocessing = classifier.given_preprocessing()
        phase = validated(Phase, document_of({"train": train, "epochs": 1, "lr": lr}), "phase")  # the Trainer knows the epochs
        how = validated(Optimizer, document_of({"name": optimizer, "weight_decay": weight_decay}), "optimizer")
        check_optimizer_name(how.name)
        rates = validated(Schedule, document_of({"name": schedule}), "schedule")
        smoothing = validated(Loss, document_of({"label_smoothing": label_smoothing}), "loss").label_smoothing
        name = type(classifier.backbone).__name__
        classifier.merge_adapters()
        trained = trained_parameters(phase.train, classifier.backbone, classifier.stages, key="train", name=name, called=classifier.called)
        classifier.train_only(trained, adapter=phase.adapter)
        objective = Objective(nn.CrossEntropyLoss(label_smoothing=smoothing))
        scoring = Scoring("multiclass", len(classifier.classes), "accuracy")
        return cls(classifier, objective, scoring, Optimization(phase, how, rates), normalize=preprocessing.normalizer())

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
        # Images travel as uint8, a quarter of the bytes, and become floats where they are used.
        if images.dtype == torch.uint8:
            images = self.normalize(images)
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
        weight = self._weight(len(batch[1]), batch_idx)
        return loss if weight == 1 else loss * weight

    def _weight(self, images: int, batch: int) -> float:
        """Return what makes an optimizer's step the mean over its own images.

        DDP averages over processes, and Lightning divides by `accumulate`, whatever each of them has: a batch counts by its images.
        images: of this process in the batch, of which the last one of an epoch may have fewer, or others than those of other processes.
        """
        if self._processes == self._accumulate == 1:
            return 1.0
        loader: Any = self.trainer.train_dataloader
        if not isinstance(getattr(loader, "sampler", None), EpochSampler):
            return 1.0  # a loader of the user's own: Lightning's plain mean
        first = batch - batch % self._accumulate
        last = min(first + self._accumulate, int(self.trainer.num_training_batches))
        of_step = sum(loader.sampler.images_of_step(number) for number in range(first, last))
        return float(images * self._processes * self._accumulate / of_step)

    def on_fit_start(self) -> None:
        self._processes, self._accumulate = self.trainer.world_size, self.trainer.accumulate_grad_batches

    def on_validation_start(self) -> None:
        # Batch-norm's statistics are each process's own while it trains; DDP gives the first one's to all, but not to weights that a moving
        # average is about to take the place of.
        if self._processes > 1:
            for buffer in self.classifier.buffers():
                distributed.broadcast(buffer, src=0)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._step(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._step(batch, batch_idx, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return probabilities [B, K]."""
        logits = self._logits(batch[0])
        return logits.sigmoid() if self._scoring.task == "multilabel" else logits.softmax(1)

    def _step(self, batch: Batch, batch_idx: int, split: str) -> Tensor:
        """Return the mean loss of a batch. images [B, C, H, W] or cached activations, labels [B] or, mixed or multilabel, [B, K]."""
        inputs, labels = batch
        logits = self._logits(inputs)  # [B, K]
        # Validation is measured against the labels as they are, so that its losses compare between recipes.
        trains = split == "train"
        loss: Tensor = self.criterion(logits, labels) if trains else plain_loss(logits, labels)
        mean_loss, accuracy = self._counted[split]
        mean_loss.update(loss, len(labels))
        self._scoring.count(accuracy, logits, labels)
        figures: dict[str, Metric] = {f"{split}/loss": mean_loss, f"{split}/accuracy": accuracy}
        if split == "val":
            self._scoring.count(self.val_score, logits, labels)
            figures["val/score"] = self.val_score
        # Lightning computes and resets them at the end of the epoch. Logged in every step, it takes longer over it than over a linear head.
        if batch_idx == 0:
            self.log_dict(figures, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def epoch_state(self) -> dict[str, Any]:
        """Return what the unfinished epoch has counted so far, in this process."""
        return {name: metric_state(metric) for name, metric in self._training_figures().items()}

    def load_epoch_state(self, state: dict[str, Any]) -> None:
        """Go on within an epoch. To be called when training starts. state: from `epoch_state`."""
        for name, metric in self._training_figures().items():
            set_metric_state(metric, state[name], self.device)
        # The batch that would have given them to Lightning is in the past.
        self.log_dict(self._training_figures(), on_step=False, on_epoch=True, batch_size=1)

    @property
    def _counted(self) -> dict[str, tuple[MeanLoss, Metric]]:
        return {
            "train": (self.train_loss, self.train_accuracy),
            "val": (self.val_loss, self.val_accuracy),
            "test": (self.test_loss, self.test_accuracy),
        }

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
        clip = self.trainer.gradient_clip_val
        fused = self.device_mesh is None and can_fuse(self.device.type, str(self.trainer.precision), clips=bool(clip))
        optimizer = build_optimizer(groups, self._optimizer, fused=fused)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = build_schedule(optimizer, self._schedule, steps)
        interval = "epoch" if self._schedule.name == "plateau" else "step"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval, "monitor": "val/loss"}}
