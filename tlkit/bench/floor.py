"""The floor of `tlkit bench`: a bare loop on ready tensors, as quick as torch lets it be on this work.

    python -m tlkit.bench.floor WORK.json RESULT.json

Images are decoded and stretched once and kept as uint8 [N, H, W, C], which is torch's channels_last; they are normalised on the device,
batch by batch. What is frozen is in eval mode and runs in inference mode: once (head, from), or in every epoch (live). Nothing is
augmented: in `all` and `live` the floor has the network's share of the work and no other. Validation comes after each epoch; nothing is
written but the result. Imports torch, timm and Pillow, and from tlkit only what is to be done.
"""

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tlkit.bench.work import WEIGHT_DECAY, Work

Labelled = tuple[Tensor, Tensor]
"""uint8 images [N, H, W, C] or float activations [N, ..., C], and labels [N]."""


def run_floor(work: Work) -> dict[str, Any]:
    """Train, and return when training began (seconds since 1970), the seconds of each epoch with its validation, and the last accuracy."""
    torch.manual_seed(work.seed)
    device = (torch.accelerator.is_available() and torch.accelerator.current_accelerator()) or torch.device("cpu")
    backbone: nn.Module = timm.create_model(work.backbone, num_classes=0)
    cfg: dict[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
    if work.weights:
        backbone.load_state_dict(pretrained_state(work))
    backbone.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    train, val = (ready(work, split, cfg["interpolation"]) for split in ("train", "val"))
    normalize = normalizer(cfg, device)

    def batch_of(inputs: Tensor) -> Tensor:
        inputs = inputs.to(device).movedim(-1, 1)
        return normalize(inputs) if inputs.dtype == torch.uint8 else inputs

    frozen, trained = cut(backbone, work)
    if frozen is not None and work.kind != "live":
        train, val = (activations(frozen, batch_of, data, work.batch_size) for data in (train, val))
        frozen = None
    with torch.inference_mode():
        features = backbone(torch.zeros(1, 3, work.image_size, work.image_size, device=device)).shape[1]
    head = nn.Linear(features, int(val[1].max()) + 1).to(device)
    model = nn.Sequential(trained.requires_grad_(True), head)
    return train_and_validate(model, frozen, batch_of, train, val, work)


def train_and_validate(
    model: nn.Module, frozen: nn.Module | None, batch_of: Callable[[Tensor], Tensor], train: Labelled, val: Labelled, work: Work
) -> dict[str, Any]:
    """Train and validate the model. frozen: runs before it in every batch, unless its activations were computed once."""

    def forward(inputs: Tensor) -> Tensor:
        batch = batch_of(inputs)
        if frozen is not None:
            with torch.inference_mode():
                features = frozen(batch)
            batch = features.clone()  # what inference mode gives can't be saved for a backward pass
        logits: Tensor = model(batch)
        return logits

    optimizer = torch.optim.AdamW(model.parameters(), lr=work.lr, weight_decay=WEIGHT_DECAY, fused=True)
    steps = work.epochs * math.ceil(len(train[0]) / work.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    epochs_s, accuracy, training_began = [], 0.0, time.time()
    for _ in range(work.epochs):
        began = time.perf_counter()
        model.train()
        order = torch.randperm(len(train[0]))
        for inputs, labels in batches((train[0], train[1]), work.batch_size, order):
            logits = forward(inputs)
            loss = cross_entropy(logits, labels.to(logits.device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.inference_mode():
            right = [(forward(inputs).argmax(1).cpu() == labels).sum() for inputs, labels in batches(val, work.batch_size)]
        accuracy = int(sum(right)) / len(val[0])
        epochs_s.append(time.perf_counter() - began)
    return {"training_began": training_began, "epochs_s": epochs_s, "accuracy": accuracy}


def batches(data: Labelled, batch_size: int, order: Tensor | None = None) -> Iterator[Labelled]:
    inputs, labels = data
    for start in range(0, len(inputs), batch_size):
        places: Any = slice(start, start + batch_size) if order is None else order[start : start + batch_size]
        yield inputs[places], labels[places]


def ready(work: Work, split: str, interpolation: str) -> Labelled:
    """Return all images of a split, decoded and stretched."""
    folders = sorted(Path(work.images, split).iterdir())
    files = [(file, label) for label, folder in enumerate(folders) for file in sorted(folder.iterdir())]
    size, way = (work.image_size, work.image_size), Image.Resampling[interpolation.upper()]
    with ThreadPoolExecutor() as threads:
        images = list(threads.map(lambda item: np.asarray(Image.open(item[0]).convert("RGB").resize(size, way)), files))
    return torch.from_numpy(np.stack(images)), torch.tensor([label for _, label in files])


def normalizer(cfg: dict[str, Any], device: torch.device) -> Callable[[Tensor], Tensor]:
    mean, std = (255 * torch.tensor(cfg[key], device=device).view(1, 3, 1, 1) for key in ("mean", "std"))
    return lambda images: images.float().sub_(mean).div_(std)


@torch.inference_mode()
def activations(frozen: nn.Module, batch_of: Callable[[Tensor], Tensor], data: Labelled, batch_size: int) -> Labelled:
    """Compute activations, [N, F] or, in channels_last, [N, H, W, C]."""
    outputs = [frozen(batch_of(inputs)).movedim(1, -1) for inputs, _ in batches(data, batch_size)]
    return torch.cat(outputs), data[1]


def cut(backbone: nn.Module, work: Work) -> tuple[nn.Module | None, nn.Module]:
    """Return the frozen part (None if there is none) and the part that trains besides the head, both in eval mode."""
    if work.kind == "all":
        return None, backbone
    if work.kind != "from":
        return backbone, nn.Identity()
    layers = layers_in_order(backbone)
    first = first_trained([name for name, _ in layers], work.stage)
    modules = [module for _, module in layers]
    return nn.Sequential(*modules[:first]), nn.Sequential(*modules[first:])


def layers_in_order(backbone: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the layers of a backbone that is a chain: the blocks of an EfficientNet and the layers of a ResNet one by one."""
    found = []
    for name, child in backbone.named_children():
        if name == "blocks":
            found += [(f"blocks.{number}", block) for number, block in child.named_children()]
        else:
            found.append((name, child))
    return found


def first_trained(names: list[str], stage: str | None) -> int:
    """Return where the trained layers begin. stage: tlkit's name, `block6` or `layer4`; None is the last.

    Exits with a message if the backbone has no such stage, or isn't such a chain.
    """
    stages = {re.sub(r"s\.", "", name): index for index, name in enumerate(names) if re.fullmatch(r"blocks\.\d+|layer\d+", name)}
    wanted = stage or next(reversed(stages), "")
    if wanted not in stages:
        sys.exit(f"the floor can't cut this backbone at stage '{wanted}'. It knows: {', '.join(stages) or 'none of its stages'}")
    return stages[wanted]


def pretrained_state(work: Work) -> dict[str, Tensor]:
    """Return the package's tensors under timm's names, which are in the same order, without the classifier."""
    with torch.device("meta"):
        names = timm.create_model(work.backbone).state_dict().keys()
    tensors = torch.load(str(work.weights), weights_only=True).values()
    return {name: tensor for name, tensor in zip(names, tensors, strict=True) if not name.startswith("classifier.")}


if __name__ == "__main__":
    result = run_floor(Work.read(Path(sys.argv[1])))
    Path(sys.argv[2]).write_text(json.dumps({**result, "threads": torch.get_num_threads()}), encoding="utf-8")
