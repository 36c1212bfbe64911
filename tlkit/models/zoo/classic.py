"""The classics, behind timm's contract and registered with timm: lenet5, alexnet, simple_cnn, and ResNet's twins without skips.

None has pretrained weights: they are trained from scratch, as baselines.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, fx, nn

from tlkit.models.zoo.layers import LocalResponseNorm, PoolTo


def _cfg(size: int, first_conv: str, *, fixed_input_size: bool) -> dict[str, Any]:
    return {
        "input_size": (3, size, size),
        "fixed_input_size": fixed_input_size,
        "num_classes": 1000,
        "crop_pct": 0.875 if size == 224 else 1.0,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first_conv,
        "classifier": "fc",
        "license": "apache-2.0",
    }


# fixed_input_size makes timm hand the constructor its img_size, which the dense layers are made for.
default_cfgs = generate_default_cfgs(
    {
        "lenet5": _cfg(32, "features.0", fixed_input_size=True),
        "simple_cnn": _cfg(28, "features.0", fixed_input_size=True),
        "alexnet": _cfg(224, "features.0", fixed_input_size=True),
        "plain18": _cfg(224, "conv1", fixed_input_size=False),
        "plain34": _cfg(224, "conv1", fixed_input_size=False),
    }
)
"""Read by timm's register_model, which wants this name."""


class Classic(nn.Module):
    """Convolutions, then hidden dense layers or pooling, then one that gives the logits: [B, C, H, W] -> [B, K]."""

    def __init__(self, features: nn.Sequential, pre_logits: nn.Module, *, width: int, num_classes: int, sizes: range) -> None:
        """Build the network. width: F, the output of pre_logits. sizes: the image sides, in pixels, that the dense layers can take."""
        super().__init__()
        self.features = features
        self.pre_logits = pre_logits
        self.in_chans = next(layer.in_channels for layer in features if isinstance(layer, nn.Conv2d))
        self.num_features = self.head_hidden_size = width
        self.sizes = sizes
        self.feature_info = _taps(features)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        _check_size(images, self.sizes)
        maps: Tensor = self.features(images)
        return maps

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        hidden: Tensor = self.pre_logits(maps)  # [B, F]
        return hidden if pre_logits else self.fc(hidden)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool:
            raise ValueError(f"global_pool = '{global_pool}', but a dense layer follows the last map")
        self.num_classes = num_classes
        self.fc: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Group parameters as timm's VGG does: feature_info says where a block ends, and the dense layers come last."""
        return {"stem": r"^features\.0", "blocks": r"^features\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if enable:
            raise ValueError("this network has no gradient checkpointing")


def _taps(features: nn.Sequential) -> list[dict[str, Any]]:
    """Return timm's feature_info: the activation after every convolution, with its channels and reduction."""
    taps, channels, reduction = [], 0, 1
    for index, layer in enumerate(features):
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            reduction *= layer.stride[0] if isinstance(layer.stride, tuple) else layer.stride
        if isinstance(layer, nn.ReLU | _ScaledTanh):
            taps.append({"num_chs": channels, "reduction": reduction, "module": f"features.{index}"})
    return taps


@fx.wrap  # torch.fx can't follow a look at sizes
def _check_size(images: Tensor, sizes: range) -> None:
    if any(side not in sizes for side in images.shape[-2:]):
        raise ValueError(f"images of {images.shape[-2]} x {images.shape[-1]} px, but this network takes {_label(sizes)}")


def _label(sizes: range) -> str:
    return f"{sizes[0]} px" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} px"


def _side(img_size: int | Sequence[int], sizes: Sequence[int], words: str) -> int:
    """Return the side of a square image; timm gives a pair, tlkit a number. Raises ValueError if it isn't one of `sizes`."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if height != width or height not in sizes:
        raise ValueError(f"images of {height} x {width} px, but this network takes {words}.")
    return height


class _ScaledTanh(nn.Module):
    """Source: LeCun et al. 1998, appendix A, equation 20 with A = 1.7159 and S = 2/3."""

    def forward(self, sums: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(2 / 3 * sums)


def _lenet5(num_classes: int = 1000, in_chans: int = 3, img_size: int | Sequence[int] = 32) -> Classic:
    """Build LeNet-5: 6 and 16 maps, 120 and 84 units, all tanh. Images of 28 px get a border of 2, as the paper's digits have.

    Two of the paper's parts are in their later, common form: plain average pooling, and every map of the second convolution sees
    all six of the first.

    Source: LeCun et al. 1998, figure 2. Initial weights: LeCun et al. 1998, "Efficient BackProp", section 4.6.
    """
    side = _side(img_size, (28, 32), "28 or 32 px")
    features = nn.Sequential(
        nn.Conv2d(in_chans, 6, 5, padding=(32 - side) // 2),
        _ScaledTanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        _ScaledTanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 120, 5),
        _ScaledTanh(),
    )
    pre_logits = nn.Sequential(nn.Flatten(), nn.Linear(120, 84), _ScaledTanh())
    for layer in (*features, *pre_logits):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # both have one
    return Classic(features, pre_logits, width=84, num_classes=num_classes, sizes=range(side, side + 1))


def _simple_cnn(num_classes: int = 1000, in_chans: int = 3, img_size: int | Sequence[int] = 28) -> Classic:
    """Build 5x5 convolutions of 64 and 128 maps, each with ReLU and 2x2 max pooling, then 2048 and 1024 dense units.

    Convolutions have no padding: 28 px become 24, 12, 8 and 4. He initialisation.
    """
    sizes = range(16, 65)
    side = _side(img_size, sizes, f"{_label(sizes)}: its first dense layer grows with the image")
    features = nn.Sequential(
        nn.Conv2d(in_chans, 64, 5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )
    map_side = ((side - 4) // 2 - 4) // 2
    pre_logits = nn.Sequential(
        nn.Flatten(),
        nn.Linear(128 * map_side**2, 2048),
        nn.ReLU(inplace=True),
        nn.Linear(2048, 1024),
        nn.ReLU(inplace=True),
    )
    _he_initialisation(features, pre_logits)
    return Classic(features, pre_logits, width=1024, num_classes=num_classes, sizes=range(side, side + 1))


def _alexnet(
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | Sequence[int] = 224,
    drop_rate: float = 0.5,
    *,
    dense: bool = True,
    neurons: int = 4096,
    global_pool: str = "",
) -> Classic:
    """Build AlexNet: five convolutions and two dense layers of `neurons`, in the two groups that the paper had on two GPUs.

    dense: False ends with the last map, pooled by `global_pool` of timm, by default the average.
    Images of 224 or 227 px give the paper's 6 x 6 map; the map of other sizes is pooled or repeated to it.
    He initialisation: with the paper's (deviation 0.01, some biases 1) it was still at chance after 100 steps on 2,000 images of
    64 px; with He initialisation it has 0.66 of them right after 75.
    Source: Krizhevsky, Sutskever and Hinton 2012, sections 3.3 to 3.5 and 4.2.
    """
    # A map of 3 x 3 is the least that the last pooling can take.
    sizes = range(63, 4097)
    _side(img_size, sizes, _label(sizes))
    if dense and global_pool:
        raise ValueError(f"global_pool = '{global_pool}', but a dense layer follows the last map")
    features = nn.Sequential(
        nn.Conv2d(in_chans, 96, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        _response_norm(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(96, 256, 5, padding=2, groups=2),
        nn.ReLU(inplace=True),
        _response_norm(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 384, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
    )
    _he_initialisation(features)
    if not dense:
        pool = SelectAdaptivePool2d(pool_type=global_pool or "avg", flatten=True)
        return Classic(features, pool, width=256, num_classes=num_classes, sizes=sizes)
    pre_logits = nn.Sequential(
        PoolTo(6),
        nn.Flatten(),
        nn.Linear(256 * 6 * 6, neurons),
        nn.ReLU(inplace=True),
        nn.Dropout(drop_rate),
        nn.Linear(neurons, neurons),
        nn.ReLU(inplace=True),
        nn.Dropout(drop_rate),
    )
    _he_initialisation(pre_logits)
    return Classic(features, pre_logits, width=neurons, num_classes=num_classes, sizes=sizes)


def _response_norm() -> nn.Module:
    # torch divides alpha by the number of channels, the paper does not: this is its 1e-4.
    return LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)


def _he_initialisation(*parts: nn.Sequential) -> None:
    """Initialise by He et al. 2015, section 2.2, https://arxiv.org/abs/1502.01852."""
    for layer in (layer for part in parts for layer in part):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # all have one


class PlainBlock(BasicBlock):
    """ResNet's block of two 3x3 convolutions without the shortcut around them."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, stride, None, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(x)))  # type: ignore[no-any-return]


@register_model
def lenet5(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(_lenet5, "lenet5", pretrained, **kwargs)


@register_model
def simple_cnn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(_simple_cnn, "simple_cnn", pretrained, **kwargs)


@register_model
def alexnet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(_alexnet, "alexnet", pretrained, **kwargs)


@register_model
def plain18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return _plain("plain18", (2, 2, 2, 2), pretrained, **kwargs)


@register_model
def plain34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return _plain("plain34", (3, 4, 6, 3), pretrained, **kwargs)


def _plain(name: str, layers: tuple[int, ...], pretrained: bool, **kwargs: Any) -> nn.Module:
    """Build timm's ResNet of the same layers without shortcuts, its He initialisation included.

    zero_init_last starts every block as its shortcut only; without a shortcut, nothing would get through.

    Source: He et al. 2016, section 3.3, https://arxiv.org/abs/1512.03385.
    """
    model: nn.Module = build_model_with_cfg(ResNet, name, pretrained, block=PlainBlock, layers=layers, zero_init_last=False, **kwargs)
    return model
