"""GoogLeNet: torchvision's network and weights behind timm's contract, registered with timm as `googlenet`.

Plain timm has no GoogLeNet. To read its model folder with plain timm, import this module first.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from timm.layers.classifier import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torchvision.models import GoogLeNet_Weights
from torchvision.models.googlenet import BasicConv2d

from tlkit.models.zoo.layers import PoolTo

INCEPTIONS = tuple(f"inception{name}" for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"))

_WEIGHTS = GoogLeNet_Weights.IMAGENET1K_V1
_TRANSFORMS = _WEIGHTS.transforms()
_MEAN, _STD = tuple(_TRANSFORMS.mean), tuple(_TRANSFORMS.std)

default_cfgs = generate_default_cfgs(
    {
        "googlenet.tv_in1k": {
            "url": _WEIGHTS.url,
            "num_classes": len(_WEIGHTS.meta["categories"]),
            "input_size": (3, _TRANSFORMS.crop_size[0], _TRANSFORMS.crop_size[0]),
            "pool_size": (7, 7),
            "crop_pct": _TRANSFORMS.crop_size[0] / _TRANSFORMS.resize_size[0],
            "interpolation": _TRANSFORMS.interpolation.value,
            "mean": _MEAN,
            "std": _STD,
            "first_conv": "conv1.conv",
            "classifier": "fc",
            "license": "bsd-3-clause",
            "origin_url": "https://github.com/pytorch/vision",
            "paper_ids": "arXiv:1409.4842",
        }
    }
)
"""Read by timm's register_model, which wants this name."""


class GoogLeNet(torchvision.models.GoogLeNet):  # type: ignore[misc]
    """[B, C, H, W] -> logits [B, K]. Tensors have torchvision's names; the auxiliary heads are apart, see `auxiliary_heads`.

    Source: Szegedy et al. 2015, table 1, https://arxiv.org/abs/1409.4842. torchvision's has batch-norm, and 3x3 for 5x5 convolutions.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg", drop_rate: float = 0.2) -> None:
        # transform_input: the weights were made for images at mean 0.5 and std 0.5 and come with ImageNet's; torchvision
        # converts in the forward pass. Always on, so that a name is enough to build the same network again.
        super().__init__(num_classes=1, aux_logits=False, transform_input=True, init_weights=True, dropout=drop_rate)
        if in_chans != 3:
            self.conv1 = BasicConv2d(in_chans, 64, kernel_size=7, stride=2, padding=3)
            nn.init.trunc_normal_(self.conv1.conv.weight, std=0.01, a=-2, b=2)
        del self.avgpool
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = 1024
        self.feature_info = [
            {"num_chs": channels, "reduction": reduction, "module": module}
            for channels, reduction, module in (
                (64, 2, "conv1"),
                (192, 4, "conv3"),
                (480, 8, "inception3b"),
                (832, 16, "inception4e"),
                (1024, 32, "inception5b"),
            )
        ]
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)

    def forward_features(self, images: Tensor) -> Tensor:
        """Compute [B, C, H, W] -> [B, 1024, H/32, W/32]."""
        x = self.maxpool1(self.conv1(self._transform_input(images)))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        x = self.inception4d(self.inception4c(self.inception4b(self.inception4a(x))))
        x = self.maxpool4(self.inception4e(x))
        features: Tensor = self.inception5b(self.inception5a(x))
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        pooled: Tensor = self.dropout(self.global_pool(features))  # [B, F]
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def _transform_input(self, images: Tensor) -> Tensor:
        if self.in_chans == 3:
            transformed: Tensor = super()._transform_input(images)
            return transformed
        mean, std = (torch.tensor(_per_channel(values, self.in_chans)).view(-1, 1, 1).to(images) for values in (_MEAN, _STD))
        normalized: Tensor = images * (std / 0.5) + (mean - 0.5) / 0.5
        return normalized

    def get_classifier(self) -> nn.Module:
        classifier: nn.Module = self.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        pool_type = global_pool or self.global_pool.pool_type
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool_type)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": r"^conv[123]\.", **{name: rf"^{name}\." for name in INCEPTIONS}}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if enable:
            raise ValueError("googlenet has no gradient checkpointing")

    def auxiliary_heads(self, classes: int) -> nn.ModuleDict:
        """Create two new heads, by the module whose output [B, C, 14, 14] each classifies. They are no part of the network.

        Source: Szegedy et al. 2015, section 5, with batch-norm after the convolution and pooling to 4 x 4 as in torchvision.
        """
        return nn.ModuleDict({"inception4a": _auxiliary_head(512, classes), "inception4d": _auxiliary_head(528, classes)})


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    """Convert ImageNet's mean or std to another number of channels, as the first convolution is: averaged for one, otherwise repeated."""
    return [sum(values) / len(values)] if channels == 1 else [values[i % len(values)] for i in range(channels)]


def _auxiliary_head(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        PoolTo(4),
        BasicConv2d(channels, 128, kernel_size=1),
        nn.Flatten(),
        nn.Linear(128 * 4 * 4, 1024),
        nn.ReLU(inplace=True),
        nn.Dropout(0.7),
        nn.Linear(1024, classes),
    )


def _without_auxiliary_heads(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Leave out torchvision's auxiliary heads, which its file has as they were before training."""
    return {key: tensor for key, tensor in state.items() if not key.startswith(("aux1.", "aux2."))}


@register_model
def googlenet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    model: nn.Module = build_model_with_cfg(
        GoogLeNet, "googlenet", pretrained, pretrained_filter_fn=_without_auxiliary_heads, feature_cfg={"feature_cls": "fx"}, **kwargs
    )
    return model
