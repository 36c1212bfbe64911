"""Networks of every family that are quick to build, copy and save."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
from torch import nn

THIN: dict[str, dict[str, Any]] = {
    "alexnet": {"neurons": 128},
    "beit_base_patch16_224": {"depth": 2},
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "deit_tiny_distilled_patch16_224": {"depth": 3},
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "pit_ti_224": {"depth": (1, 1, 1)},
    "plain18": {"channels": (16, 32, 64, 128)},
    "resnet18": {"channels": (16, 32, 64, 128)},
    "resnet50": {"channels": (16, 32, 64, 128), "layers": (1, 1, 1, 1)},
    "resnetv2_50x1_bit": {"channels": (128, 256, 512, 1024)},
    "resnext50_32x4d": {"channels": (16, 32, 64, 128), "layers": (1, 1, 1, 1)},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (2, 2, 2, 2)},
    "tresnet_m": {"layers": [1, 1, 1, 1]},
    "vgg11": {"mlp_ratio": 1 / 32},
    "vgg11_bn": {"mlp_ratio": 1 / 32},
    "vgg16": {"mlp_ratio": 1 / 32},
    "vit_tiny_patch16_224": {"depth": 3},
    "xcit_nano_12_p16_224": {"depth": 3},
}
"""What timm makes of a family with fewer blocks or channels: every kind of layer and every stage is there, and a tenth of the numbers."""


@contextmanager
def thin_networks() -> Iterator[None]:
    """What tlkit builds by these names is thin."""
    create = timm.create_model

    def create_thin(name: str, *arguments: Any, **settings: Any) -> nn.Module:
        return create(name, *arguments, **{**THIN.get(name, {}), **settings})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", create_thin)
        yield
