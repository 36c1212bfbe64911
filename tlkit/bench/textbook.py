"""The textbook side of `tlkit bench`: the work as tutorials write it with Lightning, timm and torchvision.

    python -m tlkit.bench.textbook WORK.json RESULT.json

torchvision's ImageFolder decodes, resizes, augments and normalises PIL images in worker processes, in every epoch. What is frozen
has requires_grad=False and no more, the classifier is the one that timm makes, and the Trainer has its defaults: logger, progress
bar, summary, sanity pass, checkpoints. Same weights, batch size, epochs, optimizer, schedule and seed as the other sides.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tlkit.bench.floor import first_trained, layers_in_order, pretrained_state
from tlkit.bench.work import ROTATE, SCALE, TRANSLATE, WEIGHT_DECAY, Work


class TextbookClassifier(lightning.LightningModule):
    def __init__(self, work: Work, classes: int) -> None:
        super().__init__()
        self.work = work
        self.model = timm.create_model(work.backbone, num_classes=classes)
        if work.weights:
            self.model.load_state_dict(pretrained_state(work), strict=False)
        freeze(self.model, work)
        self.train_accuracy = MulticlassAccuracy(classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")
        self.epochs_s: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.model(images)
        loss = cross_entropy(logits, labels)
        self.train_accuracy(logits, labels)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self.model(images)
        self.val_accuracy(logits, labels)
        self.log("val/loss", cross_entropy(logits, labels))
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.work.lr, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        self.training_began = time.time()

    def on_train_epoch_start(self) -> None:
        self.began = time.perf_counter()

    def on_train_epoch_end(self) -> None:  # after validation
        self.epochs_s.append(time.perf_counter() - self.began)


def freeze(model: nn.Module, work: Work) -> None:
    if work.kind == "all":
        return
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)  # type: ignore[operator]
    if work.kind == "from":
        layers = layers_in_order(model)
        for _, layer in layers[first_trained([name for name, _ in layers], work.stage) :]:
            layer.requires_grad_(True)


def run_textbook(work: Work, folder: Path) -> dict[str, Any]:
    """Train, and return the same as `run_floor`. folder: for logs and checkpoints."""
    lightning.seed_everything(work.seed, workers=True)
    model = TextbookClassifier(work, classes=len(list(Path(work.images, "train").iterdir())))
    cfg: dict[str, Any] = model.model.pretrained_cfg  # type: ignore[assignment]
    fit = [transforms.Resize((work.image_size, work.image_size))]
    to_tensor = [transforms.ToTensor(), transforms.Normalize(cfg["mean"], cfg["std"])]
    flip = transforms.RandomHorizontalFlip()
    affine = transforms.RandomAffine(ROTATE, translate=(TRANSLATE, TRANSLATE), scale=SCALE)
    augment = {"all": [flip, affine], "live": [flip, transforms.RandomRotation(ROTATE)]}.get(work.kind, [])
    train = ImageFolder(f"{work.images}/train", transforms.Compose([*fit, *augment, *to_tensor]))
    val = ImageFolder(f"{work.images}/val", transforms.Compose([*fit, *to_tensor]))
    # As Lightning's own hints ask for: several workers, kept between epochs.
    loading: dict[str, Any] = {"batch_size": work.batch_size, "num_workers": min(4, os.cpu_count() or 1), "persistent_workers": True}
    train_loader, val_loader = DataLoader(train, shuffle=True, **loading), DataLoader(val, **loading)
    trainer = lightning.Trainer(max_epochs=work.epochs, default_root_dir=folder)
    trainer.fit(model, train_loader, val_loader)
    figures = {"training_began": model.training_began, "epochs_s": model.epochs_s}
    return {**figures, "accuracy": float(trainer.callback_metrics["val/accuracy"])}


if __name__ == "__main__":
    result_file = Path(sys.argv[2])
    result = run_textbook(Work.read(Path(sys.argv[1])), result_file.parent)
    result_file.write_text(json.dumps(result), encoding="utf-8")
