"""`strategy: fsdp`: weights, gradients and the optimizer's state split over the devices of a machine, for what doesn't fit into one.

The classifier itself stays whole, in the memory of the host: a copy of it trains, and is read back before each epoch's weights are
used. So nothing outside of a phase depends on it.
"""

from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tlkit.models.classifier import Classifier


def sharded(classifier: Classifier, mesh: DeviceMesh, device: torch.device) -> Classifier:
    """Return a copy of the main process's weights, each block sharded over the devices and gathered only while it computes.

    mesh: machines x devices per machine. The weights are sharded within a machine, where devices are close, and replicated over machines.
    device: this process's.

    Source: Zhao et al. 2023, "PyTorch FSDP", sec. 3.2.2 on hybrid sharding, https://arxiv.org/abs/2304.11277
    """
    classifier.cpu()
    # FSDP of torch 2.15 takes no weights in channels_last.
    copy = deepcopy(classifier).to(memory_format=torch.contiguous_format)
    for tensor in copy.state_dict().values():
        first = tensor.to(device)
        distributed.broadcast(first, src=0)
        tensor.copy_(first)
    for part in (*reversed(blocks(copy)), copy):  # from the inside out
        fully_shard(part, mesh=mesh)
    return copy


def blocks(classifier: Classifier) -> list[nn.Module]:
    """Return the modules that are gathered at a time, outer ones first: items of timm's lists that have layers of their own.

    These are a transformer's blocks, a residual network's, and the stages around them, which then hold only what is between blocks.
    """
    lists = [module for module in classifier.backbone.modules() if isinstance(module, nn.Sequential | nn.ModuleList)]
    items = [item for each in lists for item in each.children()]
    return [item for item in items if any(True for _ in item.children()) and any(True for _ in item.parameters())]


class Gathered(Callback):
    """Read the trained weights back into the whole classifier, in every process, once an epoch, one tensor after another."""

    def __init__(self, classifier: Classifier) -> None:
        self._whole = classifier

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Repeat the last batch in processes with fewer batches than others, since all processes gather a block at the same time.

        Not when validation ends: Lightning 2.6 reduces its metrics over processes before it says so.
        """
        loader: Any = trainer.val_dataloaders
        if batch_idx + 1 < len(loader):
            return
        most = -(-loader.sampler.size // loader.sampler.ranks)
        for _ in range(-(-most // loader.batch_size) - len(loader)):
            pl_module.classifier(batch[0])  # type: ignore[operator]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        split: dict[str, Tensor] = pl_module.classifier.state_dict()  # type: ignore[union-attr]
        for name, tensor in self._whole.state_dict().items():
            tensor.copy_(_together(split[name]))


def _together(tensor: Tensor) -> Tensor:
    whole: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole
